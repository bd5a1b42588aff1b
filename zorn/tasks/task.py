"""The contract of a task: training batches that depend on the step alone, and an evaluation in chunks."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from zorn.checks import check_whole_number
from zorn.errors import ConfigError
from zorn.models import Batch, RecurrentModel, RowObjective, TokenObjective, evaluation_mode, streamed
from zorn.models.sliced_head import outputs_at_once
from zorn.tasks.metrics import TokenMetrics, bits_per_byte

SPLITS = ("train", "validation", "test")
"""The splits that every task has."""

_CHUNK_LOGITS = 2**22  # logits in one chunk of an evaluation: 16 MiB of float32


def data_stream(number: int) -> int:
    """The `stream` of a task's random numbers: counted down from 2**32 - 1, it never meets a parameter's."""
    return 2**32 - 1 - number


@dataclass(frozen=True)
class Evaluation:
    """The results of a model on one split.

    Attributes:
        split: the evaluated data: "train", "validation", "test", or a task's own name for it.
        loss: nats per counted token.
        bits_per_byte: bits per byte of text; None where a token stands for no bytes.
        perplexity: exp(loss).
        token_accuracy: share of the counted tokens predicted right, 0 to 1.
        sequence_accuracy: share of the rows predicted right as a whole, 0 to 1; None where a row is no whole
            sequence.
        tokens: number of tokens that were counted.
    """

    split: str
    loss: float
    bits_per_byte: float | None
    perplexity: float
    token_accuracy: float
    sequence_accuracy: float | None
    tokens: int


@dataclass(frozen=True)
class EvaluationData:
    """The data that a task evaluates a model on.

    Attributes:
        split: the name that the `Evaluation` will carry.
        batch: all rows at their full length; a target of -100 does not count.
        total_bytes: bytes that the counted tokens stand for, or None if they stand for none.
        whole_sequences: whether each row is one whole sequence, so that predicting it exactly means
            something.
        untold_nats: information about the bytes that the counted tokens leave out; see
            `Tokenizer.untold_nats`.
    """

    split: str
    batch: Batch
    total_bytes: int | None
    whole_sequences: bool
    untold_nats: float = 0.0


class Task(ABC):
    """Data and objective of a training run, deterministic from its seed.

    Attributes:
        name: the task's name on the command line.
        vocabulary: how many tokens there are; tokens are in [0, vocabulary).
        objective: what training minimises unless it is told to take another, such as `OBJECTIVES[name]()`.
            What `evaluate` reports does not depend on it.
        splits: the names that `evaluate` knows.
        fading: the discount per time step, 0 to 1, that suits estimators which credit losses in time; 1 where
            nothing is known.
        why_fading: the reason for it, in words.
        prompt: the beginning of a sequence that a model can continue, for example.

    All tensors are on the CPU; `evaluate` moves each chunk to the model's device.
    """

    name: str
    vocabulary: int
    objective: TokenObjective | RowObjective
    splits: tuple[str, ...] = SPLITS
    fading: float = 1.0
    why_fading: str = "nothing is known of the task"
    prompt: str = ""

    @property
    def validation_splits(self) -> tuple[str, ...]:
        """The splits that are evaluated during training; the first of them selects the best model."""
        return ("validation",)

    @abstractmethod
    def training_batch(self, step: int) -> Batch:
        """The batch of a step (0, 1, …), `[rows, time]` int64: a function of (seed, step) and nothing else.

        A resumed run therefore needs no position in the data but its step.
        """

    def begins(self, step: int) -> bool:
        """True if the rows of this step's batch begin new sequences.

        If False, they continue the rows of the step before, and a state carried from there belongs to them.
        """
        del step
        return True

    @abstractmethod
    def evaluation_data(self, split: str) -> EvaluationData:
        """The data that `evaluate` runs the model on.

        Raises:
            ConfigError: an unknown split.
        """

    @abstractmethod
    def encode(self, text: str) -> Int[Tensor, " time"]:
        """The tokens of a text, int64.

        Raises:
            ConfigError: the text has no tokens in this task.
        """

    @abstractmethod
    def decode(self, tokens: Int[Tensor, " time"] | Sequence[int]) -> str:
        """The text of some tokens."""

    def evaluate(
        self, model: nn.Module, split: str = "validation", *, time_chunk: int | None = None
    ) -> Evaluation:
        """Evaluates a recurrent model on a whole split, in inference mode, carrying state over time.

        Each row starts from the model's initial state and is read to its end in chunks, whose logits are
        dropped, so the memory does not grow with the length of the split. A large vocabulary's logits are
        made and judged slice by slice (`zorn.models.streamed`). The model's mode is restored afterwards.

        Args:
            model: has `initial_state(rows)` and maps `(inputs [rows, time], state)` to
                `(logits [rows, time, vocabulary], state)`.
            split: one of `splits`.
            time_chunk: time steps run at once, at least 1; changes the result by rounding only. By default as
                many as keep the logits of a chunk under 16 MiB.

        Raises:
            ConfigError: an unknown split, a time chunk below 1, or a model without `initial_state`.
        """
        data = self.evaluation_data(split)
        device = device_of(model)
        rows, time = data.batch.targets.shape
        metrics = TokenMetrics(rows)
        body, judge = streamed(model, metrics)
        if time_chunk is None:
            time_chunk = max(1, _CHUNK_LOGITS // (rows * outputs_at_once(body, self.vocabulary)))
        check_whole_number("time_chunk", time_chunk, minimum=1)
        with evaluation_mode(model), torch.inference_mode():
            state = body.initial_state(rows)
            for start in range(0, time, time_chunk):
                chunk = slice(start, start + time_chunk)
                outputs, state = body(data.batch.inputs[:, chunk].to(device), state)
                judge.token_losses(outputs, data.batch.targets[:, chunk].to(device))
                del outputs  # or they would live on while the next chunk runs
        nats = metrics.nats + data.untold_nats
        return Evaluation(
            split=data.split,
            loss=metrics.nats_per_token,
            bits_per_byte=None if data.total_bytes is None else bits_per_byte(nats, data.total_bytes),
            perplexity=metrics.perplexity,
            token_accuracy=metrics.token_accuracy,
            sequence_accuracy=metrics.sequence_accuracy if data.whole_sequences else None,
            tokens=metrics.tokens,
        )


def device_of(model: nn.Module) -> torch.device:
    """The device of a recurrent model's weights; ConfigError for a model whose state cannot be carried."""
    if not isinstance(model, RecurrentModel):
        raise ConfigError(
            f"evaluation carries a model's state over time, but {type(model).__name__} has no "
            "initial_state(rows): give it one, and an explicit state in and out of forward"
        )
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
