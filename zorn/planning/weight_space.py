"""Memory of a step with noise on the weights: CD-RGE, FD-RGE, 1.5-SPSA, PES and NRES, rank-one or dense."""

from __future__ import annotations

from zorn.models.sliced_head import OUTPUT_SLICE
from zorn.planning.forward import forward_stages
from zorn.planning.sizes import ModelSizes
from zorn.planning.stages import Stage, all_with
from zorn.planning.update import between_steps, folded_bytes, is_fused, update_stage
from zorn.training.config import Config
from zorn.training.usage import STREAMING

SIGNS = 2


def is_sliced(sizes: ModelSizes, config: Config) -> bool:
    """Whether the logits are read in slices; pes and nres carry the state of the whole model.

    >>> from zorn.training import BudgetConfig, EstimatorConfig, ModelConfig
    >>> sizes = ModelSizes.of(ModelConfig(hidden_size=8), vocabulary=50_000)
    >>> is_sliced(sizes, Config(estimator=EstimatorConfig(estimator="cd-rge"), budget=BudgetConfig(steps=1)))
    True
    """
    wanted = config.task.objective == "cross-entropy" and config.estimator.estimator not in STREAMING
    return wanted and sizes.vocabulary > OUTPUT_SLICE


def weight_space_stages(sizes: ModelSizes, config: Config, steps: int) -> dict[str, Stage]:
    """The stages of a step.

    evaluate: members of a micro-batch run a chunk of time. Rank-one (`member_losses`): 2 signs of M members
    with g sequences each are the rows, and the members' factors live beside them. Dense: g sequences of one
    member and sign, on a copy of the weights; its direction is kept in one bit a weight, normals as they are
    (`_BoundDense._moved`). pes and nres keep two states of every member, and make the next beside them. A
    vocabulary whose logits are read in slices has its signs drawn with them.

    draw: factors or a dense member are made.

    fold: blocks of at most 2**17 numbers, into `.grad` or straight into the weights; without a fused update
    `.grad` is there from the step before while members are evaluated.
    """
    settings, batch = config.estimator, config.task.batch
    group = settings.group_size or batch
    population, chunk = settings.population or 1, min(settings.time_chunk or steps, steps)
    gradients = Stage() if is_fused(config) else Stage(gradients=sizes.weight_bytes)
    sliced = is_sliced(sizes, config)
    if settings.structure == "dense":
        rows = min(group, settings.micro_batch)
        kept = sizes.total // 8 if settings.noise == "rademacher" else sizes.weight_bytes
        noise, factors = sizes.weight_bytes + kept, 0
    else:
        lanes = max(1, settings.micro_batch // SIGNS)
        members = min(population, max(1, lanes // group))
        rows = SIGNS * members * min(group, lanes)
        rank, signs = settings.rank or 1, settings.noise == "rademacher"
        noise = members * sizes.factor_bytes(rank, signs=signs, tables=not sliced)
        if sliced and signs:
            noise += members * rank * sizes.sign_bytes(OUTPUT_SLICE)
        factors = members * rank
    evaluated = forward_stages(
        sizes, rows, chunk, noisy=settings.structure != "dense", factors=factors, sliced=sliced
    )
    streams = 0
    if settings.estimator in STREAMING:
        streams = 2 * SIGNS * population * group * sizes.state_bytes
    stages = {
        **all_with(gradients + Stage(perturbations=noise), evaluated, within="evaluate"),
        "draw": gradients + Stage(perturbations=noise + folded_bytes(sizes)),
        "fold": gradients + Stage(perturbations=folded_bytes(sizes)),
        "update": update_stage(sizes, config, whole=False),
    }
    return all_with(between_steps(sizes, config) + Stage(states=streams), stages)
