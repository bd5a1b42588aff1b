"""Transduction: read a source, write its answer. The base of copy, reverse, sort, repeat-copy and add."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Int, Int64
from torch import Tensor

from zorn.checks import check_choice, check_seed, check_whole_number
from zorn.errors import ConfigError
from zorn.models import Batch
from zorn.random import integers
from zorn.settings import docstring_of
from zorn.tasks.objectives import IGNORE, TokenCrossEntropy
from zorn.tasks.task import SPLITS, EvaluationData, Task, data_stream

TRANSDUCTION_SPLITS = (*SPLITS, "validation-longer", "test-longer")
"""The splits of a transduction task: the last two hold lengths that training has never shown."""

LONGER = 50
"""Number of lengths, beyond the longest of training, that the longer splits have."""

EVALUATION_ROWS = 256
"""Sequences in an evaluation."""

MARKS = "|._"
"""Separator, end, padding: the last three tokens of every transduction task, in this order."""

Drawer: TypeAlias = Callable[[int, int, int], Tensor]
"""draw(number, count, bound): `count` uniform integers below `bound`; each number is a stream of its own."""


class Strings(NamedTuple):
    """One string of tokens a row: of row i the first lengths[i], at least 1; what follows is never read."""

    tokens: Int64[Tensor, "rows longest"]
    lengths: Int64[Tensor, " rows"]


class TransductionTask(Task):
    """A source is read, then its answer is written, as next-token prediction with teacher forcing.

    A sequence is

        source | answer .

    A row's inputs are its sequence without the last token (the end), its targets the sequence without the
    first. Only the tokens after the separator count, the answer's and the end; every other target is -100.
    All rows of a batch are padded to the same time, with `_` as input and -100 as target: longest source +
    longest answer + 1, whichever rows were drawn. The answer is one function of the source, so a perfect
    model's loss is 0 and both of its accuracies are 1.

    A row that is right under teacher forcing (what `sequence_accuracy` counts) is a row whose greedy
    decoding, `sample(model, source|, …, temperature=0)`, is the answer and its end: as long as all tokens
    are right, what the model would read of its own is what it is given.

    The length L of a row is drawn uniformly: from minimum_length to maximum_length in "train", "validation"
    and "test", from maximum_length + 1 to maximum_length + 50 in "validation-longer" and "test-longer", which
    so measure length generalisation. Each split is drawn from streams of random numbers of its own. (Of very
    short sequences there are so few that the same one may come up in several.)

    Args:
        batch: sequences in a training batch, at least 1.
        minimum_length: shortest L, at least 1.
        maximum_length: longest L, at least minimum_length; the longer splits have the next 50.
        seed: of the data, 64 bits.
        overfit: the same one batch (that of step 0) at every step; `evaluate` then evaluates that batch,
            whichever split is asked for, and its `Evaluation.split` is "overfit batch".

    Attributes:
        symbols: how token 0, 1, … is written; the last three are separator `|`, end `.` and padding `_`.
        content: which symbols a source is made of, in words.
        prompt: the beginning of a sequence that a model can continue, for example.

    Raises:
        ConfigError: a setting outside its range.
    """

    objective = TokenCrossEntropy()
    fading = 0.9  # an overfitted batch takes 2.8 seconds, with 1 it takes 4.1
    why_fading = "what is read counts until it is written"
    splits = TRANSDUCTION_SPLITS
    symbols: ClassVar[str]
    content: ClassVar[str]
    prompt: ClassVar[str]  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.__doc__ = docstring_of(cls)
        cls.vocabulary = len(getattr(cls, "symbols", ""))

    def __init__(
        self,
        *,
        batch: int = 256,
        minimum_length: int = 2,
        maximum_length: int = 10,
        seed: int = 0,
        overfit: bool = False,
    ):
        check_whole_number("batch", batch, minimum=1)
        check_whole_number("minimum_length", minimum_length, minimum=1)
        check_whole_number("maximum_length", maximum_length, minimum=1)
        if maximum_length < minimum_length:
            raise ConfigError(
                f"maximum_length must be at least minimum_length, got {maximum_length} and {minimum_length}"
            )
        check_seed(seed)
        self._batch = batch
        self._minimum_length = minimum_length
        self._maximum_length = maximum_length
        self._seed = seed
        self._overfit = overfit

    @abstractmethod
    def sources_and_answers(
        self, lengths: Int64[Tensor, " rows"], longest: int, draw: Drawer
    ) -> tuple[Strings, Strings]:
        """The source and the answer of each row, drawn at random.

        Args:
            lengths: L of each row, 1 to `longest`.
            longest: the largest L of the split: the width of what is returned depends on it alone.
            draw: random integers; numbers 1, 2, … are free, 0 has given the lengths.
        """

    @property
    def validation_splits(self) -> tuple[str, ...]:
        """The splits that are evaluated during training: in distribution and longer, or the one batch."""
        return ("validation",) if self._overfit else ("validation", "validation-longer")

    def training_batch(self, step: int) -> Batch:
        """The sequences of a step, `[batch, longest source + longest answer + 1]`."""
        return self._sequences("train", 0 if self._overfit else step, self._batch)

    def evaluation_data(self, split: str) -> EvaluationData:
        """256 sequences of the split, the same every time; or the one batch, when overfitting."""
        check_choice("split", split, self.splits)
        if self._overfit:
            name, batch = "overfit batch", self.training_batch(0)
        else:
            name, batch = split, self._sequences(split, 0, EVALUATION_ROWS)
        return EvaluationData(split=name, batch=batch, total_bytes=None, whole_sequences=True)

    def encode(self, text: str) -> Int[Tensor, " time"]:
        """The tokens of a text of the task's symbols, `|` (separator), `.` (end) and `_` (padding) among
        them."""
        for symbol in text:
            if symbol not in self.symbols:
                raise ConfigError(
                    f"the {self.name} task knows {self.content}, '|' (separator), '.' (end) and '_' "
                    f"(padding), got {symbol!r}; a prompt is for example {self.prompt!r}"
                )
        return torch.tensor([self.symbols.index(symbol) for symbol in text], dtype=torch.int64)

    def decode(self, tokens: Int[Tensor, " time"] | Sequence[int]) -> str:
        """The symbols of some tokens."""
        numbers = tokens.tolist() if isinstance(tokens, Tensor) else tokens
        return "".join(self.symbols[number] for number in numbers)

    def _sequences(self, split: str, step: int, rows: int) -> Batch:
        shortest, longest = self._minimum_length, self._maximum_length
        if split.endswith("-longer"):
            shortest, longest = longest + 1, longest + LONGER

        def draw(number: int, count: int, bound: int) -> Tensor:
            # Two streams side by side a split, in rounds of all splits.
            first = number // 2 * 2 * len(TRANSDUCTION_SPLITS) + 2 * TRANSDUCTION_SPLITS.index(split)
            stream = data_stream(first + number % 2)
            return integers(self._seed, step, stream, count, bound, device="cpu")

        lengths = shortest + draw(0, rows, longest - shortest + 1)
        source, answer = self.sources_and_answers(lengths, longest, draw)
        return transduction_batch(source, answer, self.symbols)


def transduction_batch(source: Strings, answer: Strings, symbols: str) -> Batch:
    """Inputs and targets of sources and their answers, as `TransductionTask` describes them.

    Args:
        source: tokens of the sources, `[rows, S]`.
        answer: tokens of the answers, `[rows, A]`.
        symbols: of the task; the last three are separator, end and padding.

    Returns:
        A batch of `[rows, S + A + 1]`, int64.

    Example:
        >>> letters = Strings(torch.tensor([[2, 0, 1]]), torch.tensor([2]))
        >>> batch = transduction_batch(letters, letters, "abc" + MARKS)
        >>> batch.inputs
        tensor([[2, 0, 3, 2, 0, 5, 5]])
        >>> batch.targets
        tensor([[-100, -100,    2,    0,    4, -100, -100]])
    """
    separator, end, padding = (symbols.index(mark) for mark in MARKS)
    rows, widest_source = source.tokens.shape
    widest_answer = answer.tokens.shape[1]
    time = torch.arange(widest_source + widest_answer + 2).expand(rows, -1)
    separated = source.lengths[:, None]
    ended = separated + 1 + answer.lengths[:, None]
    sources = F.pad(source.tokens, (0, widest_answer + 2))
    answers = answer.tokens.gather(1, (time - separated - 1).clamp(0, widest_answer - 1))
    sequence = torch.where(time < separated, sources, answers)
    sequence = torch.where(time == separated, separator, sequence)
    sequence = torch.where(time == ended, end, sequence)
    sequence = torch.where(time > ended, padding, sequence)
    inputs = torch.where(time == ended, padding, sequence)[:, :-1]
    counts = (time > separated) & (time <= ended)
    targets = torch.where(counts, sequence, IGNORE)[:, 1:]
    return Batch(inputs.contiguous(), targets.contiguous())
