"""Where a run's numbers go: `metrics.jsonl`, one JSON object per line, and TensorBoard."""

import json
import math
from pathlib import Path
from typing import Any

Record = dict[str, Any]
"""One line: `kind` ("train" or "evaluation"), `step` (steps done), `seconds`, `forward_passes`, numbers."""


def read_metrics(path: Path) -> list[Record]:
    """The records of a metrics file, up to the first line that a crash cut short; none without a file."""
    records: list[Record] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return records


def truncate_metrics(path: Path, step: int) -> None:
    """Drop what was logged after `step`, so that a resumed run writes each line once."""
    kept = [record for record in read_metrics(path) if record["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
    temporary.replace(path)


class MetricsLog:
    """Appends records to `metrics.jsonl` and to TensorBoard; close it, or use it in a `with` block.

    `step` is the last step that is already logged: TensorBoard hides what an earlier process logged after it.
    """

    def __init__(self, metrics: Path, tensorboard: Path, step: int = 0) -> None:
        from torch.utils.tensorboard.writer import (
            SummaryWriter,
        )  # here: it takes as long to import as all of zorn

        self._file = metrics.open("a", encoding="utf-8", buffering=1)
        self._writer = SummaryWriter(str(tensorboard), purge_step=step + 1)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._writer.close()

    def write(self, record: Record) -> None:
        """Log one record; in TensorBoard its numbers are named `kind/name` over the step."""
        self._file.write(json.dumps(record) + "\n")
        for name, value in record.items():
            if isinstance(value, (int, float)) and name != "step" and math.isfinite(value):
                self._writer.add_scalar(f"{record['kind']}/{name}", value, record["step"])
