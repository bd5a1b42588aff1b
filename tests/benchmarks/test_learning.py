"""The learning benchmark: its methods and cells, what it records, its files, its search of settings."""

import doctest
import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import cells
import learning
import learning_report
import methods
import results
import tables
from cells import CELLS, MODELS, TASKS, TUNING_SEED, Cell
from contest import Point, Run
from results import Results, curve_of, key_of, name_of

from zorn.models import parameter_count

COPY = Cell("overfit", "copy", "lstm")
PLACES = [(setting, task, cell) for setting in TASKS for task in TASKS[setting] for cell in MODELS[setting]]


def point(steps, loss):
    measured = {"loss": loss, "token_accuracy": 0.5, "validation-longer token_accuracy": 0.25}
    return Point(steps, 10 * steps, steps / 2, loss, measured)


def records(seed=0, losses=(3.0, 0.05), cell=COPY, name="bptt-adamw", seconds=1.0):
    run = Run([point(4 * number, loss) for number, loss in enumerate(losses)], 2**20)
    method = methods.methods_of(cell.setting, cell.task, cell.cell)[name]
    return learning_report.records_of(cell, method, seed, seconds, 93_005, run)


# ------------------------------------------------------------------------------------ methods, cells


@pytest.mark.parametrize("place", PLACES, ids="/".join)
def test_every_place_has_every_kind_of_method(place):
    found = methods.methods_of(*place)
    truncations = (1, 4, 8) if place[0] == "text" else (1, 4, 7)
    assert {
        f"{name}-{k}-{how}" for name in ("tbptt",) for k in truncations for how in ("adamw", "sgd")
    } <= set(found)
    assert {f"bridge-{k}" for k in truncations} <= set(found)
    assert {"bptt-adamw", "bptt-sgd", "e-prop", "activity", "dense-cd-rge", "dense-paper"} <= set(found)
    assert any(name.startswith("activity-0.") for name in found)
    assert {f"rank-one-{name}" for name in ("cd-rge", "fd-rge", "spsa-1.5")} <= set(found)
    assert ({"pes", "nres"} <= set(found)) == (place[0] == "text")
    for name, method in found.items():
        assert method.name == name
        kind = "exact" if "bptt" in name or name == "e-prop" else "bridge" if "bridge" in name else "forward"
        assert method.kind == kind
        assert method.optimizer.learning_rate is not None


def test_a_special_place_replaces_a_general_one():
    general, special = (methods.methods_of("overfit", "copy", cell) for cell in ("lstm", "dnc"))
    assert list(general) == list(special)
    assert general["rank-one-cd-rge"] != special["rank-one-cd-rge"]
    assert general["rank-one-fd-rge"] == special["rank-one-fd-rge"]


@pytest.mark.parametrize("place", PLACES, ids="/".join)
def test_the_cells_of_the_models_have_their_sizes(place):
    cell = Cell(*place)
    method = methods.methods_of(*place)["bptt-adamw"]
    task = cell.make_task(method, 0)
    count = parameter_count(cell.make_model(task, 0))
    wanted = {"overfit": {"lstm": 100_000, "dnc": 300_000}, "transduction": {"lstm": 100_000}}
    if place[0] in wanted:
        assert abs(count / wanted[place[0]][place[2]] - 1) < 0.1
    batch = task.training_batch(0)
    assert len(batch.inputs) == (16 if place[0] == "overfit" else method.batch)
    same = torch.equal(batch.inputs, task.training_batch(1).inputs)
    assert same == (place[0] == "overfit")


def test_settings_of_a_text_are_searched_on_a_piece_that_no_result_comes_from():
    cell, method = Cell("text", "python-docs", "lstm"), methods.methods_of("text", "", "")["bptt-adamw"]
    result, search = cell.make_task(method, 0), cell.make_task(method, TUNING_SEED)
    assert search.text["validation"] in result.text["train"]
    assert search.text["validation"] not in result.text["validation"] + result.text["test"]


def test_fixed_length_copy_has_ten_letters():
    method = methods.methods_of("transduction", "copy-10", "lstm")["bptt-adamw"]
    inputs = Cell("transduction", "copy-10", "lstm").make_task(method, 0).training_batch(0).inputs
    assert (inputs[:, 10] == 26).all()
    assert not (inputs[:, :10] >= 26).any()


# ------------------------------------------------------------------------------------------- records


def test_what_a_run_did_not_reach_is_not_a_number():
    found = {(one.name, one.settings.get("threshold")): one.value for one in records(losses=(3.0, 0.5))}
    assert found["seconds_to_loss", 1.0] == 2.0
    assert found["steps_to_loss", 1.0] == 4
    assert found["passes_to_loss", 1.0] == 40
    assert math.isnan(found["seconds_to_loss", 0.1])


def test_records_carry_the_settings_that_tell_a_run():
    for one in records(seed=2, cell=Cell("transduction", "sort", "lstm"), seconds=600.0):
        wanted = {"setting": "transduction", "task": "sort", "method": "bptt-adamw", "seed": 2}
        assert wanted.items() <= one.settings.items()
        assert one.settings["seconds"] == 600.0
    names = {
        (one.name, one.settings.get("split")) for one in records(cell=Cell("transduction", "sort", "lstm"))
    }
    assert {("token_accuracy", "validation"), ("token_accuracy", "validation-longer")} <= names
    assert ("peak_memory_bytes", None) in names


def test_a_curve_keeps_its_ends_and_at_most_sixty_points():
    points = [point(number, 1.0 + number) for number in range(5000)]
    curve = curve_of(points, "loss")
    assert 40 < len(curve) <= results.CURVE_POINTS
    assert curve[0] == [1, 10, 0.5, 2.0]
    assert curve[-1] == [4999, 49990, 2499.5, 5000.0]
    assert curve_of([point(0, 1.0)], "loss") == []


# --------------------------------------------------------------------------------------------- files


def test_a_repeated_run_replaces_its_rows_and_leaves_the_others(tmp_path):
    found = Results(tmp_path / "here" / "learning.json")
    found.add(records(seed=0, losses=(3.0, 2.0)), [[1, 2, 3.0, 2.0]])
    found.add(records(seed=1), [[1, 2, 3.0, 1.0]])
    found.add(records(seed=0, losses=(3.0, 0.05)), [[1, 2, 3.0, 0.05]])
    rows = found.rows()
    assert len(rows) == 2 * len(records())
    reached = {
        row["settings"]["seed"]: row["value"]
        for row in rows
        if row["name"] == "seconds_to_loss" and row["settings"]["threshold"] == 1.0
    }
    assert reached == {0: 2.0, 1: 2.0}
    assert found.curves()[name_of(key_of(rows[0]))] == [[1, 2, 3.0, 0.05]]
    assert rows[0]["settings"]["environment"]["torch"] == torch.__version__
    unreached = Results(tmp_path / "b.json")
    unreached.add(records(losses=(3.0, 2.0)), [])
    assert {row["value"] for row in unreached.rows() if row["name"] == "seconds_to_loss"} == {None}


def test_one_process_at_a_time_writes(tmp_path):
    """Reading, merging and writing without the lock would lose what another process adds meanwhile."""
    found = Results(tmp_path / "learning.json")
    with ThreadPoolExecutor(1) as pool, found._locked():  # this lock is let go before the pool is waited for
        adding = pool.submit(found.add, records(), [])
        with pytest.raises(TimeoutError):
            adding.result(timeout=0.5)
        assert found.rows() == []
    adding.result(timeout=30)
    assert len(found.rows()) == len(records())


# -------------------------------------------------------------------------------------------- tables


def test_a_line_of_the_table_is_a_method_with_its_spread_over_seeds(tmp_path):
    found = Results(tmp_path / "learning.json")
    for seed, losses in enumerate([(3.0, 0.05), (3.0, 2.0, 0.05), (3.0, 0.5)]):
        found.add(records(seed=seed, losses=losses), [[4, 40, 2.0, losses[-1]]])
    found.add(records(name="activity"), [[4, 40, 2.0, 1.0]])
    learning_report.show(found, tmp_path / "picture.png", {("overfit", "lstm", 1.0)})
    (line, _) = [text for text in (tmp_path / "learning.md").read_text().splitlines() if "| copy |" in text]
    words = [word.strip() for word in line.split("|")[1:-1]]
    assert words[1] == "bptt-adamw"
    assert words[3] == "3"
    assert words[4] == "2 [2, 4]"  # seconds to 1.0
    assert words[5] == "4 [2, –]"  # seconds to 0.1
    assert (tmp_path / "picture-overfit-lstm-1s.png").stat().st_size > 10_000


# -------------------------------------------------------------------------------------------- search


def test_the_grid_of_a_method_holds_what_it_uses():
    table = methods.methods_of("overfit", "copy", "lstm")
    assert set(methods.grid_of(table["tbptt-1-adamw"])) == {"rate"}
    assert set(methods.grid_of(table["rank-one-cd-rge"])) == {"rate", "epsilon"}
    assert set(methods.grid_of(table["dense-paper"])) == {"rate"}
    bridge = table["bridge-7"]
    grid = methods.grid_of(bridge)
    assert set(grid) == {"rate", "credit rate", "epsilon"}
    changed = methods.variant(bridge, grid, (0.5, 0.25, 0.125))
    assert changed.optimizer.learning_rate == 0.5
    assert changed.estimator.credit_learning_rate == 0.25
    assert changed.estimator.epsilon == 0.125


@pytest.mark.parametrize("best", [0.01, 1.0, 90.0])
def test_a_search_goes_on_beyond_its_edge_until_the_best_lies_inside(best):
    found = methods.search(
        {"rate": (0.3, 1.0, 3.0)},
        lambda points: [(abs(math.log(rate / best)),) for (rate,) in points],
        extensions=8,
    )
    rates = sorted(rate for (rate,) in found)
    assert rates[0] < min(found, key=found.__getitem__)[0] < rates[-1]
    assert abs(math.log(min(found, key=found.__getitem__)[0] / best)) < math.log(3)


def test_a_search_ends():
    seen = methods.search({"rate": (1.0, 3.0)}, lambda points: [(-rate,) for (rate,) in points], extensions=2)
    assert [rate for (rate,) in seen] == [1.0, 3.0, 9.0, 27.0]


def test_the_tuned_baselines_lie_inside_what_was_searched():
    """A rate at the edge of all that was tried would leave a better one untried."""
    for cell in MODELS["overfit"]:
        for name, method in methods.methods_of("overfit", "copy", cell).items():
            if "bptt" in name:
                lowest, *_, highest = methods.SEARCHED[cell, name]
                assert lowest < method.optimizer.learning_rate < highest, (cell, name)

    transduced = methods.methods_of("transduction", "copy", "lstm")
    for name, tried in methods.TRANSDUCED.items():
        method = transduced[name]
        assert min(tried, key=tried.__getitem__) == (method.optimizer.learning_rate,)
        if method.kind == "exact":
            (lowest,), *_, (highest,) = sorted(tried)
            assert lowest < method.optimizer.learning_rate < highest, name


# ------------------------------------------------------------------------------------------- command


def jobs(*words):
    parser = learning.make_parser()
    return learning.jobs_of(parser.parse_args([*words]))


def test_one_cell_can_be_asked_for():
    words = [
        "--setting",
        "transduction",
        "--task",
        "copy",
        "--cell",
        "lstm",
        "--method",
        "bridge-1",
        "--seed",
        "0",
        "--seconds",
        "600",
    ]
    (job,) = jobs(*words)
    assert job.cell == Cell("transduction", "copy", "lstm")
    assert (job.method.name, job.seed, job.seconds) == ("bridge-1", 0, 600.0)
    assert learning.Job.from_json(job.to_json()) == job


def test_a_file_takes_the_place_of_the_built_in_text(tmp_path):
    file = tmp_path / "some.txt"
    file.write_text("a text of its own. " * 200)
    (job,) = jobs("--setting", "text", "--file", str(file), "--method", "bptt-sgd", "--seed", "0")
    assert job.cell.task == str(file)
    assert job.cell.title == "some.txt"
    assert job.cell.make_task(job.method, 0).decode([0]) == " "


def test_without_flags_everything_is_measured():
    found = jobs()
    assert {(job.cell.setting, job.cell.task, job.cell.cell) for job in found} == set(PLACES)
    assert {job.seed for job in found} == {0, 1, 2}


@pytest.mark.slow
def test_the_script_measures_tunes_and_merges(tmp_path):
    script, file = learning.__file__, tmp_path / "learning.json"
    words = ["--setting", "overfit", "--cell", "lstm", "--seconds", "0.3", "--seed", "0", "--jobs", "1"]
    for method in ("bptt-adamw", "rank-one-cd-rge"):
        command = [sys.executable, script, *words, "--method", method, "--json", str(file)]
        subprocess.run(command, check=True, capture_output=True)
    rows = json.loads(file.read_text())
    assert {row["settings"]["method"] for row in rows} == {"bptt-adamw", "rank-one-cd-rge"}
    values = {
        (row["name"], row["settings"]["method"], row["settings"].get("threshold")): row["value"]
        for row in rows
    }
    assert values["seconds_to_loss", "rank-one-cd-rge", 0.1] is None
    assert values["peak_memory_bytes", "bptt-adamw", None] > 0
    assert (tmp_path / "learning-overfit-lstm-0.3s.png").stat().st_size > 10_000
    done = subprocess.run(
        [sys.executable, script, *words, "--method", "bptt-adamw", "--tune"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "0.003" in done.stdout
    assert json.loads(file.read_text()) == rows


@pytest.mark.parametrize("module", [methods, tables, results, cells], ids=lambda module: module.__name__)
def test_documented_examples(module):
    assert doctest.testmod(module).failed == 0


def test_every_cell_of_the_library_can_be_asked_for():
    assert set(CELLS) == {"lstm", "gru", "min-gru", "dnc"}
