"""Docstrings name a thing, in standard words."""

import ast
import re
from pathlib import Path

import pytest

import zorn

PACKAGE = Path(zorn.__file__).parent
FILES = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))

CLAUSE = re.compile(r"\s*(What|Who|How|Whether|Which)\b")
"""A beginning that makes a relative clause of the whole sentence: "What the layer gives" is "The output"."""

HOME_MADE = {
    r"\b(go|goes|going|went|gone) on\b": "resume, continue",
    r"\bput(s|ting)? out\b": "return, output",
    r"\bbears?\b": "allow, suit",
}
"""Phrases in place of standard words, and the words to take."""


def docstrings(source):
    """Line and text of every string that stands alone: docstrings, and the strings under names."""
    for node in ast.walk(ast.parse(source)):
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield value.lineno, value.value


@pytest.mark.parametrize("file", FILES)
def test_no_docstring_begins_with_a_relative_clause(file):
    source = (PACKAGE / file).read_text()
    assert [(line, text[:60]) for line, text in docstrings(source) if CLAUSE.match(text)] == []


@pytest.mark.parametrize("file", FILES)
def test_words_are_standard_ones(file):
    source = (PACKAGE / file).read_text()
    found = [(source.count("\n", 0, m.start()) + 1, m[0]) for p in HOME_MADE for m in re.finditer(p, source)]
    assert found == []


def test_the_rules_can_fail():
    source = '"""The module."""\nx = 1\n"""What x is."""\ndef f():\n    """Whether it goes on."""\n'
    assert [line for line, text in docstrings(source) if CLAUSE.match(text)] == [3, 5]
    assert any(re.search(phrase, source) for phrase in HOME_MADE)
