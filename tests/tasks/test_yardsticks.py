import itertools
import math

import pytest
import torch

from zorn.errors import ConfigError
from zorn.tasks import TextTask, bigram_bits_per_byte, unigram_bits_per_byte
from zorn.tasks.yardsticks import bigram_probabilities, unigram_probabilities


def _task(source="python-docs", **changes):
    return TextTask(source=source, batch=1, length=4, seed=0, **changes)


def test_probabilities_add_up_to_one_and_none_is_zero():
    text = torch.tensor(list(b"the cat sat on the mat, which was flat"))
    unigram, bigram = unigram_probabilities(text), bigram_probabilities(text)
    assert unigram.min() > 0
    assert bigram.min() > 0
    assert unigram.sum() == pytest.approx(1)
    torch.testing.assert_close(bigram.sum(1), torch.ones(256, dtype=torch.float64))
    assert torch.equal(bigram[ord("z")], unigram)  # never seen before any byte


def test_probabilities_by_hand():
    text = torch.tensor(list(b"abababac"))
    # pairs ab 3, ba 3, ac 1: n1 = 1, n2 = 0, D = 1
    unigram = {letter: (count + 1) / (8 + 256) for letter, count in (("a", 4), ("b", 3), ("c", 1), ("d", 0))}
    for letter, probability in unigram.items():
        assert unigram_probabilities(text)[ord(letter)].item() == pytest.approx(probability)
    after_a = bigram_probabilities(text)[ord("a")]
    assert after_a[ord("b")].item() == pytest.approx((3 - 1 + 1 * 2 * unigram["b"]) / 4)
    assert after_a[ord("c")].item() == pytest.approx((1 - 1 + 1 * 2 * unigram["c"]) / 4)
    assert after_a[ord("d")].item() == pytest.approx(1 * 2 * unigram["d"] / 4)


def test_bits_are_taken_over_every_byte_but_the_first():
    task = _task()
    train, piece = (list(task.text[split]) for split in ("train", "test"))
    unigram, bigram = unigram_probabilities(torch.tensor(train)), bigram_probabilities(torch.tensor(train))
    expected = -sum(math.log2(unigram[byte]) for byte in piece[1:]) / (len(piece) - 1)
    assert unigram_bits_per_byte(task, "test") == pytest.approx(expected)
    pairs = itertools.pairwise(piece)
    expected = -sum(math.log2(bigram[first, second]) for first, second in pairs) / (len(piece) - 1)
    assert bigram_bits_per_byte(task, "test") == pytest.approx(expected)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_python_docs_yardsticks_are_where_they_were_measured(split):
    assert 4.5 < unigram_bits_per_byte(_task(), split) < 4.9
    assert 3.1 < bigram_bits_per_byte(_task(), split) < 3.6


def test_yardsticks_are_fitted_on_the_training_piece_only(tmp_path):
    (tmp_path / "text").write_bytes(b"ab" * 450 + b"xy" * 50)
    task = _task(tmp_path / "text")
    assert bigram_bits_per_byte(task, "train") < 1
    assert unigram_bits_per_byte(task, "validation") > 8
    assert bigram_bits_per_byte(task, "validation") > 8


def test_an_unknown_split_is_named():
    for yardstick in (unigram_bits_per_byte, bigram_bits_per_byte):
        with pytest.raises(ConfigError, match=r"split must be one of .* got 'dev'"):
            yardstick(_task(), "dev")


def test_yardsticks_do_not_depend_on_the_tokenizer():
    bpe = _task(tokenizer="bpe", vocabulary_size=260)
    assert unigram_bits_per_byte(bpe) == unigram_bits_per_byte(_task())
