"""What is chosen where nothing is said; that what is said wins; and what does not fit together."""

import re

import pytest

from zorn.config import PRESETS, BudgetConfig, Choice, Config, RunConfig, ScheduleConfig, change, resolve
from zorn.config import component_settings as settings_named
from zorn.errors import ConfigError
from zorn.estimators import ESTIMATORS, Need
from zorn.optimizers import OPTIMIZERS
from zorn.training.build import build_estimator

START = Config(budget=BudgetConfig(steps=1))


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({}, "activity"),
        ({"epsilon": 0.1, "noise": "gaussian", "time_chunk": 8}, "activity"),
        ({"stream": 4}, "activity"),
        ({"objective": "edit-distance"}, "activity"),
        ({"population": 256}, "cd-rge"),
        ({"perturbation": "rank-one"}, "cd-rge"),
        ({"group_size": 1}, "cd-rge"),
        ({"shaping": "sign"}, "cd-rge"),
        ({"final_population": 2048}, "cd-rge"),
        ({"curvature_power": 0.5}, "spsa-1.5"),
        ({"stream": 4, "population": 256}, "nres"),
        ({"cell": "dnc", "simple_memory": True}, "cd-rge"),
        ({"cell": "dnc"}, "activity"),
    ],
)
def test_auto_is_the_first_estimator_that_has_all_that_is_given(given, name):
    config, reasons = resolve(change(START, **given))
    assert config.estimator.name == name
    assert reasons[0].startswith(f"estimator {name}: ")


@pytest.mark.parametrize("name", list(ESTIMATORS))
@pytest.mark.parametrize("optimizer", ["auto", *OPTIMIZERS])
def test_every_setting_is_chosen_and_resolving_again_changes_nothing(name, optimizer):
    kind = ESTIMATORS[name]
    needed = {key: 2 for key, setting in settings_named("estimator", name).items() if setting.required}
    if OPTIMIZERS["fused-sgd"] is OPTIMIZERS[optimizer if optimizer != "auto" else "adam"] and "separate" in (
        settings_named("estimator", name)
    ):
        needed["separate"] = False
    stream = {"stream": 4} if Need.STREAM in kind.needs else {}
    config, reasons = resolve(change(START, estimator=name, optimizer=optimizer, **needed, **stream))
    for part in ("task", "model", "estimator", "optimizer"):
        choice = getattr(config, part)
        assert set(choice.given) == set(settings_named(part, choice.name))
    assert any(reason.startswith("learning rate ") for reason in reasons)
    assert resolve(config) == (config, [])
    assert build_estimator(config).settings().keys() == config.estimator.given.keys()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_resolve_and_keep_what_they_say(name):
    preset = PRESETS[name]
    config, _ = resolve(preset)
    for part in ("task", "model", "estimator", "optimizer"):
        asked, found = getattr(preset, part), getattr(config, part)
        assert asked.name in ("auto", found.name)
        assert dict(found.given) == {**found.given, **asked.given}
    assert (config.schedule, config.budget) == (preset.schedule, preset.budget)
    assert preset.run.out is not None
    assert preset.run.out.parts == ("runs", name)


def test_what_is_given_wins_and_needs_no_reason():
    given = {"epsilon": 0.3, "discount": 0.5, "draws": 3, "learning_rate": 7.0, "threads": 2}
    config, reasons = resolve(change(START, estimator="activity", optimizer="sgd", **given))
    assert (config.estimator.epsilon, config.estimator.discount, config.estimator.draws) == (0.3, 0.5, 3)
    assert (config.optimizer.learning_rate, config.run.threads) == (7.0, 2)
    assert reasons == []


@pytest.mark.parametrize(
    ("given", "discount"),
    [({}, 0.6), ({"task": "copy"}, 0.9), ({"objective": "token-error"}, 1.0)],
    ids=["text", "copy", "row objective"],
)
def test_the_discount_is_that_of_the_task(given, discount):
    config, reasons = resolve(change(START, **given))
    assert config.estimator.discount == discount
    assert any(reason.startswith(f"discount {discount}: ") for reason in reasons)


@pytest.mark.parametrize(
    ("batch", "group", "population"), [(2048, 1, 2048), (48, 1, 1056), (64, 16, 1024), (64, None, 1024)]
)
def test_a_population_uses_all_sequences_equally_often(batch, group, population):
    config, _ = resolve(change(START, batch=batch, estimator="cd-rge", group_size=group))
    assert config.estimator.population == population


def test_dense_members_share_the_whole_batch():
    config, _ = resolve(change(START, perturbation="dense"))
    assert (config.estimator.population, config.estimator.group_size) == (96, None)


def test_number_format_and_size_choose_optimizer_and_threads():
    config, _ = resolve(change(START, dtype="bfloat16"))
    assert (config.optimizer.name, config.optimizer.learning_rate, config.run.threads) == (
        "fused-sgd",
        0.1,
        1,
    )
    for size, threads in (
        ({"hidden_size": 512}, None),
        ({"parameters": 10**6}, None),
        ({"parameters": 10**5}, 1),
    ):
        assert resolve(change(START, **size))[0].run.threads == threads


BRIDGE = {"estimator": "bridge", "truncation": 2}

CONTRADICTIONS = [
    ({"truncation": 4}, "(--truncation is of bridge, tbptt, e-prop)"),
    ({"population": 256, "draws": 2}, "--draws is of activity, bridge; --population is of cd-rge"),
    ({"population": 3}, "population must be a multiple of 256 for a batch of 256 sequences"),
    (
        {"estimator": "cd-rge", "batch": 8, "group_size": 3},
        "group_size must be a divisor of the batch, 8 sequences",
    ),
    (
        {"estimator": "cd-rge", "batch": 8, "group_size": 2, "population": 4, "final_population": 6},
        "final_population must be a multiple of 4 (batch / group size)",
    ),
    ({"batch": 0}, "batch must be a whole number of at least 1, got 0"),
    *(
        ({**given, "objective": "edit-distance"}, f"estimator {given['estimator']} needs an objective that")
        for given in ({"estimator": "bptt"}, {"estimator": "tbptt", "truncation": 2}, BRIDGE)
    ),
    ({"estimator": "activity", "objective": "edit-distance", "discount": 0.5}, "discount must be 1"),
    ({"estimator": "activity", "objective": "token-error", "exact_output": True}, "exact_output must be"),
    ({"estimator": "pes"}, "estimator pes needs windows of a stream (--stream), got no stream"),
    (
        {"estimator": "cd-rge", "stream": 4},
        "stream must be None with estimator cd-rge, which carries no stat",
    ),
    ({**BRIDGE, "optimizer": "fused-sgd"}, "separate must be False with fused-sgd"),
    ({**BRIDGE, "separate": False, "credit_every": 4}, "credit_every must be 1"),
    ({"estimator": "bptt", "tie_epsilon": True}, "tie_epsilon must be False with estimator bptt"),
    ({"estimator": "bptt", "final_population": 4}, "final_population must be None with estimator bptt"),
    ({"estimator": "bptt", "epsilon_schedule": "cosine"}, "epsilon_schedule must be constant with estimator"),
    ({"momentum": 0.9}, "auto, which is adam here and has no momentum: take --optimizer sgd"),
    ({"optimizer": "adam", "dtype": "bfloat16"}, "dtype must be float32 with adam"),
    ({"optimizer": "fused-sgd", "clip_norm": 1.0}, "clip_norm must be None with fused-sgd"),
]


@pytest.mark.parametrize(("given", "message"), CONTRADICTIONS, ids=[text[:24] for _, text in CONTRADICTIONS])
def test_settings_that_do_not_fit_each_other_are_refused_before_any_work(given, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        resolve(change(START, **given))
    assert "\n" not in str(caught.value)


def test_a_config_is_made_of_choices_with_settings_that_exist():
    budget = BudgetConfig(steps=1)
    with pytest.raises(ConfigError, match="estimator must be a Choice, got 'cd-rge'"):
        Config(budget=budget, estimator="cd-rge")
    with pytest.raises(ConfigError, match="populaton: estimator cd-rge has no such setting, it has"):
        Config(budget=budget, estimator=Choice("cd-rge", populaton=8))
    with pytest.raises(ConfigError, match="population must be a whole number with estimator cd-rge, got '8'"):
        Config(budget=budget, estimator=Choice("cd-rge", population="8"))
    with pytest.raises(ConfigError, match="objective must be one of"):
        Config(budget=budget, objective="bleu")
    assert Config(budget=budget, run=RunConfig(), schedule=ScheduleConfig()) == START
