"""What is chosen where nothing is said, and that what is said wins."""

import dataclasses
import typing

import pytest
from torch import nn
from zorn.training.config import config_from_json, config_to_json
from zorn.training.defaults import ADAM_RATES, SETTINGS, completed, resolve
from zorn.training.groups import EstimatorName
from zorn.training.presets import PRESETS

from zorn.errors import ConfigError
from zorn.training import BudgetConfig, Config, EstimatorConfig, ModelConfig, OptimizerConfig, RunConfig
from zorn.training import TaskConfig as Task
from zorn.training.build import build_estimator, build_optimizer

TRANSDUCTION = Task(task="copy")


def make(*, task=None, model=None, estimator=None, optimizer=None, **run):
    return Config(
        task=task or Task(),
        model=model or ModelConfig(),
        estimator=EstimatorConfig(**(estimator or {})),
        optimizer=OptimizerConfig(**(optimizer or {})),
        budget=BudgetConfig(steps=1),
        run=RunConfig(**run),
    )


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "activity"),
        ({"estimator": {"epsilon": 0.1, "noise": "gaussian", "time_chunk": 8}}, "activity"),
        ({"task": Task(stream=4)}, "activity"),
        ({"task": Task(objective="edit-distance")}, "activity"),
        ({"estimator": {"population": 256}}, "cd-rge"),
        ({"estimator": {"structure": "rank-one"}}, "cd-rge"),
        ({"estimator": {"rank": 1}}, "cd-rge"),
        ({"estimator": {"group_size": 1}}, "cd-rge"),
        ({"estimator": {"shaping": "sign"}}, "cd-rge"),
        ({"estimator": {"curvature_power": 0.5}}, "spsa-1.5"),
        ({"task": Task(stream=4), "estimator": {"population": 256}}, "nres"),
        ({"model": ModelConfig(cell="dnc", simple_memory=True)}, "cd-rge"),
        ({"model": ModelConfig(cell="dnc")}, "activity"),
    ],
)
def test_auto_is_the_first_estimator_that_uses_all_that_is_given(settings, name):
    config, reasons = resolve(make(**settings))
    assert config.estimator.estimator == name
    assert reasons[0].startswith(f"estimator {name}: ")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"estimator": {"truncation": 4}},
            r"--truncation is of bridge, tbptt, e-prop\): for example --estimator bridge",
        ),
        (
            {"estimator": {"population": 256, "draws": 2}},
            r"--population is of cd-rge, .*; --draws is of activity",
        ),
        ({"optimizer": {"credit_momentum": 0.9}}, r"--credit-momentum is of bridge"),
        ({"estimator": {"population": 3}}, "population must be a multiple of 256"),
    ],
)
def test_what_no_estimator_uses_together_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        resolve(make(**settings))


@pytest.mark.parametrize("name", sorted(set(typing.get_args(EstimatorName)) - {"auto"}))
def test_everything_that_an_estimator_uses_is_chosen_and_can_be_built(name):
    estimator = {"estimator": name} | ({"truncation": 2} if name in ("bridge", "tbptt") else {})
    config, _ = resolve(make(task=Task(stream=4 if name in ("pes", "nres") else None), estimator=estimator))
    assert config.optimizer.learning_rate == ADAM_RATES[name]
    assert all(getattr(config.estimator, field) is not None for field in SETTINGS[name])
    unused = {field for settings in SETTINGS.values() for field in settings} - SETTINGS[name].keys()
    assert all(getattr(config.estimator, field) is None for field in unused), "and nothing else"
    assert resolve(config) == (config, [])
    assert config_from_json(config_to_json(config)) == config
    built = build_estimator(config.estimator, seed=3, carry=config.task.stream is not None)
    assert getattr(built, "epsilon", None) == config.estimator.epsilon


@pytest.mark.parametrize("name", PRESETS)
def test_presets_resolve_and_keep_what_they_say(name):
    preset = PRESETS[name]
    config, _ = resolve(preset)
    for group in ("task", "model", "estimator", "optimizer", "run"):
        before, after = (dataclasses.asdict(getattr(one, group)) for one in (preset, config))
        changed = {field for field in before if before[field] != after[field]}
        assert all(before[field] in (None, "auto") for field in changed)


def test_what_is_given_wins():
    estimator = {"estimator": "activity", "epsilon": 0.3, "discount": 0.5, "draws": 3}
    optimizer = {"optimizer": "sgd", "learning_rate": 7.0}
    config, reasons = resolve(make(estimator=estimator, optimizer=optimizer, threads=2))
    assert dataclasses.replace(config.estimator, **estimator) == config.estimator
    assert dataclasses.replace(config.optimizer, **optimizer) == config.optimizer
    assert config.run.threads == 2
    assert reasons == []


@pytest.mark.parametrize(
    ("task", "discount"),
    [(Task(), 0.6), (TRANSDUCTION, 0.9), (Task(objective="token-error"), 1.0)],
    ids=["text", "copy", "row objective"],
)
def test_the_discount_is_that_of_the_task(task, discount):
    config, reasons = resolve(make(task=task))
    assert config.estimator.discount == discount
    assert any(reason.startswith(f"discount {discount}: ") for reason in reasons)


def test_a_population_uses_all_sequences_equally_often():
    for batch, group, population in ((2048, None, 2048), (48, None, 1056), (64, 16, 1024), (64, 0, 1024)):
        estimator = {"estimator": "cd-rge", "group_size": group}
        config, _ = resolve(make(task=Task(batch=batch), estimator=estimator))
        assert config.estimator.population == population
    dense, _ = resolve(make(estimator={"structure": "dense"}))
    assert (dense.estimator.population, dense.estimator.group_size) == (96, 0)


def test_number_format_and_size_choose_optimizer_and_threads():
    config, _ = resolve(make(dtype="bfloat16"))
    assert (config.optimizer.optimizer, config.optimizer.learning_rate) == ("fused-sgd", 0.1)
    assert config.run.threads == 1
    assert resolve(make(model=ModelConfig(hidden_size=512)))[0].run.threads is None
    assert resolve(make(model=ModelConfig(parameters=10**6)))[0].run.threads is None
    assert resolve(make(model=ModelConfig(parameters=10**5)))[0].run.threads == 1


def test_parts_of_settings_that_are_not_chosen_say_so():
    with pytest.raises(ConfigError, match=r"estimator must be named here, got auto: choose it with"):
        completed(EstimatorConfig())
    with pytest.raises(ConfigError, match="learning_rate must be chosen here, got None"):
        build_optimizer(OptimizerConfig(), nn.Linear(1, 1))
