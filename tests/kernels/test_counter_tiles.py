"""The signs made in a tile are those of zorn.random, bit for bit."""

import pytest
import torch

from zorn.kernels.counter import (
    block_signs,
    counter_arguments,
    packed_sign,
    sign_at,
    sign_tile,
    signed_word,
)
from zorn.kernels.language import installed, jit, tl
from zorn.random import sign_words, signs

pytestmark = pytest.mark.skipif(not installed, reason="needs Triton")

SEED, STEP, STREAM = 2**63 + 5, 2**32 - 1, 2**31 + 77
STARTS = [0, 1, 31, 32, 33, 63, 64, 95, 96, 100, 127, 128, 129, 255, 1000, 128 * (2**32 - 2) + 61]
MEMBERS = range(2**32 - 4, 2**32)


@jit(varying=("stream", "member", "step", "key_low", "key_high"))
def tiles(tile, blocks, single, starts, stream, member, step, key_low, key_high, WIDTH: tl.constexpr):
    row, column = tl.arange(0, 16), tl.arange(0, 128)
    start, lane = tl.load(starts + row), member.to(tl.uint32, bitcast=True)
    place = row[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    tl.store(tile + place, sign_tile(start, stream, lane, step, key_low, key_high, WIDTH).to(tl.int32))
    signs_of_blocks = block_signs(start >> 7, stream, lane, step, key_low, key_high).to(tl.int32)
    tl.store(blocks + row[:, None] * 128 + column[None, :], signs_of_blocks)
    tl.store(single + row, sign_at(start, stream, lane, step, key_low, key_high).to(tl.int32))


@pytest.mark.parametrize("width", [16, 32, 64, 128])
def test_signs_of_a_tile_are_those_of_zorn_random(device, width):
    starts = torch.tensor(STARTS, device=device)
    tile, blocks = (torch.empty(16, n, dtype=torch.int32, device=device) for n in (width, 128))
    single = torch.empty(16, dtype=torch.int32, device=device)
    named = counter_arguments(SEED, STEP, MEMBERS)
    keys = {name: named[name] for name in ("step", "key_low", "key_high")}
    tiles[(1,)](
        tile, blocks, single, starts, stream=signed_word(STREAM), member=named["first_member"], **keys,
        WIDTH=width, enable_fp_fusion=False,
    )  # fmt: skip
    for row, start in enumerate(STARTS):
        first, own = start // 128 * 128, MEMBERS[:1]
        expected = signs(SEED, STEP, own, STREAM, width, offset=start)[0]
        assert torch.equal(1.0 - 2 * tile[row].cpu(), expected), start
        assert torch.equal(1.0 - 2 * blocks[row].cpu(), signs(SEED, STEP, own, STREAM, 128, offset=first)[0])
        assert 1 - 2 * int(single[row]) == int(expected[0])


@jit
def unpack(result, table, row_words, COUNT: tl.constexpr):
    member, element = tl.arange(0, 4), tl.arange(0, COUNT)
    bits = packed_sign(table, row_words, member[:, None], element[None, :])
    tl.store(result + member[:, None] * COUNT + element[None, :], bits.to(tl.int32))


def test_sign_words_are_the_signs_of_zorn_random(device):
    table = sign_words(SEED, STEP, MEMBERS, STREAM, 256, device=device)
    result = torch.empty(4, 256, dtype=torch.int32, device=device)
    unpack[(1,)](result, table, table.shape[1], COUNT=256, enable_fp_fusion=False)
    assert torch.equal(1.0 - 2 * result.cpu(), signs(SEED, STEP, MEMBERS, STREAM, 256))
