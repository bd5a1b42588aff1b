"""Memory of a step with noise on the outputs of layers (`ActivityCredit`)."""

from __future__ import annotations

from zorn.planning.cells import WIDE, waiting_steps
from zorn.planning.forward import (
    TOKEN,
    cell_of,
    forward_stages,
    head_stage,
    layers_stage,
    logits_bytes,
)
from zorn.planning.sizes import ModelSizes
from zorn.planning.stages import Stage, all_with
from zorn.planning.update import FINITE, between_steps, is_fused, update_stage
from zorn.training.config import Config


def exact_output(config: Config) -> bool:
    """Whether the output layer's gradient is taken from the error of its logits.

    >>> from zorn.training import BudgetConfig
    >>> exact_output(Config(budget=BudgetConfig(steps=1)))
    True
    """
    return config.estimator.exact_output != "no" and config.task.objective == "cross-entropy"


def activity_stages(sizes: ModelSizes, config: Config, steps: int) -> dict[str, Stage]:
    """The stages of a step, of s sequences at a time, each with D draws.

    measure: at the first step, before there are moments, the sequences of a micro-batch run without noise.
    noisy: s (1 + D) rows with an exact output layer, whose logits are those of the s rows only; else 2 s D
    rows. Each site holds its tape of noise, of the embedding's (and head's) chunk or 16 steps of a cell, and
    the last tape while it makes the next.
    replay: s rows; cells hold what 16 steps of theirs were made from until their gradient is summed, in
    float32, twice where several portions of the batch are added up.
    gradient: what was added up, its copy in `.grad`, and what tells whether it is finite.
    """
    settings, batch, e = config.estimator, config.task.batch, sizes.element
    draws, chunk = settings.draws or 1, min(settings.time_chunk or steps, steps)
    exact = exact_output(config)
    sequences = min(batch, max(1, settings.micro_batch // (1 + draws if exact else 2 * draws)))
    rows = sequences * (1 + draws if exact else 2 * draws)
    members = sequences * draws
    summed = sizes.total * WIDE
    portions = 1 if sequences >= batch else 2
    left = Stage() if is_fused(config) else Stage(gradients=sizes.weight_bytes)
    earlier = left + Stage(gradients=summed * (portions - 1))
    measured = forward_stages(sizes, min(batch, settings.micro_batch), chunk, noisy=False)
    again = chunk < steps  # what a chunk made of the head is there while the next one runs
    tapes = _tapes(sizes, members, steps, chunk, head=not exact and again)
    head_tapes = _tapes(sizes, members, steps, chunk, head=not exact)
    noisy = {"layers": tapes + _noisy_layers(sizes, rows, chunk)}
    replay = {"layers": tapes + _replay(sizes, sequences, draws, chunk)}
    if exact:
        noisy |= {"head": tapes + _exact_head(sizes, sequences, draws, chunk)}
    else:
        noisy |= {"head": head_tapes + head_stage(sizes, rows, chunk, noisy=False)}
        loss = logits_bytes(rows * chunk, sizes.vocabulary, e)
        noisy |= {"loss": head_tapes + Stage(logits=loss, states=2 * rows * sizes.state_bytes)}
        outputs = sequences * chunk * sizes.vocabulary * e
        replay |= {
            "head": head_tapes
            + head_stage(sizes, sequences, chunk, noisy=False)
            + Stage(activations=outputs * (1 if draws == 1 else 1 + draws))
        }
    summing = earlier + Stage(gradients=summed + sizes.largest * WIDE)
    gradient = Stage(gradients=portions * summed, optimizer=FINITE * sizes.largest)
    base = between_steps(sizes, config)
    stages = {
        **all_with(earlier, noisy, within="noisy"),
        **all_with(summing, replay, within="replay"),
        "gradient": left + gradient,
        "update": update_stage(sizes, config, whole=True) + Stage(gradients=summed * is_fused(config)),
    }
    first = all_with(Stage(weights=sizes.weight_bytes), measured, within="measure")
    return first | all_with(base, stages)


def _tapes(sizes: ModelSizes, members: int, steps: int, chunk: int, *, head: bool) -> Stage:
    """The noise of all sites, [members, steps, units] (`NoiseTape.read`): those of a chunk are made again
    with each chunk, those of cells every 16 steps, beside the ones before."""
    whole = sizes.embedding + (sizes.vocabulary if head else 0)
    twice = 2 if chunk < steps else 1
    a_chunk = members * chunk * whole * sizes.element * twice
    ahead = waiting_steps(steps)
    of_cells = sum(cell_of(sizes, layer).site for layer in range(sizes.layers)) * ahead * WIDE
    return Stage(perturbations=a_chunk + members * of_cells * (2 if ahead < steps else 1))


def _noisy_layers(sizes: ModelSizes, rows: int, chunk: int) -> Stage:
    noisy = max(cell_of(sizes, layer).noisy_step for layer in range(sizes.layers))
    return layers_stage(sizes, rows, chunk, step_bytes=noisy)


def _exact_head(sizes: ModelSizes, sequences: int, draws: int, chunk: int) -> Stage:
    """The output layer: outputs of all rows, the logits of those without noise, their log-softmax or their
    error, the change by the noise of what goes in (`OutputLayer.receive`), the layer's gradient."""
    tokens = sequences * chunk
    read = tokens * sizes.hidden * sizes.element
    logits = logits_bytes(tokens, sizes.vocabulary, sizes.element)
    error = tokens * (sizes.vocabulary * (sizes.element + WIDE) + 2 * TOKEN)
    head = sizes.vocabulary * sizes.hidden
    return Stage(
        activations=read * (1 + draws) + read * (1 + 2 * draws),
        logits=max(logits, error),
        states=2 * sequences * (1 + draws) * sizes.state_bytes,
        gradients=head * (sizes.element + WIDE),
    )


def _replay(sizes: ModelSizes, sequences: int, draws: int, chunk: int) -> Stage:
    """A chunk without noise whose sites sum their gradients."""
    layers = layers_stage(sizes, sequences, chunk)
    waiting = waiting_steps(chunk) * sum(cell_of(sizes, layer).replayed for layer in range(sizes.layers))
    embedding = chunk * sizes.embedding * sizes.element * (1 + draws)
    return layers + Stage(activations=sequences * max(waiting, embedding))
