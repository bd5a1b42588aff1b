"""A class that is used by its name has a docstring that is complete by itself."""

import inspect
import re
from pathlib import Path

import pytest

import zorn
from zorn.estimators import ESTIMATORS
from zorn.settings import docstring_of
from zorn.tasks import TASKS

COMPONENTS = {
    **{f"task {name}": TASKS[name] for name in TASKS},
    **{f"estimator {name}": ESTIMATORS[name] for name in ESTIMATORS},
}


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_argument_of_a_component_is_described_in_its_own_docstring(name):
    component = COMPONENTS[name]
    described = inspect.getdoc(component).partition("Args:\n")[2]
    arguments = [each for each in inspect.signature(component).parameters if each != "options"]
    named = ", ".join(re.findall(r"^    ([\w, ]+): ", described, re.MULTILINE)).split(", ")
    assert [each for each in arguments if each not in named] == []


def test_arguments_are_added_to_those_of_the_class_and_before_what_follows():
    class Base:
        """Base.

        Args:
            size: of it, at least 1.
            color: a name.
        """

        def __init__(self, *, size: int, color: str) -> None: ...

    class Own(Base):
        """Own.

        Args:
            color: red or blue.

        Raises:
            ConfigError: green.
        """

    assert docstring_of(Own) == (
        "Own.\n\nArgs:\n    color: red or blue.\n    size: of it, at least 1.\n\n"
        "Raises:\n    ConfigError: green."
    )
    assert docstring_of(Base) == inspect.cleandoc(Base.__doc__)


def test_no_docstring_begins_with_a_question_word():
    """A noun says what a thing is; "What the layers put out" makes the reader look for one."""
    stiff = re.compile(r'^ *"""(What|Who|How|Whether|Which) ', re.MULTILINE)
    package = Path(zorn.__file__).parent
    assert [path.name for path in package.rglob("*.py") if stiff.search(path.read_text())] == []
