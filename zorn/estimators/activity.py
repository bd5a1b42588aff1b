"""Activity-space credit: noise at the output of every map, credited with the losses that come after it.

ĝ_W = (1/B) Σ_rows Σ_t C_t ξ_t x_tᵀ / σ,   C_t = Σ_{s ≥ t} γ^{s−t} (ℓ⁺_s − ℓ⁻_s) / 2

Two sweeps, both forward in time and in chunks of it, whatever the context: the first runs every sequence
under noise and keeps a number a token; the second runs it without, makes ξ again from its counter and adds up
the outer products. With γ = 1 the mean is the gradient, up to O(ε²), of a causal model.

Where the output layer is known to be linear and the loss's derivative by its outputs too (softmax − one-hot),
that layer's gradient is exact and ℓ⁺ − ℓ = eᵀ W (h⁺ − h) to first order: the draws then run beside the
sequence itself, without outputs and without −ξ, at half the cost and the same variance.

Node perturbation (Williams 1992; Werfel, Xie & Seung 2005) with credit in time; for recurrent networks
Fernández et al. 2024, arXiv 2405.08967.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from math import isfinite
from typing import Annotated, Any, ClassVar, final

import torch
from torch import Tensor, nn

from zorn.checks import Count, Seed, Share, check_number, wrong
from zorn.errors import NonFiniteLossError
from zorn.estimators.activity_sweeps import Lanes, OutputGradient, Part, Sweep, check_sequences
from zorn.estimators.base import Chosen, Estimator, Facts
from zorn.estimators.carry import Carry
from zorn.estimators.credit import reward_to_go
from zorn.estimators.estimate import Estimate
from zorn.estimators.population import Objective
from zorn.estimators.update import FusedSGD, applied
from zorn.models import Batch, TokenObjective, evaluation_mode, mean_tokens
from zorn.noise import Activity, BoundActivity, Draw, NoiseKind


@final
class ActivityCredit(Estimator):
    """Activity-space estimator with credit in time: 2 D + 1 forward passes a sequence, D + 2 with an exact
    output layer, and no backward pass. Memory does not grow with time, but for a number a token.

    Any model whose layers have rules; recurrent ones (with `initial_state`) run in time chunks, others take
    the sequence in one call, time being the dimension after the rows. Any objective: one that adds up over
    tokens is credited token by token, any other with its one score for all steps.

    Args:
        epsilon: ε > 0, the standard deviation of the noise, as a share of each site's output size (relative)
            or in its unit.
        relative: scale each site's noise by the root mean square of its output one step before.
        draws: D, independent noises of each sequence and step, at least 1. More sequences are better than
            more draws, where there are more.
        discount: γ, 0 to 1, of the losses after the noise. Only 1 where the objective is one score a
            sequence, or the model is not causal.
        exact_output: take the gradient of the output layer, an `nn.Linear` which then has no noise, from the
            objective's `output_gradient`. None: where the objective has one, and the model returns the
            output of such a layer.
        noise: "rademacher" (signs) or "gaussian".
        causal: False for a model whose outputs depend on later inputs: every noise is credited with all
            losses.
        carry: start from the state that the last estimate ended in (streams; see `reset`). Credit ends with
            the batch: the weights' effect on later batches is left out.
        seed: of the noise, 0 to 2**64 - 1.
        micro_batch: most rows in one forward pass, at least 1; changes nothing but memory and speed.
        time_chunk: steps of a recurrent model that run at once; None for all. Bounds the memory.
        maximum_nonfinite_share: 0 to 1; the noise of a sequence whose losses are NaN or infinite under one of
            its draws gets no credit (0), and more than this share of such sequences raises instead.

    Attributes:
        step: of the next estimate.
        epsilon: may be set between steps, by a schedule.
        workers: the processes that share the sequences; this one alone until `zorn.distributed.share`.

    Raises:
        ConfigError: an argument outside its range.

    Example:
        >>> import torch, zorn
        >>> model = zorn.LanguageModel(29, 16)
        >>> task = zorn.tasks.CopyTask(batch=8, minimum_length=2, maximum_length=4, seed=0)
        >>> estimator = zorn.ActivityCredit(draws=1, discount=0.9)
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        >>> estimate = estimator.estimate(model, task.training_batch(0), zorn.TokenCrossEntropy())
        >>> optimizer.step()
        >>> estimate.forward_passes  # 8 sequences under noise, beside it, replayed; once to measure sizes
        32
    """

    scheduled = ("epsilon",)
    sizes = ("draws",)
    saved = ("seed", "step", "epsilon", "_sizes", "_output")
    deals = "rows"
    searched: ClassVar[Mapping[str, tuple[Any, ...]]] = {"discount": (0.5, 0.8, 0.95, 1.0)}

    epsilon: Annotated[float, partial(check_number, above=True, hint="0.01 to 0.2 suits most models")] = 0.05
    relative: bool = True
    draws: Count = 4
    discount: Share = 1.0
    exact_output: bool | None = None
    noise: NoiseKind = "rademacher"
    causal: bool = True
    carry: bool = False
    seed: Seed = 0
    micro_batch: Count = 512
    time_chunk: Count | None = None
    maximum_nonfinite_share: Share = 0.5

    def __post_init__(self) -> None:
        if not self.causal and self.discount != 1:
            fix = "where outputs depend on later inputs there is no 'after' to discount"
            raise wrong("discount", "1.0 with causal=False", self.discount, fix)
        self._carry = Carry() if self.carry else None
        self._structure = Activity(relative=self.relative, noise=self.noise)
        self._sizes: dict[str, float] = {}
        self._output: str | None = None

    @classmethod
    def choose(cls, given: Mapping[str, Any], facts: Facts) -> Chosen:
        """The discount that suits the task; 1 where the objective is one number a sequence."""
        del given
        if not facts.tokens:
            return {"discount": (1.0, "the objective is one number a sequence")}
        return {"discount": (facts.fading, facts.why_fading)}

    @classmethod
    def unfit(cls, facts: Facts) -> str | None:
        """The simplified memory of a DNC, whose norms see slots where time is expected."""
        return (
            "activity noise does not fit the simplified memory" if facts.model.get("simple_memory") else None
        )

    def check(self, facts: Facts) -> None:
        """Raise ConfigError for credit by token where the objective is one number a sequence."""
        if facts.tokens:
            return
        for name, needed in (("discount", 1.0), ("exact_output", False)):
            value = getattr(self, name)
            if value not in (needed, None):
                expected = f"{needed} with the objective {facts.objective}, which is one number a sequence"
                raise wrong(name, expected, value, "leave it out")

    def passes(self, batch: int, steps: int) -> int | float:
        """D + 2 a sequence where the output layer's gradient is exact, else 2 D + 1."""
        del steps
        return batch * (2 * self.draws + 1 if self.exact_output is False else self.draws + 2)

    @torch.inference_mode()
    def _estimate(
        self, model: nn.Module, batch: Batch, objective: Objective, update: FusedSGD | None
    ) -> Estimate:
        bound = self._structure.bind(model)
        if update is not None:
            update.check(bound.targets)
        sweep = self._sweep(model, batch, objective)
        with evaluation_mode(model):
            passes = self._measure(bound, sweep)
            bound.sizes = self._sizes
            output = self._output_layer(sweep)
            portions = self._portions(self.workers.rows(len(batch.inputs)), output)
            parts = [self._part(bound, sweep, rows, output) for rows in portions]
        passes += len(batch.inputs) * (2 * self.draws + 1 if output is None else self.draws + 2)
        dropped, loss, finite, coefficients, sizes = self._totals(bound, parts, len(batch.inputs))
        self._check_finite(dropped, loss, len(batch.inputs))
        if not isinstance(objective, TokenObjective):
            loss *= len(batch.inputs) / (len(batch.inputs) - dropped)
        if not finite:
            raise NonFiniteLossError(
                f"step {self.step}: the gradient is not finite, though the losses are: check the inputs "
                "where no target counts, or lower the learning rate; the weights are unchanged"
            )
        with torch.inference_mode(mode=False), torch.no_grad():
            blocks = self.workers.sum_blocks(bound.blocks())
            norm = applied(blocks, bound.targets, update, sweep.draw)
        self._sizes = self._sizes | sizes  # the output layer's stays that of the first step
        if self._carry is not None:
            self._carry.keep([part.state for part in parts])
        self.step += 1
        return Estimate(
            loss=loss, coefficients=coefficients, gradient_norm=norm, forward_passes=passes, dropped=dropped
        )

    def _totals(
        self, bound: BoundActivity, parts: list[Part], sequences: int
    ) -> tuple[int, float, bool, Tensor, dict[str, float]]:
        """Over all processes: sequences dropped, the loss, whether all gradients are finite, the coefficients
        of all sequences and draws, and the size of each site's output."""
        rows, sizes = self.workers.rows(sequences), bound.measured_sizes()
        with torch.inference_mode(mode=False):
            own = torch.zeros(sequences, self.draws, dtype=torch.float64)
            found = torch.cat([part.coefficients.clone() for part in parts])
            own[rows.start : rows.stop] = found.view(-1, self.draws)
            infinite = sum(not gradient.isfinite().all() for gradient in bound.gradients.values())
            numbers = [sum(part.dropped for part in parts), sum(part.loss for part in parts), infinite]
            squares = [size**2 * len(rows) for size in sizes.values()]
            head = torch.tensor([*numbers, *squares], dtype=torch.float64)
            total = self.workers.sum(torch.cat([head, own.flatten()]))
        dropped, loss, infinite = total[: len(numbers)].tolist()
        squares = total[len(numbers) : len(head)]
        means = (squares / sequences).sqrt().tolist()
        found_sizes = dict(zip(sizes, means, strict=True))
        return int(dropped), loss, infinite == 0, total[len(head) :], found_sizes

    def _sweep(self, model: nn.Module, batch: Batch, objective: Objective) -> Sweep:
        """The common part of the step's sweeps; raises for things that do not fit together."""
        check_sequences(model, batch, objective, self.time_chunk)
        tokens = isinstance(objective, TokenObjective)
        if not tokens and self.discount != 1:
            expected = "1.0 for an objective with one score a sequence"
            raise wrong("discount", expected, self.discount, "nothing tells which step earned it")
        rows = self.workers.rows(len(batch.inputs))
        sweep = Sweep(
            model=model,
            batch=batch,
            objective=objective,
            normaliser=mean_tokens(objective, batch.targets) if tokens else 1.0,
            draws=self.draws,
            draw=Draw(seed=self.seed, step=self.step, epsilon=self.epsilon),
            time_chunk=self.time_chunk,
            state=self._carry.start(model, len(rows)) if self._carry else None,
            first=rows.start,
        )
        if self.exact_output and not isinstance(sweep.objective, OutputGradient):
            expected = f"None or False with {type(objective).__name__}, which has no output_gradient"
            raise wrong("exact_output", expected, "True", "or take an objective such as TokenCrossEntropy")
        return sweep

    def _measure(self, bound: BoundActivity, sweep: Sweep) -> int:
        """Measure the size of each site's output, and find the output layer; at the first step only.

        Returns:
            Forward passes that it took, by each process on the same rows.
        """
        if self._sizes.keys() == {site.name for site in bound.sites}:  # measured at an earlier step
            return 0
        rows = slice(0, min(len(sweep.batch.inputs), self.micro_batch))
        chunks, outputs = 0, None
        with bound.measured() as measured:
            for chunk in replace(sweep, state=None).rollout(rows, Lanes.CLEAN):
                chunks, outputs = chunks + 1, chunk.outputs
        sizes = bound.measured_sizes()
        bound.forget_sizes()
        infinite = [name for name, size in sizes.items() if not isfinite(size)]
        if infinite:
            raise NonFiniteLossError(
                f"step {self.step}: without noise, {infinite[0]} gives numbers that are not finite: check "
                "the weights and the inputs; the weights are unchanged"
            )
        self._sizes = sizes
        self._output = next((name for name, site in measured.items() if site.returned(outputs, chunks)), None)
        return rows.stop

    def _output_layer(self, sweep: Sweep) -> str | None:
        """The name of the layer whose gradient is taken exactly."""
        if self.exact_output and self._output is None:
            got = f"{type(sweep.model).__name__}, which does not return what an nn.Linear of it returns"
            raise wrong("model", "one that does, with exact_output=True", got, "take None or False")
        wanted = self.exact_output is not False and isinstance(sweep.objective, OutputGradient)
        return self._output if wanted else None

    def _portions(self, sequences: range, output: str | None) -> Iterator[slice]:
        rows = 2 * self.draws if output is None else 1 + self.draws
        at_once = max(1, self.micro_batch // rows)
        starts = sequences[::at_once]
        return (slice(first, min(first + at_once, sequences.stop)) for first in starts)

    def _part(self, bound: BoundActivity, sweep: Sweep, rows: slice, output: str | None) -> Part:
        """Both sweeps over some of the sequences; gradients are added up in `bound`."""
        noisy = sweep.under_noise(bound, rows, output)
        credit = sweep.share * reward_to_go(noisy.changes, self.discount, causal=self.causal)
        loss, state = sweep.replayed(bound, rows, credit.expand(-1, -1, sweep.steps), output)
        coefficients = noisy.changes.sum(2).flatten().double().cpu() / sweep.normaliser / sweep.draw.epsilon
        return Part(loss if noisy.loss is None else noisy.loss, noisy.dropped, state, coefficients)

    def _check_finite(self, dropped: int, loss: float, sequences: int) -> None:
        if not (
            dropped <= self.maximum_nonfinite_share * sequences and dropped < sequences and isfinite(loss)
        ):
            raise NonFiniteLossError(
                f"step {self.step}: the losses of {dropped} of {sequences} sequences were not finite under "
                f"noise (at most {self.maximum_nonfinite_share:.0%} get no credit) and the loss is {loss}: "
                f"lower the learning rate or epsilon (epsilon is {self.epsilon:g}), or check the objective; "
                "the weights are unchanged"
            )
