"""From flags to settings."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from zorn.training.config import Chosen, config_to_json

from zorn.cli import main
from zorn.cli.entry import COMMANDS
from zorn.cli.train import settings
from zorn.errors import ConfigError
from zorn.training import PRESETS, BudgetConfig, EstimatorConfig, resolve

FLAGS = Path(__file__).with_name("flags.txt")


def test_without_flags_it_is_the_main_job_in_a_folder_of_its_own():
    config, overwrite = settings([])
    assert not overwrite
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-\d{6}", config.run.out.name)
    assert config.run.out.parent == Path("runs")
    run = dataclasses.replace(config.run, out=PRESETS["quickstart"].run.out)
    assert dataclasses.replace(config, run=run) == PRESETS["quickstart"]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_taken_as_it_is(name):
    assert settings(["--preset", name]) == (PRESETS[name], False)
    assert settings([f"--preset={name}", "--overwrite"]) == (PRESETS[name], True)


def test_flags_change_a_preset_in_any_order():
    words = "--hidden-size 32 --tie-epsilon --preset copy --structure dense --group-size 0 --out a/b"
    config, _ = settings([*words.split(), "--overfit"])
    preset = PRESETS["copy"]
    assert config == dataclasses.replace(
        preset,
        task=dataclasses.replace(preset.task, overfit=True),
        model=dataclasses.replace(preset.model, hidden_size=32),
        estimator=dataclasses.replace(preset.estimator, structure="dense", group_size=0),
        optimizer=dataclasses.replace(preset.optimizer, tie_epsilon=True),
        run=dataclasses.replace(preset.run, out=Path("a/b")),
    )


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_takes_another_estimator(name):
    """What the preset's own estimator needs, and the other does not use, is back at its default."""
    config, _ = settings(["--preset", name, "--estimator", "cd-rge"])
    assert config.estimator.estimator == "cd-rge"
    assert config.estimator.truncation is None
    exact, _ = settings(["--preset", name, "--estimator", "bptt", "--micro-batch", "8"])
    assert exact.estimator == EstimatorConfig(estimator="bptt", micro_batch=8)
    assert not exact.optimizer.tie_epsilon
    with pytest.raises(ConfigError, match="rank must be None with bptt"):
        settings(["--preset", name, "--estimator", "bptt", "--rank", "2"])


def test_settings_of_a_file_are_changed_as_those_of_a_preset(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(config_to_json(PRESETS["copy"]))
    config, _ = settings(["--config", str(file), "--hidden-size", "32", "--steps", "3"])
    assert config.task == PRESETS["copy"].task
    assert config.model == dataclasses.replace(PRESETS["copy"].model, hidden_size=32)
    assert config.budget == BudgetConfig(steps=3)
    assert config.run.out != PRESETS["copy"].run.out, "a folder of its own"


@pytest.fixture
def of_a_run(tmp_path):
    """The config.json of a run on text, whose estimator and settings zorn chose, but for the draws."""
    start = dataclasses.replace(PRESETS["quickstart"], estimator=EstimatorConfig(draws=2))
    file = tmp_path / "config.json"
    file.write_text(config_to_json(resolve(start)[0]))
    return ["--config", str(file)]


def test_what_was_chosen_stays_where_flags_change_nothing_that_it_depends_on(of_a_run):
    config, _ = settings([*of_a_run, "--steps", "3", "--evaluations", "2"])
    assert (config.estimator.estimator, config.estimator.discount) == ("activity", 0.6)
    assert resolve(config) == (config, [])
    again, _ = settings([*of_a_run, "--steps=3"])
    assert again.chosen == config.chosen != Chosen()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--task", "copy"], {"estimator": "activity", "discount": 0.9, "draws": 2}),
        (["--estimator=bridge", "--truncation", "4"], {"epsilon": 0.1, "discount": 1.0, "draws": 2}),
        (["--estimator", "bptt"], {"epsilon": None, "discount": None, "draws": None}),
        (["--epsilon", "0.05", "--task", "copy"], {"epsilon": 0.05, "discount": 0.9}),
    ],
)
def test_what_was_chosen_is_chosen_anew_where_flags_change_more(of_a_run, words, expected):
    config, reasons = resolve(settings([*of_a_run, *words])[0])
    assert {name: getattr(config.estimator, name) for name in expected} == expected
    told = {reason.partition(" ")[0] for reason in reasons}
    assert {name for name in config.chosen.estimator if name in expected} <= told, "and it says so"
    assert "draws" not in told
    assert "epsilon" not in told or "--epsilon" not in words


def test_the_optimizer_and_its_rate_are_chosen_anew_with_the_number_format(of_a_run):
    config, _ = resolve(settings([*of_a_run, "--dtype", "bfloat16"])[0])
    assert (config.optimizer.optimizer, config.optimizer.learning_rate) == ("fused-sgd", 0.1)


def test_a_value_that_was_edited_in_the_file_is_given(of_a_run):
    file = Path(of_a_run[1])
    groups = json.loads(file.read_text())
    groups["estimator"]["discount"] = 0.75
    file.write_text(json.dumps(groups))
    config, _ = resolve(settings([*of_a_run, "--task", "copy"])[0])
    assert config.estimator.discount == 0.75


def test_a_budget_replaces_the_presets():
    assert settings(["--steps", "7"])[0].budget == BudgetConfig(steps=7)
    assert settings(["--seconds=7"])[0].budget == BudgetConfig(seconds=7.0)


def test_underscores_and_negations_are_understood():
    config, _ = settings(["--hidden_size", "32", "--tie_embedding", "--no-overfit", "--clip-norm", "0.5"])
    assert config.model.hidden_size == 32
    assert config.model.tie_embedding
    assert config.optimizer.clip_norm == 0.5


def test_the_papers_presets_are_the_papers():
    """arXiv 2505.17852: the smallest LSTM on copy, the whole batch for each member, ε = lr."""
    for name, population, rate in (("paper-96", 96, 0.1), ("paper-512", 512, 0.5)):
        config = PRESETS[name]
        assert (config.task.batch, config.task.minimum_length, config.task.maximum_length) == (1024, 2, 10)
        model = config.model
        assert (model.hidden_size, model.num_heads, model.embedding_size) == (240, 12, 100)
        estimator = config.estimator
        assert (estimator.estimator, estimator.structure, estimator.noise) == (
            "cd-rge",
            "dense",
            "rademacher",
        )
        assert (estimator.population, estimator.group_size) == (population, 0)
        assert config.population_multiple == 1
        optimizer = config.optimizer
        assert (optimizer.optimizer, optimizer.learning_rate, optimizer.tie_epsilon) == ("sgd", rate, True)
        assert (optimizer.momentum, optimizer.weight_decay, optimizer.clip_norm) == (0.0, 0.0, None)


@pytest.mark.parametrize("name", ["copy-adamw", "copy-sgd", "copy-tbptt"])
def test_baselines_have_the_task_and_the_model_of_what_they_are_compared_with(name):
    assert PRESETS[name].task == PRESETS["copy"].task
    assert PRESETS[name].model == PRESETS["copy"].model
    assert PRESETS[name].estimator.exact


def test_the_flags_are_those_on_the_list(capsys):
    """A flag is a promise: a new, renamed or dropped one is changed in flags.txt on purpose."""
    found = []
    for command in COMMANDS:
        assert main([command, "--help"]) == 0
        help_text = capsys.readouterr().out
        found += [
            f"{command} {name}" for name in re.findall(r"^[│ ] (--[a-z][a-z-]*)", help_text, re.MULTILINE)
        ]
    assert found == FLAGS.read_text().splitlines()
