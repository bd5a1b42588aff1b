"""The settings of every component are its constructor's arguments: complete, described, with defaults that
can be built, and checked by the constructor."""

import pickle
import re

import pytest

from zorn.config import COMPONENTS, GROUPS, REGISTRIES, BudgetConfig, Choice, RunConfig, ScheduleConfig
from zorn.config import component_settings as settings_named
from zorn.errors import ConfigError
from zorn.estimators import ESTIMATORS
from zorn.optimizers import OPTIMIZERS
from zorn.settings import completed, described, fields_of, fits, flag, settings_of
from zorn.tasks import TASKS

EVERY = [(kind, name) for kind in COMPONENTS for name in REGISTRIES[kind]]


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_every_setting_is_described_and_has_a_default_of_its_type(kind, name):
    for setting in settings_named(kind, name).values():
        assert re.search(r"[.)]$", setting.help), f"{setting.name}: {setting.help!r}"
        if not setting.required and not (kind == "optimizer" and setting.name == "learning_rate"):
            assert fits(setting.default, setting.type), setting
            assert described(setting.type)


@pytest.mark.parametrize("group", GROUPS)
def test_every_field_of_a_group_is_described(group):
    for setting in fields_of(GROUPS[group]).values():
        assert re.search(r"[.)]$", setting.help), f"{setting.name}: {setting.help!r}"


def test_names_are_unique_because_flags_are_flat():
    groups = [name for kind in GROUPS.values() for name in fields_of(kind)]
    assert len(groups) == len(set(groups))
    kinds = [{key for name in REGISTRIES[kind] for key in settings_named(kind, name)} for kind in COMPONENTS]
    together = [*groups, *(key for keys in kinds for key in keys)]
    assert len(together) == len(set(together))
    assert flag("tie_epsilon") == "--tie-epsilon"


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_an_estimator_keeps_its_settings_and_refuses_each_that_is_out_of_range(name):
    kind = ESTIMATORS[name]
    needed = {key: 2 for key, setting in settings_of(kind).items() if setting.required}
    given = completed(Choice(name, **needed), settings_of(kind), name).given
    kept = kind(**needed).settings()
    assert kept.keys() == given.keys()
    assert all(kept[key] == value for key, value in given.items() if type(value) in (bool, int, float))
    for key, setting in settings_of(kind).items():
        if fits(1, setting.type) and fits(0.5, setting.type) is False:
            for wrong in (0, 2**31):
                with pytest.raises(ConfigError, match=f"{key} must be a whole number of at least 1"):
                    kind(**{**needed, key: wrong})
        elif fits(0.5, setting.type):
            for wrong in (-1.0, float("nan"), float("inf")):
                with pytest.raises(ConfigError, match=f"{key} must be"):
                    kind(**{**needed, key: wrong})
        elif fits("zzz", setting.type) is False and fits(True, setting.type) is False:
            with pytest.raises(ConfigError, match=f"{key}.*'zzz'"):
                kind(**{**needed, key: "zzz"})


@pytest.mark.parametrize("name", list(OPTIMIZERS))
@pytest.mark.parametrize("wrong", [{"learning_rate": 0.0}, {"learning_rate": 1e31}, {"weight_decay": -1.0}])
def test_an_optimizer_refuses_what_is_out_of_range(name, wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} must be a number"):
        OPTIMIZERS[name].make([], **{"learning_rate": 0.1, **wrong})


@pytest.mark.parametrize(
    ("task", "wrong", "message"),
    [
        ("text", {"batch": 0}, "batch must be a whole number of at least 1, got 0"),
        ("text", {"batch": 2**31}, "batch must be a whole number of at least 1 and at most 2147483647"),
        ("text", {"length": 0}, "length must be a whole number of at least 1"),
        ("text", {"stream": 0}, "stream must be a whole number of at least 1"),
        ("text", {"stream": 2, "overfit": True}, "stream must be None with overfit, got 2"),
        ("text", {"tokenizer": "words"}, "tokenizer must be one of"),
        ("copy", {"minimum_length": 0}, "minimum_length must be a whole number of at least 1"),
        ("copy", {"minimum_length": 9, "maximum_length": 3}, "maximum_length"),
        (
            "repeat-copy",
            {"maximum_repeats": 10},
            "maximum_repeats must be a whole number of at least 1 and at",
        ),
    ],
)
def test_a_task_refuses_what_is_out_of_range(task, wrong, message):
    with pytest.raises(ConfigError, match=message):
        TASKS[task](**{"batch": 2, "seed": 0, **wrong})


@pytest.mark.parametrize(
    ("group", "wrong", "message"),
    [
        (ScheduleConfig, {"schedule": "linear"}, "schedule must be one of 'constant', 'cosine'"),
        (ScheduleConfig, {"epsilon_schedule": "linear"}, "epsilon_schedule must be one of"),
        (ScheduleConfig, {"warmup_steps": -1}, "warmup_steps must be a whole number of at least 0"),
        (
            ScheduleConfig,
            {"schedule_floor": 1.5},
            "schedule_floor must be a number of at least 0 and at most 1",
        ),
        (ScheduleConfig, {"clip_norm": 0.0}, "clip_norm must be a number above 0"),
        (ScheduleConfig, {"final_population": 0}, "final_population must be a whole number of at least 1"),
        (ScheduleConfig, {"tie_epsilon": "no"}, "tie_epsilon must be True or False"),
        (ScheduleConfig, {"tie_epsilon": True, "epsilon_schedule": "cosine"}, "constant with --tie-epsilon"),
        (ScheduleConfig, {"epsilon_schedule": "cosine", "schedule_floor": 0.0}, "must be above 0"),
        (ScheduleConfig, {"tie_epsilon": True, "schedule": "cosine", "schedule_floor": 0.0}, "above 0"),
        (BudgetConfig, {}, "exactly one of them, got steps None and seconds None"),
        (BudgetConfig, {"steps": 3, "seconds": 3.0}, "exactly one of them, got steps 3 and seconds 3.0"),
        (BudgetConfig, {"steps": 0}, "steps must be a whole number of at least 1"),
        (BudgetConfig, {"steps": 2**31}, "steps must be a whole number of at least 1 and at most 2147483647"),
        (BudgetConfig, {"seconds": 0.0}, "seconds must be a number above 0"),
        (BudgetConfig, {"seconds": float("inf")}, "seconds must be a number above 0"),
        (
            RunConfig,
            {"seed": -1},
            "seed must be a whole number of at least 0 and at most 18446744073709551615",
        ),
        (RunConfig, {"seed": 2**64}, "seed must be"),
        (RunConfig, {"device": ""}, "device must be a device's name"),
        (RunConfig, {"dtype": "float16"}, "dtype must be one of 'float32', 'bfloat16'"),
        (RunConfig, {"kernels": "their"}, "kernels must be one of 'own', 'flashrnn'"),
        (RunConfig, {"threads": 0}, "threads must be a whole number of at least 1"),
        (RunConfig, {"evaluations": 0}, "evaluations must be a whole number of at least 1"),
        (RunConfig, {"checkpoint_seconds": -1.0}, "checkpoint_seconds must be a number of at least 0"),
        (RunConfig, {"keep": 0}, "keep must be a whole number of at least 1"),
        (RunConfig, {"journal": "no"}, "journal must be True or False"),
        (RunConfig, {"journal_sync": -1.0}, "journal_sync must be a number of at least 0"),
        (RunConfig, {"check_replicas": 0}, "check_replicas must be a whole number of at least 1"),
        (RunConfig, {"process_timeout": 0.0}, "process_timeout must be a number above 0"),
    ],
)
def test_a_group_refuses_what_is_out_of_range(group, wrong, message):
    with pytest.raises(ConfigError, match=message):
        group(**wrong)


def test_progress_is_the_share_of_the_budget_and_stops_at_one():
    assert BudgetConfig(steps=4).progress(1, 1e9) == 0.25
    assert BudgetConfig(seconds=4.0).progress(10**9, 1.0) == 0.25
    assert BudgetConfig(steps=4).progress(9, 0.0) == 1.0


def test_a_choice_does_not_change_and_is_a_value():
    choice = Choice("cd-rge", population=8)
    assert choice == Choice("cd-rge", population=8) != Choice("cd-rge")
    assert len({choice, Choice("cd-rge", population=8)}) == 1
    assert pickle.loads(pickle.dumps(choice)) == choice
    with pytest.raises(AttributeError, match=r"a choice does not change: .* choice\.but\(population=…\)"):
        choice.population = 9
    with pytest.raises(AttributeError, match="cd-rge has no setting 'epsilon' here, but population"):
        _ = choice.epsilon


def test_a_setting_that_is_unknown_missing_or_of_another_type_is_told():
    settings = settings_of(ESTIMATORS["tbptt"])
    with pytest.raises(ConfigError, match="estimator tbptt needs truncation: for example --truncation 8"):
        completed(Choice("tbptt"), settings, "estimator")
    with pytest.raises(ConfigError, match="population: estimator tbptt has no such setting, it has"):
        completed(Choice("tbptt", truncation=2, population=8), settings, "estimator")
    for wrong in ("2", 2.0, True, None):
        with pytest.raises(ConfigError, match="truncation must be a whole number with estimator tbptt, got"):
            completed(Choice("tbptt", truncation=wrong), settings, "estimator")
