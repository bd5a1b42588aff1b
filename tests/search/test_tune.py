"""Tuning, on a clock that ticks by itself: the same at every call."""

import dataclasses
import itertools
import math

import pytest
from torch import nn

from zorn.config import BudgetConfig, Choice, Config, ScheduleConfig, resolve
from zorn.errors import ConfigError, NonFiniteLossError
from zorn.search import tune
from zorn.search.space import differences
from zorn.tasks import CopyTask
from zorn.training.build import build_estimator
from zorn.training.learner import Learner

FLAGS = {
    "cd-rge": {"population": 4},
    "activity": {},
    "bridge": {"truncation": 2},
    "bptt": {},
}


def settings(name="bptt", *, optimizer=None, schedule=None, seconds=30.0, **fields):
    return Config(
        task=Choice("copy", batch=4, minimum_length=1, maximum_length=2),
        model=Choice("lstm", hidden_size=4),
        estimator=Choice(name, **FLAGS[name] | fields),
        optimizer=Choice("adam", **optimizer or {}),
        schedule=schedule or ScheduleConfig(),
        budget=BudgetConfig(seconds=seconds),
    )


class Clock:
    """Seconds; a training step takes one for 4 rows, and nothing else takes time."""

    now = 0.0

    def __call__(self):
        return self.now


def made(config, task):
    """A learner without weights."""
    return Learner(config, task, nn.Identity(), build_estimator(config), None)


@pytest.fixture
def clock(monkeypatch):
    """In place of training a known loss: a learning rate of 0.1 is best, and more steps are better."""
    clock = Clock()

    def train_step(learner, share):
        assert 0 <= share <= 1
        learner.step += 1
        clock.now += learner.config.task.batch / 4

    def held_out_loss(learner):
        learner.task.evaluation_data(learner.task.validation_splits[0])
        distance = abs(math.log10(learner.config.optimizer.learning_rate / 0.1))
        return 1 + distance + 1 / learner.step if learner.step else 9.0

    monkeypatch.setattr("zorn.search.halving.LEAST_STEPS", 2)
    monkeypatch.setattr(Learner, "build", made)
    monkeypatch.setattr(Learner, "train_step", train_step)
    monkeypatch.setattr(Learner, "held_out_loss", held_out_loss)
    return clock


def rounds(found):
    return [list(each) for _, each in itertools.groupby(found.trials, key=lambda trial: trial.round)]


@pytest.mark.parametrize("estimator", FLAGS)
def test_it_finds_settings_that_train_better_and_keeps_its_budget(estimator, clock):
    start = settings(estimator, optimizer={"learning_rate": 1e-4})
    found = tune(start, seconds=60.0, clock=clock)
    assert 54.0 < clock() <= 62.0  # a step of the largest batch takes 2 seconds
    assert found.seconds == clock()
    assert found.config.optimizer.learning_rate > 5e-4
    assert found.start_loss == 9.0
    assert found.config.budget == start.budget
    assert not found.stopped


def test_one_in_three_stays_and_all_rounds_of_a_stage_take_as_long(clock):
    found = tune(settings(), seconds=100.0, clock=clock)
    sizes = [len(each) for each in rounds(found)]
    assert sizes == [9, 3, 9, 3]
    for number in (0, 2):
        before, after = rounds(found)[number : number + 2]
        best = sorted(before, key=lambda trial: trial.loss)[: len(after)]
        assert [trial.config for trial in after] == [trial.config for trial in best]
        assert after[0].seconds > 2 * before[0].seconds
    winners = [min(each, key=lambda trial: trial.loss).config for each in rounds(found)]
    assert found.trials[0].config == found.start
    assert rounds(found)[2][0].config == winners[1], "the second stage begins with the best of the first"
    assert found.config == winners[-1]


def test_the_same_clock_gives_the_same_findings(clock):
    first = tune(settings("activity"), seconds=60.0, clock=clock)
    clock.now = 0.0
    assert tune(settings("activity"), seconds=60.0, clock=clock) == first


def test_what_is_given_in_the_start_stays_unless_it_is_searched(clock):
    schedule = ScheduleConfig(clip_norm=1.0, schedule="cosine")
    start = settings("cd-rge", schedule=schedule, noise="gaussian")
    found = tune(start, seconds=60.0, clock=clock)
    tried = {name for trial in found.trials for _, name, _ in differences(trial.config, found.start)}
    assert {"learning_rate", "batch"} <= tried <= {"batch", "population", "epsilon", "learning_rate"}


def test_what_diverges_or_fails_is_told_and_not_taken(clock, monkeypatch):
    def failing(config, task):
        if config.task.batch == 8:
            raise RuntimeError("can't allocate memory: you tried 9 bytes\nand more lines")
        return made(config, task)

    step = Learner.train_step

    def diverging(learner, share):
        if learner.config.task.batch == 2:
            raise NonFiniteLossError("the losses were not finite")
        step(learner, share)

    monkeypatch.setattr(Learner, "build", failing)
    monkeypatch.setattr(Learner, "train_step", diverging)
    lines = []
    found = tune(settings(), seconds=200.0, report=lines.append, clock=clock)
    lost = {trial.config.task.batch for trial in found.trials if math.isinf(trial.loss)}
    assert lost == {2, 8}
    assert found.config.task.batch not in lost
    failed = next(line for line in lines if "batch 8" in line)
    assert "failed (a step does not fit into the memory of cpu (can't allocate memory: you" in failed
    assert any(line.startswith("  diverged  batch 2") for line in lines)


def test_an_error_of_another_kind_is_not_hidden(clock, monkeypatch):
    def broken(config, task):
        if config.optimizer.learning_rate != 0.01:
            raise RuntimeError("shapes do not match")
        return made(config, task)

    monkeypatch.setattr(Learner, "build", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        tune(settings(), seconds=60.0, clock=clock)


def test_a_start_that_does_not_fit_the_memory_is_a_clear_error(clock, monkeypatch):
    def full(*_words, **_options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(Learner, "train_step", full)
    with pytest.raises(ConfigError, match=r"a step does not fit into the memory of cpu .*: choose a smaller"):
        tune(settings(), seconds=26.0, clock=clock)


def test_a_search_that_is_stopped_gives_the_best_of_the_last_round_begun(clock):
    whole = tune(settings(), seconds=60.0, clock=clock)
    count = len(rounds(whole)[0])
    assert len(rounds(whole)) > 2
    for stop in (1, 2, count, count + 1):
        clock.now, lines = 0.0, []

        def goes_on(stop=stop, lines=lines):
            return sum(line.startswith("  ") for line in lines) < stop

        found = tune(settings(), seconds=60.0, clock=clock, report=lines.append, goes_on=goes_on)
        assert found.stopped
        assert found.trials == whole.trials[:stop]
        assert found.config == min(rounds(found)[-1], key=lambda trial: trial.loss).config


def test_stopped_before_the_first_trial_there_is_nothing_to_give(clock):
    with pytest.raises(KeyboardInterrupt):
        tune(settings(), seconds=26.0, clock=clock, goes_on=lambda: False)


def test_what_was_found_is_asked_for_and_all_else_stays_as_it_was_asked(clock):
    asked = settings("activity")
    found = tune(asked, seconds=60.0, clock=clock)
    changed = {(group, name): value for group, name, value in differences(found.config, found.start)}
    assert ("optimizer", "learning_rate") in changed
    given = {(group, name): value for group, name, value in differences(found.asked, asked)}
    assert given == changed
    assert resolve(found.asked)[0] == found.config


def test_where_everything_diverges_it_says_so(clock, monkeypatch):
    monkeypatch.setattr(Learner, "held_out_loss", lambda _: math.inf)
    with pytest.raises(NonFiniteLossError, match=r"diverged or failed in each of \d+ trials: begin with a"):
        tune(settings(), seconds=26.0, clock=clock)


def test_the_test_split_is_never_read(clock, monkeypatch):
    asked, data = [], CopyTask.evaluation_data
    monkeypatch.setattr(
        CopyTask, "evaluation_data", lambda task, split: asked.append(split) or data(task, split)
    )
    tune(settings(), seconds=40.0, clock=clock)
    assert set(asked) == {"validation"}


def test_too_short_a_budget_names_the_time_that_is_needed(clock):
    """Two steps to measure, then three trials of two steps in 0.4 of the time."""
    with pytest.raises(ConfigError, match=r"tuning budget must be at least 17 seconds here .* got 16: "):
        tune(settings(), seconds=16.0, clock=clock)
    clock.now = 0.0
    assert len(rounds(tune(settings(), seconds=17.0, clock=clock))[0]) == 3


def test_a_budget_in_steps_cannot_be_compared_at_equal_time(clock):
    config = dataclasses.replace(settings(), budget=BudgetConfig(steps=10))
    with pytest.raises(ConfigError, match=r"must be in seconds, .*, got steps 10: for example --seconds 180"):
        tune(config, seconds=26.0, clock=clock)
    for seconds in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="seconds must be a number above 0"):
            tune(settings(), seconds=seconds, clock=clock)
    assert clock() == 0
