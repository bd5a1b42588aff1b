"""The common part of the estimators of unbounded sequences: every member carries its state from window to
window.

A stream is read window by window, with an update after each. Member j runs under θ ± ε z, and keeps both of
its states until `reset`. So the effect of a perturbation on the state in one window shows in the losses of
later ones. Truncation cuts off this credit. A segment is the windows from one `reset` to the next.

There is no ask and tell: the losses of a window depend on the members' states, which the estimator holds. A
`Population` carries only the directions.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from zorn.estimators.arguments import check_recurrent, check_streams
from zorn.estimators.base import Need
from zorn.estimators.carry import state_tensors
from zorn.estimators.cd_rge import CentralDifferences
from zorn.estimators.estimate import Estimate, Population
from zorn.estimators.population import Objective, Workload, member_losses
from zorn.estimators.update import FusedSGD
from zorn.estimators.workers import MicroBatch, Workers
from zorn.models import Batch, RecurrentModel, State, TokenObjective, map_state, mean_tokens
from zorn.noise import Draw


@dataclass(frozen=True)
class _States:
    """The states that members were left in: those that this process holds, by the micro-batch that they run
    in, and who holds which."""

    shares: list[list[MicroBatch]]
    tensors: dict[MicroBatch, list[Tensor]] = field(default_factory=dict)

    def joined(self, lanes: tuple[int, ...], workers: Workers) -> list[Tensor]:
        """The states of all members, each [signs, members, group, …], on the CPU; all processes call this."""
        own = {piece: [tensor.cpu() for tensor in tensors] for piece, tensors in self.tensors.items()}
        parts = workers.collect(own) if self.shares else [own]  # a loaded state: each holds all of it
        found = {piece: tensors for held in parts for piece, tensors in held.items()}
        whole = [tensor.new_empty(*lanes, *tensor.shape[1:]) for tensor in next(iter(found.values()))]
        for piece, tensors in found.items():
            rows = _rows_of(piece)
            for all_rows, tensor in zip(whole, tensors, strict=True):
                all_rows[rows] = tensor.unflatten(0, torch.broadcast_shapes(*(i.shape for i in rows)))
        return whole


@dataclass(frozen=True, kw_only=True)
class _Segment:
    """The windows since `reset`: what they share, and where they stand. Tensors are replaced, never written
    to."""

    draw: Draw
    population: int
    sequences: int
    group: int
    windows: int
    lost: Bool[Tensor, " population"]
    states: _States | None
    """None before the first window."""

    @property
    def lanes(self) -> tuple[int, int, int]:
        """Signs, members, group."""
        return len(CentralDifferences.signs), self.population, self.group

    def as_plain(self, workers: Workers) -> dict[str, Any]:
        """The segment with the states of all members; all processes call this."""
        states = None if self.states is None else self.states.joined(self.lanes, workers)
        return {**vars(self), "draw": asdict(self.draw), "states": states}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "_Segment":
        """The segment that `as_plain` gave."""
        made, whole = cls(**{**plain, "draw": Draw(**plain["draw"]), "states": None}), plain["states"]
        if whole is None:
            return made
        piece = MicroBatch(range(made.population), CentralDifferences.signs, range(made.group))
        return replace(made, states=_States([], {piece: [tensor.flatten(0, 2) for tensor in whole]}))


class _Window:
    """The model for the micro-batches of one window: every row starts in the state that the last one left it
    in. `after` holds the states that this one leaves. A micro-batch stays with the process that holds the
    states of its rows."""

    def __init__(self, model: RecurrentModel, segment: _Segment, workers: Workers) -> None:
        self._model, self._segment, self._workers = model, segment, workers
        self._before, self.after = _States([]), _States([])

    def deal(self, micro_batches: Sequence[MicroBatch]) -> list[list[MicroBatch]]:
        held = self._segment.states
        if held is not None and [piece for share in held.shares for piece in share] == micro_batches:
            self._before, self.after = held, _States(held.shares)
            return held.shares
        self.after = _States(self._workers.deal(micro_batches))
        if held is not None:  # other micro-batches: the states were loaded, or a window is shorter
            whole, own = (
                held.joined(self._segment.lanes, self._workers),
                self.after.shares[self._workers.rank],
            )
            self._before = _States(
                [], {each: [t[_rows_of(each)].flatten(0, 2) for t in whole] for each in own}
            )
        return self.after.shares

    def __call__(self, piece: MicroBatch) -> "_Lanes":
        return _Lanes(self._model, self._before.tensors.get(piece), piece, self.after.tensors)


@dataclass(frozen=True)
class _Lanes:
    """A recurrent model whose rows start where they ended in the last window."""

    model: RecurrentModel
    before: list[Tensor] | None
    piece: MicroBatch
    after: dict[MicroBatch, list[Tensor]]

    def initial_state(self, rows: int) -> State:
        initial = self.model.initial_state(rows)
        if self.before is None:
            return initial
        before = iter(self.before)
        return map_state(lambda tensor: next(before).to(tensor.device), initial)

    def __call__(self, inputs: Any, state: State) -> tuple[Any, State]:
        outputs, state = self.model(inputs, state)
        with torch.inference_mode(mode=False):  # tensors like any other, to save and to start from
            self.after[self.piece] = [tensor.clone() for tensor in state_tensors(state)]
        return outputs, state


class StreamingEstimator(CentralDifferences):
    """Central differences of the loss of a window, between members that carry their states along the stream.

    The long-horizon loss is the sum over windows of their mean losses; its gradient counts what the weights
    did in all windows since `reset`. For fixed θ the estimates of a segment add up to that gradient, up to
    O(ε²).

    Memory: 2 n g states of the model (n members, two signs, g sequences each), twice that while a window
    runs. Cost: 2 n g forward passes a window.

    A member whose loss is not finite is dropped in that window and until `reset`, as its states are spoilt. A
    window in which no token counts moves the states and has the gradient 0.

    Attributes:
        step: counts the windows.
        epsilon, population: may be set between steps, by a schedule; they take effect when the next segment
            begins, as the states of this one belong to its ε and its members.
        workers: the processes that share an evaluation, each of which keeps the states of its own members;
            this one alone until `zorn.distributed.share`.

    Raises:
        ConfigError: an argument outside its range.
    """

    needs = frozenset({Need.STATE, Need.STREAM})
    saved = (*CentralDifferences.saved, "_segment")
    fresh: ClassVar[bool]
    """True where each window has a draw of its own; False where a segment has one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._segment: _Segment | None = None

    def reset(self) -> None:
        """Forget the states and directions: new sequences begin with the next estimate."""
        self._segment = None

    @torch.inference_mode(mode=False)  # or a caller's inference mode would get into the states
    @torch.no_grad()
    def _estimate(
        self, model: nn.Module, batch: Batch, objective: Objective, update: FusedSGD | None
    ) -> Estimate:
        recurrent = check_recurrent(model, type(self).__name__, "use CDRGE")
        segment = self._segment or self._first(len(batch.inputs))
        check_streams(len(batch.inputs), segment.sequences)
        bound = self.structure.bind(model)
        if update is not None:
            update.check(bound.targets)
        # Member j's k-th draw of the segment is number k n + j of the segment's step. It runs under the last,
        # and its coefficient multiplies the sum of all.
        draws = segment.windows + 1 if self.fresh else 1
        window = _Window(recurrent, segment, self.workers)
        losses, passes = member_losses(
            model,
            bound,
            segment.draw,
            self.signs,
            batch,
            objective,
            Workload(segment.population, segment.group, self.micro_batch),
            side_by_side=self.structure.side_by_side,
            normaliser=_tokens(objective, batch.targets),
            lanes=window,
            workers=self.workers,
            first=(draws - 1) * segment.population,
        )
        losses[:, segment.lost] = torch.nan
        population = Population(
            draw=replace(segment.draw, step=self.step),  # of the window: what an update rounds with
            size=segment.population,
            signs=self.signs,
            perturbation=self.structure,
        )
        found = self._told(model, population, losses, update, passes, segment.draw.step, draws)
        lost = ~losses.isfinite().all(0)
        self._segment = replace(segment, windows=segment.windows + 1, lost=lost, states=window.after)
        self.step += 1
        return found

    def state_dict(self) -> dict[str, Any]:
        """The state of a resumed run: seed, step, ε and population, and of the segment its draw, its size,
        and the members' states, as tensors [signs, members, group, …] in order. With several processes all
        call it together: it holds the states of all members, for a resume with any number of processes."""
        segment = None if self._segment is None else self._segment.as_plain(self.workers)
        return super().state_dict() | {"segment": segment}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave, so that the next estimate has the bits of a run never stopped;
        ConfigError for something else."""
        super().load_state_dict(state)
        self._segment = None if state["segment"] is None else _Segment.from_plain(state["segment"])

    def _first(self, sequences: int) -> _Segment:
        """The segment that begins now."""
        return _Segment(
            draw=Draw(seed=self.seed, step=self.step, epsilon=self.epsilon),
            population=self.population,
            sequences=sequences,
            group=sequences if self.group_size is None else self.group_size,
            windows=0,
            lost=torch.zeros(self.population, dtype=torch.bool),
            states=None,
        )


def _rows_of(piece: MicroBatch) -> tuple[Tensor, ...]:
    """Index of a micro-batch's rows in [signs, members, group]."""
    return (
        torch.tensor([CentralDifferences.signs.index(sign) for sign in piece.signs])[:, None, None],
        torch.arange(piece.members.start, piece.members.stop)[:, None],
        torch.arange(piece.part.start, piece.part.stop),
    )


def _tokens(objective: Objective, targets: Tensor) -> float | None:
    """Tokens per row that a token objective is divided by; 1 in a window in which none counts."""
    if not isinstance(objective, TokenObjective):
        return None
    return mean_tokens(objective, targets) if objective.counts(targets).any() else 1.0
