"""Where a run's numbers go: `metrics.jsonl`, one JSON object per line, and TensorBoard."""

import contextlib
import importlib
import json
import math
import time
from pathlib import Path
from typing import Any

from zorn.run.files import write_whole

_NO_JSON = ("NaN", "Infinity", "-Infinity")
"""Words that a number that is not finite is written as, in quotes; `float` reads them."""

_EVENTS = "events.out.tfevents.{}.zorn"

Record = dict[str, Any]
"""One line: `kind` ("train" or "evaluation"), `step` (steps done), `seconds`, `forward_passes`, numbers. An
evaluation has its `split`, too: there is one record for each of the task's validation splits."""


def read_metrics(path: Path) -> list[Record]:
    """The records of a metrics file, up to the first line that is none (one that a crash cut short); none
    without a file."""
    records: list[Record] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                break
            if not isinstance(record, dict) or not {"kind", "step"} <= record.keys():
                break
            words = {name: value for name, value in record.items() if value in _NO_JSON}
            records.append(record | {name: float(word) for name, word in words.items()})
    return records


def _line(record: Record) -> str:
    """A record as a line of JSON, which has no token for a number that is not finite: it becomes a word."""
    words = {
        name: "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        for name, value in record.items()
        if isinstance(value, float) and not math.isfinite(value)
    }
    return json.dumps(record | words, allow_nan=False) + "\n"


def truncate_metrics(path: Path, step: int) -> None:
    """Drop what was logged after `step`, so that a resumed run writes each line once."""
    kept = [record for record in read_metrics(path) if record["step"] <= step]
    write_whole(path, "".join(map(_line, kept)))


def _next_file(folder: Path) -> Path:
    """A new file of events. TensorBoard reads them in order of their names, which tell the time; so the name
    is later than those there, also where the clock is behind."""
    names = [path.name for path in folder.glob(_EVENTS.format("*"))]
    stamps = [float(name.removeprefix("events.out.tfevents.").removesuffix(".zorn")) for name in names]
    return folder / _EVENTS.format(f"{max([time.time(), *(stamp + 1e-3 for stamp in stamps)]):.6f}")


class MetricsLog:
    """Appends records to `metrics.jsonl` and to TensorBoard; close it, or use it in a `with` block.

    Both are written at once and by the caller's own thread, so that a disk that refuses is an OSError of
    `write`. `step` is the last step that is already logged: TensorBoard hides what an earlier process logged
    after it.
    """

    def __init__(self, metrics: Path, tensorboard: Path, step: int = 0) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter  # here: slow to import

        events: Any = importlib.import_module("tensorboard.compat.proto.event_pb2")
        self._event = events.Event
        self._summary = importlib.import_module("tensorboard.compat.proto.summary_pb2").Summary
        tensorboard.mkdir(exist_ok=True)
        with contextlib.ExitStack() as files:
            self._metrics = files.enter_context(metrics.open("a", encoding="utf-8", buffering=1))
            self._events = RecordWriter(files.enter_context(_next_file(tensorboard).open("xb")))
            self._log_event(file_version="brain.Event:2")
            self._log_event(step=step + 1, session_log=events.SessionLog(status=events.SessionLog.START))
            self._files = files.pop_all()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def write(self, record: Record) -> None:
        """Log one record; in TensorBoard its numbers are named `train/name` or `split/name` over the step.

        Raises OSError when the disk refuses.
        """
        group = record.get("split", record["kind"])  # or the splits of one step would hide each other
        self._metrics.write(_line(record))
        numbers = {
            f"{group}/{name}": value
            for name, value in record.items()
            if isinstance(value, (int, float)) and name != "step" and math.isfinite(value)
        }
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in numbers.items()]
        self._log_event(step=record["step"], summary=self._summary(value=values))

    def _log_event(self, **content: Any) -> None:
        self._events.write(self._event(wall_time=time.time(), **content).SerializeToString())
        self._events.flush()
