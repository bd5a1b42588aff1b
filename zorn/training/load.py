"""A trained model back from its run, for evaluation and generation."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar, final

from jaxtyping import Int
from torch import Tensor

from zorn.config import Config
from zorn.errors import CheckpointError, ConfigError
from zorn.models import LanguageModel
from zorn.run.checkpoint import latest_checkpoint, load_checkpoint, newest_mark, read_progress
from zorn.run.folder import RunFolder
from zorn.run.identity import check_settings, check_text, check_tokenizer
from zorn.tasks import Task, Tokenizer
from zorn.tasks.tokenizers import utf8
from zorn.training.build import build_model, build_task, set_threads

Loaded = TypeVar("Loaded")

TRIES = 10
"""Times that a run is read, at most, while a process that trains there replaces what is being read."""


@final
class TextCodec:
    """Text to tokens and back, as `TextTask` does it, without the text that was learned.

    Example:
        >>> from zorn.tasks import ByteTokenizer
        >>> codec = TextCodec(ByteTokenizer())
        >>> codec.decode(codec.encode("né"))
        'né'
    """

    prompt = "The "
    """A text that a generated one can begin with."""

    def __init__(self, tokenizer: Tokenizer):
        self.vocabulary = tokenizer.vocabulary
        self._tokenizer = tokenizer

    def encode(self, text: str) -> Int[Tensor, " time"]:
        """The tokens of a text, int64."""
        return self._tokenizer.encode(utf8(text)).long()

    def unknown(self, text: str) -> str:
        """The characters of a text, each once, that the text of the run did not have: they are read as an
        escape."""
        return "".join(letter for letter in dict.fromkeys(text) if self._tokenizer.unknown(utf8(letter)))

    def decode(self, tokens: Int[Tensor, " time"] | Sequence[int]) -> str:
        """The text of some tokens; bytes that are not UTF-8 become U+FFFD."""
        return self._tokenizer.decode([int(token) for token in tokens])


def load_run(path: Path) -> tuple[Task, LanguageModel]:
    """The task of a run and its model at the newest checkpoint; changes nothing in the folder.

    Raises ConfigError when the folder is no run's, or its settings or its text were changed since the run
    started; CheckpointError when the checkpoint is missing or damaged.
    """
    return _undisturbed(path, _load_run)


def _load_run(path: Path) -> tuple[Task, LanguageModel]:
    folder, config, checkpoint = _opened(path)
    task = build_task(config, folder)
    check_text(read_progress(checkpoint).text, task, config.task.get("source", ""), folder.tokenizer_json())
    return task, _model(config, task.vocabulary, checkpoint)


def load_writer(path: Path) -> tuple[TextCodec | Task, LanguageModel]:
    """The codec of a run's prompts and answers, and its model; the text that it learned is not needed.

    Raises the errors of `load_run`, but for those of the text.
    """
    return _undisturbed(path, _load_writer)


def _load_writer(path: Path) -> tuple[TextCodec | Task, LanguageModel]:
    folder, config, checkpoint = _opened(path)
    if "tokenizer" in config.task.given:
        check_tokenizer(read_progress(checkpoint).text, folder.tokenizer_json())
        writer = TextCodec(folder.read_tokenizer(config.task.tokenizer))
    else:
        writer = build_task(config, folder)
    return writer, _model(config, writer.vocabulary, checkpoint)


def _undisturbed(path: Path, load: Callable[[Path], Loaded]) -> Loaded:
    """The result of `load`, which reads a run; tried again after a failure if there is a newer checkpoint.

    In that case a process that trains there has saved one, and removed the files that were being read.
    """
    checkpoints = RunFolder(path).checkpoints
    for _ in range(TRIES):
        before = newest_mark(checkpoints)
        try:
            return load(path)
        except (CheckpointError, ConfigError, FileNotFoundError):
            if newest_mark(checkpoints) == before:
                raise
    raise CheckpointError(
        f"{path} is written faster than it can be read, {TRIES} times in a row: stop the process that trains "
        "there, or start it with a larger --keep or --checkpoint-seconds"
    )


def _opened(path: Path) -> tuple[RunFolder, Config, Path]:
    """A run's folder, its settings and its newest checkpoint, which agree with each other."""
    folder = RunFolder(path)
    config = folder.read_config()
    checkpoint = latest_checkpoint(folder.checkpoints)
    check_settings(read_progress(checkpoint).settings, config)
    set_threads(config.run.threads)
    return folder, config, checkpoint


def _model(config: Config, vocabulary: int, checkpoint: Path) -> LanguageModel:
    model = build_model(config, vocabulary)
    load_checkpoint(checkpoint, model)
    return model
