"""Tuning, on a clock that ticks by itself: the same at every call."""

import dataclasses
import math
import re

import pytest
import torch

from zorn.errors import ConfigError, NonFiniteLossError
from zorn.tasks import CopyTask
from zorn.training import BudgetConfig, Config, EstimatorConfig, ModelConfig, OptimizerConfig, TaskConfig
from zorn.training import tune as tuning
from zorn.training.learner import Learner
from zorn.training.tune import tune

FLAGS = {
    "cd-rge": {"population": 4},
    "activity": {},
    "bridge": {"truncation": 2},
    "bptt": {},
}


def settings(estimator="cd-rge", *, optimizer=None, seconds=30.0, **fields):
    return Config(
        task=TaskConfig(task="copy", batch=4, minimum_length=1, maximum_length=2),
        model=ModelConfig(hidden_size=4),
        estimator=EstimatorConfig(**({"estimator": estimator} | FLAGS[estimator] | fields)),
        optimizer=OptimizerConfig(**(optimizer or {})),
        budget=BudgetConfig(seconds=seconds),
    )


class Clock:
    """A second for each training step, in proportion to its rows, and nothing for all else."""

    def __init__(self, monkeypatch):
        self.now, self.steps = 0.0, 0
        step = Learner.train_step

        def counted(learner, *words, **options):
            self.now += learner.config.task.batch / 4
            self.steps += 1
            return step(learner, *words, **options)

        monkeypatch.setattr(Learner, "train_step", counted)

    def __call__(self):
        return self.now


@pytest.fixture(autouse=True)
def short_probes(monkeypatch):
    monkeypatch.setattr(tuning, "LEAST_STEPS", 2)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.mark.parametrize("estimator", FLAGS)
def test_it_finds_settings_that_train_better_and_keeps_its_budget(estimator, clock):
    start = settings(estimator, optimizer={"learning_rate": 1e-5})
    lines = []
    tuned = tune(start, seconds=60.0, report=lines.append, clock=clock)
    assert 50.0 < clock.now <= 61.0
    assert tuned.seconds == clock.now
    assert tuned.config.optimizer.learning_rate > 1e-4
    assert (tuned.epsilon is not None) == (estimator != "bptt")
    assert tuned.rounds[-1].ranking[0][0] == tuned.config
    assert tuned.rounds[-1].ranking[0][1] < tuned.start_loss
    assert len(tuned.rounds[0].ranking) > 3
    assert f"learning rate {tuned.rates.rate:.4g} taken" in lines


def test_the_same_clock_gives_the_same_findings(monkeypatch):
    first, second = (tune(settings("activity"), seconds=40.0, clock=Clock(monkeypatch)) for _ in range(2))
    assert first.config == second.config
    assert first.rates == second.rates
    assert first.rounds == second.rounds


def test_what_is_given_in_the_start_stays_unless_it_is_searched(clock):
    start = settings(optimizer={"clip_norm": 1.0, "schedule": "cosine"}, noise="gaussian")
    tuned = tune(start, seconds=40.0, clock=clock)
    free = {"batch", "population", "epsilon", "learning_rate"}
    assert {name for _, name, _ in tuning.differences(tuned.config, tuned.start)} <= free
    assert tuned.config.budget == start.budget


def test_epsilon_is_kept_on_the_plateau_and_replaced_off_it(clock):
    good = tune(settings(epsilon=0.01), seconds=26.0, clock=clock)
    assert good.config.estimator.epsilon == 0.01
    bad = tune(settings(epsilon=30.0), seconds=26.0, clock=clock)
    low, high = bad.epsilon.plateau
    assert low <= bad.config.estimator.epsilon <= high < 30.0


def test_a_tied_epsilon_is_not_searched(clock):
    tied = settings(optimizer={"tie_epsilon": True, "optimizer": "sgd"})
    assert tune(tied, seconds=26.0, clock=clock).epsilon is None


def test_a_candidate_that_diverges_is_ranked_last(clock, monkeypatch):
    step = Learner.train_step

    def diverging(learner, *words, **options):
        if learner.config.task.batch == 8:
            raise NonFiniteLossError("the losses were not finite")
        return step(learner, *words, **options)

    monkeypatch.setattr(Learner, "train_step", diverging)
    first = tune(settings("bptt"), seconds=60.0, clock=clock).rounds[0]
    losses = [loss for _, loss in first.ranking]
    diverged = [config.task.batch == 8 for config, _ in first.ranking]
    assert any(diverged)
    assert [math.isinf(loss) for loss in losses] == diverged == sorted(diverged)


def test_a_candidate_that_fails_is_ranked_last_and_told(clock, monkeypatch):
    build = Learner.build

    def failing(config, task):
        if config.task.batch == 8:
            raise RuntimeError("can't allocate memory: you tried 9 bytes\nand more lines")
        return build(config, task)

    monkeypatch.setattr(Learner, "build", failing)
    lines = []
    tuned = tune(settings("bptt"), seconds=60.0, report=lines.append, clock=clock)
    failed = [config for config, loss in tuned.rounds[0].ranking if math.isinf(loss)]
    assert failed
    assert {config.task.batch for config in failed} == {8}
    assert tuned.rounds[0].ranking[-1][0] in failed
    assert any(
        re.match(r"failed: batch 8.* \(can't allocate memory: you tried 9 bytes\)$", line) for line in lines
    )
    assert tuned.config.task.batch != 8


def test_a_start_that_does_not_fit_the_memory_is_a_clear_error(clock, monkeypatch):
    def full(*_words, **_options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(Learner, "train_step", full)
    with pytest.raises(ConfigError, match=r"a step does not fit into the memory of cpu .*: choose a smaller"):
        tune(settings(), seconds=26.0, clock=clock)


@pytest.mark.parametrize("asked", [1, 4])
def test_a_search_of_the_rate_that_is_stopped_gives_the_best_so_far(clock, monkeypatch, asked):
    """After so many probes; there is no halving then."""
    tried, probe = [], Learner.probe
    monkeypatch.setattr(Learner, "probe", lambda *words: tried.append(1) or probe(*words))
    start = settings("bptt", optimizer={"learning_rate": 1e-4})
    found = tune(start, seconds=60.0, clock=clock, goes_on=lambda: len(tried) < asked)
    assert found.stopped == f"after {asked} of up to 7 trials of the learning rate"
    assert found.rounds == ()
    assert len(found.rates.losses) == asked
    assert found.rates.loss == min(found.rates.losses.values())
    assert found.config.optimizer.learning_rate == pytest.approx(found.rates.rate)


def test_a_comparison_that_is_stopped_gives_the_best_of_the_last_round_begun(clock, monkeypatch):
    whole = tune(settings("bptt"), seconds=40.0, clock=clock)
    count = len(whole.rounds[0].ranking)
    assert whole.stopped is None
    assert len(whole.rounds) > 1
    score, done = tuning._Tuning._score, []

    def counted(self, config, seconds):
        loss = score(self, config, seconds)
        done.append((config, loss))
        return loss

    monkeypatch.setattr(tuning._Tuning, "_score", counted)
    for stop in (0, 2, count, count + 2):
        clock.now, compares = 0.0, []
        done.clear()

        def goes_on(stop=stop, compares=compares):
            return len(done) < stop or not any(line.startswith("comparing") for line in compares)

        found = tune(settings("bptt"), seconds=40.0, clock=clock, report=compares.append, goes_on=goes_on)
        assert found.stopped == f"after {stop} of {tuning.trials_of(count)} trials of settings near these"
        assert sum(len(each.ranking) for each in found.rounds) == stop
        if stop:
            tried = done[count:] or done
            assert found.config == min(tried, key=lambda trial: trial[1])[0]
        else:
            assert found.config.optimizer.learning_rate == found.rates.rate


def test_stopped_before_the_first_trial_there_is_nothing_to_give(clock):
    with pytest.raises(KeyboardInterrupt):
        tune(settings(), seconds=26.0, clock=clock, goes_on=lambda: False)


def test_what_was_found_counts_as_given(clock):
    tuned = tune(settings("activity", optimizer={"learning_rate": None}), seconds=60.0, clock=clock)
    changed = {name: value for _, name, value in tuning.differences(tuned.config, tuned.start)}
    assert "learning_rate" in changed
    again = tuned.config.reopened()
    for name in ("epsilon", "draws", "discount"):
        assert getattr(again.estimator, name) == changed.get(name)
    assert (again.optimizer.optimizer, again.optimizer.learning_rate) == (None, changed["learning_rate"])


def test_where_every_rate_diverges_it_says_so(clock, monkeypatch):
    monkeypatch.setattr(Learner, "probe", lambda *_, **__: math.inf)
    with pytest.raises(NonFiniteLossError, match=r"diverged at every learning rate from .* to 0\.01"):
        tune(settings(), seconds=26.0, clock=clock)


def test_the_test_split_is_never_read(clock, monkeypatch):
    asked = []
    data = CopyTask.evaluation_data
    monkeypatch.setattr(
        CopyTask, "evaluation_data", lambda task, split: asked.append(split) or data(task, split)
    )
    tune(settings("bptt"), seconds=40.0, clock=clock)
    assert set(asked) == {"validation"}


def test_too_short_a_budget_names_the_time_that_is_needed(clock):
    """Two steps to measure, then three probes of two steps in 0.3 of what the sweep of ε leaves."""
    with pytest.raises(ConfigError, match=r"tuning budget must be at least 24 seconds here .* got 24: "):
        tune(settings("bptt"), seconds=24.0, clock=clock)
    clock.now = 0.0
    tuned = tune(settings("bptt"), seconds=24.5, clock=clock)
    assert len(tuned.rates.losses) >= 3


def test_a_budget_in_steps_cannot_be_compared_at_equal_time(clock):
    config = dataclasses.replace(settings(), budget=BudgetConfig(steps=10))
    with pytest.raises(ConfigError, match=r"must be in seconds, got steps 10: for example --seconds 180"):
        tune(config, seconds=26.0, clock=clock)
    for seconds in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="seconds must be a number above 0"):
            tune(settings(), seconds=seconds, clock=clock)
    assert clock.steps == 0


def test_torchs_generator_is_left_alone(clock):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    tune(settings("bptt"), seconds=26.0, clock=clock)
    assert torch.equal(torch.rand(1), expected)
