"""The folder of a run: what lies where, and the checks before anything is written or removed."""

import itertools
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from zorn.config import Config, from_json, to_json
from zorn.errors import ConfigError
from zorn.run.files import write_whole
from zorn.run.lock import LOCK, locked
from zorn.tasks import ByteTokenizer, Tokenizer, tokenizer_from_json


class _Place:
    """A path inside a run's folder."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, folder: "RunFolder", _: type) -> Path:
        return folder.path / self.name


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run's folder.

    >>> RunFolder(Path("runs/a")).metrics.as_posix()
    'runs/a/metrics.jsonl'
    """

    path: Path

    config = _Place("config.json")
    """The settings."""
    tokenizer = _Place("tokenizer.json")
    """The tokenizer, where it was made from the text: alphabet and bpe."""
    metrics = _Place("metrics.jsonl")
    """All logged numbers."""
    tensorboard = _Place("tensorboard")
    """TensorBoard's event files."""
    checkpoints = _Place("checkpoints")
    """The newest checkpoints."""
    journal = _Place("journal.jsonl")
    """The numbers that make every step again, see `zorn.run.journal`."""
    summary = _Place("summary.json")
    """The summary, written when the budget is used up."""
    curve = _Place("curve.png")
    """The picture of the validation curve."""
    sample = _Place("sample.txt")
    """Generated text."""
    _aside = _Place(".replaced")
    """Where what a new run replaces is, until it has begun."""

    def check_new(self, *, overwrite: bool, otherwise: str = "replace the run with --overwrite") -> None:
        """Raise ConfigError unless a new run can be written here; changes nothing.

        The folder must be absent or empty, or hold an earlier run that may be overwritten, and the nearest
        folder above it that exists must be writable. `otherwise`: than to choose another folder, what a user
        can do of one that is not empty.
        """
        existing = next(place for place in (self.path, *self.path.absolute().parents) if place.exists())
        if not existing.is_dir():
            raise ConfigError(
                f"cannot make the folder {self.path}: {existing} is a file: choose another --out"
            )
        _check_writable(existing, "choose another --out, or change its permissions")
        cut_short = self._aside.is_dir() and not self.config.exists()  # a process was killed in `create`
        if self.path.exists() and not cut_short and any(each.name != LOCK for each in self.path.iterdir()):
            if not overwrite:
                raise ConfigError(f"{self.path} is not empty: choose another --out, or {otherwise}")
            if not self.config.is_file():
                raise ConfigError(f"{self.path} holds other files than a run's: choose another --out")
            try:
                self.read_config()
            except ConfigError as error:
                raise ConfigError(
                    f"--overwrite replaces nothing but a run of this zorn, and {error}: choose another --out"
                ) from error

    def check_resumable(self) -> None:
        """Raise ConfigError unless the files of the run can be written, and no process trains there."""
        _check_writable(self.path, "change its permissions, or copy the run")
        with locked(self.path):
            pass

    def create(self, asked: Config, config: Config, *, overwrite: bool, tokenizer: str | None = None) -> None:
        """Make the folder and write the settings, and a tokenizer's JSON where one was learned; removes the
        files of an earlier run, and no others.

        Raises ConfigError when `check_new` does, or when the system refuses; an earlier run is whole then.
        """
        self.check_new(overwrite=overwrite)
        earlier = (self.summary, self.curve, self.sample, self.metrics, self.tokenizer, self.journal)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with _moved_aside(self._aside, (*earlier, self.tensorboard, self.checkpoints)):
                if tokenizer is not None:
                    self.tokenizer.write_text(tokenizer, encoding="utf-8")
                self.write_config(asked, config)
        except OSError as error:
            raise ConfigError(
                f"cannot write to {self.path} ({error.strerror}): choose another --out"
            ) from error

    def write_config(self, asked: Config, config: Config) -> None:
        """Write `config.json`, what was asked and what was resolved, in one move."""
        write_whole(self.config, to_json(asked, config))

    def read_config(self) -> Config:
        """All settings of the run; ConfigError when this is no run's folder or the file does not fit."""
        return self._settings()[1]

    def read_asked(self) -> Config:
        """The settings that were asked for; ConfigError when this is no run's folder or the file does not
        fit."""
        return self._settings()[0]

    def _settings(self) -> tuple[Config, Config]:
        if not self.config.is_file():
            raise ConfigError(
                f"{self.path} is not the folder of a run: it has no {self.config.name}: "
                "name the folder that zorn train wrote"
            )
        return read_config(self.config)

    def tokenizer_json(self) -> str | None:
        """The JSON of the tokenizer that was learned from the run's text; None where there is none."""
        return self.tokenizer.read_text(encoding="utf-8") if self.tokenizer.is_file() else None

    def read_tokenizer(self, name: str) -> Tokenizer:
        """The tokenizer of a run on text, without the text.

        Args:
            name: as in the settings of the task.

        Raises:
            ConfigError: it was learned from the text, and its file is gone or damaged.
        """
        if name == ByteTokenizer.name:
            return ByteTokenizer()
        text = self.tokenizer_json()
        if text is None:
            raise ConfigError(
                f"{self.tokenizer} is missing, and its tokens cannot be told from the text alone: "
                "restore it from a copy or train again"
            )
        return tokenizer_from_json(text)


def free_path(runs: Path = Path("runs")) -> Path:
    """Where a run without a name goes: the time of the start, with a number after it where that is taken."""
    return next(path for path in _names(runs / f"{datetime.now():%Y-%m-%d-%H%M%S}") if not path.exists())


def claimed(path: Path) -> Path:
    """Make a new folder of this name, or with a number after it where another process made it first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in _names(path):
        with suppress(FileExistsError):
            name.mkdir()
            return name
    raise AssertionError("there is always a further number")


def _names(path: Path) -> Iterator[Path]:
    yield path
    yield from (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))


def read_config(path: Path) -> tuple[Config, Config]:
    """The settings in a file such as `config.json`, asked and resolved; ConfigError when it is not there or
    does not fit."""
    try:
        return from_json(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise ConfigError(
            f"the settings {path} cannot be read ({error.strerror}): name a config.json"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text ({error}): restore it or train again") from error


def _check_writable(folder: Path, advice: str) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"cannot write to {folder}: {advice}")


@contextmanager
def _moved_aside(aside: Path, places: Iterable[Path]) -> Iterator[None]:
    """Move files and folders, where there are some, into the folder `aside` next to them: deleted when the
    block ends well, put back when it fails, with what the block wrote in their places removed."""
    earlier, new = [], []
    for place in places:
        (earlier if place.exists() else new).append(place)
    if aside.exists():  # of a process that was killed here
        shutil.rmtree(aside)
    aside.mkdir()
    try:
        for place in earlier:
            place.rename(aside / place.name)
        yield
    except BaseException:
        for place in new:
            place.unlink(missing_ok=True)
        for place in aside.iterdir():
            place.replace(aside.parent / place.name)
        aside.rmdir()
        raise
    shutil.rmtree(aside)
