"""Named points of a run at which its process dies: within a step, and within what it writes.

Only for a process that is about to die: its functions are replaced.
"""

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zorn.estimators.fold
import zorn.estimators.population
import zorn.run.checkpoint
import zorn.training.trainer
from zorn.distributed import Group
from zorn.estimators.update import FusedSGD
from zorn.run.folder import RunFolder
from zorn.run.journal import Journal
from zorn.run.loggers import MetricsLog

Call = Callable[..., Any]


def _nothing(_: Call, *arguments: Any, **options: Any) -> None:
    """Death comes before the call."""


def _whole(original: Call, *arguments: Any, **options: Any) -> None:
    """Death comes after the call."""
    original(*arguments, **options)


def _first_block(original: Call, *arguments: Any) -> None:
    """Fold the first block of a gradient: of the arguments, the blocks alone can be iterated only once."""
    original(*[itertools.islice(each, 1) if hasattr(each, "__next__") else each for each in arguments])


def _half_entry(_: Call, journal: Any, entry: Any) -> None:
    data = entry.encoded()
    journal._file.write(data[: len(data) // 2])


def _half_line(_: Call, log: Any, record: dict[str, Any]) -> None:
    line = json.dumps(record)
    log._metrics.write(line[: len(line) // 2])
    log._metrics.flush()


def _half_text(_: Call, path: Path, text: str) -> None:
    path.write_text(text[: len(text) // 2], encoding="utf-8")


def _first_file(_: Call, folder: Path) -> None:
    next(folder.iterdir()).unlink()


@dataclass(frozen=True)
class Point:
    """Where a process dies.

    Args:
        places: owner and name of the functions, any of which is the point.
        done: how much of the call is still done, given the function and its arguments.
        calls: how often a process comes there at least, of a run of N steps that saves after every step.
        writes: whether only rank 0 comes there.
        alone: whether a process without others comes there.
    """

    places: tuple[tuple[Any, str], ...]
    done: Call = _nothing
    calls: Callable[[int], int] = lambda steps: steps
    writes: bool = True
    alone: bool = True


POINTS = {
    "settings": Point(((RunFolder, "write_config"),), calls=lambda _: 1),
    "evaluation": Point(((zorn.estimators.population, "row_losses"),), writes=False),
    "gather": Point(((Group, "_all_gather"),), writes=False, alone=False),
    "fold": Point(
        ((zorn.estimators.fold, "fold_into_grad"), (FusedSGD, "apply")), _first_block, writes=False
    ),
    "before the journal": Point(((Journal, "append"),)),
    "half an entry": Point(((Journal, "append"),), _half_entry),
    "before the log": Point(((MetricsLog, "write"),)),
    "half a line": Point(((MetricsLog, "write"),), _half_line),
    "checkpoint's files": Point(((zorn.run.checkpoint, "write_tensors"),), _whole),
    "half a manifest": Point(((zorn.run.checkpoint, "write_whole"),), _half_text),
    "before the rename": Point(((zorn.run.checkpoint, "_write"),), _whole),
    "half deleted": Point(((shutil, "rmtree"),), _first_file, calls=lambda steps: steps - 4),
    "summary": Point(((zorn.training.trainer, "write_summary"),), _whole, calls=lambda _: 1),
}
"""By name. The functions of a step are also called when it is made again from the journal."""


def install(name: str, call: int, strike: Callable[[], None]) -> None:
    """Let this process die at a point.

    Args:
        call: the how many-th time that it comes there, from 1.
        strike: kills it.
    """
    point, counter = POINTS[name], itertools.count(1)
    for owner, attribute in point.places:
        setattr(owner, attribute, _deadly(getattr(owner, attribute), point.done, call, counter, strike))


def _deadly(original: Call, done: Call, call: int, counter: Any, strike: Callable[[], None]) -> Call:
    def replaced(*arguments: Any, **options: Any) -> Any:
        if next(counter) == call:
            done(original, *arguments, **options)
            strike()
        return original(*arguments, **options)

    return replaced
