"""Language modelling of one text: a file, or the documentation of Python that ships with zorn."""

import codecs
import contextlib
import gzip
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from zorn.checks import check_choice, check_seed, check_whole_number
from zorn.errors import ConfigError
from zorn.models import Batch
from zorn.random import integers
from zorn.tasks.objectives import IGNORE, TokenCrossEntropy
from zorn.tasks.task import SPLITS, EvaluationData, Task, data_stream
from zorn.tasks.tokenizers import AlphabetTokenizer, BpeTokenizer, ByteTokenizer, Tokenizer, utf8

PYTHON_DOCS = "python-docs"
"""The source that needs no file: documentation of Python 3.11.7, 466,117 bytes, the same on every Python."""

_PYTHON_DOCS = Path(__file__).with_name("data") / "python-docs.txt.gz"

BPE_VOCABULARY = 512
"""Tokens of "bpe" where nothing else is said."""

EVALUATION_STREAMS = 16
"""Contiguous pieces of a split that an evaluation reads side by side."""


@final
class TextTask(Task):
    """Next-token prediction of a text.

    The text's bytes are cut into three contiguous pieces: train | validation | test. Where a cut would fall
    inside a UTF-8 character it moves to that character's end. A training batch is windows of length + 1
    tokens that start anywhere in the training piece, all starts equally likely, each read from the initial
    state.

    With `stream`, training reads the text in segments. Each row of the batch reads that many windows, one a
    step; the first input of a window is the last target of the window before. After a segment the
    streams continue at new starts. An estimator that carries state resets it where `begins` is True.

    An evaluation reads the split in 16 contiguous streams side by side, carrying state. Every token but the
    split's first is predicted once: each stream but the first starts by reading the last token of the one
    before it. Bits per byte are the total loss over the bytes of the predicted tokens, so they can be
    compared between tokenizers.

    Args:
        source: "python-docs", or the path of a file.
        tokenizer: "bytes" (vocabulary 256), "alphabet" (the bytes of the training piece and an escape), "bpe"
            (trained on the training piece), or a tokenizer that was kept, for example
            `tokenizer_from_json(…)` from a checkpoint.
        vocabulary_size: tokens of "bpe", at least 257; None with any other tokenizer, and for 512.
        batch: windows in a training batch, at least 1.
        length: tokens that a window predicts (T), at least 1.
        seed: of the windows, 64 bits.
        stream: windows of a segment, at least 1, not with `overfit`; None: every window is on its own.
        validation_fraction, test_fraction: shares of the bytes, each above 0, together below 1.
        overfit: the same one batch (that of step 0) at every step; `evaluate` then evaluates that batch, each
            window from the initial state, whichever split is asked for, and its `Evaluation.split` is
            "overfit batch".

    Attributes:
        tokenizer: the tokenizer; `tokenizer.to_json()` goes into a checkpoint.
        text: the bytes of each split.
        tokens: the tokens of each split, uint8 or int32.

    Raises:
        ConfigError: a setting outside its range; a source that is missing, unreadable, empty or too short.

    Example:
        >>> task = TextTask(source="python-docs", batch=4, length=32, seed=0)
        >>> task.training_batch(step=7).inputs.shape, task.vocabulary
        (torch.Size([4, 32]), 256)
        >>> task.decode(task.encode("The for statement"))
        'The for statement'
    """

    name = "text"
    objective = TokenCrossEntropy()
    fading = 0.6  # log, "the discount on text": 2.84 bits per byte after 40 seconds, 2.90 with 0.8
    why_fading = "in text, what comes soon says most"

    def __init__(
        self,
        *,
        source: str | Path = PYTHON_DOCS,
        tokenizer: Literal["bytes", "alphabet", "bpe"] | Tokenizer = "bytes",
        vocabulary_size: int | None = None,
        batch: int = 256,
        length: int = 32,
        seed: int = 0,
        stream: int | None = None,
        validation_fraction: float = 0.05,
        test_fraction: float = 0.05,
        overfit: bool = False,
    ):
        _check_tokenizer(tokenizer, vocabulary_size)
        check_whole_number("batch", batch, minimum=1)
        check_whole_number("length", length, minimum=1)
        check_seed(seed)
        if stream is not None:
            check_whole_number("stream", stream, minimum=1)
            if overfit:
                raise ConfigError(
                    f"stream must be None with overfit, got {stream}: one repeated batch has no next window; "
                    "leave out one of the two"
                )
        if not (validation_fraction > 0 and test_fraction > 0 and validation_fraction + test_fraction < 1):
            raise ConfigError(
                "validation_fraction and test_fraction must each be above 0 and together below 1, "
                f"got {validation_fraction} and {test_fraction}"
            )
        self.text = _cut(read_source(source), validation_fraction, test_fraction)
        self.tokenizer = _make_tokenizer(tokenizer, vocabulary_size, self.text["train"])
        self.vocabulary = self.tokenizer.vocabulary
        self.tokens = {split: self.tokenizer.encode(piece) for split, piece in self.text.items()}
        self._batch = batch
        self._length = length
        self._windows = 1 if stream is None else stream  # of a segment
        self._seed = seed
        self._overfit = overfit
        self._check_long_enough(
            source, (1 - validation_fraction - test_fraction, validation_fraction, test_fraction)
        )

    def training_batch(self, step: int) -> Batch:
        """The windows of a step: inputs and targets `[batch, length]`, the targets one token ahead."""
        segment, window = divmod(0 if self._overfit else step, self._windows)
        tokens = self.tokens["train"]
        last = len(tokens) - self._windows * self._length  # one after the last start of a segment
        starts = integers(self._seed, segment, data_stream(0), self._batch, last, device="cpu")
        starts += window * self._length
        windows = tokens[starts[:, None] + torch.arange(self._length + 1)].long()
        return Batch(windows[:, :-1].contiguous(), windows[:, 1:].contiguous())

    def begins(self, step: int) -> bool:
        """True if a segment begins: at every step without `stream`, else at each multiple of `stream`."""
        return step % self._windows == 0

    def evaluation_data(self, split: str) -> EvaluationData:
        """The split in 16 streams, the last ones padded with targets of -100; or the one batch, when
        overfitting."""
        check_choice("split", split, self.splits)
        if self._overfit:
            batch = self.training_batch(0)
            return self._data("overfit batch", batch, predicted=batch.targets)
        tokens = self.tokens[split].long()
        predicted = tokens[1:]
        streams = min(EVALUATION_STREAMS, len(predicted))
        time = math.ceil(len(predicted) / streams)
        padding = streams * time - len(predicted)
        inputs = F.pad(tokens[:-1], (0, padding)).view(streams, time)
        targets = F.pad(predicted, (0, padding), value=IGNORE).view(streams, time)
        return self._data(split, Batch(inputs, targets), predicted)

    def encode(self, text: str) -> Int[Tensor, " time"]:
        """The tokens of a text, int64."""
        return self.tokenizer.encode(utf8(text)).long()

    def decode(self, tokens: Int[Tensor, " time"] | Sequence[int]) -> str:
        """The text of some tokens; bytes that are not UTF-8 become U+FFFD."""
        return self.tokenizer.decode([int(token) for token in tokens])

    def _data(self, name: str, batch: Batch, predicted: Tensor) -> EvaluationData:
        """The evaluation data of a batch, with the bytes that the predicted tokens stand for."""
        total_bytes = int(self.tokenizer.token_bytes()[predicted].sum())
        untold = float(self.tokenizer.untold_nats()[predicted].sum())
        return EvaluationData(name, batch, total_bytes=total_bytes, untold_nats=untold, whole_sequences=False)

    def _check_long_enough(self, source: str | Path, fractions: Sequence[float]) -> None:
        """Raise ConfigError where a split, of these shares of the text, has too few tokens."""
        fewest = (self._windows * self._length + 1, 2, 2)  # one to read and one to predict
        tokens = [len(self.tokens[split]) for split in SPLITS]
        if all(has >= needs for has, needs in zip(tokens, fewest, strict=True)):
            return
        size = sum(map(len, self.text.values()))
        most = max(needs / share for needs, share in zip(fewest, fractions, strict=True))
        needed = math.ceil(size / sum(tokens) * most)
        of_stream, shorter = ("", "")
        if self._windows > 1:
            of_stream, shorter = f"streams of {self._windows} ", " or stream"
        raise ConfigError(
            f"the text source {str(source)!r} is too short: {size} bytes, but {of_stream}windows of "
            f"{self._length} tokens and the validation and test pieces need about {needed} bytes; give a "
            f"longer text or a smaller length{shorter}"
        )


def read_source(source: str | Path) -> bytes:
    """The bytes of a file, or of the text that ships with zorn.

    Args:
        source: a path, or "python-docs": the values of `pydoc_data.topics.topics` of Python 3.11.7, joined
            in the order of their keys, as UTF-8; under the licence of Python, which lies beside it.

    Raises:
        ConfigError: no such file, not a file, not readable, empty, or in UTF-16 or UTF-32.

    Example:
        >>> len(read_source("python-docs"))
        466117
    """
    if source == PYTHON_DOCS:
        return gzip.decompress(_PYTHON_DOCS.read_bytes())
    advice = f"give the path of a text file, or {PYTHON_DOCS!r} for the text that ships with zorn"
    wrong = f"the text source {str(source)!r}"
    try:
        text = Path(source).read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(f"{wrong} does not exist; {advice}") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{wrong} is a folder, not a file; {advice}") from error
    except OSError as error:
        raise ConfigError(f"{wrong} cannot be read ({error.strerror or error}); {advice}") from error
    if not text:
        raise ConfigError(f"{wrong} is empty; {advice}")
    if (encoding := _wide_encoding(text)) is not None:
        raise ConfigError(
            f"{wrong} is {encoding} (its byte order mark or its zeros say so), of which "
            f"every second byte or more would say nothing: convert it, for example with iconv -f {encoding} "
            f"-t UTF-8"
        )
    return text


def _wide_encoding(text: bytes) -> str | None:
    """The encoding of more than one byte a letter that a text is in; None where it is no such text.

    It begins with the encoding's mark; or a third of its bytes are zeros, and in that encoding it is
    printable and most of its letters are Latin.
    """
    marks = {
        "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
        "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
    }
    names = [name for name, own in marks.items() if text.startswith(own)]
    if 3 * text.count(0) > len(text):
        names += ["UTF-32LE", "UTF-32BE", "UTF-16LE", "UTF-16BE"]
    for name in names:
        with contextlib.suppress(UnicodeDecodeError):  # a file of another kind that begins alike
            letters = "".join(text.decode(name).split())
            latin = len(letters.encode("latin-1", "ignore")) * 2 > len(letters)
            if name in marks or (latin and letters.isprintable()):
                return name
    return None


def _cut(text: bytes, validation_fraction: float, test_fraction: float) -> dict[str, bytes]:
    """Train, validation and test pieces, cut between UTF-8 characters."""
    test = len(text) - int(len(text) * test_fraction)
    validation = test - int(len(text) * validation_fraction)
    cuts = [0, _character_start(text, validation), _character_start(text, test), len(text)]
    return {split: text[start:end] for split, (start, end) in zip(SPLITS, pairwise(cuts), strict=True)}


def _character_start(text: bytes, position: int) -> int:
    """The first position from this one on, at most 3 further, that is not inside a UTF-8 character."""
    last = min(position + 3, len(text))
    return next((p for p in range(position, last) if text[p] & 0b1100_0000 != 0b1000_0000), last)


def _check_tokenizer(tokenizer: object, vocabulary_size: int | None) -> None:
    if not isinstance(tokenizer, Tokenizer):
        check_choice("tokenizer", tokenizer, ("bytes", "alphabet", "bpe"))
    if vocabulary_size is not None:
        if tokenizer != "bpe":
            raise ConfigError(
                f"vocabulary_size belongs to tokenizer 'bpe', got {vocabulary_size} with another; "
                "leave it out"
            )
        check_whole_number("vocabulary_size", vocabulary_size, minimum=257)


def _make_tokenizer(tokenizer: str | Tokenizer, vocabulary_size: int | None, training: bytes) -> Tokenizer:
    if tokenizer == ByteTokenizer.name:
        return ByteTokenizer()
    if tokenizer == AlphabetTokenizer.name:
        return AlphabetTokenizer(training)
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    return BpeTokenizer.train(training, vocabulary_size=vocabulary_size or BPE_VOCABULARY)
