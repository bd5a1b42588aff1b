"""The smoothed loss L_ε(θ) = E_z[L(θ + ε z)], what zero-order training descends, with its standard error.

For Gaussian z the mean of CD-RGE is its gradient exactly (Nesterov and Spokoiny 2017; Salimans et al. 2017);
L_ε = L + ε²/2 tr H to second order, so L_ε − L says how sharp the loss is at the scale ε.
"""

from dataclasses import dataclass

from torch import nn

from zorn.checks import check_whole_number, wrong
from zorn.errors import NonFiniteLossError
from zorn.estimators.arguments import check_call
from zorn.estimators.cd_rge import CDRGE
from zorn.estimators.population import Objective
from zorn.models import Batch
from zorn.noise import Perturbation, RankOne


@dataclass(frozen=True, kw_only=True)
class SmoothedLoss:
    """An estimate of L_ε(θ) on one batch.

    Args:
        loss: mean over members and signs, in the objective's unit; its expectation is L_ε of the batch.
        standard_error: of `loss` over the random directions, for this batch: how far it would move with
            another seed, not with other data.
        members: n, antithetic pairs of directions.
        forward_passes: sequences run through the model, 2 n g.
    """

    loss: float
    standard_error: float
    members: int
    forward_passes: int


def smoothed_loss(
    model: nn.Module,
    batch: Batch,
    objective: Objective,
    *,
    epsilon: float,
    members: int,
    perturbation: Perturbation | None = None,
    group_size: int | None = None,
    seed: int = 0,
    micro_batch: int = 512,
    time_chunk: int | None = None,
) -> SmoothedLoss:
    """Estimate L_ε(θ) from antithetic pairs (L(θ + ε z_j) + L(θ − ε z_j)) / 2, in inference mode.

    Members of one group of sequences are a sample of their own; the standard error adds up what they vary by
    within groups, so that differences between sequences do not count.

    Args:
        model: any `nn.Module`; its weights are not changed.
        batch: the sequences, all of which are used equally often.
        objective: as for an estimator.
        epsilon: ε > 0, the standard deviation of one weight's perturbation.
        members: n, a multiple of B / g, at least 2 B / g.
        perturbation: the structure of the directions z; None is `RankOne()`. L_ε belongs to the structure,
            beyond second order in ε.
        group_size: g, the sequences that each member is evaluated on, a divisor of B; None is the whole
            batch.
        seed: of the directions, 0 to 2**64 - 1; the same seed compares two models, or two ε, under common
            random numbers.
        micro_batch: rows of one forward pass at most.
        time_chunk: steps after which a recurrent model's outputs are dropped; None for whole sequences.

    Raises:
        ConfigError: an argument outside its range.
        UncoveredParameterError: a parameter without a rule.
        NonFiniteLossError: a member's loss is NaN or infinite, and so is their mean.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 1)
        >>> batch = Batch(torch.randn(8, 3), torch.zeros(8, 1))
        >>> def square(outputs, targets):
        ...     return outputs.square().mean(-1)
        >>> found = smoothed_loss(model, batch, square, epsilon=0.1, members=64)
        >>> found.loss > 0, found.standard_error > 0, found.forward_passes
        (True, True, 1024)
    """
    check_call(model, batch, objective)
    check_whole_number("members", members, minimum=2)
    estimator = CDRGE(
        population=members,
        epsilon=epsilon,
        perturbation=RankOne() if perturbation is None else perturbation,
        group_size=group_size,
        seed=seed,
        micro_batch=micro_batch,
        time_chunk=time_chunk,
    )
    sequences = len(batch.inputs)
    groups, rest = divmod(sequences, group_size or sequences)
    if not rest and (members % groups or members < 2 * groups):
        expected = (
            f"a multiple of {groups} and at least {2 * groups} for {sequences} sequences in {groups} groups"
        )
        raise wrong("members", f"{expected}, so that each has two or more", members)
    losses, passes = estimator.evaluate(model, estimator.ask(model), batch, objective)
    pairs = losses.mean(0)
    if not pairs.isfinite().all():
        bad = int((~pairs.isfinite()).sum())
        raise NonFiniteLossError(
            f"the losses of {bad} of {members} members are not finite, so their mean does not exist: lower "
            f"epsilon (it is {epsilon:g}), or check the objective"
        )
    strata = pairs.view(-1, groups)  # member j is of group j mod groups
    return SmoothedLoss(
        loss=float(pairs.mean()),
        standard_error=float((strata.var(0).mean() / members).sqrt()),
        members=members,
        forward_passes=passes,
    )
