"""Runs that are killed end as if nothing had happened: `fault_injection.py`, and its plans."""

import os
import subprocess
import sys
from collections import Counter

import fault_injection
import pytest
from fault_injection import End, Outcome, show
from kill_plans import OPTIMIZERS, Plan, hang_plans, plans, torchrun_plans
from kill_points import POINTS
from processes import HERE, PATIENCE

SECONDS = {(optimizer, size): 2.0 for optimizer in OPTIMIZERS for size in (1, 2)}


def inject(*words):
    """Exit code and output of the script, in a process of its own that may fork."""
    done = subprocess.run(
        [sys.executable, str(HERE / "fault_injection.py"), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, done.stdout


def totals(printed):
    """Runs, kills, steps again and failures of all kinds together."""
    [line] = [line for line in printed.splitlines() if line.startswith("│ all  ")]
    return [int(cell) for cell in line.strip("│ ").split("│")[1:]]


@pytest.mark.slow
def test_runs_that_are_killed_lose_nothing():
    """A few, at points and at random moments; all points, on one process and on two, are in `make faults`."""
    code, printed = inject("--runs", "6", "--processes", "1", "2", "--hangs", "0", "--torchrun", "0")
    assert code == 0, printed
    runs, kills, again, failed = totals(printed)
    assert (runs, failed) == (6, 0)
    assert kills >= 6
    assert again <= kills


@pytest.mark.slow
def test_a_run_of_which_a_worker_hangs_loses_nothing():
    code, printed = inject("--runs", "0", "--processes", "2", "--hangs", "1", "--torchrun", "0")
    assert code == 0, printed
    runs, kills, again, failed = totals(printed)
    assert (runs, kills, failed) == (1, 1, 0)
    assert again <= 1


@pytest.mark.slow
def test_a_run_under_torchrun_that_loses_a_worker_loses_nothing():
    code, printed = inject("--runs", "0", "--processes", "2", "--hangs", "0", "--torchrun", "1")
    assert code == 0, printed
    assert totals(printed) == [1, 1, 0, 0]


def test_the_plans_hit_every_point_and_every_victim():
    found = list(plans(50, [1, 2], SECONDS, seed=0))
    assert len(found) == 50
    assert found == list(plans(50, [1, 2], SECONDS, seed=0)) != list(plans(50, [1, 2], SECONDS, seed=1))
    kinds = Counter((plan.kind, plan.processes) for plan in found)
    for name, point in POINTS.items():
        assert kinds[name, 2] == 1
        assert kinds[name, 1] == point.alone
        if point.alone:
            victims = [kill.victim for plan in found if plan.kind == name for kill in plan.kills]
            assert sorted(victims) == ["all", "worker"]
    for victim in ("worker", "launcher", "all"):
        assert all(kinds[f"{victim} at random", size] >= 2 for size in (1, 2))
    assert {plan.optimizer for plan in found} == set(OPTIMIZERS)
    moments = [kill.moment for plan in found for kill in plan.kills if kill.moment is not None]
    assert 0 <= min(moments) < 0.3
    assert 1.7 < max(moments) <= 2.0
    assert {kill.rank for plan in found for kill in plan.kills if plan.processes == 1} == {0}
    assert [plan.kind for plan in torchrun_plans(3, 0)] == [
        "torchrun: worker",
        "torchrun: launcher",
        "torchrun: worker hangs",
    ]
    hangs = list(hang_plans(6, SECONDS, 0))
    assert [plan.kind == "hangs at random" for plan in hangs] == [True, False] * 3
    assert all(plan.hangs and plan.processes == 2 for plan in hangs)
    assert not any(plan.hangs for plan in found)
    for plan, seconds in ((found[0], "60"), (hangs[0], "10")):
        words = plan.words(HERE)
        assert words[words.index("--process-timeout") + 1] == seconds


def test_what_differs_is_named():
    one = End({"step/model.safetensors": b"1"}, [{"step": 1}], [b"entry"])
    assert one.differences(End(dict(one.tensors), list(one.metrics), list(one.entries))) == []
    assert one.differences(End({}, [{"step": 1}] * 2, [])) == [
        "weights or optimizer",
        "metrics.jsonl",
        "journal.jsonl",
    ]


@pytest.fixture
def noted(tmp_path, monkeypatch):
    """A trial of a run that notes these numbers and ends as it should, or not."""
    end = End({}, [], [])
    monkeypatch.setattr(End, "of", lambda _: end)
    monkeypatch.setattr(fault_injection, "zorn_main", lambda _: 0)

    def trial(steps, kills, expected=end):
        def run(plan, folder):
            for step in steps:
                folder.note("steps", step)
            for _ in range(kills):
                folder.note("kills", 0)

        folder = fault_injection.Folder(tmp_path / f"{len(list(tmp_path.iterdir()))}")
        return fault_injection.trial(Plan(kind="", optimizer="adamw", processes=1), folder, expected, run)

    return trial


def test_a_trial_fails_for_steps_that_are_made_again_or_missing(noted):
    whole = [*range(20)]
    assert noted(whole, 0) == Outcome(runs=1)
    assert noted([*whole[:6], *whole[5:]], 1) == Outcome(runs=1, kills=1, again=1)
    assert "2 steps were made again" in noted([*whole[:6], *whole[4:]], 1).failures[0]
    assert "steps begun: [1, 2," in noted(whole[1:], 1).failures[0]
    assert "metrics.jsonl" in noted(whole, 1, End({}, [{"step": 1}], [])).failures[0]


def test_the_table_has_every_failure(capsys):
    found = {"fold": Outcome(1, 2, 1, ["lost"]), "gather": Outcome(2, 2, 0)}
    show(found, sum(found.values(), Outcome()))
    printed = capsys.readouterr().out
    assert totals(printed) == [3, 4, 1, 1]
    assert printed.splitlines()[-1] == "lost"
