"""An estimator whose work is shared by the processes of a group, in two lines of a user's own loop."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from zorn.checks import check_switch, check_whole_number
from zorn.distributed.agreement import setup_facts, weight_facts
from zorn.distributed.group import Group
from zorn.distributed.rows import estimate_of_rows
from zorn.distributed.workers import GroupWorkers
from zorn.errors import ConfigError, DivergedReplicaError
from zorn.estimators import (
    ActivityCredit,
    Estimate,
    ExactGradient,
    Population,
    StreamingEstimator,
    ZeroOrderEstimator,
)
from zorn.estimators.arguments import check_batch, check_model, check_objective, check_update
from zorn.models import Batch
from zorn.perturbations import FusedSGD, Objective

CARRIED = "carried"
"""Where the estimators of rows keep the state of streams in their `state_dict`."""


def share(
    estimator: Any,
    group: Any,
    *,
    partial: bool = False,
    check_every: int = 100,
) -> SharedEstimator:
    """Let the processes of a group do each estimate together: every one of them has a replica of the model,
    is given the whole batch, and ends with the whole gradient.

    Weight-space estimators (CD-RGE, FD-RGE, 1.5-SPSA, PES, NRES) deal members, whole micro-batches in a
    fixed order. The processes send each other losses only, and each folds all members: losses, weights and
    all else are the same bits for any number of processes. `micro_batch` must be small enough that there are
    some for each. Activity credit, bridge, e-prop, TBPTT and BPTT deal
    rows of the batch and add up their gradients: the same as with one process but for rounding.

    Args:
        estimator: of zorn; it belongs to the result from now on.
        group: from `start`.
        partial: where a process fails in its share of an evaluation, go on without its members (the average
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
    kinds = ZeroOrderEstimator | StreamingEstimator | ActivityCredit | ExactGradient
    if not isinstance(estimator, kinds):
        raise ConfigError(
            f"estimator must be one of zorn's that is not shared yet, got a {type(estimator).__name__}: give "
            "share() what zorn.CDRGE(...) or another made"
        )
    if not isinstance(group, Group):
        raise ConfigError(
            f"group must be what zorn.distributed.start() returned, got a {type(group).__name__}"
        )
    check_switch("partial", partial)
    check_whole_number("check_every", check_every, minimum=1)
    name = type(estimator).__name__
    if partial and not isinstance(estimator, ZeroOrderEstimator):
        raise ConfigError(
            f"partial: got True for {name}, which cannot go on without a part of its work: take False, or "
            "CDRGE, FDRGE or SPSA15"
        )
    return SharedEstimator(estimator, GroupWorkers(group, partial=partial), check_every=check_every)


@final
class SharedEstimator:
    """An estimator shared by a group: what `share` returns. It has the methods and attributes of the one that
    it was made of, which may be set as usual, on all processes alike.

    `estimate`, `evaluate`, `state_dict` and `load_state_dict` are called on all processes together. An
    exception on one is an error on all.

    Attributes:
        estimator: the one that it was made of.
        group: the processes.

    Example:
        >>> import zorn
        >>> shared = share(zorn.CDRGE(population=16, epsilon=0.1), Group())
        >>> shared.epsilon = 0.05
        >>> shared.estimator.epsilon
        0.05
    """

    __slots__ = ("_agreed", "_check_every", "_workers", "estimator", "group")

    def __init__(self, estimator: Any, workers: GroupWorkers, *, check_every: int) -> None:
        self.estimator, self.group = estimator, workers.group
        self._workers, self._check_every = workers, check_every
        self._agreed = False
        if hasattr(estimator, "workers"):
            estimator.workers = workers

    def __getattr__(self, name: str) -> Any:
        if name in SharedEstimator.__slots__ or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.estimator, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in SharedEstimator.__slots__:
            object.__setattr__(self, name, value)
        else:
            setattr(self.estimator, name, value)

    def estimate(
        self, model: nn.Module, batch: Batch, objective: Objective, update: FusedSGD | None = None
    ) -> Estimate:
        """Estimate together: fill `.grad` on every process, or apply `update`. Arguments as of the estimator,
        the same on all processes, the whole batch too; the result is the same on all.

        Raises:
            ConfigError: processes that differ in model, weights, settings or batch, which the message names;
                fewer rows than processes; and what the estimator raises.
            DivergedReplicaError: weights that were the same are not any more.
            WorkerError: another process failed, or is gone. Where it met NonFiniteLossError, that.
        """
        with self.group.together():
            self._check(model, batch, objective, update)
            if isinstance(self.estimator, ExactGradient):
                return estimate_of_rows(self.estimator, self._workers, model, batch, objective, update)
            return self.estimator.estimate(model, batch, objective, update)

    def evaluate(
        self, model: nn.Module, population: Population, batch: Batch, objective: Objective
    ) -> tuple[Tensor, int]:
        """Answer a question of `ask` together; for the estimators that have it.

        Raises:
            as `estimate`.
        """
        with self.group.together():
            self._check(model, batch, objective, None)
            return self.estimator.evaluate(model, population, batch, objective)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, with any number of processes; all call it together."""
        with self.group.together():
            state = self.estimator.state_dict()
            if state.get(CARRIED) is not None:
                parts = self._workers.collect([tensor.cpu() for tensor in state[CARRIED]])
                state[CARRIED] = [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
            return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave, of any number of processes; ConfigError for something else."""
        if isinstance(state, dict) and state.get(CARRIED) is not None:
            rows = self._workers.rows(len(state[CARRIED][0]))
            own = [tensor[rows.start : rows.stop] for tensor in state[CARRIED]]
            state = state | {CARRIED: own}
        self.estimator.load_state_dict(state)
        self._agreed = False

    def _check(self, model: nn.Module, batch: Batch, objective: Objective, update: FusedSGD | None) -> None:
        """Raise, on all processes, for what is wrong on one, before any work."""
        check_model(model)
        check_batch(batch)
        check_objective(objective)
        check_update(update)
        step = self.estimator.step
        if self.group.size > 1 and not self._agreed:
            facts = setup_facts(model, batch, objective, self.estimator)
            self.group.message(facts=facts | self._options())
        elif self.group.size > 1 and step % self._check_every == 0:
            facts = {"step": str(step)} | weight_facts(model)
            self.group.message(facts=facts, disagreement=DivergedReplicaError)
        self._agreed = True
        if not isinstance(self.estimator, ZeroOrderEstimator | StreamingEstimator):
            rows = len(batch.inputs)
            if rows < self.group.size:
                raise ConfigError(
                    f"batch: got {rows} rows for {self.group.size} processes, of which each takes some: "
                    f"expected at least {self.group.size}; take a larger batch, or fewer processes"
                )
        self._workers.facts = {
            "step": step,
            "batch.inputs": tuple(batch.inputs.shape),
            "batch.targets": tuple(batch.targets.shape),
        }

    def _options(self) -> dict[str, str]:
        """How the work is shared: by it, who does what and which messages follow."""
        options = {"check_every": self._check_every, "partial": self._workers.partial}
        return {f"{name} of share()": str(value) for name, value in options.items()}
