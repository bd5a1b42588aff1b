"""The commands from end to end, at tiny sizes."""

import os
import re
import signal
import subprocess
import sys

import pytest

from zorn.cli import main
from zorn.cli.entry import COMMANDS

TINY = ["--batch", "4", "--population", "4", "--hidden-size", "4"]
COPY = ["--task", "copy", *TINY]


def process(words, folder, **options):
    """`python -m zorn` with some words, in a folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "zorn", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        **options,
    )


def test_train_evaluate_generate_resume(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("all work and no play makes a dull text, " * 50)
    train = ["train", "--source", "text.txt", "--length", "8", *TINY, "--steps", "2", "--out", "run"]
    assert main(train) == 0
    out = capsys.readouterr().out
    assert "validation bits per byte" in out
    assert "run: summary.json, curve.png, checkpoints" in out

    assert main(["evaluate", "run", "--split", "test"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"split +│ +test", out)
    assert re.search(r"bits per byte +│ +\d\.\d{4}", out)

    generate = ["generate", "run", "--prompt", "all work", "--length", "30"]
    assert main(generate) == 0
    text = capsys.readouterr().out
    assert text.startswith("all work")
    assert len(text) > len("all work\n")
    assert main(generate) == 0
    assert capsys.readouterr().out == text
    assert main([*generate, "--seed", "1"]) == 0
    assert capsys.readouterr().out != text

    assert main(["resume", "run", "--steps", "3"]) == 0
    assert re.search(r"steps +│ +3", capsys.readouterr().out)
    assert main([*train, "--overwrite"]) == 0


def test_a_task_with_answers_is_evaluated_longer_smoothed_and_answered(tmp_path, capsys):
    out = str(tmp_path / "run")
    lengths = ["--minimum-length", "1", "--maximum-length", "2"]
    assert main(["train", "--task", "reverse", *lengths, *TINY, "--steps", "1", "--out", out]) == 0
    assert re.search(r"validation longer loss +│ +\d\.\d{3}", capsys.readouterr().out)

    assert main(["evaluate", out, "--split", "test-longer"]) == 0
    assert re.search(r"split +│ +test-longer", capsys.readouterr().out)

    smoothed = ["evaluate", out, "--smoothed-epsilon", "0.3", "--members"]
    found = []
    for members in ("32", "128"):
        assert main([*smoothed, members]) == 0
        text = capsys.readouterr().out
        plain = re.search(r"cross-entropy of 16 of 256 sequences +│ +(\d\.\d{4})", text)
        loss, error = re.search(r"smoothed, epsilon 0\.3 +│ +(\d\.\d{4}) ± (\d\.\d{4})", text).groups()
        assert 0.0 < abs(float(loss) - float(plain.group(1))) < 2.0
        assert re.search(rf"members +│ +{members}", text)
        found.append((float(loss), float(error)))
    (few, error), (many, smaller) = found
    assert 0 < smaller < error
    assert abs(few - many) < 5 * (error**2 + smaller**2) ** 0.5 + 1e-4

    assert main(["generate", out]) == 0
    answer = capsys.readouterr().out
    assert re.fullmatch(r"[a-z]+\|[a-z|_]*\.?\n", answer), (
        "an example is asked; after its end nothing is written"
    )
    assert main(["generate", out, "--prompt", "abc|", "--temperature", "0"]) == 0
    assert capsys.readouterr().out.startswith("abc|")


def test_non_finite_losses_are_exit_code_1_and_one_line(tmp_path, capsys):
    words = [
        "--optimizer",
        "sgd",
        "--learning-rate",
        "1e30",
        "--weight-decay",
        "1e30",
        "--steps",
        "9",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main(["train", *COPY, *words]) == 1
    error = capsys.readouterr().err
    assert error.startswith("zorn: step ")
    assert error.count("\n") == 1
    assert "lower the learning rate or epsilon" in error
    assert "the last good weights are saved in" in error


def test_ctrl_c_saves_and_says_how_to_resume(tmp_path):
    words = ["--seconds", "600", "--evaluations", "1", "--out", "my run"]
    run = process(["train", *COPY, *words], tmp_path)
    assert run.stdout is not None
    assert run.stdout.readline() == "estimator cd-rge: it has --population\n"
    assert any(line.startswith("step 1 ") for line in run.stdout)
    run.send_signal(signal.SIGINT)
    out, error = run.communicate(timeout=60)
    assert run.returncode == 130
    assert error == ""
    step = re.search(r"stopped after step (\d+); resume with: zorn resume 'my run'\n$", out).group(1)
    newest = tmp_path / "my run" / "checkpoints" / f"step-{int(step):08d}" / "manifest.json"
    assert newest.exists()
    assert main(["resume", str(tmp_path / "my run"), "--steps", str(int(step) + 1)]) == 0


def test_ctrl_c_outside_training_is_one_line(capsys, monkeypatch):
    def interrupted(_words):
        raise KeyboardInterrupt

    monkeypatch.setattr("zorn.cli.evaluate.command", interrupted)
    assert main(["evaluate", "run"]) == 130
    assert capsys.readouterr().err == "zorn: stopped\n"


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_the_commands(words, capsys):
    assert main(words) == 0
    out = capsys.readouterr().out
    assert tuple(re.findall(r"^  (\w+)  ", out, re.MULTILINE)) == tuple(COMMANDS)


def test_help_of_a_command_is_complete_and_loads_no_heavy_extras(tmp_path):
    code = (
        "import sys; from zorn.cli import main; code = main(['train', '--help']); "
        "print([name for name in ('tensorboard', 'matplotlib') if name in sys.modules], code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[] 0"
    text = " ".join(re.sub(r"[│|]", " ", done.stdout).split())
    for words in (
        "usage: zorn train",
        "the standard deviation of the noise",
        "(default: 180.0)",
        "task options",
    ):
        assert words in text


def test_the_module_is_the_command(tmp_path):
    run = process(["nonsense"], tmp_path)
    out, error = run.communicate(timeout=60)
    assert (run.returncode, out, error.count("\n")) == (2, "", 1)
    assert error.startswith("zorn: unknown command 'nonsense'")


def test_the_version_is_told(capsys):
    assert main(["--version"]) == 0
    assert re.fullmatch(r"zorn \d+\.\d+\.\d+\n", capsys.readouterr().out)
