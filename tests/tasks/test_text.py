import hashlib
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from zorn.errors import ConfigError
from zorn.models import LanguageModel
from zorn.tasks import IGNORE, TextTask, read_source, tokenizer_from_json

SPLITS = ("train", "validation", "test")


def _task(**changes):
    settings = {"source": "python-docs", "batch": 4, "length": 16, "seed": 5}
    return TextTask(**(settings | changes))


@pytest.fixture(scope="module")
def bpe_task():
    return _task(tokenizer="bpe", vocabulary_size=300)


class Uniform(nn.Module):
    """Equal logits for all tokens."""

    def __init__(self, vocabulary):
        super().__init__()
        self.vocabulary = vocabulary

    def initial_state(self, rows):
        return ()

    def forward(self, inputs, state):
        return torch.zeros(*inputs.shape, self.vocabulary), state


class Successor(nn.Module):
    """Sure that byte b is followed by b + 1 modulo 128; checks that chunks follow each other."""

    def initial_state(self, rows):
        return (torch.full((rows,), -1),)

    def forward(self, inputs, state):
        follows = (inputs[:, 0] == (state[0] + 1) % 128) | (state[0] < 0)
        assert follows.all()
        logits = 50.0 * nn.functional.one_hot((inputs + 1) % 128, 256).float()
        return logits, (inputs[:, -1],)


def test_python_docs_are_the_topics_in_the_order_of_their_keys():
    text = read_source("python-docs").decode()
    assert 400_000 < len(text) < 600_000
    assert text.index('The "assert" statement') < text.index('The "yield" statement')


def test_splits_are_contiguous_pieces_in_order():
    task = _task()
    text = read_source("python-docs")
    assert b"".join(task.text[split] for split in SPLITS) == text
    assert len(task.text["validation"]) == pytest.approx(0.05 * len(text), abs=5)
    assert len(task.text["test"]) == pytest.approx(0.05 * len(text), abs=5)


@pytest.mark.parametrize("letter", ["a", "é", "€", "😀"])
def test_splits_are_cut_between_characters(tmp_path, letter):
    for characters in range(60, 70):
        (tmp_path / "text").write_text(letter * characters, encoding="utf-8")
        pieces = _task(source=tmp_path / "text", length=4).text
        assert [set(piece.decode()) for piece in pieces.values()] == [{letter}] * 3


def test_a_file_that_is_no_text_is_cut_all_the_same(tmp_path):
    (tmp_path / "text").write_bytes(b"\x80" * 200)
    task = _task(source=str(tmp_path / "text"))
    assert sum(map(len, task.text.values())) == 200
    assert task.vocabulary == 256


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_windows_are_windows_of_the_training_split(kind, bpe_task):
    task = _task() if kind == "bytes" else bpe_task
    inputs, targets = task.training_batch(2)
    assert inputs.shape == targets.shape == (4, 16)
    assert inputs.dtype == targets.dtype == torch.int64
    windows = task.tokens["train"].long().unfold(0, 17, 1)
    for row in range(4):
        window = torch.cat([inputs[row], targets[row, -1:]])
        assert torch.equal(targets[row], window[1:])
        assert (windows == window).all(1).any()


def test_every_window_of_the_training_split_can_come_up_and_no_other(tmp_path):
    (tmp_path / "text").write_bytes(bytes(range(100)))
    task = _task(source=tmp_path / "text", batch=2000, length=80)
    starts = task.training_batch(0).inputs[:, 0]
    assert len(task.text["train"]) == 90
    assert sorted(set(starts.tolist())) == list(range(10))
    assert task.training_batch(0).targets.max() == 89


def test_batches_depend_on_seed_and_step_alone():
    first, again = _task(), _task()
    batch = first.training_batch(9)
    assert torch.equal(again.training_batch(9).inputs, batch.inputs)
    assert torch.equal(first.training_batch(9).targets, batch.targets)
    assert not torch.equal(first.training_batch(10).inputs, batch.inputs)
    assert not torch.equal(_task(seed=6).training_batch(9).inputs, batch.inputs)


@pytest.mark.parametrize("size", [41, 60, 620, 640, 660, 1000])
def test_evaluation_predicts_every_token_but_the_first_once(tmp_path, size):
    (tmp_path / "text").write_bytes(bytes(index % 251 for index in range(size)))
    task = _task(source=tmp_path / "text", length=4)
    for split in SPLITS:
        piece = list(task.text[split])
        inputs, targets = task.evaluation_data(split).batch
        counted = targets != IGNORE
        assert inputs[counted].tolist() == piece[:-1]
        assert targets[counted].tolist() == piece[1:]
        assert len(inputs) == min(16, len(piece) - 1)


def test_evaluation_carries_state_through_each_stream(tmp_path):
    (tmp_path / "text").write_bytes(bytes(index % 128 for index in range(2 * (16 * 400 + 1))))
    task = _task(source=tmp_path / "text", validation_fraction=0.5)
    assert (len(task.text["validation"]) - 1) % 16 == 0  # no padding, which would break the succession
    evaluation = task.evaluate(Successor(), time_chunk=7)
    assert evaluation.token_accuracy == 1.0
    assert evaluation.tokens == len(task.text["validation"]) - 1
    assert evaluation.sequence_accuracy is None


@pytest.mark.parametrize("split", SPLITS[1:])
def test_a_uniform_guess_costs_eight_bits_per_byte(split):
    evaluation = _task().evaluate(Uniform(256), split)
    assert evaluation.split == split
    assert evaluation.loss == pytest.approx(math.log(256), rel=1e-6)
    assert evaluation.perplexity == pytest.approx(256, rel=1e-5)
    assert evaluation.bits_per_byte == pytest.approx(8, rel=1e-6)


def test_bits_per_byte_count_the_bytes_under_the_tokens(bpe_task):
    evaluation = bpe_task.evaluate(Uniform(300))
    tokens = bpe_task.tokens["validation"]
    piece = bpe_task.text["validation"]
    first = len(bpe_task.decode(tokens[:1]).encode())
    assert bpe_task.decode(tokens).encode() == piece
    assert evaluation.tokens == len(tokens) - 1
    expected = evaluation.tokens * math.log2(300) / (len(piece) - first)
    assert evaluation.bits_per_byte == pytest.approx(expected, rel=1e-6)


def test_bpe_is_trained_on_the_training_split_only(tmp_path):
    common, held_out = b"the cat sat on the mat. " * 300, b"zyxw zyxw zyxw. " * 60
    tokenizers = []
    for ending in (held_out, bytes(reversed(held_out))):
        (tmp_path / "text").write_bytes(common + ending)
        task = _task(source=tmp_path / "text", tokenizer="bpe", vocabulary_size=280, validation_fraction=0.1)
        assert task.text["train"] == common[: len(task.text["train"])]
        tokenizers.append(task.tokenizer.to_json())
    assert tokenizers[0] == tokenizers[1]


def test_a_kept_tokenizer_takes_the_place_of_training(bpe_task):
    kept = tokenizer_from_json(bpe_task.tokenizer.to_json())
    task = _task(tokenizer=kept)
    assert task.vocabulary == bpe_task.vocabulary == 300
    assert torch.equal(task.training_batch(3).inputs, bpe_task.training_batch(3).inputs)


def test_an_unknown_split_is_named():
    with pytest.raises(ConfigError, match=r"split must be one of .* got 'dev'"):
        _task().evaluate(Uniform(256), "dev")


def test_encode_and_decode_are_inverse(bpe_task):
    for task in (_task(), bpe_task):
        tokens = task.encode("The yield, naïve €")
        assert tokens.dtype == torch.int64
        assert task.decode(tokens) == "The yield, naïve €"
        assert task.decode(tokens.tolist()) == "The yield, naïve €"


def test_a_missing_source_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"'.*/none.txt' does not exist; give the path .* or 'python-docs'"):
        _task(source=tmp_path / "none.txt")


def test_a_folder_is_no_source(tmp_path):
    with pytest.raises(ConfigError, match="is a folder, not a file; give the path"):
        _task(source=tmp_path)


def test_an_empty_source_is_named(tmp_path):
    (tmp_path / "text").touch()
    with pytest.raises(ConfigError, match="is empty; give the path"):
        _task(source=tmp_path / "text")


def test_an_unreadable_source_is_named(tmp_path, monkeypatch):
    (tmp_path / "text").write_text("a" * 1000)

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ConfigError, match=r"cannot be read \(Permission denied\); give the path"):
        _task(source=tmp_path / "text")


@pytest.mark.parametrize(("length", "size", "needed"), [(4, 39, 40), (4, 1, 40), (62, 67, 70), (62, 9, 70)])
def test_a_short_source_says_how_many_bytes_are_needed(tmp_path, length, size, needed):
    (tmp_path / "text").write_bytes(b"a" * size)
    with pytest.raises(ConfigError, match=f"too short: {size} bytes, .* need about {needed} bytes"):
        _task(source=tmp_path / "text", length=length)
    (tmp_path / "text").write_bytes(b"a" * needed)
    assert _task(source=tmp_path / "text", length=length).training_batch(0).inputs.shape == (4, length)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 0}, "batch must be a whole number of at least 1, got 0"),
        ({"length": 0}, "length must be a whole number of at least 1, got 0"),
        ({"seed": -1}, "seed must be a whole number of at least 0"),
        ({"tokenizer": "words"}, "tokenizer must be one of 'bytes', 'alphabet', 'bpe', got 'words'"),
        ({"tokenizer": "bpe", "vocabulary_size": 256}, "vocabulary_size must be .* at least 257, got 256"),
        ({"vocabulary_size": 256}, "vocabulary_size belongs to tokenizer 'bpe', got 256"),
        ({"validation_fraction": 0.0}, "each be above 0 and together below 1, got 0.0 and 0.05"),
        ({"validation_fraction": 0.5, "test_fraction": 0.5}, "together below 1, got 0.5 and 0.5"),
        ({"test_fraction": math.nan}, "together below 1, got 0.05 and nan"),
    ],
)
def test_settings_are_checked_before_the_source_is_read(changes, message):
    with pytest.raises(ConfigError, match=message):
        _task(source="/nowhere/at/all", **changes)


def test_bits_per_byte_with_an_alphabet_count_what_escapes_leave_untold(tmp_path):
    """A model that is certain of every token still pays for the bytes that an escape does not tell."""
    path = tmp_path / "text"
    path.write_bytes(b"ab" * 40 + b"x" * 10 + b"a" * 10)
    task = TextTask(
        source=path,
        tokenizer="alphabet",
        batch=1,
        length=4,
        seed=0,
        validation_fraction=0.1,
        test_fraction=0.1,
    )
    data = task.evaluation_data("validation")
    assert task.vocabulary == 3
    assert data.untold_nats == pytest.approx(9 * math.log(254))


def test_the_untold_nats_are_in_the_bits_per_byte(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"ab" * 40 + b"x" * 10 + b"a" * 10)
    task = TextTask(
        source=path,
        tokenizer="alphabet",
        batch=1,
        length=4,
        seed=0,
        validation_fraction=0.1,
        test_fraction=0.1,
    )
    evaluation = task.evaluate(LanguageModel(3, 4))
    told = evaluation.loss * evaluation.tokens
    untold = 9 * math.log(254)
    assert evaluation.bits_per_byte == pytest.approx((told + untold) / math.log(2) / 9)


@pytest.mark.parametrize("tokenizer", ["bytes", "alphabet"])
def test_overfitting_is_one_batch_and_says_so(tokenizer):
    task = _task(overfit=True, tokenizer=tokenizer)
    batch = task.training_batch(0)
    assert all(map(torch.equal, task.training_batch(17), batch))
    assert all(map(torch.equal, _task(tokenizer=tokenizer).training_batch(0), batch))
    assert (task.splits, task.validation_splits) == (SPLITS, ("validation",))
    for split in SPLITS:
        data = task.evaluation_data(split)
        assert data.split == "overfit batch"
        assert all(map(torch.equal, data.batch, batch))
    with pytest.raises(ConfigError, match=r"split must be one of .* got 'dev'"):
        task.evaluation_data("dev")


def test_overfitting_counts_the_bytes_that_the_batch_predicts(bpe_task):
    task = _task(tokenizer=bpe_task.tokenizer, overfit=True)
    targets = task.training_batch(0).targets
    size = sum(len(task.decode([token]).encode()) for token in targets.flatten().tolist())
    evaluation = task.evaluate(Uniform(300))
    assert evaluation.split == "overfit batch"
    assert evaluation.tokens == 4 * 16 < size
    assert evaluation.bits_per_byte == pytest.approx(4 * 16 * math.log2(300) / size, rel=1e-6)
    assert evaluation.sequence_accuracy is None


def test_overfitting_with_escapes_tells_what_they_leave_untold(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"ab" * 40 + b"x" * 20)
    tokenizer = _task(source=path, length=4, tokenizer="alphabet", validation_fraction=0.1, test_fraction=0.1)
    other = tmp_path / "other"
    other.write_bytes(b"y" * 100)
    task = _task(source=other, length=4, tokenizer=tokenizer.tokenizer, overfit=True)
    assert task.evaluation_data("test").untold_nats == pytest.approx(16 * math.log(256 - 2))


def test_the_text_that_ships_with_zorn_is_the_same_on_every_python(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data", None)  # the interpreter's own documentation
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    text = read_source("python-docs")
    assert len(text) == 466_117
    assert hashlib.sha256(text).hexdigest().startswith("37d06970fc926e60c16dff401e441b84")
