"""A user's own model by name: what is taken, what is refused how, and that nothing is left behind."""

import re
import sys

import pytest
from torch import nn

from zorn.cli.own_model import own_model
from zorn.errors import ZornError

MODELS = """
from dataclasses import dataclass
from torch import nn
from sizes_beside_it import SIZE

@dataclass
class Sizes:
    hidden: "int" = SIZE

def model():
    return nn.Linear(Sizes().hidden, 2)

ready = nn.Linear(SIZE, 4)
size = SIZE

def number():
    return 3

def broken():
    raise RuntimeError("no luck")

def leaves():
    raise SystemExit(1)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "sizes_beside_it.py").write_text("SIZE = 5\n")
    (tmp_path / "torch.py").write_text(MODELS)  # named like a package that zorn needs
    (tmp_path / "own_models_here.py").write_text(MODELS)
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    (tmp_path / "untidy.py").write_text("def model(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    yield tmp_path
    for name in ("sizes_beside_it", "own_models_here", "broken"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("place", ["torch.py", "./torch.py", "own_models_here"])
def test_a_function_a_class_or_a_model_is_taken(folder, place):
    path, torch = list(sys.path), sys.modules["torch"]
    made = own_model(f"{place}:model")
    assert isinstance(made, nn.Linear)
    assert made.in_features == 5
    assert own_model(f"{place}:ready").out_features == 4
    assert isinstance(own_model("torch.nn:Flatten"), nn.Flatten)
    assert sys.path == path
    assert sys.modules["torch"] is torch
    assert not sys.dont_write_bytecode
    assert not list(folder.rglob("__pycache__"))


def test_a_file_elsewhere_finds_what_lies_beside_it(folder, monkeypatch):
    monkeypatch.chdir("/")
    assert own_model(f"{folder}/torch.py:model").in_features == 5


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("torch.py", "'torch.py' names no model: give path/to/file.py:name or package"),
        ("torch.py:", "'torch.py:' names no model"),
        ("absent.py:model", "there is no file absent.py: give the path"),
        ("absent:model", "there is no module absent to import: give package.module:name"),
        ("absent.inner:model", "there is no module absent to import"),
        ("own_models_here.inner:model", "there is no module own_models_here.inner to import"),
        (
            "broken:model",
            "importing broken raised ModuleNotFoundError: No module named 'nothing_of_that_name'",
        ),
        ("untidy.py:model", "importing untidy.py raised SyntaxError: "),
        ("torch.py:modle", "torch.py has no modle: did you mean torch.py:model?"),
        ("torch.py:zzz", "torch.py has no zzz: check the name"),
        (
            "torch.py:broken",
            "calling torch.py:broken without arguments raised RuntimeError: no luck: mend it",
        ),
        ("torch.py:leaves", "calling torch.py:leaves without arguments raised SystemExit: 1"),
        ("torch.py:size", "torch.py:size must be a function that returns an nn.Module, got a int: name"),
        ("torch.py:number", "got a function that returns a int: name another"),
        ("torch.nn:Linear", "without arguments raised TypeError: Linear.__init__() missing 2 required"),
    ],
)
def test_a_mistake_is_one_error_that_leaves_nothing_behind(folder, target, message):
    path = list(sys.path)
    with pytest.raises(ZornError, match=re.escape(message)):
        own_model(target)
    assert sys.path == path
    assert not sys.dont_write_bytecode
    assert not list(folder.rglob("__pycache__"))
