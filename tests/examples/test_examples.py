"""Every example runs, and shows what it says."""

import runpy
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))


def load(name):
    return runpy.run_path(str(ROOT / "examples" / name))


def test_the_own_loop_learns_through_a_step_that_has_no_derivative():
    assert load("own_loop.py")["main"](steps=120) == 1.0


def test_the_own_loop_learns_nothing_without_training():
    assert load("own_loop.py")["main"](steps=0) < 1.0


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_stays_short(name):
    assert len((ROOT / "examples" / name).read_text().splitlines()) < 60


def test_every_example_has_a_test():
    assert set(EXAMPLES) <= {"own_loop.py"}


def test_the_code_of_the_readme_learns_parity():
    _, _, rest = (ROOT / "README.md").read_text().partition("```python\n")
    names: dict = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(rest.partition("```")[0], names)
    right = names["model"](names["inputs"]).argmax(1) == names["batch"].targets
    assert bool(right.all())
