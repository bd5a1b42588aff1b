"""Known faults of public code: selection, defaults, scripts, comparisons (see `test_noise_faults.py`)."""

import ast
import importlib
import math
import runpy
import sys
from pathlib import Path

import pytest
import torch

from zorn.cli.entry import COMMANDS
from zorn.cli.entry import main as command_line
from zorn.config import PRESETS, BudgetConfig, Choice, Config, RunConfig, ScheduleConfig
from zorn.models import LanguageModel
from zorn.tasks import SortTask, TextTask, TransductionTask
from zorn.training import Trainer
from zorn.training.schedules import epsilon_at

ROOT = Path(__file__).parents[2]
FOLDERS = ("zorn", "benchmarks", "examples", "tests")
SCRIPTS = [
    path
    for folder in ("benchmarks", "examples")
    for path in sorted((ROOT / folder).glob("*.py"))
    if "__main__" in path.read_text() and path.stem != "zero_order_in_100_lines"  # which has no flags
]


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a file of benchmarks/ by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


@pytest.fixture
def splits_seen(monkeypatch):
    """The splits that any task evaluates from now on."""
    seen = set()
    for kind in (TextTask, TransductionTask):

        def spy(self, split, original=kind.evaluation_data):
            seen.add(split)
            return original(self, split)

        monkeypatch.setattr(kind, "evaluation_data", spy)
    return seen


# -------------------------------------------------------------------------------------- selection


@pytest.mark.parametrize("overfit", [False, True])
@pytest.mark.parametrize("task", ["text", "copy"])
def test_training_never_evaluates_the_test_split(task, overfit, tmp_path, splits_seen, monkeypatch):
    """Public code chooses settings, and the step to report, by the score on the test set."""
    monkeypatch.setattr("zorn.training.trainer.draw_curve", lambda *_: None)
    config = Config(
        task=Choice(task, batch=4, overfit=overfit),
        model=Choice("lstm", hidden_size=4),
        estimator=Choice("auto", population=4),
        budget=BudgetConfig(steps=2),
        run=RunConfig(out=tmp_path / "run"),
    )
    Trainer(config).run()
    assert "validation" in splits_seen
    assert not {split for split in splits_seen if "test" in split}


def test_no_benchmark_or_example_names_the_test_split(benchmark, splits_seen):
    """The same fault, in the scripts that tune and compare."""
    for folder in ("benchmarks", "examples"):
        for path in (ROOT / folder).glob("*.py"):
            words = [
                node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)
            ]
            assert not {"test", "test-longer"} & {word for word in words if isinstance(word, str)}, path
    contest, method = benchmark("contest"), benchmark("methods").exact("adamw", 0.01)
    task = SortTask(batch=2, minimum_length=1, maximum_length=2, seed=0)
    contest.train(method, LanguageModel(29, 4), task, contest.judge_validation, seconds=1e-6)
    assert splits_seen == {"validation", "validation-longer"}


# --------------------------------------------------------------------------------------- defaults


@pytest.mark.parametrize("cell", ["lstm", "gru", "min-gru", "dnc", "dnc, simple memory"])
def test_a_model_is_float32_unless_it_is_told_otherwise(cell):
    """The LSTM of public code is bfloat16 by default, in which small perturbations and updates are lost."""
    settings = {"simple_memory": True} if cell == "dnc, simple memory" else None
    model = LanguageModel(7, 8, cell=cell.split(",")[0], cell_settings=settings)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    assert RunConfig().dtype == "float32"
    assert {preset.run.dtype for preset in PRESETS.values()} == {"float32"}


def test_epsilon_follows_the_learning_rate_in_the_paper_presets_alone():
    """The paper's code has lr = ε built in; the best of the two have nothing to do with each other."""
    assert {name for name, preset in PRESETS.items() if preset.schedule.tie_epsilon} == {
        "paper-96",
        "paper-512",
    }
    for rate in (1e-4, 0.1, 10.0):
        alone = ScheduleConfig(schedule="cosine", warmup_steps=3)
        assert {epsilon_at(alone, 0.02, rate, step / 8) for step in range(9)} == {0.02}
        assert epsilon_at(ScheduleConfig(tie_epsilon=True), 0.02, rate, 0.0) == rate


# ---------------------------------------------------------------------------------------- scripts


def test_every_file_compiles():
    """The distributed script of public code has a syntax error: it was never run as it is."""
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 100
    for path in files:
        compile(path.read_text(), str(path), "exec")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_shows_its_help(path, monkeypatch, capsys):
    """The same fault, and those that only show when a script's imports and flags are read."""
    monkeypatch.syspath_prepend(str(path.parent))
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(path), run_name="__main__")
    assert not stop.value.code
    assert "usage" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_its_help(command, capsys):
    """The same fault, in the program itself."""
    assert command_line([command, "--help"]) == 0
    assert "usage" in capsys.readouterr().out


# ------------------------------------------------------------------------------------ comparisons


@pytest.mark.parametrize("model", ["lstm", "dnc"])
def test_a_comparison_tells_steps_passes_and_seconds(model, benchmark):
    """Public comparisons count steps alone, whatever a step costs, or seconds of unlike machines."""
    contest, cells = benchmark("contest"), benchmark("cells")
    records_of = benchmark("learning_report").records_of
    points = [
        contest.Point(0, 0, 0.0, 3.4, {"loss": 3.4}),
        contest.Point(7, 700, 2.5, 0.5, {"loss": 0.5}),
    ]
    cell, settings = cells.Cell("overfit", "copy", model), []
    for method in benchmark("methods").methods_of("overfit", "copy", model).values():
        records = records_of(cell, method, 0, 5.0, 10, contest.Run(points, 1000))
        found = {(record.name, record.settings.get("threshold")): record.value for record in records}
        names = ("steps_to_loss", "passes_to_loss", "seconds_to_loss")
        assert [found[name, 1.0] for name in names] == [7, 700, 2.5]
        assert all(math.isnan(found[name, 0.1]) for name in names)  # not reached is told, not left out
        assert found["peak_memory_bytes", None] == 1000
        settings += [(record.settings["threads"], record.settings["seconds"]) for record in records]
    assert set(settings) == {(1, 5.0)}  # like with like


@pytest.mark.parametrize("model", ["lstm", "dnc"])
def test_the_baselines_are_tuned_adamw_and_sgd_with_momentum_and_clipping(model, benchmark):
    """Public comparisons have plain SGD as their only baseline."""
    table = benchmark("methods")
    methods = table.methods_of("overfit", "copy", model)
    assert {"bptt-adamw", "bptt-sgd", "tbptt-1-adamw", "tbptt-1-sgd"} <= set(methods)
    for settings in (methods["bptt-sgd"], PRESETS["copy-sgd"]):
        assert settings.optimizer.name == "sgd"
        assert settings.optimizer.momentum > 0
        assert settings.schedule.clip_norm is not None
    assert PRESETS["copy-adamw"].optimizer.name == methods["bptt-adamw"].optimizer.name == "adamw"
    for name, method in methods.items():
        if "bptt" in name:
            rates = table.SEARCHED[model, name]
            assert len(rates) >= 4
            assert min(rates) < method.optimizer.learning_rate < max(rates)
