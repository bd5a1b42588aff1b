"""What a journal costs a run, and how long the run's steps take to be made again from it.

A small LSTM learns to copy for 1,000 steps, with rank-one CD-RGE and AdamW, with a journal and without one in
turn. All but the first checkpoint is deleted then, and `zorn.training.replay` makes the last step's weights
again from the journal.

- `replay_over_run`: processor seconds of the replay over those of the run, both from the settings to what is
  on the disk.
- `replay_equals_run`: the share of replays whose weights and optimizer state have the SHA-256 of the run's.
- `run_over_run_without`: processor seconds of the run with a journal over those of one without.
- `bytes_per_step`: of the journal.
- `append_seconds`, `fsync_seconds`: of one entry, and of forcing it to the disk that temporary files are on,
  by the clock; `append_over_step`: the former over a step of the run.

    python benchmarks/replay.py [--quick] [--hidden-size 64] [--letters 10] [--json PATH] [--picture PATH]
"""

import hashlib
import io
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from harness import Ratio, Record, argument_parser, median_ratio_with_spread, report, torch_threads
from matplotlib.axes import Axes
from rich.console import Console

from zorn.config import BudgetConfig, Choice, Config, RunConfig
from zorn.estimators.fold import Fold
from zorn.noise import Draw
from zorn.run import checkpoints
from zorn.run.journal import Journal, JournalEntry
from zorn.training import Trainer
from zorn.training.replay import replay

POPULATION = 64
ENTRIES = 200  # that are written and forced to the disk for the cost of one

Seconds = dict[str, list[float]]


@dataclass(frozen=True)
class Size:
    """Units of the LSTM, and most letters of a sequence."""

    hidden: int = 64
    letters: int = 10


def settings(size: Size, out: Path, steps: int, *, journal: bool = True) -> Config:
    """Of all runs; only start and end are saved and evaluated."""
    return Config(
        task=Choice("copy", batch=8, minimum_length=1, maximum_length=size.letters),
        model=Choice("lstm", hidden_size=size.hidden),
        estimator=Choice("cd-rge", population=POPULATION),
        optimizer=Choice("adamw"),
        budget=BudgetConfig(steps=steps),
        run=RunConfig(out=out, evaluations=1, checkpoint_seconds=1e6, threads=1, journal=journal),
    )


def train(config: Config) -> float:
    """A whole run; its processor seconds."""
    start = time.process_time()
    Trainer(config, console=Console(file=io.StringIO())).run()
    return time.process_time() - start


def digest(checkpoint: Path) -> str:
    """SHA-256 of a checkpoint's tensors."""
    found = hashlib.sha256()
    for file in sorted(checkpoint.glob("*.safetensors")):
        found.update(file.read_bytes())
    return found.hexdigest()


def replayed(run: Path, out: Path) -> tuple[float, bool]:
    """Make a run's last step again from its journal and its first checkpoint: processor seconds, and whether
    the bits are the run's. The other checkpoints of the run are deleted."""
    last = checkpoints(run / "checkpoints")[-1]
    step, expected = int(last.name.removeprefix("step-")), digest(last)
    for path in checkpoints(run / "checkpoints")[1:]:
        shutil.rmtree(path)
    start = time.process_time()
    replay(run, step, out)
    seconds = time.process_time() - start
    return seconds, digest(checkpoints(out / "checkpoints")[-1]) == expected


def bytes_per_step(run: Path, steps: int) -> float:
    """Of the journal, its header left out."""
    _, *lines = (run / "journal.jsonl").read_bytes().splitlines(keepends=True)
    return sum(map(len, lines)) / steps


def entry_seconds(folder: Path) -> Seconds:
    """Of entries that are appended, and of each then forced to the disk."""
    weights = torch.randn(POPULATION, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found: Seconds = {"append": [], "fsync": []}
    with Journal.create(folder / "entries.bin", bytes(32), sync_seconds=None) as journal:
        for step in range(ENTRIES):
            start = time.perf_counter()
            fold = Fold.of(Draw(seed=0, step=step, epsilon=0.1), weights)
            journal.append(JournalEntry(step=step + 1, fold=fold))
            written = time.perf_counter()
            journal.sync()
            found["append"].append(written - start)
            found["fsync"].append(time.perf_counter() - written)
    return found


def measure(size: Size, folder: Path, steps: int, rounds: int) -> list[Record]:
    """All records; runs with and without a journal take turns.

    Args:
        size: of the runs.
        folder: on the disk that is measured.
        rounds: of which the first, in which torch loads what it needs, does not count.
    """
    seconds: Seconds = {"run": [], "run without": [], "replay": []}
    equal: list[bool] = []
    for number in range(-1, rounds):
        place, length = folder / f"round{number}", steps if number >= 0 else 5
        names = ["run", "run without"] if number % 2 else ["run without", "run"]
        took = {name: train(settings(size, place / name, length, journal=name == "run")) for name in names}
        took["replay"], same = replayed(place / "run", place / "again")
        if number >= 0:
            equal.append(same)
            for name, value in took.items():
                seconds[name].append(value)
    taken = bytes_per_step(folder / "round0" / "run", steps)
    return records_of(size, seconds, equal, taken, entry_seconds(folder), steps)


def records_of(
    size: Size,
    seconds: Seconds,
    equal: Sequence[bool],
    taken: float,
    entries: Seconds,
    steps: int,
) -> list[Record]:
    """The records of what was measured.

    Args:
        size: of the runs.
        seconds: of the processor, of "run", "run without" and "replay", round by round.
        equal: whether the bits of each replay were the run's.
        taken: bytes of a step in the journal.
        entries: from `entry_seconds`.
        steps: of each run.
    """
    shared: dict[str, object] = {"steps": steps, "members": POPULATION, "threads": 1, "rounds": len(equal)}
    shared |= {"hidden_size": size.hidden, "maximum_length": size.letters}

    def ratio(name: str, found: Ratio) -> Record:
        return Record(name, found.median, "ratio", shared | {"lower": found.lower, "upper": found.upper})

    step = statistics.median(seconds["run"]) / steps
    append, fsync = (statistics.median(entries[name]) for name in ("append", "fsync"))
    slowest: dict[str, object] = {"entries": len(entries["fsync"]), "slowest": max(entries["fsync"])}
    return [
        ratio("replay_over_run", median_ratio_with_spread(seconds["replay"], seconds["run"])),
        Record("replay_equals_run", sum(equal) / len(equal), "share", shared),
        ratio("run_over_run_without", median_ratio_with_spread(seconds["run"], seconds["run without"])),
        *(
            Record("seconds_per_step", statistics.median(rounds) / steps, "s", shared | {"of": name})
            for name, rounds in seconds.items()
        ),
        Record("bytes_per_step", taken, "bytes", {"members": POPULATION}),
        Record("append_seconds", append, "s", {"members": POPULATION, "entries": len(entries["append"])}),
        Record("append_over_step", append / step, "ratio", shared),
        Record("fsync_seconds", fsync, "s", slowest),
    ]


def draw(axes: Axes, records: Sequence[Record]) -> None:
    """Seconds of a step, of its replay, and of what the journal adds to it."""
    bars = {
        f"a step: {one.settings['of']}": one.value for one in records if one.name == "seconds_per_step"
    } | {name: one.value for one in records if (name := one.name) in ("append_seconds", "fsync_seconds")}
    axes.barh(list(bars), list(bars.values()))
    axes.set_xscale("log")
    axes.set_xlabel("seconds")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and report."""
    parser = argument_parser("replay", __doc__)
    parser.add_argument("--hidden-size", type=int, default=Size.hidden, help="units of the LSTM")
    parser.add_argument("--letters", type=int, default=Size.letters, help="most letters of a sequence")
    asked = parser.parse_args(arguments)
    size = Size(asked.hidden_size, asked.letters)
    steps, rounds = (100, 1) if asked.quick else (1000, 3)
    with torch_threads(1), tempfile.TemporaryDirectory(prefix="zorn-replay-") as folder:
        records = measure(size, Path(folder), steps, rounds)
    title = f"A run of {steps:,} steps, and the same steps made again from its journal"
    report(title, records, asked, lambda axes: draw(axes, records))


if __name__ == "__main__":
    main()
