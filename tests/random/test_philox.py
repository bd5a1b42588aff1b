"""Philox against the published known answers, and against a twin in plain Python integers."""

import doctest

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zorn.random.philox
from zorn.random import philox4x32

WORD = st.integers(0, 2**32 - 1)


def reference_philox4x32(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Section 3.3 of Salmon et al. 2011, one counter, in Python's unbounded integers."""
    for _ in range(10):
        product_0, product_2 = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = (
            (product_2 >> 32) ^ counter[1] ^ key[0],
            product_2 % 2**32,
            (product_0 >> 32) ^ counter[3] ^ key[1],
            product_0 % 2**32,
        )
        key = (key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32
    return counter


# The three lines of kat_vectors in the authors' Random123 library: counter, key, answer.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def hexadecimal(text: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in text.split())


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers(counter, key, answer):
    columns = torch.tensor(hexadecimal(counter)).unsqueeze(1)
    assert tuple(philox4x32(columns, hexadecimal(key))[:, 0].tolist()) == hexadecimal(answer)
    assert reference_philox4x32(hexadecimal(counter), hexadecimal(key)) == hexadecimal(answer)


@given(st.lists(st.tuples(WORD, WORD, WORD, WORD), max_size=9), st.tuples(WORD, WORD))
@settings(max_examples=100, deadline=None)
def test_equals_the_reference_twin_for_any_counters(counters, key):
    columns = torch.tensor(counters, dtype=torch.int64).view(-1, 4).t()
    assert philox4x32(columns, key).t().tolist() == [list(reference_philox4x32(c, key)) for c in counters]


def test_leaves_its_counter_unchanged():
    counter = torch.arange(40).view(4, 10)
    philox4x32(counter, (1, 2))
    assert torch.equal(counter, torch.arange(40).view(4, 10))


def test_documented_examples():
    results = doctest.testmod(zorn.random.philox)
    assert results.attempted > 0
    assert results.failed == 0
