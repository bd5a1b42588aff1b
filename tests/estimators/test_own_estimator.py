"""Components from outside, each in a file of its own, through the command line: estimator, task, cell,
optimizer."""

import functools
import itertools
import json
from pathlib import Path

import pytest
import torch

import zorn
from zorn.cli import main
from zorn.config import from_json
from zorn.registry import load_object
from zorn.run.checkpoint import latest_checkpoint
from zorn.search import tune

SPHERE = f"{Path(__file__).parents[2] / 'examples' / 'own_estimator.py'}:Sphere"
TINY = ["--batch", "4", "--maximum-length", "2", "--hidden-size", "4"]
OWN = ["--task", "copy", "--estimator", SPHERE, "--draws", "4", *TINY]

TASK = """
import torch
from zorn.tasks.transduction import MARKS, Strings, TransductionTask

class Flip(TransductionTask):
    \"\"\"Bits, and then their opposites.

    Args:
        ones: also draw ones.
    \"\"\"

    name, content, prompt = "flip", "the bits 0 and 1", "01|"
    symbols, vocabulary = "01" + MARKS, 5

    def __init__(self, *, ones: bool = True, **options):
        super().__init__(**options)
        self.ones = ones

    def sources_and_answers(self, lengths, longest, draw):
        bits = draw(1, len(lengths) * longest, 1 + self.ones).view(len(lengths), longest)
        return Strings(bits, lengths), Strings(1 - bits, lengths)
"""

CELL = """
from torch import nn
from zorn.models import Cell

class Leaky(Cell):
    \"\"\"h' = a h + (1 - a) tanh(W x + R h).

    Args:
        leak: a, from 0 up to 1.
    \"\"\"

    input_maps, state_maps = ("input_map",), ("state_map",)

    def __init__(self, input_size, hidden_size, num_heads=1, *, leak: float = 0.5, generator=None):
        super().__init__()
        self.input_map, self.leak = nn.Linear(input_size, hidden_size), leak
        self.state_map = nn.Linear(hidden_size, hidden_size, bias=False)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.3, 0.3, generator=generator)

    def initial_state(self, rows):
        return self.state_map.weight.new_zeros(rows, self.state_map.in_features)

    def drive(self, x):
        return (self.input_map(x.transpose(0, 1)).transpose(0, 1),)

    def advance(self, drive_t, state):
        return state * self.leak + (drive_t[0] + self.state_map(state)).tanh() * (1 - self.leak)

    def read(self, new, state):
        return new, new
"""

OPTIMIZER = """
import torch

def slow(parameters, /, *, learning_rate: float = 0.5, brake: float = 2.0):
    \"\"\"Plain descent with a brake.

    Args:
        brake: divides the learning rate, above 0.
    \"\"\"
    return torch.optim.SGD(parameters, lr=learning_rate / brake)
"""


def written(folder: Path, text: str, name: str) -> str:
    """A component's name, its file in a folder."""
    file = folder / f"{name.lower()}.py"
    file.write_text(text)
    return f"{file}:{name}"


def trained(folder: Path, *words: str, steps: int = 3) -> Path:
    """A run of a few steps, whose learning rate does not depend on how many."""
    own = ["--steps", str(steps), "--schedule", "constant", "--evaluations", "1", "--out", str(folder)]
    assert main(["train", *words, *own]) == 0
    return folder


def weights(run: Path) -> bytes:
    """The bytes of a run's last weights."""
    return (latest_checkpoint(run / "checkpoints") / "model.safetensors").read_bytes()


def test_a_run_of_an_own_estimator_that_is_resumed_is_the_one_that_never_stopped(tmp_path):
    run = trained(tmp_path / "run", *OWN)
    _, config = from_json((run / "config.json").read_text())
    assert config.estimator.name == SPHERE
    assert config.estimator.given == {"draws": 4, "epsilon": 0.02}
    before = weights(run)
    assert main(["resume", str(run), "--steps", "5"]) == 0
    assert weights(run) != before
    assert weights(run) == weights(trained(tmp_path / "whole", *OWN, steps=5))


def test_an_own_estimator_is_diagnosed(tmp_path, capsys):
    words = ["--estimates", "4", "--epsilon", "0.05", "--out", str(tmp_path)]
    assert main(["diagnose", *OWN, *words]) == 0
    assert "Sphere: 4 estimates of 32 forward passes" in capsys.readouterr().out
    found = json.loads((tmp_path / "diagnosis.json").read_text())
    assert found["epsilon"]["points"]


def test_an_own_estimator_is_tuned(tmp_path, monkeypatch, capsys):
    """By a clock that goes on by a hundredth of a second whenever it is read."""
    ticks = itertools.count()
    counted = functools.partial(tune, clock=lambda: next(ticks) / 100)
    monkeypatch.setattr("zorn.cli.tune.tune", counted)
    file = tmp_path / "tuned.json"
    words = ["--seconds", "1", "--tune-seconds", "1", "--out", str(file)]
    assert main(["tune", *OWN, *words]) == 0
    assert "round 1: " in capsys.readouterr().out
    asked, _ = from_json(file.read_text())
    assert asked.estimator.name == SPHERE


def test_its_settings_are_flags_with_help_and_no_others_are(tmp_path, capsys):
    assert main(["train", *OWN, "--help"]) == 0
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "directions a step, at least 1." in told
    assert main(["train", *OWN, "--population", "4", "--steps", "1", "--out", str(tmp_path / "run")]) == 2
    assert "--population" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_its_estimates_are_the_gradient_on_average_and_leave_the_weights():
    """Of n directions z for 189 weights: a cosine of √(n / (n + 190)), unrelated ones 0 ± 0.07, and (z · g)²
    for a unit vector g has a mean of 1 and a variance below 2."""
    draws, model = 256, zorn.LanguageModel(5, 4, seed=0)
    batch = zorn.Batch(*torch.randint(0, 5, (2, 4, 5), generator=torch.Generator().manual_seed(0)))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    gradients = []
    for estimator in (load_object(SPHERE)(draws=draws, epsilon=1e-2), zorn.BPTT()):
        estimator.estimate(model, batch, zorn.TokenCrossEntropy())
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    found, exact = gradients
    assert torch.nn.functional.cosine_similarity(found, exact, dim=0) > 0.5
    assert abs(float(found @ exact / exact.square().sum()) - 1) < 5 * (2 / draws) ** 0.5
    assert all(map(torch.equal, model.parameters(), before))


def test_a_loss_that_fails_leaves_the_weights_as_they_were():
    model = zorn.LanguageModel(5, 4, seed=0)
    batch = zorn.Batch(*torch.zeros(2, 2, 3, dtype=torch.int64))
    before = [parameter.detach().clone() for parameter in model.parameters()]

    def fails(outputs, targets):
        raise ArithmeticError("no such score")

    with pytest.raises(ArithmeticError, match="no such score"):
        load_object(SPHERE)(draws=1).estimate(model, batch, fails)
    with pytest.raises(zorn.errors.NonFiniteLossError, match="step 0: the gradient is not finite"):
        load_object(SPHERE)(draws=1).estimate(model, batch, lambda out, _: out.sum((1, 2)) * torch.nan)
    assert all(map(torch.equal, model.parameters(), before))


def test_a_task_of_a_file_is_trained_and_evaluated(tmp_path, capsys):
    name = written(tmp_path, TASK, "Flip")
    run = trained(tmp_path / "run", "--task", name, "--no-ones", *TINY, "--estimator", "bptt")
    _, config = from_json((run / "config.json").read_text())
    assert (config.task.name, config.task.ones) == (name, False)
    assert main(["evaluate", str(run)]) == 0
    assert main(["generate", str(run), "--prompt", "01|"]) == 0
    assert capsys.readouterr().out


def test_a_cell_of_a_file_is_trained(tmp_path):
    name = written(tmp_path, CELL, "Leaky")
    run = trained(tmp_path / "run", "--task", "copy", "--cell", name, "--leak", "0.9", *TINY)
    _, config = from_json((run / "config.json").read_text())
    assert (config.model.name, config.model.leak) == (name, 0.9)
    assert main(["resume", str(run), "--steps", "4"]) == 0


def test_an_optimizer_of_a_file_takes_the_steps(tmp_path):
    """With a brake of 2 a rate of 1 is one of 0.5."""
    name = written(tmp_path, OPTIMIZER, "slow")
    words = ["--task", "copy", "--estimator", "bptt", *TINY]
    own = trained(tmp_path / "own", *words, "--optimizer", name, "--learning-rate", "1", "--brake", "2")
    sgd = trained(tmp_path / "sgd", *words, "--optimizer", "sgd", "--learning-rate", "0.5")
    other = trained(tmp_path / "other", *words, "--optimizer", name, "--learning-rate", "1", "--brake", "4")
    assert weights(own) == weights(sgd) != weights(other)
