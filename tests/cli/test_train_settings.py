"""From flags to settings."""

import dataclasses
import re
from pathlib import Path

import pytest

from zorn.cli import main
from zorn.cli.entry import COMMANDS
from zorn.cli.parsing import UsageError
from zorn.cli.train import settings
from zorn.config import (
    PRESETS,
    REGISTRIES,
    SELECTORS,
    BudgetConfig,
    Choice,
    component_settings,
    resolve,
    to_json,
)
from zorn.settings import flag

OF_SETTINGS = ("train", "tune", "plan", "diagnose", "inspect")
"""The commands that take the settings of components."""

FLAGS = Path(__file__).with_name("flags.txt")


def test_without_flags_it_is_the_main_job_in_a_folder_of_its_own():
    config, overwrite = settings([])
    assert not overwrite
    assert config == dataclasses.replace(
        PRESETS["quickstart"], run=dataclasses.replace(PRESETS["quickstart"].run, out=None)
    )


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_taken_as_it_is(name):
    assert settings(["--preset", name]) == (PRESETS[name], False)
    assert settings([f"--preset={name}", "--overwrite"]) == (PRESETS[name], True)


def test_flags_change_a_preset_in_any_order():
    words = "--hidden-size 32 --tie-epsilon --preset copy --perturbation dense --group-size None --out a/b"
    config, _ = settings([*words.split(), "--overfit"])
    preset = PRESETS["copy"]
    assert config == dataclasses.replace(
        preset,
        task=preset.task.but(overfit=True),
        model=preset.model.but(hidden_size=32),
        estimator=preset.estimator.but(perturbation="dense", group_size=None),
        schedule=dataclasses.replace(preset.schedule, tie_epsilon=True),
        run=dataclasses.replace(preset.run, out=Path("a/b")),
    )


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_takes_another_estimator(name):
    """What the two share stays; what the other lacks is left out."""
    start = PRESETS[name].estimator
    config, _ = settings(["--preset", name, "--estimator", "cd-rge"])
    known = component_settings("estimator", "cd-rge")
    assert config.estimator == Choice("cd-rge", **{k: v for k, v in start.given.items() if k in known})
    exact, _ = settings(["--preset", name, "--estimator", "bptt", "--micro-batch", "8"])
    assert exact.estimator == Choice("bptt", micro_batch=8)
    with pytest.raises(UsageError, match="--population is no setting of estimator bptt, but of cd-rge"):
        settings(["--preset", name, "--estimator", "bptt", "--population", "2"])


def test_settings_of_a_file_are_changed_as_those_of_a_preset(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(to_json(PRESETS["copy"], resolve(PRESETS["copy"])[0]))
    config, _ = settings(["--config", str(file), "--hidden-size", "32", "--steps", "3"])
    assert config.task == PRESETS["copy"].task, "what was asked, not what was chosen"
    assert config.model == PRESETS["copy"].model.but(hidden_size=32)
    assert config.budget == BudgetConfig(steps=3)
    assert config.run.out is None, "a folder of its own"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--task", "copy"], {"discount": 0.9, "draws": 2}),
        (["--estimator=bridge", "--truncation", "4"], {"draws": 2, "truncation": 4}),
        (["--epsilon", "0.3", "--task", "copy"], {"epsilon": 0.3, "discount": 0.9}),
    ],
)
def test_what_was_chosen_for_a_run_is_chosen_anew_with_its_settings(tmp_path, words, expected):
    """A run's file has what was asked for beside what was chosen, and flags change what was asked for."""
    asked = dataclasses.replace(PRESETS["quickstart"], estimator=Choice("auto", draws=2))
    file = tmp_path / "config.json"
    file.write_text(to_json(asked, resolve(asked)[0]))
    config, reasons = resolve(settings(["--config", str(file), *words])[0])
    assert {name: config.estimator.get(name) for name in expected} == expected
    assert not any(reason.startswith(("draws", "epsilon 0.3")) for reason in reasons)


def test_a_budget_replaces_the_presets():
    assert settings(["--steps", "7"])[0].budget == BudgetConfig(steps=7)
    assert settings(["--seconds=7"])[0].budget == BudgetConfig(seconds=7.0)


def test_underscores_and_negations_are_understood():
    config, _ = settings(["--hidden_size", "32", "--tie_embedding", "--no-overfit", "--clip-norm", "0.5"])
    assert config.model == PRESETS["quickstart"].model.but(hidden_size=32, tie_embedding=True)
    assert config.task.overfit is False
    assert config.schedule.clip_norm == 0.5
    bridge, _ = settings(["--estimator", "bridge", "--truncation", "2", "--no-separate"])
    assert bridge.estimator == Choice("bridge", truncation=2, separate=False)


def test_the_papers_presets_are_the_papers():
    """arXiv 2505.17852: the smallest LSTM on copy, the whole batch for each member, ε = lr."""
    for name, population, rate in (("paper-96", 96, 0.1), ("paper-512", 512, 0.5)):
        config, _ = resolve(PRESETS[name])
        assert (config.task.batch, config.task.minimum_length, config.task.maximum_length) == (1024, 2, 10)
        model, estimator, optimizer = config.model, config.estimator, config.optimizer
        assert (model.hidden_size, model.num_heads, model.embedding_size) == (240, 12, 100)
        assert (estimator.name, estimator.perturbation, estimator.noise) == ("cd-rge", "dense", "rademacher")
        assert (estimator.population, estimator.group_size) == (population, None)
        assert (optimizer.name, optimizer.learning_rate, config.schedule.tie_epsilon) == ("sgd", rate, True)
        assert (optimizer.momentum, optimizer.weight_decay, config.schedule.clip_norm) == (0.0, 0.0, None)


@pytest.mark.parametrize("name", ["copy-adamw", "copy-sgd", "copy-tbptt"])
def test_baselines_have_the_task_and_the_model_of_what_they_are_compared_with(name):
    assert PRESETS[name].task == PRESETS["copy"].task
    assert PRESETS[name].model == PRESETS["copy"].model
    assert PRESETS[name].estimator.name in ("bptt", "tbptt")


def flags_of(capsys, *words):
    """The flags that a command's help lists, in their order."""
    assert main([*words]) == 0
    return re.findall(r"^[│ ] (--[a-z][a-z-]*)", capsys.readouterr().out, re.MULTILINE)


def test_the_help_has_the_common_settings_and_those_of_the_estimator_that_is_named(capsys):
    common = flags_of(capsys, "train", "--help")
    assert {"--preset", "--task", "--cell", "--hidden-size", "--estimator", "--steps", "--out"} <= {*common}
    assert {"--draws", "--discount"} <= {*common}, "those of the estimator that most runs get"
    assert not {"--population", "--truncation", "--keep", "--num-heads"} & {*common}
    of_cd_rge = flags_of(capsys, "train", "--estimator", "cd-rge", "--help")
    assert {flag(name) for name in component_settings("estimator", "cd-rge")} <= {*of_cd_rge}
    assert not {"--draws", "--keep"} & {*of_cd_rge}
    assert len(common) < len(flags_of(capsys, "train", "--help-all")) / 1.5


@pytest.mark.parametrize("kind", REGISTRIES)
def test_all_settings_of_a_component_are_flags_of_it_and_in_all_of_its_help(kind, capsys):
    for name in REGISTRIES[kind]:
        shown = flags_of(capsys, "train", flag(SELECTORS[kind]), name, "--help-all")
        assert {flag(each) for each in component_settings(kind, name)} <= {*shown}
        assert len(shown) == len({*shown})


def test_the_flags_are_those_on_the_list(capsys):
    """A flag is a promise: a new, renamed or dropped one is changed in flags.txt on purpose. A command has
    its own flags, those of the groups, and those of the components that are named."""
    found = [
        f"{SELECTORS[kind]} {name} {flag(key)}"
        for kind, registry in REGISTRIES.items()
        for name in registry
        for key in component_settings(kind, name)
    ]
    of_components = {line.split()[-1] for line in found}
    for command in COMMANDS:
        shown = flags_of(capsys, command, "--help-all" if command in OF_SETTINGS else "--help")
        found += [f"{command} {each}" for each in shown if each not in of_components]
    assert found == FLAGS.read_text().splitlines()
