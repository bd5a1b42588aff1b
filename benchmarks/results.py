"""Results that are measured in parts: rows in a JSON file, and curves in another beside it.

The file holds the records of all runs so far. A run is known by `KEY`; when it is repeated, its records take
the place of the earlier ones, also when several processes measure at once.
"""

import fcntl
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from contest import Point
from harness import Record, environment

KEY = ("setting", "task", "cell", "method", "seed", "seconds")
"""The settings that a run is known by; `seconds` is its budget of training."""

CURVE_POINTS = 60
"""Most points of a curve that is kept."""

Row = dict[str, Any]
"""A record as the JSON file holds it."""

Curve = list[list[float]]
"""Points of a run: steps, forward passes, seconds of training, and one or more figures."""


def curve_of(points: Sequence[Point], *figures: str) -> Curve:
    """At most `CURVE_POINTS` points of a run, spread evenly over the logarithm of the steps.

    Args:
        figures: which measured figures each point ends with.
    """
    later = [point for point in points if point.steps and math.isfinite(point.loss)]
    if not later:
        return []
    ratio = later[-1].steps / later[0].steps
    marks = [later[0].steps * ratio ** (number / (CURVE_POINTS - 1)) for number in range(CURVE_POINTS)]
    chosen = {min(range(len(later)), key=lambda i: abs(later[i].steps - mark)) for mark in marks}
    return [
        [one.steps, one.passes, round(one.seconds, 3), *(round(one.measured[name], 4) for name in figures)]
        for one in (later[number] for number in sorted(chosen))
    ]


@dataclass(frozen=True)
class Results:
    """The results in the file `path`, with their curves in a file beside it."""

    path: Path

    @property
    def curves_path(self) -> Path:
        """Where the curves are."""
        return self.path.with_name(f"{self.path.stem}-curves.json")

    def rows(self) -> list[Row]:
        """The rows of all runs, sorted; none without a file."""
        return json.loads(self.path.read_text()) if self.path.exists() else []

    def curves(self) -> dict[str, Curve]:
        """The curve of each run, by `name_of`; none without a file."""
        return json.loads(self.curves_path.read_text()) if self.curves_path.exists() else {}

    def add(self, records: Sequence[Record], curve: Curve) -> None:
        """Put the records of one run, and its curve, in place of those of an earlier run of the same key."""
        machine = environment()
        new = [asdict(record) for record in records]
        for row in new:
            row["settings"]["environment"] = machine
            row["value"] = row["value"] if math.isfinite(row["value"]) else None
        key = key_of(new[0])
        with self._locked():
            rows = [row for row in self.rows() if key_of(row) != key] + new
            curves = self.curves() | {name_of(key): curve}
            rows.sort(key=lambda row: tuple(map(str, key_of(row))))
            _write(self.path, "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]")
            lines = (f"{json.dumps(name)}: {json.dumps(curves[name])}" for name in sorted(curves))
            _write(self.curves_path, "{\n" + ",\n".join(lines) + "\n}")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time: a lock beside the file, which the kernel releases."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_name(f".{self.path.name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def key_of(row: Row) -> tuple[Any, ...]:
    """What the row's run is known by."""
    return tuple(row["settings"][name] for name in KEY)


def name_of(key: Iterable[object]) -> str:
    """A run's key as a string."""
    return "/".join(str(value) for value in key)


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text + "\n")
    temporary.replace(path)
