"""Memory of a step that differentiates: BPTT, TBPTT, e-prop, and the bridge with its rollouts."""

from __future__ import annotations

from zorn.estimators.bridge import NOISE_AT_ONCE
from zorn.planning.cells import WIDE
from zorn.planning.forward import TOKEN, cell_of, forward_stages, logits_bytes
from zorn.planning.sizes import ModelSizes
from zorn.planning.stages import Stage, all_with
from zorn.planning.update import between_steps, norm_bytes, update_stage
from zorn.training.config import Config

NODE = 16_000
"""Bytes of a step and layer's nodes in the graph of autograd, whatever the rows: 12,000 to 19,000 were
measured of an lstm (2026-11-23)."""


def differentiated_steps(config: Config, steps: int) -> int:
    """k: the whole sequence, or the truncation.

    >>> from zorn.training import BudgetConfig, EstimatorConfig
    >>> settings = EstimatorConfig(estimator="tbptt", truncation=10)
    >>> differentiated_steps(Config(estimator=settings, budget=BudgetConfig(steps=1)), steps=64)
    10
    """
    return min(steps, config.estimator.truncation or steps)


def differentiating_stages(sizes: ModelSizes, config: Config, steps: int) -> dict[str, Stage]:
    """The stages of a step, of s sequences and k steps at a time.

    forward and loss: what autograd keeps of k steps grows until the loss, whose logits come on top.
    layers: backwards through the layers, the gradient of the one that is worked on beside `.grad` where there
    are several pieces, and temporary copies of its largest weight.
    rollouts (bridge): 2 D rows a sequence run the next k steps while the graph of the first k is there.
    norm: of the gradient, for the bridge of the sum of its two parts.
    """
    settings, batch = config.estimator, config.task.batch
    sequences = min(batch, settings.micro_batch)
    k = differentiated_steps(config, steps)
    bridged = settings.estimator == "bridge" and k < steps
    pieces = -(-steps // k) * -(-batch // sequences)
    parts = 2 if settings.estimator == "bridge" and settings.separate else 1
    gradient = sizes.weight_bytes
    graph = Stage(activations=sequences * k * kept_bytes(sizes) + k * sizes.layers * NODE)
    state = Stage(states=2 * sequences * sizes.state_bytes)
    separate = bridged and parts > 1  # .credit_grad and a piece's own part of it, from the third on .grad too
    before = Stage(gradients=gradient * (min(3, pieces) if separate else pieces > 1))
    logits = logits_bytes(sequences * k, sizes.vocabulary, sizes.element, differentiated=True)
    scan = sizes.cell == "min-gru"  # whose backward pass has the gradient of all steps' decays and inflows
    flowing = sequences * k * sizes.hidden * (2 * WIDE if scan else sizes.element)
    noise = _noise(sizes, config, sequences, steps - k) if bridged else Stage()
    first = sizes.parameters.get("head.weight", 0) * sizes.element
    through = max((_layer(sizes, layer) for layer in range(sizes.layers)), key=lambda stage: stage.total)
    last = Stage(gradients=gradient + sizes.parameters["embedding.weight"] * sizes.element * (pieces > 1))
    stages = {
        "loss": before + noise + graph + state + Stage(logits=logits),
        "head": before + noise + graph + state + Stage(logits=logits // 3, gradients=first),
        "layers": before
        + noise
        + graph
        + state
        + through
        + Stage(activations=flowing, gradients=first * (pieces == 1)),
        "embedding": before + noise + state + last + Stage(activations=flowing),
        "norm": Stage(gradients=(parts + (parts > 1)) * gradient, optimizer=norm_bytes(sizes)),
        "update": update_stage(sizes, config, whole=True),
    }
    if bridged:
        draws = settings.draws or 1
        rollouts = forward_stages(sizes, 2 * draws * sequences, k, noisy=False, factors=0)
        several = parts * gradient * (sequences < batch)
        losses = Stage(logits=logits // 3, gradients=several)
        stages |= all_with(graph + losses + state + noise, rollouts, within="rollouts")
    return all_with(between_steps(sizes, config), stages)


def kept_bytes(sizes: ModelSizes) -> int:
    """What autograd keeps of a row and step, without what it keeps of the logits (their log-softmax): each
    layer's cell and norm, the head's input, the token.

    >>> from zorn.training import ModelConfig
    >>> kept_bytes(ModelSizes.of(ModelConfig(hidden_size=100, embedding_size=10), vocabulary=256))
    3264
    """
    e = sizes.element
    norm = {"none": 0, "layer": e, "rms": 2 * WIDE}[sizes.norm] * (sum(sizes.inputs) + sizes.hidden)
    cells = sum(cell_of(sizes, layer).kept for layer in range(sizes.layers))
    return cells + norm + sizes.hidden * e + 3 * TOKEN


def _layer(sizes: ModelSizes, layer: int) -> Stage:
    """The gradient of a layer while it is summed over steps, and the copies of its recurrent weight."""
    weights = sizes.layer(layer)
    copies = cell_of(sizes, layer).copies * max(weights.values())
    return Stage(gradients=(sum(weights.values()) + copies) * sizes.element)


def _noise(sizes: ModelSizes, config: Config, sequences: int, later: int) -> Stage:
    """The noise at the boundaries, some of them at once, and that of one scaled, and with both signs
    (`_BoundaryNoise.added`)."""
    draws = config.estimator.draws or 1
    numbers = sequences * draws * sizes.state_bytes // WIDE
    boundaries = -(-later // (config.estimator.truncation or 1))
    together = min(boundaries, max(1, NOISE_AT_ONCE // max(1, numbers)))
    return Stage(perturbations=numbers * WIDE * together, states=numbers * WIDE * 3)
