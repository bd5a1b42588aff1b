"""Kills runs with SIGKILL, starts them again, and checks that nothing is lost.

Each run trains a small model with `zorn train` while a worker, the launcher, or both at once are killed: at
random moments, or at named points of a step and of what it writes (`kill_points.py`). Or a worker hangs: it
is stopped with SIGSTOP, and the others give it up. The run is started again as torchrun's agent does, or,
where the launcher died, by `zorn resume`. At the end its weights, optimizer, log and journal are those of a
run that nothing happened to, bit for bit, and no step but the one in flight was made again.

    python tests/distributed/fault_injection.py [--runs 50] [--processes 1 2] [--seed 0] [--hangs 4]
        [--torchrun 3]

Starting torch takes seconds, so launcher and workers are forks of this process, which has imported it; the
launcher is a few lines that do what torchrun's agent does. `--torchrun` runs are by the real one. Exit code 1
when any run failed. Linux only.
"""

import argparse
import ctypes
import io
import itertools
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from kill_plans import OPTIMIZERS, STEPS, Kill, Plan, hang_plans, plans, torchrun_plans
from kill_points import install
from processes import free_port
from rich.console import Console
from rich.table import Table

import zorn.training.learner
import zorn.training.trainer
from zorn.cli import main as zorn_main
from zorn.run.checkpoint import latest_checkpoint
from zorn.run.journal import read_journal
from zorn.run.loggers import read_metrics

RESTARTS = 5
"""Of the workers by their launcher."""

ATTEMPTS = 20
"""At a kill that hits: a run may be at its end before its moment comes."""

PATIENCE = 120
"""Seconds until processes that do not end are given up."""

GRACE, HANG_GRACE = 30, 2
"""Seconds from SIGTERM to SIGKILL for the workers that are left when one has failed, as torchrun's; where one
hangs, and would take them all."""

PAUSE = 0.003
"""Seconds between two looks at processes."""

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts", "3"]
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


@dataclass
class Outcome:
    """What came of runs of a kind.

    Args:
        kills: that hit.
        again: steps that were begun a second time.
        failures: what was not as it had to be, in words.
    """

    runs: int = 0
    kills: int = 0
    again: int = 0
    failures: list[str] = field(default_factory=list)

    def __add__(self, other: "Outcome") -> "Outcome":
        runs, kills, again = self.runs + other.runs, self.kills + other.kills, self.again + other.again
        return Outcome(runs, kills, again, self.failures + other.failures)


@dataclass(frozen=True)
class End:
    """What a run left, but for the seconds it took."""

    tensors: dict[str, bytes]
    metrics: list[dict[str, Any]]
    entries: list[bytes]

    @classmethod
    def of(cls, out: Path) -> "End":
        """Of a run's folder."""
        newest = latest_checkpoint(out / "checkpoints")
        return cls(
            {f"{newest.name}/{file.name}": file.read_bytes() for file in newest.glob("*.safetensors")},
            [
                {name: value for name, value in line.items() if name != "seconds"}
                for line in read_metrics(out / "metrics.jsonl")
            ],
            [replace(entry, seconds=0.0).encoded() for entry in read_journal(out / "journal.jsonl")],
        )

    def differences(self, other: "End") -> list[str]:
        """What is not the same."""
        names = {"weights or optimizer": "tensors", "metrics.jsonl": "metrics", "journal.jsonl": "entries"}
        return [name for name, part in names.items() if getattr(self, part) != getattr(other, part)]


class Folder:
    """Where a run is, and what is noted beside it by the processes, which may die at any moment."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True)
        self.path, self.out, self.printed = path, path / "run", path / "printed.txt"

    def note(self, name: str, number: int) -> None:
        """Write a number down."""
        with (self.path / name).open("a") as file:
            file.write(f"{number}\n")

    def noted(self, name: str) -> list[int]:
        """The numbers of that name."""
        file = self.path / name
        return [int(word) for word in file.read_text().split()] if file.exists() else []


# ------------------------------------------------------------------------------------------------ processes


def fork(work: Callable[[], int]) -> int:
    """Do some work in a child, which ends with its code; returns its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        code = work()
    except BaseException:  # noqa: BLE001 - nobody else would tell of it
        traceback.print_exc()
    finally:
        os._exit(code)


def control(option: int, value: int) -> None:
    """prctl(2) of this process."""
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def print_into(file: Path) -> None:
    """Let this process print into a file."""
    opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(opened, stream)


def launch(words: Sequence[str], plan: Plan, folder: Folder) -> int:
    """Be the launcher: start the workers, again when one fails, and the next kill with them."""
    control(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setpgid(0, 0)
    for restart in range(RESTARTS + 1):
        done = len(folder.noted("kills"))
        kill = plan.kills[done] if done < len(plan.kills) else None
        place = {"WORLD_SIZE": plan.processes, "LOCAL_WORLD_SIZE": plan.processes, "MASTER_PORT": free_port()}
        place |= {"TORCHELASTIC_RESTART_COUNT": restart, "TORCHELASTIC_RUN_ID": "faults"}
        os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
        started = time.monotonic()
        workers = {fork(partial(work, rank, words, kill, folder)): rank for rank in range(plan.processes)}
        code = 0
        while workers and code == 0:
            if kill is not None and kill.moment is not None and time.monotonic() - started >= kill.moment:
                victims = [worker for worker, rank in workers.items() if rank == kill.rank]
                if victims or kill.victim != "worker":
                    strike(kill, folder, worker=victims[0] if victims else 0, launcher=os.getpid())
                kill = None
            code = reap(workers)
        if code == 0:
            return 0
        stop(workers, HANG_GRACE if plan.hangs else GRACE)
    return 1


def work(rank: int, words: Sequence[str], kill: Kill | None, folder: Folder) -> int:
    """Be a worker: the command `zorn`, with a point to die at."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    print_into(folder.printed)
    if rank == 0:
        note_steps(folder)
    if kill is not None and kill.point and kill.rank == rank:
        worker, launcher = os.getpid(), os.getppid()
        install(kill.point, kill.call, lambda: strike(kill, folder, worker, launcher))
    sys.argv = ["zorn", *words]
    return zorn_main()


def note_steps(folder: Folder) -> None:
    """Let this process note each training step that it begins."""
    original = zorn.training.learner.prepare_step

    def noted(*arguments: Any, **options: Any) -> Any:
        folder.note("steps", options.get("step", arguments[3] if len(arguments) > 3 else -1))
        return original(*arguments, **options)

    zorn.training.learner.prepare_step = noted


def strike(kill: Kill, folder: Folder, worker: int, launcher: int) -> None:
    """SIGKILL the victims, or stop the worker."""
    folder.note("kills", kill.rank)
    if kill.victim == "all":
        os.killpg(launcher, signal.SIGKILL)
    os.kill(
        launcher if kill.victim == "launcher" else worker, signal.SIGSTOP if kill.hangs else signal.SIGKILL
    )


def reap(workers: dict[int, int]) -> int:
    """Wait a moment for a worker to end, and drop it; the state of one that failed, else 0."""
    ended, state = os.waitpid(-1, os.WNOHANG)
    if ended:
        del workers[ended]
    else:
        time.sleep(PAUSE)
    return state


def stop(workers: dict[int, int], grace: int) -> None:
    """End the workers that are left: SIGTERM, and SIGKILL after `grace` seconds."""
    for worker in workers:
        os.kill(worker, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while workers:
        if time.monotonic() > deadline:
            for worker in workers:
                os.kill(worker, signal.SIGKILL)
            deadline = float("inf")
        reap(workers)


def wait_for_all(launcher: int) -> int:
    """Wait until the launcher and workers that have lost it are gone; the launcher's state.

    Raises TimeoutError when that takes too long; they are ended then.
    """
    deadline, states = time.monotonic() + PATIENCE, {}
    with suppress(ChildProcessError):
        while time.monotonic() < deadline:
            child, state = os.waitpid(-1, os.WNOHANG)
            states[child] = state
            if not child:
                time.sleep(PAUSE)
        end_children()
        raise TimeoutError(f"processes that do not end within {PATIENCE} s")
    return states[launcher]


def children(process: int) -> list[int]:
    """Process ids of the children of a process; none where it is gone."""
    file = Path(f"/proc/{process}/task/{process}/children")
    return [int(word) for word in file.read_text().split()] if file.exists() else []


def end_children() -> None:
    """Kill what is left, children that come here when their parents die among it."""
    while left := children(os.getpid()):
        for child in left:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


# ----------------------------------------------------------------------------------------------------- runs


def train(plan: Plan, folder: Folder) -> None:
    """Do a run to its end; RuntimeError with what was printed where its launcher gives up."""
    words = plan.words(folder.out)
    while True:
        state = wait_for_all(fork(partial(launch, words, plan, folder)))
        if finished(state, folder):
            return
        words = go_on(plan, folder)


def finished(state: int, folder: Folder) -> bool:
    """Whether a run is at its end, after a launcher that ended with this state."""
    if state != 0 and not os.WIFSIGNALED(state):
        raise RuntimeError(f"the launcher gave up:\n{folder.printed.read_text()[-3000:]}")
    return state == 0 or (folder.out / "summary.json").exists()  # workers may come to the end without it


def go_on(plan: Plan, folder: Folder) -> list[str]:
    """What a user calls after the launcher died."""
    if any(folder.out.glob("checkpoints/step-*/manifest.json")):
        return ["resume", str(folder.out)]
    return plan.words(folder.out)


def train_by_torchrun(plan: Plan, folder: Folder) -> None:
    """The same by the real torchrun; each kill comes after its `call` steps are in the journal."""
    words, journal = plan.words(folder.out), folder.out / "journal.jsonl"
    for kill in (*plan.kills, None):
        launcher = fork(partial(torchrun, words, plan, folder))
        while kill is not None and not (journal.exists() and journal.read_bytes().count(b"\n") > kill.call):
            if launcher not in children(os.getpid()):
                break
            time.sleep(PAUSE)
        if kill is not None:
            worker = children(launcher)[kill.rank]
            strike(kill, folder, worker, launcher)
        if finished(wait_for_all(launcher), folder):
            return
        words = go_on(plan, folder)


def torchrun(words: Sequence[str], plan: Plan, folder: Folder) -> int:
    """Be torchrun."""
    control(PR_SET_PDEATHSIG, signal.SIGKILL)
    print_into(folder.printed)
    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(HANG_GRACE if plan.hangs else GRACE)
    command = [*TORCHRUN, "--nproc-per-node", str(plan.processes), "-m", "zorn", *words]
    os.execv(command[0], command)


def trial(plan: Plan, folder: Folder, expected: End, run: Callable[[Plan, Folder], None] = train) -> Outcome:
    """A run with its kills, compared to one without."""
    outcome = Outcome(runs=1)
    try:
        run(plan, folder)
        with redirect_stdout(io.StringIO()) as printed:
            damaged = zorn_main(["journal", "verify", str(folder.out)]) != 0
        wrong = End.of(folder.out).differences(expected) + [printed.getvalue()] * damaged
    except Exception as error:  # noqa: BLE001 - the other runs go on
        wrong = [str(error)]
    outcome.kills = len(folder.noted("kills"))
    if begun := folder.noted("steps"):
        outcome.again = len(begun) - len(set(begun))
        if sorted(set(begun)) != list(range(STEPS)):
            wrong.append(f"steps begun: {begun}")
        if outcome.again > outcome.kills:
            wrong.append(f"{outcome.again} steps were made again")
    outcome.failures = [f"{plan}: {reason}" for reason in wrong]
    if not wrong:
        shutil.rmtree(folder.path)
    return outcome


def undisturbed(root: Path, processes: Sequence[int]) -> tuple[dict[str, End], dict[tuple[str, int], float]]:
    """What runs end with by optimizer, whatever the number of processes, and the seconds that each takes.

    Raises RuntimeError where the number of processes changes the end.
    """
    ends, seconds = {}, {}
    for optimizer, size in itertools.product(OPTIMIZERS, dict.fromkeys([1, *processes])):
        folder = Folder(root / f"{optimizer}-{size}")
        started = time.monotonic()
        train(Plan(kind="undisturbed", optimizer=optimizer, processes=size), folder)
        seconds[optimizer, size] = time.monotonic() - started
        found = End.of(folder.out)
        if wrong := found.differences(ends.setdefault(optimizer, found)):
            raise RuntimeError(
                f"{size} processes end with other {', '.join(wrong)} than one, in {folder.path}"
            )
    return ends, seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Do all runs and print the table; 1 when any failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=50, help="by forked processes")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="of a run, in turn")
    parser.add_argument("--seed", type=int, default=0, help="of moments and places")
    parser.add_argument(
        "--hangs", type=int, default=4, help="runs of two forked processes, one of which hangs"
    )
    parser.add_argument("--torchrun", type=int, default=3, help="runs by the real torchrun")
    asked = parser.parse_args(arguments)
    control(PR_SET_CHILD_SUBREAPER, 1)  # workers that have lost their launcher come to this process
    zorn.training.trainer.draw_curve = lambda *_: None  # half the time of such small runs
    memory = Path("/dev/shm")  # a killed process loses nothing of a disk's cache: no need for a slow one
    root = Path(tempfile.mkdtemp(prefix="zorn-faults-", dir=memory if memory.is_dir() else None))
    found: dict[str, Outcome] = {}
    try:
        import_all(root / "imports")
        sizes = [*asked.processes, *[2] * bool(asked.hangs)]
        ends, seconds = undisturbed(root, sizes)
        planned = plans(asked.runs, asked.processes, seconds, asked.seed)
        hangs = hang_plans(asked.hangs, seconds, asked.seed)
        for number, plan in enumerate(itertools.chain(planned, hangs)):
            outcome = Outcome()
            for attempt in range(ATTEMPTS):
                outcome = trial(plan, Folder(root / f"{number}-{attempt}"), ends[plan.optimizer])
                if outcome.kills or outcome.failures:
                    break
            found[plan.kind] = found.get(plan.kind, Outcome()) + outcome
        for number, plan in enumerate(torchrun_plans(asked.torchrun, asked.seed)):
            folder = Folder(root / f"torchrun-{number}")
            outcome = trial(plan, folder, ends[plan.optimizer], train_by_torchrun)
            found[plan.kind] = found.get(plan.kind, Outcome()) + outcome
    finally:
        end_children()
    total = sum(found.values(), Outcome())
    show(found, total)
    if not total.failures:
        shutil.rmtree(root)
    return 1 if total.failures else 0


def import_all(folder: Path) -> None:
    """Let this process import what a run does, so that its forks need not."""
    with redirect_stdout(io.StringIO()):
        zorn_main([*Plan(kind="", optimizer="adamw", processes=1).words(folder), "--steps", "1"])


def show(found: dict[str, Outcome], total: Outcome) -> None:
    """Print what came of each kind, and every failure."""
    table = Table("kill", "runs", "kills", "steps again", "failed")
    for kind, outcome in (*found.items(), ("all", total)):
        numbers = (outcome.runs, outcome.kills, outcome.again, len(outcome.failures))
        table.add_row(kind, *map(str, numbers))
    console = Console()
    console.print(table)
    for failure in total.failures:
        console.print(failure, highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
