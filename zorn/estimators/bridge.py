"""Bridge: exact inside chunks of k steps, zero-order credit across their boundaries.

Cut time into chunks of k steps; s_j is the state where chunk j begins. With λ_j = ∂(losses from chunk j
on)/∂s_j the whole gradient is

    Σ_j [∂(losses of chunk j)/∂θ within the chunk + λ_{j+1}ᵀ ∂s_{j+1}/∂θ within the chunk].

Truncated backpropagation stops at the first term. Here the second is one vector-Jacobian product in the same
graph, with an estimate of λ: pairs of rollouts with noise ±ε ξ_j added to the state at every boundary, and

    λ̂_j = ξ_j C_j / ε,   C_j = Σ_{t ≥ start of chunk j} γ^{t − start} (ℓ⁺_t − ℓ⁻_t) / 2.

With γ = 1 it is unbiased for every k, up to O(ε²), in the memory of k steps; the noise has (state size) ×
(boundaries) dimensions, and none for the weights.

The credit of one step is mostly noise, and an optimizer averages it over many. So it need not come at every
step: D draws at every D-th step are as many rollouts, in larger products, and one vector-Jacobian product in
D that the exact part did not need.

Noise on the state: Werfel, Xie and Seung (2005), "Learning curves for stochastic gradient descent in linear
feedforward networks" (node perturbation). An estimate of λ in place of its backpropagation: Jaderberg et al.
(2017), "Decoupled neural interfaces using synthetic gradients".
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from zorn.checks import BelowOne, Count, Positive, Seed, Share, check_number, wrong
from zorn.errors import NonFiniteLossError
from zorn.estimators.base import Chosen, Facts
from zorn.estimators.boundary_noise import BoundaryNoise, Discounted, MeanSquares, floats_of
from zorn.estimators.estimate import Estimate
from zorn.estimators.exact import Piece, rows_of
from zorn.estimators.population import Objective
from zorn.estimators.tbptt import Carried, ChunkedGradient
from zorn.estimators.update import FusedSGD
from zorn.models import Batch, evaluation_mode, map_state, row_losses
from zorn.noise import Draw, NoiseKind
from zorn.noise.targets import trainable_targets

SMALLEST_RMS = 0.01
"""Relative noise takes a state to be at least this large: an empty memory gets noise too."""

RMS_DECAY = 0.9
"""Share of the running mean square that an estimate keeps."""


@final
class Bridge(ChunkedGradient):
    """The gradient within chunks of `truncation` steps, as `TBPTT`'s, plus zero-order credit for what a chunk
    does to later losses, as far as the batch reaches. Unbiased for every k with `discount=1` (up to O(ε²)),
    in the memory of one chunk; `BPTT` itself, without a perturbed rollout, from k = length on.

    For a model with an explicit state, and a differentiable objective that adds up over tokens. The rollouts
    run in evaluation mode (noise of dropout would drown theirs), the differentiated chunks in the mode that
    the model is in.

    Every floating tensor of the state gets noise. The noise is never clamped, which would bias the estimate.
    So a model that takes a logarithm or a root of its state needs a small ε. The formulas of the DNC are
    smooth beyond the range of its weights, but for its free list, which jumps where two slots are equally
    used. Tensors of whole numbers are not perturbed. A bfloat16 state rounds to 3 digits, so that noise below
    1 % of it is lost.

    Args:
        truncation: k, time steps in a chunk, at least 1.
        epsilon: ε > 0, the scale of the noise.
        relative: ε is in units of the state's root mean square, over all its tensors, at boundaries, over the
            batch and the last ten or so estimates with credit; the first one measures it with one more clean
            rollout. False: in the state's own units.
        draws: D, antithetic pairs of rollouts per sequence, at least 1. λ̂ is their mean.
        credit_every: estimates from one with credit (whose step it divides) to the next, at least 1. The
            others are TBPTT's, and leave no gradient for the optimizer of the credit.
            Above 1 only with `separate`. None: as many as draws, or 1 where the parts are not separate.
        discount: γ from 0 to 1, per time step and so of one meaning for every k: a loss n steps after the
            first one behind a boundary counts γⁿ there. Below 1 it trades a bias for less variance.
        separate: leave the credit part in the `.grad` of `credit_parameters(model)`, for an optimizer of its
            own: in one Adam the noise would set the step size of both parts, and drown the exact one. False:
            `.grad` is the sum of both.
        credit_learning_rate: Adam's step size for the credit part in a run, above 0; the schedule is that of
            the exact part. None: as the exact part's, or with another optimizer than Adam the estimator's
            own.
        credit_momentum: Adam's first beta for the credit part in a run, from 0 up to 1.
        carry: for streams: row i of a batch continues row i of the batch before, from its last state.
            Credit ends with the batch: no estimate sees the losses of the next one, a bias that falls as
            batches get longer. Call `reset()` before new sequences.
        noise: "rademacher" (signs) or "gaussian".
        seed: of the noise, 0 to 2**64 - 1.
        micro_batch: sequences processed together, at least 1, each with 2 D rollouts; changes nothing but
            memory and speed. None: the whole batch.
        maximum_nonfinite_share: 0 to 1; a pair of rollouts with a loss that is NaN or infinite is dropped
            (λ̂ is the mean over the rest of its sequence, or 0), and more than this share of them raises.

    Attributes:
        step: of the next estimate; numbers its noise.
        epsilon: may be set between steps, by a schedule.
        workers: the processes that have a part of the batch each; this one alone until
            `zorn.distributed.share`.

    Raises:
        ConfigError: an argument outside its range; with `carry`, another number of rows than before.

    Example:
        >>> import zorn
        >>> model = zorn.LanguageModel(29, 16)
        >>> task = zorn.tasks.CopyTask(batch=8, minimum_length=2, maximum_length=4, seed=0)
        >>> estimator = Bridge(truncation=3, draws=1, relative=False)
        >>> estimate = estimator.estimate(model, task.training_batch(0), zorn.TokenCrossEntropy())
        >>> estimate.forward_passes  # of 8 sequences: a pair of rollouts, one pass forward and one back
        40
    """

    scheduled = ("epsilon",)
    sizes = ("draws",)
    saved = ("step", "seed", "epsilon", "_mean_squares")
    searched: ClassVar[Mapping[str, tuple[Any, ...]]] = {"discount": (0.5, 0.8, 0.95, 1.0)}
    learning_rate = 0.003  # docs/log/credit-every-eighth-step.md; 0.01 suits text

    epsilon: Annotated[float, partial(check_number, above=True, hint="0.01 to 0.3 suits most models")] = 0.1
    relative: bool = True
    draws: Count = 8
    credit_every: Count | None = None
    discount: Share = 1.0
    separate: bool = True
    credit_learning_rate: Positive | None = None
    credit_momentum: BelowOne = 0.96
    noise: NoiseKind = "rademacher"
    seed: Seed = 0
    maximum_nonfinite_share: Share = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.credit_every is None:
            self.credit_every = self.draws if self.separate else 1
        if self.credit_every > 1 and not self.separate:
            fix = "in one gradient, the credit of some steps is too little of it"
            raise wrong("credit_every", "1 unless separate=True", self.credit_every, fix)
        self._aliases = WeakTensorKeyDictionary()  # by the parameter itself, as long as it lives
        self._mean_squares: list[float] = []
        self._seen = MeanSquares()
        self._further_passes = self._dropped = 0

    @classmethod
    def choose(cls, given: Mapping[str, Any], facts: Facts) -> Chosen:
        """Credit at every D-th step, with the draws of all between, where the parts are separate."""
        del facts
        if not given.get("separate", True):
            return {"draws": (1, "credit in every step"), "credit_every": (1, "the parts are not separate")}
        draws = given.get("draws", 8)
        return {"credit_every": (draws, "a step with credit has the draws of all between")}

    @property
    def two_part(self) -> bool:
        """True where the credit is kept apart, for an optimizer of its own."""
        return self.separate

    def passes(self, batch: int, steps: int) -> int | float:
        """Three a sequence, and the pairs of rollouts where there is a boundary: their mean over the
        steps."""
        pairs = 2 * self.draws * batch if steps > self.truncation else 0
        return super().passes(batch, steps) + pairs / (self.credit_every or 1)

    def credit_parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """The trained parameters of `model` once more: they share its memory, and the credit goes into their
        `.grad`. Give them to an optimizer of their own.

        They are the same ones at every call, until the model was moved to another device or number format:
        then call it again, and make that optimizer anew.

        >>> import zorn
        >>> model = zorn.LanguageModel(29, 16)
        >>> bridge = Bridge(truncation=2)
        >>> exact = torch.optim.AdamW(model.parameters(), lr=3e-3)
        >>> credit = torch.optim.Adam(bridge.credit_parameters(model), lr=3e-3, betas=(0.96, 0.999))
        """
        return [self._alias(target.parameter, anew=True) for target in trainable_targets(model)]

    def parts(self, model: nn.Module) -> list[list[nn.Parameter]]:
        """The trained parameters, and where the parts are separate those of the credit.

        Raises:
            ConfigError: the model was moved since `credit_parameters` gave the latter.
        """
        [trained] = super().parts(model)
        if not self.separate:
            return [trained]
        return [trained, [self._alias(parameter, anew=False) for parameter in trained]]

    def _alias(self, parameter: nn.Parameter, *, anew: bool) -> nn.Parameter:
        """The parameter that shares the memory of this one; where it lies elsewhere by now, another one with
        `anew`, else ConfigError."""
        alias = self._aliases.get(parameter)
        if alias is not None and alias.data_ptr() == parameter.data_ptr():
            return alias
        if alias is not None and not anew:
            expected = "where its weights were when credit_parameters(model) was called"
            fix = "call credit_parameters again, and make its optimizer anew"
            raise wrong("model", expected, "one that was moved since", fix)
        alias = self._aliases[parameter] = nn.Parameter(parameter.detach())
        return alias

    def own_optimizers(self, model: nn.Module, learning_rate: float | None) -> list[torch.optim.Optimizer]:
        """Adam for the credit, where the parts are separate."""
        if not self.separate:
            return []
        rate = self.credit_learning_rate or learning_rate or self.learning_rate
        betas = self.credit_momentum, 0.999
        return [torch.optim.Adam(self.credit_parameters(model), lr=rate, betas=betas)]

    @contextmanager
    def diagnosed(self) -> Iterator[None]:
        """Within the `with` block credit comes at every step, apart from the exact part."""
        before = self.credit_every, self.separate, self._aliases
        self.credit_every, self.separate, self._aliases = 1, True, {}
        try:
            yield
        finally:
            self.credit_every, self.separate, self._aliases = before

    def _estimate(
        self, model: nn.Module, batch: Batch, objective: Objective, update: FusedSGD | None
    ) -> Estimate:
        if self.separate and update is not None:
            expected = "None with separate=True, whose two parts go to two optimizers"
            raise wrong("update", expected, type(update).__name__, "take separate=False for one in place")
        return super()._estimate(model, batch, objective, update)

    # ---------------------------------------------------------------------- the differentiated sweep

    @property
    def _credited(self) -> bool:
        """True where the estimate under way has credit."""
        return self.step % (self.credit_every or 1) == 0

    def _pieces(
        self, model: Any, batch: Batch, objective: Objective, normaliser: float | None
    ) -> Iterator[Piece]:
        self._seen = MeanSquares()
        self._further_passes = self._dropped = 0
        crosses = self._credited and batch.inputs.shape[1] > self.truncation
        pairs = self.draws * len(batch.inputs)
        if crosses:
            self._further_passes = 2 * pairs
            self._prepare(model, batch)
        yield from super()._pieces(model, batch, objective, normaliser)
        if not crosses:
            return
        everywhere = self.workers.sum(torch.tensor([self._dropped, pairs], dtype=torch.float64))
        dropped, pairs = map(int, everywhere)
        if dropped == pairs or dropped > self.maximum_nonfinite_share * pairs:
            raise NonFiniteLossError(
                f"step {self.step}: the losses of {dropped} of {pairs} pairs of rollouts were not "
                f"finite (at most {self.maximum_nonfinite_share:.0%} are dropped): lower the learning rate "
                f"or epsilon (it is {self.epsilon:g}), or check the objective; the weights are unchanged"
            )

    def _backward(self, piece: Piece, parts: list[list[nn.Parameter]]) -> None:
        if not self._credited:
            super()._backward(piece, parts)
            return
        if self.relative and piece.credits:
            self._seen.add(piece.ends)
        pairs = zip(piece.ends, piece.credits, strict=bool(piece.credits))
        flows = [(end, credit) for end, credit in pairs if end.requires_grad]
        ends, credits = [end for end, _ in flows], [credit for _, credit in flows]
        if len(parts) == 1:
            loss = [piece.loss] if piece.loss.requires_grad else []
            torch.autograd.backward([*loss, *ends], [*[None for _ in loss], *credits])
            return
        trained, aliases = parts
        for alias in aliases:
            alias.grad = torch.zeros_like(alias) if alias.grad is None else alias.grad
        if flows:
            found = torch.autograd.grad(
                ends, trained, credits, retain_graph=piece.loss.requires_grad, allow_unused=True
            )
            for alias, gradient in zip(aliases, found, strict=True):
                if gradient is not None:
                    assert alias.grad is not None
                    alias.grad.add_(gradient)
        super()._backward(piece, parts)

    def _finish(self) -> tuple[int, int]:
        super()._finish()
        found = self._seen.means(self.workers)
        if found:
            kept = zip(self._mean_squares, found, strict=True)
            self._mean_squares = [RMS_DECAY * before + (1 - RMS_DECAY) * now for before, now in kept]
        return self._further_passes, self._dropped

    # --------------------------------------------------------------------------- the perturbed sweep

    def _credits(
        self, carried: Carried, batch: Batch, objective: Any, weight: float, rows: slice
    ) -> Iterator[Sequence[Tensor]]:
        """λ̂ at each boundary. The rollouts start at the first, when its credit is asked for."""
        chunks, floats = self._chunks(batch), floats_of(carried.state)
        if len(chunks) == 1 or not self._credited:
            return
        noise = BoundaryNoise(
            self.noise,
            Draw(seed=self.seed, step=self.step, epsilon=self.epsilon),
            members=range(
                (self._first_row + rows.start) * self.draws, (self._first_row + rows.stop) * self.draws
            ),
            boundaries=len(chunks) - 1,
            floats=floats,
            scales=self._scales(floats),
        )
        rollouts = Carried(carried.model, carried.state)
        coefficients = self._later_differences(rollouts, chunks[1:], objective, noise) * weight
        for boundary, of_members in enumerate(coefficients.to(torch.float32)):
            weighted = noise.at(boundary) * of_members.unsqueeze(1)
            of_sequences = weighted.unflatten(0, (-1, self.draws)).sum(1)
            yield noise.split(of_sequences / noise.scale)

    @torch.no_grad()
    def _later_differences(
        self, carried: Carried, chunks: list[Batch], objective: Any, noise: "BoundaryNoise"
    ) -> Tensor:
        """C at the start of each chunk for each member, over the number of draws of its sequence that are
        kept: [boundaries, members] float64; 0 for draws that are dropped."""
        if self.discount < 1:
            objective = Discounted(objective, self.discount)
        sequences = torch.arange(len(chunks[0].inputs), device=chunks[0].inputs.device)
        rows = sequences.repeat_interleave(self.draws).repeat(2)  # [signs, sequences, draws]
        carried.state = map_state(lambda tensor: tensor.index_select(0, rows), carried.state)
        differences = []
        assert isinstance(carried.model, nn.Module)
        with evaluation_mode(carried.model):
            for boundary, chunk in enumerate(chunks):
                carried.state = noise.added(carried.state, boundary)
                losses = row_losses(carried, chunk, objective, normaliser=1.0, rows=rows)
                plus, minus = losses.view(2, -1)
                differences.append((plus - minus) / 2)
        found = torch.stack(differences)
        finite = found.isfinite().all(0)
        self._dropped += len(finite) - int(finite.sum())
        found = torch.where(finite, found, 0.0)
        for boundary in reversed(range(len(found) - 1)):
            found[boundary] += self.discount ** chunks[boundary].inputs.shape[1] * found[boundary + 1]
        kept = finite.view(-1, self.draws).sum(1).clamp(min=1)
        return found / kept.repeat_interleave(self.draws)

    # ---------------------------------------------------------------------------- the scale of noise

    def _scales(self, floats: list[Tensor]) -> list[float]:
        """The noise's scale on each floating tensor of the state, the same for all: the effect of a tensor
        with more noise would be noise in the estimate of the others."""
        if not self.relative:
            return [self.epsilon for _ in floats]
        sizes = [tensor.numel() for tensor in floats]
        total = sum(size * square for size, square in zip(sizes, self._mean_squares, strict=True))
        rms = max(math.sqrt(total / sum(sizes)), SMALLEST_RMS)
        return [self.epsilon * rms for _ in floats]

    @torch.no_grad()
    def _prepare(self, model: Any, batch: Batch) -> None:
        """Check the state, and measure it in one clean rollout where no estimate has done so."""
        start = self._start(model, len(batch.inputs))
        floats = floats_of(start)
        if not floats:
            expected = "with floating tensors, which Bridge adds noise to"
            raise wrong(f"the state of {type(model).__name__}", expected, "none", "use TBPTT or BPTT")
        if not self.relative or len(self._mean_squares) == len(floats):
            return
        seen = MeanSquares()
        with evaluation_mode(model):
            for rows in self._portions(batch):
                state = map_state(lambda tensor, rows=rows: tensor[rows], start)
                for chunk in self._chunks(rows_of(batch, rows))[:-1]:
                    _, state = model(chunk.inputs, state)
                    seen.add(floats_of(state))
        means = seen.means(self.workers)
        if not all(math.isfinite(square) for square in means):
            raise NonFiniteLossError(
                f"step {self.step}: the state of the clean rollout is not finite: check the weights and the "
                "inputs; the weights are unchanged"
            )
        self._mean_squares = means
        self._further_passes += len(batch.inputs)
