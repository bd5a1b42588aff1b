"""One bit a sign."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zorn.noise.weights.packed_signs import pack_signs, unpack_signs
from zorn.random import signs


@given(count=st.integers(0, 300), offset=st.integers(0, 20), member=st.integers(0, 5))
def test_signs_come_back_as_they_were(count, offset, member):
    before = signs(1, 2, range(member, member + 1), 3, count, offset=offset)[0]
    packed = pack_signs(before)
    assert len(packed) == -(-count // 8)
    assert torch.equal(unpack_signs(packed, count, torch.float32), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_each_of_the_256_bytes_in_every_dtype(dtype):
    before = signs(0, 0, range(1), 0, 100_000, dtype=dtype)[0]
    packed = pack_signs(before)
    assert len(packed.unique()) == 256
    assert torch.equal(unpack_signs(packed, len(before), dtype), before)


def test_they_take_a_bit_each():
    before = signs(0, 0, range(1), 0, 6400)[0]
    packed = pack_signs(before)
    assert packed.untyped_storage().nbytes() * 32 == before.nbytes
