"""Components by name, and those of a user's own file."""

import sys

import pytest

from zorn.config import AUTO, PRESETS, REGISTRIES, BudgetConfig, Choice, Config, change, resolve
from zorn.errors import ConfigError
from zorn.estimators import CDRGE, ESTIMATORS
from zorn.registry import absolute
from zorn.training.build import build_estimator

OWN = '''
from zorn import CDRGE

class Mine(CDRGE):
    """CD-RGE with one setting more.

    Args:
        boldness: of mine, above 0.
    """

    def __init__(self, *, boldness: float = 1.5, **options):
        super().__init__(**options)
        self.boldness = boldness

def lion(parameters, /, *, learning_rate: float | None = None, bite: int = 3):
    """Lion.

    Args:
        learning_rate: step size.
        bite: of it.
    """
    import torch
    return torch.optim.SGD(parameters, lr=learning_rate)

number = 3
'''


@pytest.fixture
def own(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(OWN)
    return file


@pytest.mark.parametrize("kind", REGISTRIES)
def test_an_unknown_name_is_told_with_those_there_are(kind):
    registry = REGISTRIES[kind]
    first, *_ = registry
    with pytest.raises(ConfigError, match=rf"must be one of {first}, .* got '{first}x': did you mean"):
        registry[first + "x"]
    with pytest.raises(ConfigError, match=r"there is no file absent\.py"):
        registry["absent.py:Mine"]
    assert all(name in registry for name in registry)


def test_a_component_of_ones_own_file_has_its_settings_and_those_of_its_base(own):
    config = Config(
        budget=BudgetConfig(steps=1),
        task=Choice("copy", batch=4),
        estimator=Choice(f"{own}:Mine", boldness=2.5, population=64),
        optimizer=Choice(f"{own}:lion", bite=4),
    )
    found, reasons = resolve(config)
    assert (found.estimator.boldness, found.estimator.population) == (2.5, 64)
    assert found.estimator.epsilon == CDRGE().epsilon
    assert (found.optimizer.bite, found.optimizer.learning_rate) == (4, 0.1), "one that does not adapt"
    assert any(reason.startswith("learning rate 0.1: ") for reason in reasons)
    assert build_estimator(found).boldness == 2.5
    assert change(PRESETS["copy"], estimator=f"{own}:Mine", boldness=0.5).estimator.boldness == 0.5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Mien", r"own\.py has no Mien: did you mean .*own\.py:Mine\?"),
        ("number", "must be a class that extends Estimator, got 3"),
        ("lion", "must be a class that extends Estimator"),
    ],
)
def test_what_is_not_a_component_is_refused(own, name, message):
    with pytest.raises(ConfigError, match=message):
        ESTIMATORS[f"{own}:{name}"]


def test_a_file_is_imported_once_and_again_when_it_has_changed(own):
    path = list(sys.path)
    assert ESTIMATORS[f"{own}:Mine"] is ESTIMATORS[f"{own}:Mine"]
    before = ESTIMATORS[f"{own}:Mine"]
    own.write_text(OWN.replace("1.5", "7.5"))
    assert ESTIMATORS[f"{own}:Mine"] is not before
    assert ESTIMATORS[f"{own}:Mine"]().boldness == 7.5
    assert sys.path == path


def test_names_from_outside_are_made_absolute_and_others_stay(own, monkeypatch):
    monkeypatch.chdir(own.parent)
    assert absolute("own.py:Mine") == f"{own}:Mine"
    assert absolute("torch.nn:Flatten") == "torch.nn:Flatten"
    assert absolute("cd-rge") == "cd-rge"
    assert AUTO not in ESTIMATORS
