"""`zorn replay` and `zorn journal`, from words to what is printed."""

import itertools
import re
import shutil

import pytest

from zorn.cli import main
from zorn.run import latest_checkpoint

TRAIN = ["train", "--task", "copy", "--batch", "4", "--population", "4", "--hidden-size", "4", "--steps", "3"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main([*TRAIN, "--out", str(out), "--evaluations", "1"]) == 0
    return out


def test_replay_says_where_the_weights_are(run, capsys):
    assert main(["replay", str(run), "--to-step", "2"]) == 0
    out = capsys.readouterr().out
    made = run.with_name("run-step-2")
    newest = latest_checkpoint(made / "checkpoints")
    assert newest.name == "step-00000002"
    assert out == f"{newest}: the weights after step 2; evaluate them with: zorn evaluate {made}\n"
    assert main(["evaluate", str(made)]) == 0
    capsys.readouterr()
    assert main(["replay", str(run), "--to-step", "2"]) == 2
    assert "is not empty: choose another --out, or remove it" in capsys.readouterr().err
    assert main(["replay", str(run), "--to-step", "4", "--out", str(made) + "x"]) == 2
    assert "step must be at most 3, the last in" in capsys.readouterr().err


def test_show_has_the_last_steps(run, capsys):
    assert main(["journal", "show", str(run)]) == 0
    out = capsys.readouterr().out
    whole = (run / "journal.jsonl").read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    assert f"{run / 'journal.jsonl'}: {len(whole):,} bytes, steps 1 to 3\n" in out
    assert re.search(rf"{len(whole) / 3:.0f} bytes a step; loss from \d\.\d{{4}} to \d\.\d{{4}}", out)
    assert re.search(rf"│ +3 │ +4 │ +{last} │", out)


def test_verify_tells_damage_by_its_exit_code(run, capsys):
    file = run / "journal.jsonl"
    whole = file.read_bytes()
    *_, second, third = itertools.accumulate(map(len, whole.splitlines(keepends=True)[:-1]))
    assert main(["journal", "verify", str(run)]) == 0
    assert capsys.readouterr().out == f"{file}: 3 whole steps after step 0\n"
    file.write_bytes(whole[:-1])
    assert main(["journal", "verify", str(run)]) == 2
    said = f"byte {third}: step 3 is cut short, as by a crash; zorn resume drops it\n"
    assert said in capsys.readouterr().out
    file.write_bytes(whole[: second + 20] + b"?" + whole[second + 21 :])
    assert main(["journal", "verify", str(run)]) == 2
    out = capsys.readouterr().out
    assert f"byte {second}: step 2 damaged: restore the file from a copy, or move it away" in out
    assert "2 whole steps" in out
    assert main(["journal", "show", str(run)]) == 2
    assert f"is damaged at step 2 (byte {second})" in capsys.readouterr().err
    file.write_bytes(whole)


def test_verify_reads_a_journal_whose_run_has_no_checkpoint_left(run, tmp_path, capsys):
    bare = tmp_path / "bare"
    shutil.copytree(run, bare)
    shutil.rmtree(bare / "checkpoints")
    assert main(["journal", "verify", str(bare)]) == 2
    out = capsys.readouterr().out
    assert "whole steps after step" in out
    assert "whose journal it is cannot be told: no checkpoint in" in out


def test_verify_refuses_the_journal_of_another_run(tmp_path, capsys):
    """The same settings but the seed: every byte of the other journal is whole."""
    for name, seed in (("one", "0"), ("other", "1")):
        words = ["--out", str(tmp_path / name), "--seed", seed, "--evaluations", "1"]
        assert main([*TRAIN, *words]) == 0
    one, other = tmp_path / "one", tmp_path / "other"
    assert main(["journal", "verify", str(one)]) == main(["journal", "verify", str(other)]) == 0
    capsys.readouterr()
    shutil.copy(other / "journal.jsonl", one / "journal.jsonl")
    assert main(["journal", "verify", str(one)]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(
        r"zorn: .*/one/journal\.jsonl is the journal of another run: its settings, seed, text or first "
        r"weights are not this run's \(got identity [0-9a-f]{12}…, expected [0-9a-f]{12}…\); put the "
        r"right one back, or move it away to resume from the newest checkpoint\n",
        error,
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["journal", "shown", "run"], "show"),
        (["journal", "show"], "is missing"),
        (["journal", "show", "absent"], "absent is not the folder of a run"),
        (["replay", "absent", "--to-step", "1"], "absent is not the folder of a run"),
        (["replay", "absent", "--to-step", "-1"], "to_step"),
        (["replay", "absent", "--to-step", "x"], "--to-step must be a whole number, got 'x'"),
    ],
)
def test_mistakes_are_one_line(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("zorn: ")
    assert error.count("\n") == 1
    assert message in error
