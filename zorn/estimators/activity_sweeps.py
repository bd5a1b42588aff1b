"""The two sweeps of `ActivityCredit` over some sequences of a batch: under noise, and without."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from zorn.checks import wrong
from zorn.estimators.population import Objective
from zorn.models import Batch, RecurrentModel, State, TokenObjective, map_state
from zorn.models.rollout import as_row_losses
from zorn.noise import BoundActivity, Draw
from zorn.noise.activity.output_layer import OutputLayer

SIGNS = (1, -1)


@runtime_checkable
class OutputGradient(Protocol):
    """A token objective whose derivative by the model's outputs is known without differentiating."""

    def output_gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """∂ loss / ∂ outputs of each token, of the shape of the outputs; 0 where a token does not count."""
        ...


class Lanes(Enum):
    """The rows that run side by side."""

    CLEAN = "the sequences, without noise"
    PAIRS = "every draw of every sequence under +ξ, then under −ξ"
    ONE_SIDED = "the sequences without noise, then every draw of each under +ξ"


class Chunk(NamedTuple):
    """A chunk of time: outputs of all rows, targets [sequences, time, …], and the state after it."""

    outputs: Any
    targets: Tensor
    state: State


class Noisy(NamedTuple):
    """The findings of the sweep under noise.

    Attributes:
        changes: (ℓ⁺ − ℓ⁻) / 2 of each token, or ℓ⁺ − ℓ to first order through the output layer:
            [sequences, draws, time]; [sequences, draws, 1] where the objective gives one score; 0 where it is
            not finite.
        dropped: sequences of which it is not.
        loss: the sequences' part of the batch's loss, where it is known: without noise, or the mean under +ξ
            and −ξ of those that are finite.
    """

    changes: Tensor
    dropped: int
    loss: float | None


@dataclass(frozen=True)
class Part:
    """The results of both sweeps over some of the sequences: their part of the batch's loss, and the rest."""

    loss: float
    dropped: int
    state: State
    coefficients: Tensor


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One step's model, batch and objective, and how sequences run.

    Args:
        normaliser: divisor of a sequence's sum of token losses; 1 for a score.
        state: of this process's sequences before their first step; None: the model's initial one.
        first: the first of this process's sequences.
    """

    model: nn.Module
    batch: Batch
    objective: Objective
    normaliser: float
    draws: int
    draw: Draw
    time_chunk: int | None
    state: State
    first: int = 0

    @property
    def steps(self) -> int:
        """T, time steps of every sequence: of the targets where the objective looks at tokens."""
        tensor = self.batch.targets if isinstance(self.objective, TokenObjective) else self.batch.inputs
        return tensor.shape[1] if tensor.ndim > 1 else 1

    @property
    def share(self) -> float:
        """Weight of one draw of one sequence in the batch's mean."""
        return 1 / (len(self.batch.inputs) * self.draws * self.normaliser)

    def members(self, rows: slice) -> range:
        """The numbers of the draws of some sequences."""
        return range(rows.start * self.draws, rows.stop * self.draws)

    def rollout(self, rows: slice, lanes: Lanes) -> Iterator[Chunk]:
        """Run the model over time, on some of the sequences."""
        inputs, targets = self.batch
        if not isinstance(self.model, RecurrentModel):
            yield Chunk(self.model(self._spread(inputs[rows], lanes)), targets[rows], None)
            return
        own = slice(rows.start - self.first, rows.stop - self.first)
        if self.state is None:
            state = self.model.initial_state(rows.stop - rows.start)
        else:
            state = map_state(lambda tensor: tensor[own], self.state)
        state = map_state(lambda tensor: self._spread(tensor, lanes), state)
        first, by_time = 0, targets.dim() > 1 and targets.shape[1] == inputs.shape[1]
        for chunk in inputs.split(self.time_chunk or inputs.shape[1], dim=1):
            outputs, state = self.model(self._spread(chunk[rows], lanes), state)
            last = first + chunk.shape[1]
            yield Chunk(outputs, targets[rows, first:last] if by_time else targets[rows], state)
            first = last

    def _spread(self, tensor: Tensor, lanes: Lanes) -> Tensor:
        """Rows of sequences, each as many times as the lanes have it."""
        if lanes is Lanes.CLEAN:
            return tensor
        draws = tensor.repeat_interleave(self.draws, 0)
        return torch.cat([draws, draws] if lanes is Lanes.PAIRS else [tensor, draws])

    def under_noise(self, bound: BoundActivity, rows: slice, output: str | None) -> Noisy:
        """The sweep under noise; with an output layer its gradient is added up in `bound`."""
        sequences = rows.stop - rows.start
        members, loss = self.members(rows), None
        if output is not None:
            head = bound.module(output)
            assert isinstance(head, nn.Linear)
            layer = OutputLayer(head, clean=sequences, draws=self.draws)
            noise = bound.perturbed(
                self.draw, members, (1,), self.steps, clean=sequences, output=(output, layer)
            )
            with noise:
                chunks = [self._through(layer, chunk) for chunk in self.rollout(rows, Lanes.ONE_SIDED)]
            changes = torch.cat([changes for changes, _ in chunks], dim=2)
            loss = sum(loss for _, loss in chunks) * self.share * self.draws
        else:
            with bound.perturbed(self.draw, members, SIGNS, self.steps):
                losses = self._losses(rows)  # [signs · sequences · draws, time or 1]
            plus, minus = losses.unflatten(0, (len(SIGNS), sequences, self.draws))
            changes = (plus - minus) / 2
            if not isinstance(self.objective, TokenObjective):
                finite = changes.isfinite().all(2).all(1)
                loss = float((plus + minus)[finite].sum()) / 2 * self.share if finite.any() else math.nan
        bad = ~changes.isfinite().all(2).all(1)
        changes[bad] = 0
        return Noisy(changes, int(bad.sum()), loss)

    def replayed(
        self, bound: BoundActivity, rows: slice, credit: Tensor, output: str | None
    ) -> tuple[float, State]:
        """The sweep without noise, in which `bound` adds up gradients; the sequences' part of the batch's
        loss, NaN where it is not looked at, and the state after them."""
        total, state = 0.0, None
        with bound.replay(self.draw, self.members(rows), credit, self.steps, output):
            for chunk in self.rollout(rows, Lanes.CLEAN):
                state = chunk.state
                if output is None and isinstance(self.objective, TokenObjective):
                    total += float(self._token_losses(chunk.outputs, chunk.targets).sum(dtype=torch.float64))
        return total * self.share * self.draws, state

    def _through(self, layer: OutputLayer, chunk: Chunk) -> tuple[Tensor, float]:
        """The change of each token's loss by the noise, and the sum of the losses without it."""
        assert isinstance(self.objective, OutputGradient)
        outputs = layer.outputs(chunk.outputs)
        loss = float(self._token_losses(outputs, chunk.targets).sum(dtype=torch.float64))
        gradient = self.objective.output_gradient(outputs, chunk.targets).to(outputs.dtype)
        return layer.receive(gradient, self.share * self.draws), loss

    def _losses(self, rows: slice) -> Tensor:
        """Under antithetic noise: a row for each sign, sequence and draw."""
        chunks = self.rollout(rows, Lanes.PAIRS)
        if isinstance(self.objective, TokenObjective):
            losses = self._token_losses
            found = [losses(each.outputs, self._spread(each.targets, Lanes.PAIRS)) for each in chunks]
            return torch.cat(found, dim=1)
        outputs = [chunk.outputs for chunk in chunks]
        whole = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
        targets = self._spread(self.batch.targets[rows], Lanes.PAIRS)
        return as_row_losses(self.objective(whole, targets), rows=len(targets)).unsqueeze(1)

    def _token_losses(self, outputs: Any, targets: Tensor) -> Tensor:
        """[rows, time] losses, checked."""
        assert isinstance(self.objective, TokenObjective)
        losses = self.objective.token_losses(outputs, targets)
        if losses.shape != targets.shape[:2]:
            name, shape = f"{type(self.objective).__name__}.token_losses", tuple(targets.shape[:2])
            fix = "one loss a token, not their mean"
            raise wrong(name, f"of shape {shape}, [rows, time]", f"shape {tuple(losses.shape)}", fix)
        return losses


def check_sequences(model: nn.Module, batch: Batch, objective: Objective, time_chunk: int | None) -> None:
    """Raise `ConfigError` where model, batch and objective do not fit together."""
    tokens, recurrent = isinstance(objective, TokenObjective), isinstance(model, RecurrentModel)
    if tokens and batch.targets.ndim < 2:
        expected = f"[rows, time, …] for {type(objective).__name__}, one target a time step"
        raise wrong("batch.targets", expected, f"shape {tuple(batch.targets.shape)}")
    if recurrent and (batch.inputs.ndim < 2 or batch.inputs.shape[1] == 0):
        expected = "[rows, time, …] for a recurrent model, with at least one time step"
        raise wrong("batch.inputs", expected, f"shape {tuple(batch.inputs.shape)}")
    if tokens and recurrent and batch.inputs.shape[1] != batch.targets.shape[1]:
        expected = f"one target a time step of the inputs, {batch.inputs.shape[1]}"
        raise wrong("batch.targets", expected, batch.targets.shape[1])
    if time_chunk is not None and not recurrent:
        fix = "it has no initial_state(rows) and takes the sequence in one call"
        raise wrong("time_chunk", f"None for {type(model).__name__}", time_chunk, fix)
