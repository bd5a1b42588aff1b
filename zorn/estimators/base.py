"""The contract of an estimator. Trainer, command line, tuning, diagnosis, planning, journal and the sharing
of work use what is declared here, and know no estimator by name.

A new estimator is a class in a file of its own: its fields are its settings and its flags, the class
attributes say what it needs and offers, and `_estimate` does the work.
"""

import enum
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, dataclass_transform

import torch
from torch import Tensor, nn

from zorn.checks import annotations_of, checked, described, wrong
from zorn.errors import ConfigError, NonFiniteLossError
from zorn.estimators.arguments import check_call
from zorn.estimators.carry import Carry
from zorn.estimators.estimate import Estimate
from zorn.estimators.fold import Fold
from zorn.estimators.population import Objective
from zorn.estimators.update import FusedSGD, applied
from zorn.estimators.workers import ALONE, Workers
from zorn.models import Batch
from zorn.noise import Draw, GradientBlock
from zorn.noise.targets import trainable_targets
from zorn.settings import Choice, docstring_of, settings_of, takes


class Need(enum.Enum):
    """A condition of an estimator; the value says it in words."""

    DERIVATIVE = "an objective that torch can differentiate"
    TOKENS = "an objective that adds up over tokens"
    STATE = "a recurrent model with an explicit state"
    STREAM = "windows of a stream (--stream)"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The parts of a run that an estimator may choose its settings by.

    Attributes:
        batch: sequences in a batch; None where the task does not say.
        objective: its name.
        tokens: True where the objective adds up over tokens.
        fading: the discount that suits the task where losses are credited in time, 0 to 1; see `Task.fading`.
        why_fading: the reason, in words.
        model: the cell by name, with the settings of the model.
    """

    batch: int | None
    objective: str
    tokens: bool
    fading: float
    why_fading: str
    model: Choice


Chosen = Mapping[str, tuple[Any, str]]
"""Setting -> (value, reason)."""


@dataclass_transform(kw_only_default=True)
class Estimator(ABC):
    """An estimate of the gradient of a batch's loss.

    A subclass is a dataclass: its fields, and those of its bases, are its settings, the keywords of its
    constructor. Each is described under `Args:` in the docstring. A field that is annotated with a type of
    `zorn.checks`, such as `Count`, or with `bool` or a `Literal`, is checked whenever it is set. (A class may
    have an `__init__` of its own; its arguments are then the settings, each kept in an attribute of its
    name.) `seed` is the seed of its noise; `carry`, where it is taken, keeps the model's state from one
    window of a stream to the next.

    Class attributes:
        needs: conditions that a run must fulfil.
        scheduled: the settings that may be set between steps, by a schedule.
        saved: the attributes that the next estimate depends on, beside settings that never change.
        sizes: the settings that the work of a step is proportional to, which tuning scales.
        searched: setting -> the values that tuning tries.
        journaled: True where a step comes down to a number for each member (`Estimate.fold`), so that a
            journal of these numbers makes every step again.
        deals: "members" or "rows", the parts of a step that are dealt to several processes; "nothing" where
            each does the whole.
        learning_rate: the step size with Adam that suits most runs, above 0.

    Attributes:
        step: number of the next estimate, from 0; all randomness is a function of it and of the seed.
        workers: the processes that share the work; this one alone until `zorn.distributed.share`.

    Example:
        >>> from zorn.estimators import CDRGE
        >>> CDRGE.scheduled, CDRGE(population=8, epsilon=0.1).settings()["population"]
        (('epsilon', 'population'), 8)
    """

    needs: ClassVar[frozenset[Need]] = frozenset()
    scheduled: ClassVar[tuple[str, ...]] = ()
    sizes: ClassVar[tuple[str, ...]] = ()
    saved: ClassVar[tuple[str, ...]] = ("step",)
    searched: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    journaled: ClassVar[bool] = False
    deals: ClassVar[str] = "nothing"
    learning_rate: ClassVar[float] = 0.01

    step: int = 0
    workers: Workers = ALONE
    _carry: Carry | None = None
    """The state that goes from one estimate to the next, where it does."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        owner = next(base for base in cls.__mro__ if "__init__" in vars(base))
        if owner is object or "__dataclass_fields__" in vars(owner):
            dataclass(kw_only=True, eq=False, repr=False)(cls)
        cls.__doc__ = docstring_of(cls)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in getattr(type(self), "__dataclass_fields__", ()):
            value = checked(name, value, annotations_of(type(self))[name])
        super().__setattr__(name, value)

    def estimate(
        self, model: nn.Module, batch: Batch, objective: Objective, update: FusedSGD | None = None
    ) -> Estimate:
        """Estimate the gradient of the batch's loss; fill `.grad`, or apply `update` to the weights in place.

        Args:
            model: any `nn.Module` that the estimator serves.
            batch: `Batch(inputs, targets)` on the model's device; the first dimension is rows. Every process
                is given the whole batch.
            objective: a token objective such as `TokenCrossEntropy`, or any callable (outputs, targets) ->
            [rows].
            update: None fills `.grad`, replacing what was there; `FusedSGD` updates the weights without a
                gradient buffer.

        Raises:
            ConfigError: something that does not fit, before any work; processes that differ in model,
                weights, settings or batch.
            UncoveredParameterError: a parameter without a rule, where noise goes by rules.
            NonFiniteLossError: losses that are not finite; the weights are unchanged.
            DivergedReplicaError: processes whose weights were the same and are not any more.
            WorkerError: another process failed, or is gone.
        """
        with self.workers.together(self, model, batch, objective):  # an error on one is an error on all
            check_call(model, batch, objective)
            check_update(update)
            return self._estimate(model, batch, objective, update)

    @abstractmethod
    def _estimate(
        self, model: nn.Module, batch: Batch, objective: Objective, update: FusedSGD | None
    ) -> Estimate:
        """Do the work of `estimate`, whose arguments are checked, and count `step` up. Several processes do
        it together through `workers`; an estimator that does not use them does the whole on each."""

    @torch.no_grad()
    def _fill(self, model: nn.Module, gradient: Tensor, update: FusedSGD | None) -> float:
        """Fill `.grad`, or apply `update`, from a gradient of all trained parameters in one vector; returns
        its norm. NonFiniteLossError for one that is not finite, which changes nothing."""
        if not gradient.isfinite().all():
            raise NonFiniteLossError(f"step {self.step}: the gradient is not finite: check the objective")
        targets = trainable_targets(model)
        if update is not None:
            update.check(targets)
        parts = gradient.split([target.parameter.numel() for target in targets])
        wide = [part.to(torch.promote_types(part.dtype, torch.float32)) for part in parts]
        blocks = [GradientBlock(target, 0, part) for target, part in zip(targets, wide, strict=True)]
        return applied(blocks, targets, update, Draw(seed=0, step=self.step, epsilon=1.0))

    @abstractmethod
    def passes(self, batch: int, steps: int) -> int | float:
        """Forward passes of an estimate: rows through the model, a backward pass counted as two.

        Args:
            batch: sequences.
            steps: time steps of a sequence.
        """

    def reset(self) -> None:
        """Forget carried states: the next batch begins new sequences."""
        if self._carry is not None:
            self._carry.reset()

    def refold(self, model: nn.Module, fold: Fold, update: FusedSGD | None = None) -> float:
        """Fill `.grad`, or apply `update`, from the fold of an earlier estimate; returns the gradient's
        norm."""
        raise ConfigError(f"{type(self).__name__} makes no step again from numbers: it is not journaled")

    @property
    def two_part(self) -> bool:
        """True where a part of the gradient is kept apart, for an optimizer of its own."""
        return False

    def parts(self, model: nn.Module) -> list[list[nn.Parameter]]:
        """The parameters whose `.grad` an estimate fills, one list for each part of the gradient, each in the
        order of the model's trained parameters. Their sum is the gradient; what depends on ε is in the
        last."""
        return [[target.parameter for target in trainable_targets(model)]]

    def own_optimizers(self, model: nn.Module, learning_rate: float | None) -> list[torch.optim.Optimizer]:
        """Optimizers, beside the run's, for the parts of the gradient that are kept apart.

        Args:
            learning_rate: of the run's optimizer; None where its steps depend on the gradient's scale.
        """
        del model, learning_rate
        return []

    def diagnosed(self) -> AbstractContextManager[None]:
        """A block in which every estimate is whole, and the part that depends on ε is apart where it can
        be."""
        return nullcontext()

    @classmethod
    def carries(cls) -> bool:
        """True where state goes from one window of a stream to the next."""
        return Need.STREAM in cls.needs or takes(cls, "carry")

    @classmethod
    def choose(cls, given: Mapping[str, Any], facts: Facts) -> Chosen:
        """Values, with their reasons, that suit a run better than the defaults; given settings win over them.

        Args:
            given: the settings that are given, by name.
            facts: of the run.
        """
        del given, facts
        return {}

    @classmethod
    def unfit(cls, facts: Facts) -> str | None:
        """The reason why the estimator does not suit a run although it could be given; None where it does."""
        del facts
        return None

    def check(self, facts: Facts) -> None:  # noqa: B027
        """Raise ConfigError where the settings do not fit a run, before any work."""

    def population_multiple(self, batch: int) -> int:
        """The number that a population must be a multiple of for a batch of so many sequences."""
        del batch
        return 1

    def settings(self) -> dict[str, Any]:
        """The values of all settings, by name."""
        return {name: getattr(self, name) for name in settings_of(type(self))}

    def state_dict(self) -> dict[str, Any]:
        """All that the next estimate depends on, but for the settings. Several processes call it together."""
        own = {name.lstrip("_"): getattr(self, name) for name in self.saved}
        return own | ({} if self._carry is None else self._carry.state_dict(self.workers))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave, so that the next estimate has the bits of a run never stopped;
        ConfigError for something else."""
        names = [name.lstrip("_") for name in self.saved] + ["carried"] * (self._carry is not None)
        if not isinstance(state, Mapping):
            raise wrong("state", "what state_dict() gave", described(state))
        missing = [name for name in names if name not in state]
        if missing:
            got = f"one without {', '.join(missing)}"
            raise wrong("state", f"what state_dict() gave, with {', '.join(names)}", got)
        for name in self.saved:
            setattr(self, name, state[name.lstrip("_")])
        if self._carry is not None:
            self._carry.load_state_dict(state, self.workers)


def check_estimator(estimator: object) -> None:
    """Raise ConfigError unless this is an estimator: not its name, nor its class."""
    if not isinstance(estimator, Estimator):
        fix = "give what zorn.CDRGE(...) or another made"
        raise wrong("estimator", "a zorn.Estimator", described(estimator), fix)


def check_update(update: object) -> None:
    """Raise ConfigError unless this is a fused update or None."""
    if update is not None and not isinstance(update, FusedSGD):
        fix = "to use a torch optimizer, leave it out and call optimizer.step() after the estimate"
        raise wrong("update", "zorn.estimators.FusedSGD(...) or None", described(update), fix)
