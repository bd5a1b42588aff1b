"""Settings for a training budget in seconds, found in a tuning budget in seconds."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from zorn.checks import check_number
from zorn.diagnostics import EpsilonSweep, find_epsilon
from zorn.errors import ConfigError, NonFiniteLossError, ZornError
from zorn.models import Batch
from zorn.tasks import Task
from zorn.training.build import build_estimator, build_task, set_threads
from zorn.training.config import Config
from zorn.training.defaults import resolve
from zorn.training.groups import TaskConfig
from zorn.training.halving import KEPT, Round, affordable, successive_halving
from zorn.training.learner import Learner
from zorn.training.rate_search import PROBES, RateSearch, search_rate
from zorn.training.variants import differences, resized, shortened, variants, with_rate

EPSILON_SHARE = 0.1
"""Most of the tuning budget that the ε sweep may take."""
RATE_SHARE = 0.3
"""Of what is left then, for the search of the learning rate; the halving has the rest."""
LEAST_STEPS = 8
"""Fewest training steps of a probe."""
LEAST_PROBES = 3
"""Fewest probes in a search for the learning rate: one, and its two neighbours."""
EPSILONS = tuple(10 ** (power / 2) for power in range(-8, 1))
"""What the sweep tries: 1e-4 to 1 in half decades."""
SWEEP_SHRINKS = tuple(0.5**power for power in range(8))
"""Factors of the members in the sweep: ε needs few, as its estimates share their directions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What tuning found.

    Attributes:
        config: the settings to train with.
        start: the settings that it began with, nothing left open.
        start_loss: the held-out loss before any training.
        epsilon: the ε sweep; None where ε is not free, or there was no time.
        rates: the search of the learning rate, at the size of step that it began with.
        rounds: the successive halving; none where there was no time. Of the last one, where it was stopped,
            those that were tried.
        seconds: that all took.
        stopped: how far it had come when it was stopped, in words; None where it went on to its end.
    """

    config: Config
    start: Config
    start_loss: float
    epsilon: EpsilonSweep | None
    rates: RateSearch
    rounds: tuple[Round[Config], ...]
    seconds: float
    stopped: str | None = None


class _StoppedError(Exception):
    """`goes_on` said no in the middle of a trial."""


def tune(
    config: Config,
    *,
    seconds: float,
    report: Callable[[str], None] = lambda line: None,
    clock: Callable[[], float] = time.perf_counter,
    goes_on: Callable[[], bool] = lambda: True,
) -> Tuned:
    """Find ε, learning rate, size of a step and discount for `config.budget.seconds` of training.

    1. ε: kept where it lies on the plateau of `zorn.diagnostics.find_epsilon` at the first weights, else its
       middle.
    2. Learning rate: `search_rate` around the present one; each probe trains a few steps from the same
       weights, batches and noise, and is judged by its held-out loss.
    3. The rest: successive halving over `variants`; each candidate trains from the beginning.

    Whatever is tried runs through the whole schedule in its short time, with a learning rate that stands for
    the long run's (`shortened`): rates that are best for seconds are too large for minutes.

    The test split is never read. Nothing is written. Given the seed, what is tried depends on nothing but the
    clock. Candidates that diverge or fail are ranked last. What is best in the few seconds of a candidate
    need not be best in a long run: large steps and long memory pay late.

    Args:
        config: the settings to begin with; their budget must be in seconds. What they leave open is chosen
            by `resolve` first.
        seconds: the tuning budget, above 0. It is kept but for the step and evaluation that it ends in.
        report: takes a line about each finding.
        clock: seconds; `time.process_time` where other work disturbs the machine.
        goes_on: asked before each probe and step; False ends the search with the best so far.

    Raises:
        ConfigError: a training budget in steps, settings that cannot work, also for the memory, or a tuning
            budget that is too short: the message says how much is needed.
        KeyboardInterrupt: it was stopped before anything was tried.
        NonFiniteLossError: training diverged at every learning rate.

    Example:
        >>> from itertools import count
        >>> from zorn.training import BudgetConfig, EstimatorConfig, ModelConfig, TaskConfig
        >>> ticks = count()  # a clock that ends the example after so many steps, however long they take
        >>> start = Config(
        ...     task=TaskConfig(task="copy", batch=4, maximum_length=2), model=ModelConfig(hidden_size=4),
        ...     estimator=EstimatorConfig(estimator="bptt"), budget=BudgetConfig(seconds=10.0),
        ... )
        >>> tuned = tune(start, seconds=1.5, clock=lambda: next(ticks) * 1e-3)
        >>> tuned.rates.loss < tuned.start_loss
        True
    """
    check_number("seconds", seconds, above=True, hint="60 suits small models")
    if config.budget.seconds is None:
        raise ConfigError(
            "tuning compares settings at equal time, so the training budget must be in seconds, "
            f"got steps {config.budget.steps}: for example --seconds 180"
        )
    config, reasons = resolve(config)
    for reason in reasons:
        report(reason)
    set_threads(config.run.threads)
    try:
        return _Tuning(config, seconds, report, clock, goes_on).run()
    except RuntimeError as error:
        if "memory" not in str(error):  # torch has no narrower error for that of the CPU
            raise
        raise ConfigError(
            f"a step does not fit into the memory of {config.run.device} ({str(error).splitlines()[0]}): "
            "choose a smaller --micro-batch, --batch or memory of a dnc"
        ) from error


@final
class _Tuning:
    """One call of `tune`."""

    def __init__(
        self,
        config: Config,
        seconds: float,
        report: Callable[[str], None],
        clock: Callable[[], float],
        goes_on: Callable[[], bool],
    ) -> None:
        self._start, self._seconds, self._report, self._clock = config, seconds, report, clock
        self._goes_on = goes_on
        self._stopped: str | None = None
        assert config.budget.seconds is not None
        self._training = config.budget.seconds
        self._began = clock()
        self._tasks: dict[TaskConfig, Task] = {}

    def run(self) -> Tuned:
        start = self._start
        learner = self._learner(start)
        self._measure(learner)
        sweep = self._sweep_epsilon(start, learner)
        config = start
        if sweep is not None:
            config = dataclasses.replace(
                start, estimator=dataclasses.replace(start.estimator, epsilon=self._epsilon(sweep))
            )
        if not self._goes_on():
            raise KeyboardInterrupt
        rates = self._search_rate(config)
        config = with_rate(config, rates.rate / rates.start)
        rounds = self._halve(config) if self._stopped is None else []
        if rounds:
            config = rounds[-1].ranking[0][0]
        return Tuned(
            config=config,
            start=start,
            start_loss=self._start_loss,
            epsilon=sweep,
            rates=rates,
            rounds=tuple(rounds),
            seconds=self._elapsed(),
            stopped=self._stopped,
        )

    def _measure(self, learner: Learner) -> None:
        """Time a step and an evaluation, the first of each left out: they warm up."""
        before = learner.state_dict()
        learner.held_out_loss()
        moment = self._clock()
        self._start_loss = learner.held_out_loss()
        self._evaluation = self._clock() - moment
        durations = []
        for _ in range(2):
            moment = self._clock()
            learner.train_step(share=0.0)
            durations.append(self._clock() - moment)
        learner.load_state_dict(before)
        self._step = min(durations)
        probe = LEAST_STEPS * self._step + self._evaluation
        needed = (self._elapsed() + LEAST_PROBES * probe / RATE_SHARE) / (1 - EPSILON_SHARE)
        if needed > self._seconds:
            raise ConfigError(
                f"the tuning budget must be at least {needed:.2g} seconds here (a step takes "
                f"{self._step:.2g} s, an evaluation {self._evaluation:.2g} s), got {self._seconds:g}: "
                f"for example --tune-seconds {math.ceil(3 * needed)}"
            )
        self._report(
            f"start: held-out loss {self._start_loss:.4g}, {self._step:.2g} s a step, "
            f"{self._evaluation:.2g} s an evaluation"
        )

    def _sweep_epsilon(self, config: Config, learner: Learner) -> EpsilonSweep | None:
        if getattr(learner.estimator, "epsilon", None) is None or config.optimizer.tie_epsilon:
            return None
        limit = EPSILON_SHARE * self._seconds
        fitting = (
            small
            for shrink in SWEEP_SHRINKS
            if len(EPSILONS) * self._step * shrink <= limit
            and (small := config if shrink == 1 else resized(config, shrink)) is not None
        )
        small = next(fitting, None)
        if small is None:
            self._report(f"epsilon {config.estimator.epsilon:g}: no time for a sweep, kept")
            return None
        estimator = build_estimator(small.estimator, small.run.seed)
        batch = learner.next_batch()
        batch = Batch(*(part[: small.task.batch] for part in batch))
        try:
            sweep = find_epsilon(
                learner.model, batch, learner.task.objective, estimator, epsilons=EPSILONS, repeats=1
            )
        except ConfigError:
            self._report(f"epsilon {config.estimator.epsilon:g}: no plateau at the first weights, kept")
            return None
        low, high = sweep.plateau
        chosen = self._epsilon(sweep)
        verdict = "kept" if chosen == config.estimator.epsilon else f"was {config.estimator.epsilon:g}"
        self._report(f"epsilon {chosen:g}: plateau {low:.2g} to {high:.2g}, {verdict}")
        return sweep

    def _epsilon(self, sweep: EpsilonSweep) -> float:
        """The present ε where it is on the plateau, else the sweep's."""
        present, (low, high) = self._start.estimator.epsilon, sweep.plateau
        return present if present is not None and low <= present <= high else sweep.epsilon

    def _search_rate(self, config: Config) -> RateSearch:
        time_left = RATE_SHARE * self._left()
        end = self._elapsed() + time_left
        whole = max(LEAST_STEPS, int(self._training / self._step))
        steps = min(whole, max(LEAST_STEPS, int((time_left / PROBES - self._evaluation) / self._step)))
        cost = steps * self._step + self._evaluation
        present = config.optimizer.learning_rate
        assert present is not None

        def score(rate: float) -> float:
            tried = shortened(with_rate(config, rate / present), steps / whole)
            loss = self._learner(tried).probe(steps)
            self._report(
                f"learning rate {rate:.3g}: held-out loss {_shown(loss)} after {steps} steps "
                f"of {tried.optimizer.learning_rate:.3g}"
            )
            return loss

        rates = search_rate(score, present, goes_on=lambda: self._goes_on() and self._elapsed() + cost <= end)
        if not self._goes_on():
            self._stopped = f"after {len(rates.losses)} of up to {PROBES} trials of the learning rate"
        if math.isinf(rates.loss):
            if self._stopped is not None:
                raise KeyboardInterrupt
            low, high = min(rates.losses), max(rates.losses)
            raise NonFiniteLossError(
                f"training diverged at every learning rate from {low:.2g} to {high:.2g}: begin with a lower "
                "--learning-rate, or check the objective"
            )
        self._report(f"learning rate {rates.rate:.4g} taken")
        return rates

    def _halve(self, config: Config) -> list[Round[Config]]:
        near = variants(config)
        least = LEAST_STEPS * self._step + self._evaluation
        count = affordable(self._left(), least, len(near))
        if count < 2:
            self._report("no time to compare sizes of a step and discounts")
            return []
        self._report(f"comparing {count} of {len(near)} settings near these")
        done: dict[float, list[tuple[Config, float]]] = {}  # by the seconds of a trial, so by round

        def score(candidate: Config, seconds: float) -> float:
            loss = self._score(candidate, seconds)
            done.setdefault(seconds, []).append((candidate, loss))
            return loss

        try:
            rounds = successive_halving(near[:count], score, self._left)
        except _StoppedError:  # the best of a round is the first of the next: what is done can be compared
            rounds = [Round(each, tuple(sorted(tried, key=_loss))) for each, tried in done.items()]
            trials = sum(map(len, done.values()))
            self._stopped = f"after {trials} of {trials_of(count)} trials of settings near these"
        for each in rounds:
            self._report(f"{each.seconds:.2g} s each:")
            for candidate, loss in each.ranking:
                self._report(f"  {_shown(loss):>8}  {describe(candidate, config)}")
        return rounds

    def _score(self, config: Config, seconds: float) -> float:
        """The held-out loss after a run of so many seconds, evaluation counted in; infinite where it fails.

        Raises:
            _StoppedError: before it was done.
        """
        began = self._clock()
        limit = min(seconds, self._left()) - self._evaluation
        try:
            learner = self._learner(shortened(config, min(1.0, seconds / self._training)))
            used = before = self._clock() - began
            longest = 0.0
            while not learner.step or used + longest <= limit:
                if not self._goes_on():
                    raise _StoppedError
                learner.train_step(share=min(1.0, used / seconds))
                used = self._clock() - began
                longest, before = max(longest, used - before), used
            return learner.held_out_loss()
        except NonFiniteLossError:
            return math.inf
        except (ZornError, RuntimeError, MemoryError) as error:  # what it takes more of, it may not have
            line = str(error).partition("\n")[0]
            self._report(f"failed: {describe(config, self._start)} ({line or type(error).__name__})")
            return math.inf

    def _learner(self, config: Config) -> Learner:
        if config.task not in self._tasks:
            self._tasks[config.task] = build_task(config)
        return Learner.build(config, self._tasks[config.task])

    def _elapsed(self) -> float:
        return self._clock() - self._began

    def _left(self) -> float:
        return max(0.0, self._seconds - self._elapsed())


def describe(config: Config, base: Config) -> str:
    """How settings differ from others, in words.

    >>> from zorn.training import BudgetConfig, TaskConfig
    >>> base = Config(task=TaskConfig(batch=64), budget=BudgetConfig(seconds=60.0))
    >>> describe(dataclasses.replace(base, task=TaskConfig(batch=128)), base), describe(base, base)
    ('batch 128', 'unchanged')
    """
    parts = []
    for _, name, value in differences(config, base):
        parts.append(f"{name.replace('_', ' ')} {f'{value:.4g}' if isinstance(value, float) else value}")
    return ", ".join(parts) or "unchanged"


def trials_of(candidates: int) -> int:
    """Trials in all rounds of a successive halving of so many candidates.

    >>> [trials_of(candidates) for candidates in (1, 2, 3, 9, 10)]
    [0, 2, 3, 12, 16]
    """
    return 0 if candidates < 2 else candidates + trials_of(math.ceil(candidates / KEPT))


def _loss(trial: tuple[Config, float]) -> float:
    return trial[1]


def _shown(loss: float) -> str:
    return "diverged" if math.isinf(loss) else f"{loss:.4f}"
