"""The settings of a component are the arguments of its constructor: names, types, defaults and help stand
there and nowhere else. The command line makes flags of them, a run's configuration holds their values.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import operator
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, final

from zorn.checks import wrong
from zorn.errors import ConfigError

FROM_THE_RUN = frozenset({"seed", "carry", "device", "dtype", "generator"})
"""Arguments that a run gives to a component; they are no settings of the component's own."""

PLAIN = (bool, int, float, str, Path, types.NoneType)
"""Types that a word on the command line can be read as."""

PUBLIC_KINDS = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@final
class Choice:
    """A component by its name, with the settings that are given for it. Immutable; settings read as
    attributes.

    Args:
        name: of the component in its registry, or `path/to/file.py:Name` or `package.module:Name`.
        given: settings by name; what is left out takes the component's default.

    Example:
        >>> choice = Choice("cd-rge", population=64)
        >>> choice.name, choice.population, choice.get("epsilon")
        ('cd-rge', 64, None)
        >>> choice.but(population=8)
        Choice('cd-rge', population=8)
    """

    __slots__ = ("given", "name")

    name: str
    given: Mapping[str, Any]

    def __init__(self, name: str, /, **given: Any) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "given", types.MappingProxyType(given))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in Choice.__slots__:
            raise AttributeError(name)
        try:
            return self.given[name]
        except KeyError:
            known = ", ".join(self.given) or "none"
            raise AttributeError(f"{self.name} has no setting {name!r} here, but {known}") from None

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a choice does not change: make another with choice.but({name}=…)")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Choice) and (self.name, self.given) == (other.name, other.given)

    def __hash__(self) -> int:
        return hash((self.name, tuple(sorted(self.given.items(), key=operator.itemgetter(0)))))

    def __repr__(self) -> str:
        return f"Choice({', '.join([repr(self.name), *(f'{k}={v!r}' for k, v in self.given.items())])})"

    def __reduce__(self) -> Any:
        return functools.partial(Choice, self.name, **self.given), ()

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a setting, or `default` where it is not given."""
        return self.given.get(name, default)

    def but(self, **changes: Any) -> Choice:
        """The same choice with some settings changed or added."""
        return Choice(self.name, **{**self.given, **changes})


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """One argument of a component's constructor, as a setting.

    Attributes:
        name: of the argument.
        type: what a word for it is read as: a plain type, a `Literal`, or a union of these.
        default: its value where it is not given; `dataclasses.MISSING` where it must be.
        help: its description, from the `Args:` of the docstring.
    """

    name: str
    type: Any
    default: Any
    help: str

    @property
    def required(self) -> bool:
        """True for a setting without a default."""
        return self.default is dataclasses.MISSING


@functools.cache
def settings_of(component: Callable[..., Any]) -> dict[str, Setting]:
    """The settings of a component by name, in the order of its constructor.

    A constructor that hands `**options` on takes the arguments of the next class as well. Left out are the
    arguments that a run gives (`FROM_THE_RUN`), positional ones, and those that no word can be read as.

    Args:
        component: a class, or a function that makes something.

    Example:
        >>> def adam(parameters, /, *, learning_rate: float = 0.01):
        ...     '''Adam.
        ...
        ...     Args:
        ...         learning_rate: step size, above 0.
        ...     '''
        >>> settings_of(adam)["learning_rate"].help, settings_of(adam)["learning_rate"].default
        ('step size, above 0.', 0.01)
    """
    return {name: setting for name, setting in fields_of(component).items() if name not in FROM_THE_RUN}


def fields_of(component: Callable[..., Any]) -> dict[str, Setting]:
    """The same with the arguments that a run gives; the fields of a dataclass are described by the strings
    under them."""
    helps = _help_of(component)
    found: dict[str, Setting] = {}
    for name, (annotation, default) in _arguments(component):
        readable = _readable(annotation)
        if readable is not None:
            default = dataclasses.MISSING if default is inspect.Parameter.empty else default
            found[name] = Setting(name, readable, default, helps.get(name, ""))
    return found


@functools.cache
def takes(component: Callable[..., Any], argument: str) -> bool:
    """True where a component's constructor takes an argument of this name."""
    return any(name == argument for name, _ in _arguments(component))


def docstring_of(component: type) -> str:
    """The docstring of a class with the arguments that it hands on to base classes, as these describe them.

    >>> class Base:
    ...     '''Base.
    ...
    ...     Args:
    ...         size: of it, at least 1.
    ...     '''
    ...     def __init__(self, *, size: int) -> None: ...
    >>> class Own(Base):
    ...     '''Own.'''
    >>> print(docstring_of(Own))
    Own.
    <BLANKLINE>
    Args:
        size: of it, at least 1.
    """
    own = inspect.cleandoc(vars(component).get("__doc__") or "")
    described, helps = _arguments_in(own), _help_of(component)
    lines = [
        textwrap.fill(f"{name}: {helps[name]}", 106, initial_indent="    ", subsequent_indent="        ")
        for name, _ in _arguments(component, hints=False)
        if name in helps and name not in described
    ]
    if not lines:
        return own
    head, args, tail = own.partition("Args:\n")
    if args:
        section, *rest = re.split(r"\n(?=\n?\S)", tail, maxsplit=1)
        return "\n".join([head + args + section.rstrip("\n"), *lines, *rest])
    found = re.search(r"^(Attributes|Class attributes|Returns|Raises|Example):", own, re.MULTILINE)
    place = found.start() if found else len(own)
    before, after = own[:place].rstrip("\n"), own[place:]
    return "\n".join([before, "", "Args:", *lines, *(["", after] if after else [])])


def completed(choice: Choice, settings: Mapping[str, Setting], kind: str) -> Choice:
    """The choice with every setting: those that are given, checked, and the defaults of the others.

    Args:
        settings: of the component that is chosen.
        kind: of the component, for messages: "estimator".

    Raises:
        ConfigError: a setting that the component lacks, that it needs, or of a type that does not fit.
    """
    for name, value in choice.given.items():
        check_setting(name, value, settings, f"{kind} {choice.name}")
    missing = [name for name, setting in settings.items() if setting.required and name not in choice.given]
    if missing:
        raise ConfigError(
            f"{kind} {choice.name} needs {', '.join(missing)}: for example {flag(missing[0])} 8"
        )
    defaults = {name: setting.default for name, setting in settings.items()}
    return Choice(choice.name, **{**defaults, **choice.given})


def check_setting(name: str, value: Any, settings: Mapping[str, Setting], of: str) -> None:
    """Raise ConfigError unless a component has a setting of this name, and the value is of its type."""
    if name not in settings:
        known = ", ".join(settings) or "none"
        raise ConfigError(f"{name}: {of} has no such setting, it has {known}: leave it out")
    if not fits(value, settings[name].type):
        raise wrong(name, f"{described(settings[name].type)} with {of}", repr(value))


def fits(value: Any, annotation: Any) -> bool:
    """True where a value is of a type as settings have them. A whole number is a number; True is neither.

    >>> fits(1, float), fits(True, int), fits("b", Literal["a", "b"]), fits(None, int | None)
    (True, False, True, True)
    """
    if _is_union(annotation):
        return any(fits(value, each) for each in typing.get_args(annotation))
    if typing.get_origin(annotation) is Literal:
        return value in typing.get_args(annotation)
    if isinstance(value, bool):
        return annotation is bool
    return isinstance(value, (int, float) if annotation is float else annotation)


def described(annotation: Any) -> str:
    """The values of a type in words, for a message.

    >>> described(int | None), described(Literal["a", "b"])
    ('a whole number or None', 'one of a, b')
    """
    if _is_union(annotation):
        return " or ".join(described(each) for each in typing.get_args(annotation))
    if typing.get_origin(annotation) is Literal:
        return f"one of {', '.join(map(str, typing.get_args(annotation)))}"
    words = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}
    return words.get(annotation, "None" if annotation is types.NoneType else "a path")


def flag(name: str) -> str:
    """The command-line flag of a setting.

    >>> flag("hidden_size")
    '--hidden-size'
    """
    return "--" + name.replace("_", "-")


def _arguments(component: Any, hints: bool = True) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Name, annotation and default of each named argument, those of base classes after those of the class."""
    if not isinstance(component, type):
        functions: list[Any] = [component]
    else:
        functions = [vars(base)["__init__"] for base in component.__mro__[:-1] if "__init__" in vars(base)]
    seen = set()
    for function in functions:
        fields = isinstance(component, type) and dataclasses.is_dataclass(component)
        source = component if fields and function is vars(component).get("__init__") else function
        annotations = typing.get_type_hints(source, include_extras=True) if hints else {}
        parameters = inspect.signature(function).parameters.values()
        for parameter in parameters:
            if parameter.kind in PUBLIC_KINDS and parameter.name not in ("self", *seen):
                seen.add(parameter.name)
                annotation = annotations.get(parameter.name, parameter.annotation)
                yield parameter.name, (annotation, parameter.default)
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            return


def _help_of(component: Any) -> dict[str, str]:
    """The descriptions under `Args:` in the docstrings of a component and of its base classes."""
    owners = component.__mro__[-2::-1] if isinstance(component, type) else [component]
    found: dict[str, str] = {}
    for owner in owners:
        described = _arguments_in(owner.__doc__ or "")
        if not described and "__dataclass_fields__" in vars(owner) and vars(owner).get("__annotations__"):
            described = _strings_under_fields(owner)
        found |= described
    return found


def _strings_under_fields(kind: type) -> dict[str, str]:
    """The string that follows each field in the source of a dataclass; none where there is no source."""
    try:
        [definition] = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    except (OSError, TypeError):
        return {}
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, after in itertools.pairwise(definition.body):
        if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr):
            text = getattr(after.value, "value", None)
            if isinstance(text, str) and isinstance(field.target, ast.Name):
                found[field.target.id] = " ".join(text.split())
    return found


def _arguments_in(docstring: str) -> dict[str, str]:
    """Names and descriptions under `Args:` of a docstring.

    >>> _arguments_in("Sum.\\n\\n    Args:\\n        a, b: two numbers,\\n            any.\\n\\n    Raises:")
    {'a': 'two numbers, any.', 'b': 'two numbers, any.'}
    """
    _, _, block = inspect.cleandoc(docstring).partition("Args:\n")
    block = re.split(r"\n(?=\S)", block, maxsplit=1)[0] if block else ""
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?= {4}\S)", "\n" + block):
        head, _, text = entry.strip().partition(":")
        if re.fullmatch(r"\w+(, \w+)*", head):
            found |= dict.fromkeys(head.split(", "), " ".join(text.split()))
    return found


def _readable(annotation: Any) -> Any:
    """A type without the members that no word can be read as; None where nothing is left."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _readable(typing.get_args(annotation)[0])
    if _is_union(annotation):
        members = [each for each in map(_readable, typing.get_args(annotation)) if each is not None]
        if Path in members and str in members:
            members.remove(Path)
        real = [each for each in members if each is not types.NoneType]
        return functools.reduce(operator.or_, members) if real else None
    if typing.get_origin(annotation) is Literal or annotation in PLAIN:
        return annotation
    return None


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (types.UnionType, typing.Union)
