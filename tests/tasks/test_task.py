import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from zorn.checks import check_choice, check_seed, check_whole_number
from zorn.errors import ConfigError
from zorn.models import Batch, LanguageModel
from zorn.noise.draw import stream_of
from zorn.tasks import IGNORE, SPLITS, EvaluationData, Task, TokenCrossEntropy
from zorn.tasks.task import data_stream

ROWS, TIME, VOCABULARY = 3, 10, 5


class Accumulator(nn.Module):
    """A small recurrent model whose logits depend on all inputs so far; records how it is called."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(VOCABULARY, VOCABULARY, generator=generator))
        self.chunks = []
        self.modes = []

    def initial_state(self, rows):
        return (torch.zeros(rows, VOCABULARY),)

    def forward(self, inputs, state):
        self.chunks.append(inputs.shape[1])
        self.modes.append((self.training, torch.is_inference_mode_enabled()))
        sums = state[0][:, None] + F.one_hot(inputs, VOCABULARY).float().cumsum(1)
        return sums @ self.weight, (sums[:, -1],)


class SmallTask(Task):
    name = "small"
    vocabulary = VOCABULARY
    objective = TokenCrossEntropy()

    def training_batch(self, step):
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randint(0, VOCABULARY, (ROWS, TIME), generator=generator)
        targets = inputs.roll(-1, dims=1)
        targets[:, -1] = IGNORE
        return Batch(inputs, targets)

    def evaluation_data(self, split):
        return EvaluationData(split, self.training_batch(0), total_bytes=54, whole_sequences=True)

    def encode(self, text):
        return torch.tensor([int(symbol) for symbol in text])

    def decode(self, tokens):
        return "".join(str(int(token)) for token in tokens)


def test_evaluation_is_the_mean_over_the_counted_tokens():
    model, task = Accumulator(), SmallTask()
    evaluation = task.evaluate(model, "test")
    inputs, targets = task.training_batch(0)
    logits, _ = model(inputs, model.initial_state(ROWS))
    counted = targets != IGNORE
    loss = F.cross_entropy(logits[counted], targets[counted]).item()
    assert evaluation.split == "test"
    assert evaluation.tokens == ROWS * (TIME - 1)
    assert evaluation.loss == pytest.approx(loss, rel=1e-5)
    assert evaluation.perplexity == pytest.approx(math.exp(loss), rel=1e-5)
    assert evaluation.bits_per_byte == pytest.approx(loss / math.log(2) / 2, rel=1e-5)  # 2 bytes a token
    assert evaluation.token_accuracy == pytest.approx(
        (logits.argmax(-1) == targets)[counted].double().mean().item()
    )
    assert evaluation.sequence_accuracy == 0.0


@pytest.mark.parametrize("time_chunk", [1, 3, TIME, 99])
def test_evaluation_carries_state_over_chunks(time_chunk):
    model, task = Accumulator(), SmallTask()
    whole = task.evaluate(model, time_chunk=TIME)
    model.chunks.clear()
    parts = task.evaluate(model, time_chunk=time_chunk)
    assert max(model.chunks) == min(time_chunk, TIME)
    assert sum(model.chunks) == TIME
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    assert parts.token_accuracy == whole.token_accuracy


def test_the_default_chunk_bounds_the_logits(monkeypatch):
    monkeypatch.setattr("zorn.tasks.task._CHUNK_LOGITS", 4 * ROWS * VOCABULARY)
    model = Accumulator()
    SmallTask().evaluate(model)
    assert model.chunks == [4, 4, 2]


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_restores_the_mode(training):
    model = Accumulator().train(training)
    SmallTask().evaluate(model)
    assert model.modes == [(False, True)]
    assert model.training is training


def test_a_chunk_has_at_least_one_step():
    with pytest.raises(ConfigError, match="time_chunk must be a whole number of at least 1, got 0"):
        SmallTask().evaluate(Accumulator(), time_chunk=0)


def test_a_model_without_state_is_named():
    with pytest.raises(ConfigError, match=r"Linear has no initial_state\(rows\): give it one"):
        SmallTask().evaluate(nn.Linear(2, 2))


def test_the_language_models_can_be_evaluated():
    model = LanguageModel(VOCABULARY, 8)
    whole, parts = (SmallTask().evaluate(model, time_chunk=chunk) for chunk in (TIME, 3))
    assert 0 < whole.loss < 3
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)


def test_checks_name_the_setting_and_the_range():
    with pytest.raises(
        ConfigError, match="seed must be a whole number of at least 0 and at most 18446744073709551615"
    ):
        check_seed(2**64)
    with pytest.raises(ConfigError, match="batch must be a whole number of at least 1, got True"):
        check_whole_number("batch", True, minimum=1)
    with pytest.raises(ConfigError, match="tokenizer must be one of 'bytes', 'bpe', got 'words'"):
        check_choice("tokenizer", "words", ("bytes", "bpe"))
    with pytest.raises(ConfigError, match="split must be one of 'train', 'validation', 'test', got 'dev'"):
        check_choice("split", "dev", SPLITS)
    with pytest.raises(ConfigError, match=r"batch must be a whole number of at least 1, got 2\.0"):
        check_whole_number("batch", 2.0, minimum=1)
    check_seed(2**64 - 1)
    check_whole_number("batch", 1, minimum=1, maximum=1)
    check_choice("tokenizer", "bpe", ("bytes", "bpe"))


def test_a_task_has_three_splits_and_watches_one_unless_it_says_more():
    assert SmallTask().splits == ("train", "validation", "test")
    assert SmallTask().validation_splits == ("validation",)


def test_data_is_drawn_from_streams_that_no_parameter_has():
    largest = stream_of(2**20, 255)
    assert all(data_stream(number) > largest for number in range(64))
