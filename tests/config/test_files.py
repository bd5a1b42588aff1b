"""`config.json`: what is written is read again, and anything else is told by field."""

import json
from pathlib import Path

import pytest

from zorn.config import PRESETS, from_json, resolve, to_json
from zorn.errors import ConfigError

START = PRESETS["quickstart"]


def text():
    return to_json(START, resolve(START)[0])


def altered(change):
    both = json.loads(text())
    change(both)
    return json.dumps(both)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_come_back(name):
    asked, resolved = PRESETS[name], resolve(PRESETS[name])[0]
    assert from_json(to_json(asked, resolved)) == (asked, resolved)
    assert isinstance(from_json(to_json(asked, resolved))[0].run.out, Path)


def swap(both):
    model = both["resolved"]["model"]
    model["hiden_size"] = model.pop("hidden_size")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap, "hiden_size"),
        (lambda both: both["resolved"]["model"].pop("num_heads"), "missing num_heads, unknown nothing"),
        (
            lambda both: both["asked"]["model"].update(hiden_size=8),
            "hiden_size: model lstm has no such setting",
        ),
        (lambda both: both.pop("asked"), "missing asked, unknown nothing"),
        (lambda both: both["resolved"].pop("budget"), "missing budget, unknown nothing"),
        (lambda both: both["resolved"]["run"].pop("keep"), r"missing run\.keep, unknown nothing"),
        (lambda both: both["resolved"]["run"].update(keeep=3), r"unknown run\.keeep"),
        (
            lambda both: both["resolved"]["model"].update(hidden_size="x"),
            "hidden_size must be a whole number",
        ),
        (
            lambda both: both["resolved"]["model"].update(tie_embedding=1),
            "tie_embedding must be True or False",
        ),
        (lambda both: both["resolved"]["run"].update(keep="x"), r"run\.keep must be a whole number, got 'x'"),
        (lambda both: both["resolved"]["run"].update(keep=0), "keep must be a whole number of at least 1"),
        (lambda both: both["resolved"].update(model=3), "model must be an object with a name, got 3"),
        (lambda both: both["resolved"].update(run=3), "run must be an object, got 3"),
        (lambda both: both["resolved"].update(objective="bleu"), "objective must be one of"),
        (lambda both: both["asked"]["estimator"].update(name="es"), "estimator must be one of"),
        (lambda both: both["asked"]["estimator"].pop("name"), "name"),
    ],
)
def test_it_is_read_strictly(change, message):
    with pytest.raises(ConfigError, match=message):
        from_json(altered(change), "old.json")


def test_the_file_is_named_and_half_a_file_is_told():
    with pytest.raises(ConfigError, match=r"old\.json is not valid JSON"):
        from_json(text()[:-20], "old.json")
    for wrong in ("3", "[]", "null"):
        with pytest.raises(ConfigError, match=r"old\.json"):
            from_json(wrong, "old.json")
