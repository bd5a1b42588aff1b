"""The identity of a run: kept in its checkpoints, so that no edit goes unnoticed when it is resumed."""

import hashlib
from collections.abc import Mapping
from typing import Any

from zorn.config import COMPONENTS, Config, to_plain
from zorn.errors import ConfigError
from zorn.tasks import Task, TextTask

FREE = {"source", "micro_batch", "time_chunk"}
"""Fields of task, model, estimator and optimizer that may be edited: the text may be moved (its content is
compared), and memory may be traded for speed."""


def run_settings(config: Config) -> dict[str, Any]:
    """The settings that determine a run, by name, as JSON values: the components with their settings,
    objective, schedule, seed and number format, without those in `FREE`.

    >>> from zorn.config import BudgetConfig, resolve
    >>> settings = run_settings(resolve(Config(budget=BudgetConfig(steps=10)))[0])
    >>> settings["hidden_size"], settings["seed"], "steps" in settings, "source" in settings
    (64, 0, False, False)
    """
    groups = to_plain(config)
    found = {"objective": config.objective, **groups["schedule"]}
    for kind in COMPONENTS:
        found |= {kind if name == "name" else name: value for name, value in groups[kind].items()}
    found |= {name: groups["run"][name] for name in ("seed", "dtype")}
    return {name: value for name, value in found.items() if name not in FREE}


def text_fingerprint(task: Task, tokenizer: str | None = None) -> dict[str, Any] | None:
    """Size ("bytes") and "sha256" of a task's text, and the SHA-256 of its "tokenizer", the JSON of one that
    was learned; None for a task without a text.

    >>> from zorn.tasks import CopyTask
    >>> text_fingerprint(CopyTask(batch=1, minimum_length=1, maximum_length=2, seed=0)) is None
    True
    """
    if not isinstance(task, TextTask):
        return None
    pieces = [task.text[split] for split in ("train", "validation", "test")]
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return {
        "bytes": sum(map(len, pieces)),
        "sha256": digest.hexdigest(),
        "tokenizer": _tokenizer_hash(tokenizer),
    }


def check_settings(saved: Mapping[str, Any], config: Config) -> None:
    """Raise ConfigError naming the fields in which a configuration differs from what a checkpoint holds.

    >>> from zorn.config import BudgetConfig, Choice
    >>> config = Config(model=Choice("lstm", hidden_size=8), budget=BudgetConfig(steps=10))
    >>> check_settings(run_settings(config), config)
    >>> check_settings(run_settings(config) | {"hidden_size": 16}, config)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    zorn.errors.ConfigError: config.json was changed since the run started: hidden_size is 8, was 16; ...
    """
    present = run_settings(config)
    names = sorted(present.keys() | saved.keys())
    pairs = [(name, present.get(name, "absent"), saved.get(name, "absent")) for name in names]
    changed = [f"{name} is {now}, was {before}" for name, now, before in pairs if now != before]
    if changed:
        raise ConfigError(
            f"config.json was changed since the run started: {'; '.join(changed)}; put the former values "
            "back, or train a new run with these"
        )


def check_text(
    saved: Mapping[str, Any] | None, task: Task, source: str, tokenizer: str | None = None
) -> None:
    """Raise ConfigError when a task's text, or the tokenizer that was learned from it, is not the one that a
    checkpoint was trained on.

    >>> task = TextTask(source="python-docs", batch=1, length=1, seed=0)
    >>> check_text(text_fingerprint(task), task, "python-docs")
    >>> other = {"bytes": 7, "sha256": "0" * 64, "tokenizer": None}
    >>> check_text(other, task, "python-docs")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    zorn.errors.ConfigError: the text source 'python-docs' has changed since the run started: it has ...
    """
    present = text_fingerprint(task, tokenizer)
    if present is None or saved is None:
        return
    check_tokenizer(saved, tokenizer)
    if present["sha256"] != saved["sha256"]:
        raise ConfigError(
            f"the text source {source!r} has changed since the run started: it has {present['bytes']} bytes "
            f"and SHA-256 {present['sha256'][:12]}…, it had {saved['bytes']} bytes and "
            f"{saved['sha256'][:12]}…; bring the former text back, or train a new run on this one"
        )


def check_tokenizer(saved: Mapping[str, Any] | None, tokenizer: str | None) -> None:
    """Raise ConfigError when a learned tokenizer's JSON is not the one that a checkpoint was trained with.

    >>> check_tokenizer(None, None)
    """
    if saved is None or saved["tokenizer"] == _tokenizer_hash(tokenizer):
        return
    if tokenizer is None:
        raise ConfigError(
            "tokenizer.json is missing from the run's folder: restore it from a copy, or train a new run"
        )
    raise ConfigError(
        "tokenizer.json has changed since the run started, so that its tokens would mean something else: "
        "restore it from a copy, or train a new run"
    )


def _tokenizer_hash(tokenizer: str | None) -> str | None:
    return None if tokenizer is None else hashlib.sha256(tokenizer.encode()).hexdigest()
