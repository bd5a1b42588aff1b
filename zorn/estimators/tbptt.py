"""TBPTT: truncated backpropagation through time. The state crosses the chunks of time, the gradient does not.

The sequence is read in chunks of k steps. Each chunk starts from the last state of the one before, without
its graph. So the losses of a chunk depend on the weights within the chunk only. Memory is that of k steps,
whatever the context. The price is a bias: no credit reaches further back than the start of a chunk. There is
one update a batch, from the sum over its chunks.

Williams and Peng (1990), "An efficient gradient-based algorithm for on-line training of recurrent network
trajectories" (their BPTT(h; h'), with h = h' = k); Jaeger (2002), "A tutorial on training recurrent neural
networks".
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

from zorn.checks import Count, wrong
from zorn.estimators.arguments import check_recurrent
from zorn.estimators.base import Need
from zorn.estimators.carry import Carry, state_tensors
from zorn.estimators.exact import ExactGradient, Piece, rows_of
from zorn.estimators.population import Objective
from zorn.models import Batch, RecurrentModel, State, TokenObjective, map_state, row_losses


class ChunkedGradient(ExactGradient):
    """The gradient chunk by chunk of time, with the state carried from one to the next; for TBPTT and Bridge.

    The model needs an explicit state, and the objective adds up over tokens.

    Args:
        truncation: k, time steps in a chunk, at least 1.
        carry: start each estimate from the state that the last one ended in, row by row, for streams; see
            `reset`.

    Raises:
        ConfigError: an argument outside its range.
    """

    needs = frozenset({Need.DERIVATIVE, Need.TOKENS, Need.STATE})

    truncation: Count
    carry: bool = False

    def __post_init__(self) -> None:
        self._carry = Carry() if self.carry else None
        self._ends: list[State] = []

    def _check(self, model: nn.Module, batch: Batch, objective: Objective) -> None:
        name = type(self).__name__
        check_recurrent(model, name, "use BPTT")
        if not isinstance(objective, TokenObjective):
            expected = f"one that adds up over tokens (token_losses and counts) for {name}"
            got = getattr(objective, "__name__", type(objective).__name__)
            fix = "use BPTT where torch can differentiate it, else ActivityCredit or CDRGE"
            raise wrong("objective", expected, got, fix)
        if batch.inputs.ndim < 2 or batch.inputs.shape[:2] != batch.targets.shape[:2]:
            got = f"inputs {tuple(batch.inputs.shape)} and targets {tuple(batch.targets.shape)}"
            raise wrong("batch", f"one target a time step for {name}, [rows, time, …] of both", got)

    def _pieces(
        self, model: Any, batch: Batch, objective: Objective, normaliser: float | None
    ) -> Iterator[Piece]:
        assert normaliser is not None, "a token objective has one"
        sequences = len(batch.inputs)
        weight = 1 / (normaliser * sequences)
        start = None if self._carry is None else self._carry.start(model, sequences)
        self._ends = []
        for rows in self._portions(batch):
            portion = rows_of(batch, rows)
            if start is None:  # anew for each portion: a learned one has a graph of its own
                state = model.initial_state(len(portion.inputs))
            else:
                state = map_state(lambda tensor, rows=rows: tensor[rows], start)
            carried = Carried(model, state)
            credits = self._credits(carried, portion, objective, weight, rows)
            for chunk in self._chunks(portion):
                with self._paths(model):
                    losses = row_losses(carried, chunk, objective, normaliser=normaliser)
                yield Piece(losses.sum() / sequences, carried.cut(), next(credits, ()))
            self._ends.append(carried.state)

    def _paths(self, model: Any) -> AbstractContextManager[None]:
        """A block in which a chunk runs: all paths through it carry the gradient."""
        del model
        return nullcontext()

    def _chunks(self, batch: Batch) -> list[Batch]:
        parts = (part.split(self.truncation or part.shape[1], dim=1) for part in batch)
        return [Batch(*chunk) for chunk in zip(*parts, strict=True)]

    def _start(self, model: Any, sequences: int) -> State:
        """The state before the first step of the batch."""
        return self._carry.start(model, sequences) if self._carry else model.initial_state(sequences)

    def _credits(
        self, carried: "Carried", batch: Batch, objective: Any, weight: float, rows: slice
    ) -> Iterator[Sequence[Tensor]]:
        """Yield, for each boundary between two chunks, the derivative of the later losses by the state there.

        It is one tensor for each floating tensor of the state. TBPTT has no such credit, and yields nothing.

        Args:
            carried: the model at the boundary, each time that the next one is asked for.
            weight: of a token in the loss.
            rows: the portion's place in the batch.
        """
        del carried, batch, objective, weight, rows
        return iter(())

    def _finish(self) -> tuple[int, int]:
        if self._carry is not None:
            self._carry.keep(self._ends)
        self._ends = []
        return super()._finish()


@final
class TBPTT(ChunkedGradient):
    """The gradient within chunks of `truncation` steps, in the memory of one chunk. For a model with an
    explicit state, and an objective that adds up over tokens.

    Args:
        truncation: k, steps that the gradient flows through, at least 1; from the length of the sequence on
            it is `BPTT`.
        carry: for streams: row i of a batch continues row i of the batch before, from its last state (the
            gradient is cut there, as at any chunk's start). Call `reset()` before new sequences.

    Raises:
        ConfigError: an argument outside its range; with `carry`, another number of rows than before.

    Example:
        >>> import zorn
        >>> model = zorn.LanguageModel(29, 16)
        >>> task = zorn.tasks.CopyTask(batch=8, minimum_length=2, maximum_length=4, seed=0)
        >>> estimator = zorn.TBPTT(truncation=3)
        >>> estimate = estimator.estimate(model, task.training_batch(0), zorn.TokenCrossEntropy())
        >>> estimate.forward_passes
        24
    """

    learning_rate = 0.003  # presets, copy: 0.003: 0.128, 0.01: 0.338


@dataclass
class Carried:
    """A recurrent model that starts where its last call ended; `cut` takes the graph of that call off."""

    model: RecurrentModel
    state: State

    def initial_state(self, rows: int) -> State:
        """The state that is carried."""
        del rows  # those of the state
        return self.state

    def __call__(self, inputs: Any, state: State) -> tuple[Any, State]:
        """Outputs `[rows, time, …]`; the next state is kept."""
        outputs, self.state = self.model(inputs, state)
        return outputs, self.state

    def cut(self) -> list[Tensor]:
        """Detach the state from what made it; returns its floating tensors as they were before."""
        attached = [tensor for tensor in state_tensors(self.state) if tensor.is_floating_point()]
        self.state = map_state(Tensor.detach, self.state)
        return attached
