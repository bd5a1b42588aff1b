"""Settings for a training budget in seconds, found in a tuning budget in seconds, by successive halving:
every candidate trains for a little time, the better ones for more (Jamieson and Talwalkar, "Non-stochastic
best arm identification and hyperparameter optimization", 2016; η = 3 as in Li et al., "Hyperband", 2018)."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from zorn.checks import check_number, wrong
from zorn.config import Choice, Config, resolve
from zorn.errors import NonFiniteLossError, ZornError
from zorn.search.space import alone, applied, describe, shortened, together
from zorn.tasks import Task
from zorn.training.build import build_task, set_threads
from zorn.training.learner import Learner
from zorn.training.limits import memory_of

STAGES = ((alone, 0.4), (together, 1.0))
"""Candidates near the best of the stage before, and their share of the time that is left."""
KEPT = 3
"""η: one candidate in so many stays for the next round."""
LEAST_STEPS, LEAST_TRIALS = 8, 3
"""Training steps that a trial should have time for, and trials of the shortest search."""


@dataclass(frozen=True)
class Trial:
    """One training from the beginning: its round, the seconds that it got, its settings (for the whole
    training budget), and its held-out loss at the end, infinite where it diverged or failed."""

    round: int
    seconds: float
    config: Config
    loss: float


@dataclass(frozen=True)
class Tuned:
    """The settings to train with, as they are to be asked for and with nothing left open; those that tuning
    began with, nothing left open; their held-out loss before any training; all trials in order; the seconds
    that it took; and whether `goes_on` ended it."""

    asked: Config
    config: Config
    start: Config
    start_loss: float
    trials: tuple[Trial, ...]
    seconds: float
    stopped: bool


def tune(
    config: Config,
    *,
    seconds: float,
    report: Callable[[str], None] = lambda line: None,
    clock: Callable[[], float] = time.perf_counter,
    goes_on: Callable[[], bool] = lambda: True,
) -> Tuned:
    """Find settings for `config.budget.seconds` of training: learning rate, size of a step, and what the
    estimator lets be searched (ε, discount).

    Settings that differ from the start in one value are compared first, then settings near the best of those.
    A trial trains from the beginning, runs through the whole schedule in its short time, and is judged by its
    held-out loss, never by the test split. Given the seed, the clock alone decides what is tried.

    Args:
        config: the settings to begin with, their budget in seconds; `resolve` chooses what they leave open.
        seconds: the tuning budget, above 0. The step and the evaluation that it ends in may exceed it.
        report: takes a line about each trial.
        clock: seconds; `time.process_time` where other work disturbs the machine.
        goes_on: asked before each step; False ends the search with the best so far, as Ctrl-C does.

    Raises:
        ConfigError: a training budget in steps, settings that cannot work or do not fit into the memory, or a
            tuning budget that is too short: the message says how much is needed.
        KeyboardInterrupt: it was stopped before a trial was done.
        NonFiniteLossError: every trial diverged or failed.
    """
    check_number("seconds", seconds, above=True, hint="60 suits small models")
    if config.budget.seconds is None:
        expected = "in seconds, as tuning compares settings at equal time"
        raise wrong(
            "the training budget", expected, f"steps {config.budget.steps}", "for example --seconds 180"
        )
    asked, (config, reasons) = config, resolve(config)
    for reason in reasons:
        report(reason)
    set_threads(config.run.threads)
    began, best, stopped = clock(), config, False
    search = _Search(config, seconds, report, lambda: clock() - began, goes_on)
    with memory_of(config.run.device):
        loss = search.measure()
    try:
        for near, share in STAGES:
            candidates = dict.fromkeys([best, *near(best)])
            best = search.halve([each for each in candidates if each is not None], share)
    except KeyboardInterrupt:
        stopped = True
    finite = [trial for trial in search.trials if math.isfinite(trial.loss)]
    if not finite:
        if stopped:
            raise KeyboardInterrupt
        count, fix = len(search.trials), "begin with a lower --learning-rate, or check the objective"
        raise NonFiniteLossError(f"training diverged or failed in each of {count} trials: {fix}")
    # The first of a round is the best of the one before, so what is done of the last one can be compared.
    best = min(finite, key=lambda trial: (-trial.round, trial.loss)).config
    return Tuned(
        applied(asked, best, config), best, config, loss, tuple(search.trials), search.elapsed(), stopped
    )


@dataclass
class _Search:
    """One call of `tune`."""

    start: Config
    budget: float
    report: Callable[[str], None]
    elapsed: Callable[[], float]
    goes_on: Callable[[], bool]
    round: int = 0
    trials: list[Trial] = field(default_factory=list[Trial])
    tasks: dict[Choice, Task] = field(default_factory=dict[Choice, Task])

    def measure(self) -> float:
        """Time an evaluation and a step, the first of each left out; returns the loss before training."""
        learner = self.learner(self.start)
        learner.held_out_loss()
        moments = [self.elapsed()]
        loss = learner.held_out_loss()
        moments.append(self.elapsed())
        for _ in range(2):
            learner.train_step(share=0.0)
            moments.append(self.elapsed())
        self.evaluation, step = moments[1] - moments[0], moments[3] - moments[2]
        self.least = LEAST_STEPS * step + self.evaluation
        needed = self.elapsed() + LEAST_TRIALS * self.least / STAGES[0][1]
        costs = f"{step:.2g} s a step, {self.evaluation:.2g} s an evaluation"
        if needed > self.budget:
            fix = f"for example --tune-seconds {math.ceil(3 * needed)}"
            expected = f"at least {needed:.2g} seconds here ({costs})"
            raise wrong("the tuning budget", expected, f"{self.budget:g}", fix)
        self.report(f"start: held-out loss {loss:.4g}, {costs}")
        return loss

    def halve(self, candidates: list[Config], share: float) -> Config:
        """The best of as many candidates as a share of the time left allows. Rounds get equal times,
        candidates equal parts of a round; one in `KEPT` stays. Of equal losses the earlier wins."""
        left = share * (self.budget - self.elapsed())
        end, counts = self.elapsed() + left, range(len(candidates), 1, -1)
        staying = candidates[: next((n for n in counts if left / rounds_of(n) / n >= self.least), 1)]
        while len(staying) > 1:
            self.round += 1
            seconds = max(0.0, end - self.elapsed()) / rounds_of(len(staying)) / len(staying)
            self.report(f"round {self.round}: {len(staying)} settings, {seconds:.3g} s each")
            losses = {candidate: self.trial(candidate, seconds, end) for candidate in staying}
            staying = sorted(staying, key=losses.__getitem__)[: math.ceil(len(staying) / KEPT)]
        return staying[0]

    def trial(self, config: Config, seconds: float, end: float) -> float:
        """The held-out loss after at least one step, and as many as there is time for with the evaluation;
        infinite for a failure."""
        began, longest, loss, failure = self.elapsed(), 0.0, math.inf, ""
        limit = min(seconds, end - self.elapsed()) - self.evaluation
        try:
            with memory_of(config.run.device):  # a larger step may not fit into it
                learner = self.learner(
                    shortened(config, min(1.0, seconds / (config.budget.seconds or seconds)))
                )
                used = self.elapsed() - began
                while not learner.step or used + longest <= limit:
                    if not self.goes_on():
                        raise KeyboardInterrupt
                    learner.train_step(share=min(1.0, used / seconds))
                    before, used = used, self.elapsed() - began
                    longest = max(longest, used - before)
                loss = learner.held_out_loss()
        except ZornError as error:
            if not isinstance(error, NonFiniteLossError):
                failure = f"failed ({str(error).splitlines()[0]})"
        self.trials.append(Trial(self.round, seconds, config, loss))
        word = "diverged" if math.isinf(loss) else f"{loss:.4f}"
        self.report(f"  {failure or word:>8}  {describe(config, self.start)}")
        return loss

    def learner(self, config: Config) -> Learner:
        if config.task not in self.tasks:
            self.tasks[config.task] = build_task(config)
        return Learner.build(config, self.tasks[config.task])


def rounds_of(candidates: int) -> int:
    """Rounds until one of so many candidates, at least 1, is left."""
    return math.ceil(round(math.log(candidates, KEPT), 9))
