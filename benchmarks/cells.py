"""What is learned in the learning benchmark: a setting, a task in it, and the cell of the model.

- overfit: one batch of 16 copy sequences of 10 letters by heart, the smallest thing that a training method
  must be able to do, and the paper's Figure 1 (arXiv 2505.17852);
- transduction: fresh sequences at every step, lengths 2 to 10 ("copy-10": always 10), judged on the
  validation split and at lengths 50 above;
- text: bytes of a text, the documentation of Python that ships with zorn or a file.

Settings are searched on seeds from `TUNING_SEED` on, for a text also on a piece of the training text that no
result is taken from.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from contest import Method

import zorn
import zorn.models
from zorn.tasks import PYTHON_DOCS, AddTask, CopyTask, RepeatCopyTask, ReverseTask, SortTask, Task, TextTask

TUNING_SEED = 1000

TRANSDUCTION: dict[str, Callable[..., Task]] = {
    "copy": CopyTask,
    "reverse": ReverseTask,
    "sort": SortTask,
    "add": AddTask,
    "repeat-copy": RepeatCopyTask,
    "copy-10": CopyTask,
}
"""The tasks of "transduction"; "copy-10" has 10 letters, the others 2 to 10."""

TASKS = {"overfit": ("copy",), "transduction": tuple(TRANSDUCTION), "text": (PYTHON_DOCS,)}
"""The settings and the tasks of each; for "text" also the path of any file."""

MODELS = {"overfit": ("lstm", "dnc"), "transduction": ("lstm",), "text": ("lstm",)}
"""The models that each setting has results for; others run when they are asked for."""

CELLS = tuple(zorn.models.CELLS)

THRESHOLDS: dict[str, tuple[str, tuple[float, ...]]] = {
    "overfit": ("loss", (1.0, 0.1)),
    "transduction": ("loss", (1.0, 0.1)),
    "text": ("bits_per_byte", (3.0, 2.6, 2.3)),
}
"""The figure that is to fall, and below which values, for `seconds_to_loss`: nats a token or bits a byte."""

STOP_BELOW = {"overfit": 0.1, "transduction": 0.01, "text": 0.0}
"""The loss at which a run ends before its time, nats a token."""

_TEXT_SHARE = 0.05  # of the text: the validation piece, and the piece behind it
_LETTERS = 10
_PARAMETERS = {("overfit", "dnc"): 300_000}
_TEXT_HIDDEN = 64


@dataclass(frozen=True)
class Cell:
    """One cell of the table of results but for the method: `setting`, `task`, and the model's `cell`."""

    setting: str
    task: str
    cell: str

    @property
    def title(self) -> str:
        """The task's short name: a file's name without its folders."""
        return Path(self.task).name

    def seconds(self) -> float:
        """The budget of a run unless it is told another, in CPU seconds of training."""
        return {"lstm": 120.0, "dnc": 300.0}.get(self.cell, 120.0) if self.setting == "overfit" else 600.0

    def make_task(self, method: Method, seed: int) -> Task:
        """The task as that method's batches cut it."""
        if self.setting == "text":
            behind = _TEXT_SHARE * (2 if seed >= TUNING_SEED else 1)  # tuning: the end of the training text
            return TextTask(
                source=self.task,
                tokenizer="alphabet",
                batch=method.batch,
                length=method.length,
                seed=seed,
                validation_fraction=_TEXT_SHARE,
                test_fraction=behind,
                stream=method.stream,
            )
        overfit = self.setting == "overfit"
        return TRANSDUCTION[self.task](
            batch=method.batch,
            minimum_length=_LETTERS if overfit or self.task == "copy-10" else 2,
            maximum_length=_LETTERS,
            seed=seed,
            overfit=overfit,
        )

    def make_model(self, task: Task, seed: int) -> zorn.LanguageModel:
        """The model: 64 units for a text, else the size closest to 100,000 parameters (the DNC that overfits:
        300,000). A minGRU has two layers: the gates of one see no state."""
        layers = 2 if self.cell == "min-gru" else 1
        if self.setting == "text":
            return zorn.LanguageModel(
                task.vocabulary, _TEXT_HIDDEN, cell=self.cell, num_layers=layers, seed=seed
            )
        return zorn.LanguageModel.with_parameters(
            _PARAMETERS.get((self.setting, self.cell), 100_000),
            task.vocabulary,
            cell=self.cell,
            num_layers=layers,
            seed=seed,
        )
