"""An estimator whose work is shared by the processes of a group, in two lines of a user's own loop."""

from __future__ import annotations

from typing import Any, TypeVar

from zorn.checks import check_switch, check_whole_number, described, wrong
from zorn.distributed.group import Group
from zorn.distributed.workers import GroupWorkers
from zorn.estimators import Estimator, Need
from zorn.estimators.base import check_estimator
from zorn.estimators.workers import ALONE

Shared = TypeVar("Shared", bound=Estimator)


def share(estimator: Shared, group: Any, *, partial: bool = False, check_every: int = 100) -> Shared:
    """Let the processes of a group do each estimate together: every one of them has a replica of the model,
    is given the whole batch, and ends with the whole gradient.

    Weight-space estimators (CD-RGE, FD-RGE, 1.5-SPSA, PES, NRES) deal members, whole micro-batches in a
    fixed order. The processes send each other losses only, and each folds all members: losses, weights and
    all else are the same bits for any number of processes. `micro_batch` must be small enough that there are
    some for each. Activity credit, bridge, e-prop, TBPTT and BPTT deal rows of the batch and add up their
    gradients: the same as with one process but for rounding.

    Args:
        estimator: any; it is returned, and its `workers` are the processes from now on. One that does not use
            them does the whole work on each process.
        group: from `start`.
        partial: where a process fails in its share of an evaluation, go without its members (the average
            is over the rest, see `maximum_nonfinite_share`), with a RuntimeWarning, instead of an error on
            all. CD-RGE, FD-RGE and 1.5-SPSA only. A process that ends altogether ends the group.
        check_every: steps between two comparisons of all weights, at least 1.

    Raises:
        ConfigError: a setting outside its range, or that the estimator cannot do.

    Example:
        >>> import torch, zorn
        >>> from zorn.distributed import share, start
        >>> group = start()  # alone, unless under torchrun
        >>> estimator = share(zorn.CDRGE(population=16, epsilon=0.1, micro_batch=32), group)
        >>> model, batch = torch.nn.Linear(3, 1), zorn.Batch(torch.randn(8, 3), torch.randn(8, 1))
        >>> def squared_error(outputs, targets):
        ...     return (outputs - targets).square().mean(-1)
        >>> estimator.estimate(model, batch, squared_error).forward_passes
        32
    """
    check_estimator(estimator)
    if estimator.workers is not ALONE:
        got = f"a {type(estimator).__name__} that is"
        raise wrong("estimator", "one that is not shared yet", got, "share it once, or give another one")
    if not isinstance(group, Group):
        raise wrong("group", "what zorn.distributed.start() returned", described(group))
    check_switch("partial", partial)
    check_whole_number("check_every", check_every, minimum=1)
    if partial and (estimator.deals != "members" or Need.STREAM in estimator.needs):
        expected = f"False for {type(estimator).__name__}, which cannot continue without a part of its work"
        raise wrong("partial", expected, "True", "or take CDRGE, FDRGE or SPSA15")
    estimator.workers = GroupWorkers(group, partial=partial, check_every=check_every)
    return estimator
