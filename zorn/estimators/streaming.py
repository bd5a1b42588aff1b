"""The common part of the estimators of unbounded sequences: every member carries its state from window to
window.

A stream is read window by window, with an update after each. Member j runs under θ ± ε z, and keeps both of
its states until `reset`. So the effect of a perturbation on the state in one window shows in the losses of
later ones. Truncation cuts off this credit. A segment is the windows from one `reset` to the next.

There is no ask and tell: the losses of a window depend on the members' states, which the estimator holds. A
`Population` carries only the directions.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from zorn.errors import ConfigError
from zorn.estimators.arguments import (
    check_state,
)
from zorn.estimators.base import Need
from zorn.estimators.carry import state_tensors
from zorn.estimators.cd_rge import CentralDifferences
from zorn.estimators.estimate import Estimate, Population
from zorn.estimators.population import Objective, Workload, member_losses
from zorn.estimators.update import FusedSGD
from zorn.estimators.workers import MicroBatch, Workers
from zorn.models import Batch, RecurrentModel, State, TokenObjective, map_state, mean_tokens
from zorn.noise import BoundPerturbation, Draw, GradientBlock, Perturbation


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

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._segment: _Segment | None = None

    def reset(self) -> None:
        """Forget the states and directions: new sequences begin with the next estimate."""
        self._segment = None

    @torch.inference_mode(mode=False)  # or a caller's inference mode would get into the states
    @torch.no_grad()
    def _estimate(
        self, model: nn.Module, batch: Batch, objective: Objective, update: FusedSGD | None
    ) -> Estimate:
        if not isinstance(model, RecurrentModel):
            raise ConfigError(
                f"{type(self).__name__} carries the state of a recurrent model from window to window, but "
                f"{type(model).__name__} has no initial_state(rows): give it one and an explicit state, or "
                "use CDRGE"
            )
        segment = self._segment or self._first(len(batch.inputs))
        segment.check(batch)
        structure = self.perturbation
        directions = _Directions(structure, segment.draw, segment.population, self._draws(segment.windows))
        bound = directions.bind(model)
        if update is not None:
            update.check(bound.targets)
        states = _MemberStates(model, segment, self.workers)
        losses, passes = member_losses(
            model,
            bound,
            segment.draw,
            CentralDifferences.signs,
            batch,
            objective,
            segment.work(self.micro_batch),
            side_by_side=structure.side_by_side,
            normaliser=_tokens(objective, batch.targets),
            lanes=states.lanes,
            workers=self.workers,
            deal=states.deal,
        )
        losses[:, segment.lost] = torch.nan
        population = Population(
            draw=replace(segment.draw, step=self.step),  # of the window: what an update rounds with
            size=segment.population,
            signs=CentralDifferences.signs,
            perturbation=directions,
        )
        found = self._told(model, population, losses, update, passes)
        lost = ~losses.isfinite().all(0)
        self._segment = replace(segment, windows=segment.windows + 1, lost=lost, states=states.after)
        self.step += 1
        if found.fold is None:
            return found
        fold = replace(found.fold, origin=segment.draw.step, draws=self._draws(segment.windows))
        return replace(found, fold=fold)

    def state_dict(self) -> dict[str, Any]:
        """The state of a resumed run: seed, step, ε and population, and of the segment its draw, its size,
        and the members' states, as tensors [signs, members, group, …] in order. With several processes all
        call
        it together: it holds the states of all members, for a resume with any number of processes."""
        segment = self._segment
        return {
            **super().state_dict(),
            "segment": None
            if segment is None
            else {
                **vars(segment),
                "draw": asdict(segment.draw),
                "states": segment.joined_states(self.workers),
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave, so that the next estimate has the bits of a run never stopped;
        ConfigError for something else."""
        check_state(state, ("seed", "step", "epsilon", "population", "segment"))
        super().load_state_dict(state)
        segment = state["segment"]
        self._segment = None if segment is None else _Segment(**{**segment, "draw": Draw(**segment["draw"])})

    def _first(self, sequences: int) -> _Segment:
        """The segment that begins now."""
        group = self.group_size
        return _Segment(
            draw=Draw(seed=self.seed, step=self.step, epsilon=self.epsilon),
            population=self.population,
            sequences=sequences,
            group=sequences if group is None else group,
            windows=0,
            lost=torch.zeros(self.population, dtype=torch.bool),
            states=None,
        )

    @abstractmethod
    def _draws(self, windows: int) -> int:
        """Number of directions that each member has drawn once `windows` windows of the segment are done and
        the
        next begins: it runs under the last of them, and its coefficient multiplies the sum of all."""


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
    states: _Held | list[Tensor] | None
    """The states that this process holds; all of them, each [signs, members, group, …]; None before the first
    window."""

    @property
    def lanes(self) -> tuple[int, int, int]:
        """Signs, members, group."""
        return len(CentralDifferences.signs), self.population, self.group

    def joined_states(self, workers: Workers) -> list[Tensor] | None:
        """The states of all members, of all processes: each calls this."""
        return self.states.joined(self.lanes, workers) if isinstance(self.states, _Held) else self.states

    def check(self, batch: Batch) -> None:
        if len(batch.inputs) != self.sequences:
            raise ConfigError(
                f"the batch has {len(batch.inputs)} rows, but the segment began with {self.sequences}: keep "
                "the number of streams, or call reset() before new sequences"
            )

    def work(self, micro_batch: int) -> Workload:
        return Workload(
            population=self.population, group=self.group, micro_batch=micro_batch, time_chunk=None
        )


class _Directions(Perturbation):
    """The directions of one window. Member j's k-th draw of the segment is number k n + j of the segment's
    step, so that one fold sums over draws and members, and nothing is stored."""

    def __init__(self, structure: Perturbation, draw: Draw, population: int, draws: int) -> None:
        self._structure, self._draw, self._population, self._draws = structure, draw, population, draws

    def bind(self, model: nn.Module) -> BoundPerturbation:
        return _BoundDirections(
            self._structure.bind(model), self._draw, (self._draws - 1) * self._population, self._draws
        )


class _BoundDirections(BoundPerturbation):
    def __init__(self, bound: BoundPerturbation, draw: Draw, first: int, draws: int) -> None:
        self.targets = bound.targets
        self._bound, self._draw, self._first, self._draws = bound, draw, first, draws

    def members(
        self, draw: Draw, members: range, signs: tuple[int, ...], group: int | None = None
    ) -> AbstractContextManager[None]:
        del draw  # of the window; the directions are the segment's
        newest = range(self._first + members.start, self._first + members.stop)
        return self._bound.members(self._draw, newest, signs, group)

    def fold(self, draw: Draw, weights: Tensor) -> Iterator[GradientBlock]:
        del draw
        return self._bound.fold(self._draw, weights.repeat(self._draws))


@dataclass(frozen=True)
class _Held:
    """The states of the members of one process, by the micro-batch that they run in, and who holds which."""

    shares: list[list[MicroBatch]]
    tensors: dict[MicroBatch, list[Tensor]] = field(default_factory=dict)

    def joined(self, lanes: tuple[int, ...], workers: Workers) -> list[Tensor]:
        """The states of all members, each [signs, members, group, …], on the CPU."""
        own = {piece: [tensor.cpu() for tensor in tensors] for piece, tensors in self.tensors.items()}
        found = {piece: tensors for held in workers.collect(own) for piece, tensors in held.items()}
        first = next(iter(found.values()))
        whole = [tensor.new_empty(*lanes, *tensor.shape[1:]) for tensor in first]
        for piece, tensors in found.items():
            rows = _rows_of(piece)
            for all_rows, tensor in zip(whole, tensors, strict=True):
                all_rows[rows] = tensor.unflatten(0, torch.broadcast_shapes(*(i.shape for i in rows)))
        return whole


class _MemberStates:
    """The states that a window starts from, and in `after` those that it leaves behind. A micro-batch stays
    with the process that holds the states of its rows."""

    def __init__(self, model: RecurrentModel, segment: _Segment, workers: Workers) -> None:
        self._model, self._segment, self._workers = model, segment, workers
        self._before: dict[MicroBatch, list[Tensor]] = {}
        self.after = _Held([])

    def deal(self, micro_batches: Sequence[MicroBatch]) -> list[list[MicroBatch]]:
        held = self._segment.states
        if isinstance(held, _Held) and [piece for share in held.shares for piece in share] == micro_batches:
            self.after, self._before = _Held(held.shares), held.tensors
            return held.shares
        shares = self._workers.deal(micro_batches)
        self.after = _Held(shares)
        whole = self._segment.joined_states(self._workers)  # other micro-batches: loaded, or a shorter window
        if whole is not None:
            own = {piece: _rows_of(piece) for piece in shares[self._workers.rank]}
            self._before = {piece: [t[rows].flatten(0, 2) for t in whole] for piece, rows in own.items()}
        return shares

    def lanes(self, piece: MicroBatch) -> _Lanes:
        """The model for the rows of a micro-batch."""
        return _Lanes(self, self._model, piece)

    def start(self, initial: State, piece: MicroBatch) -> State:
        if self._segment.states is None:
            return initial
        before = iter(self._before[piece])
        return map_state(lambda tensor: next(before).to(tensor.device), initial)

    def keep(self, state: State, piece: MicroBatch) -> None:
        with torch.inference_mode(mode=False):  # tensors like any other, to save and to start from
            self.after.tensors[piece] = [tensor.clone() for tensor in state_tensors(state)]


@dataclass(frozen=True)
class _Lanes:
    """A recurrent model whose rows start where they ended in the last window."""

    states: _MemberStates
    model: RecurrentModel
    piece: MicroBatch

    def initial_state(self, rows: int) -> State:
        return self.states.start(self.model.initial_state(rows), self.piece)

    def __call__(self, inputs: Any, state: State) -> tuple[Any, State]:
        outputs, state = self.model(inputs, state)
        self.states.keep(state, self.piece)
        return outputs, state


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
