"""Signs kept in one bit each."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zorn.errors import ConfigError
from zorn.random import sign_words, signs, unpack_signs


@given(count=st.integers(0, 300), word=st.integers(0, 20), member=st.integers(0, 5))
def test_the_words_hold_the_signs(count, word, member):
    vector = 1, 2, range(member, member + 2), 3
    packed = sign_words(*vector, count, offset=32 * word)
    assert packed.shape == (2, -(-count // 32))
    assert torch.equal(unpack_signs(packed, count), signs(*vector, count, offset=32 * word))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_each_of_the_256_bytes_in_every_dtype(dtype):
    packed = sign_words(0, 0, range(1), 0, 100_000)
    assert len(packed.view(torch.uint8).unique()) == 256
    assert torch.equal(unpack_signs(packed, 100_000, dtype), signs(0, 0, range(1), 0, 100_000, dtype=dtype))


def test_they_take_a_bit_each():
    assert sign_words(0, 0, range(1), 0, 6400).untyped_storage().nbytes() * 8 == 6400


def test_they_begin_with_a_word():
    with pytest.raises(ConfigError, match="offset must be a multiple of 32, got 31"):
        sign_words(0, 0, range(1), 0, 6400, offset=31)
