"""The folder of a run: what lies where, and the checks before anything is written or removed."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from zorn.errors import ConfigError
from zorn.training.config import Config, config_from_json, config_to_json


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths inside a run's folder.

    >>> RunFolder(Path("runs/a")).metrics.as_posix()
    'runs/a/metrics.jsonl'
    """

    path: Path

    @property
    def config(self) -> Path:
        """The settings."""
        return self.path / "config.json"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer, where it was made from the text: alphabet and bpe."""
        return self.path / "tokenizer.json"

    @property
    def metrics(self) -> Path:
        """All logged numbers."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """The checkpoints."""
        return self.path / "checkpoints"

    @property
    def summary(self) -> Path:
        """The summary, written when the budget is used up."""
        return self.path / "summary.json"

    @property
    def curve(self) -> Path:
        """The picture of the validation curve."""
        return self.path / "curve.png"

    @property
    def sample(self) -> Path:
        """Generated text."""
        return self.path / "sample.txt"

    def check_new(self, *, overwrite: bool) -> None:
        """Raise ConfigError unless a new run can be written here; changes nothing.

        The folder must be absent or empty, or hold an earlier run that may be overwritten, and the nearest
        folder above it that exists must be writable.
        """
        existing = next(place for place in (self.path, *self.path.absolute().parents) if place.exists())
        if not existing.is_dir():
            raise ConfigError(
                f"cannot make the folder {self.path}: {existing} is a file: choose another --out"
            )
        if not os.access(existing, os.W_OK | os.X_OK):
            raise ConfigError(f"cannot write to {existing}: choose another --out, or change its permissions")
        if self.path.exists() and any(self.path.iterdir()):
            if not overwrite:
                raise ConfigError(
                    f"{self.path} is not empty: choose another --out, or replace the run with --overwrite"
                )
            if not self.config.is_file():
                raise ConfigError(f"{self.path} holds other files than a run's: choose another --out")

    def create(self, config: Config, *, overwrite: bool) -> None:
        """Make the folder and write the settings; removes the files of an earlier run, and no others.

        Raises ConfigError when `check_new` does, or when the system refuses.
        """
        self.check_new(overwrite=overwrite)
        try:
            for old in (self.summary, self.curve, self.sample, self.metrics, self.tokenizer):
                old.unlink(missing_ok=True)
            for old in (self.tensorboard, self.checkpoints):
                if old.exists():
                    shutil.rmtree(old)
            self.path.mkdir(parents=True, exist_ok=True)
            self.write_config(config)
        except OSError as error:
            raise ConfigError(
                f"cannot write to {self.path} ({error.strerror}): choose another --out"
            ) from error

    def write_config(self, config: Config) -> None:
        """Write `config.json` in one move, so that it is never half there."""
        temporary = self.config.with_suffix(".tmp")
        temporary.write_text(config_to_json(config), encoding="utf-8")
        temporary.replace(self.config)

    def read_config(self) -> Config:
        """The settings of the run; ConfigError when this is no run's folder or the file does not fit."""
        if not self.config.is_file():
            raise ConfigError(
                f"{self.path} is not the folder of a run: it has no {self.config.name}: "
                "name the folder that zorn train wrote"
            )
        return config_from_json(self.config.read_text(encoding="utf-8"), str(self.config))
