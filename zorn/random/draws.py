"""Signs, normals, words and integers that depend on nothing but (seed, step, member, stream, element).

Every draw reads the words of Philox 4x32-10 (Salmon et al. 2011, see `zorn.random.philox`) with

    key     = (low word of seed, high word of seed)
    counter = (block, stream, member, step)

so any part of any vector of noise can be made again at any time, in any order, in any process, on any device.
A block is four 32-bit words: 128 signs, 4 normals, or 2 integers.
"""

import math
import sys
from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Float, Int32, Int64, Shaped
from torch import Tensor

from zorn.errors import ConfigError
from zorn.random.philox import philox4x32

WORDS_PER_BLOCK = 4
SIGNS_PER_WORD = 32
"""One bit each: see `sign_words`."""
SIGNS_PER_BLOCK = WORDS_PER_BLOCK * SIGNS_PER_WORD
_WORD_VALUES = 2**32
_SIGNS_PER_BYTE = 8

# What is processed at once: on a CPU as much as stays in a core's cache, elsewhere enough to fill the device.
_COUNTERS_AT_ONCE = {"cpu": 2**14}
_BYTES_AT_ONCE = {"cpu": 2**15}
_PAIRS_AT_ONCE = {"cpu": 2**14}
_ELSEWHERE = 2**22


def signs(
    seed: int,
    step: int,
    members: range,
    stream: int,
    count: int,
    *,
    offset: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Shaped[Tensor, "members count"]:
    """Random signs, +1 or −1 with probability 1/2 each, one row a member.

    Element e of the vector of (seed, step, member, stream) is bit e % 32 of word (e % 128) // 32 of its block
    e // 128; a bit that is set gives −1, as in the sign bit of a float.

    Args:
        seed: of the run, 0 to 2**64 - 1.
        step: 0 to 2**32 - 1.
        members: the members whose rows are wanted, each 0 to 2**32 - 1.
        stream: the name of the vector of noise, 0 to 2**32 - 1.
        count: how many elements of each member's vector, from 0 up.
        offset: the first of them. Any cut of a vector into pieces gives the same signs.
        dtype: any signed type.
        device: where the signs are made; PyTorch's default device if None. The same signs on every device.

    Returns:
        Signs of elements offset to offset + count. They may be a strided view: in memory each row is whole
        blocks. Fastest in pieces of up to some 2**22 signs in all, which the allocator gives memory that is
        mapped already.

    Raises:
        ConfigError: a number is outside its range, or dtype is unsigned.

    Example:
        >>> signs(seed=0, step=0, members=range(2), stream=0, count=6)
        tensor([[-1.,  1., -1.,  1., -1.,  1.],
                [-1.,  1.,  1.,  1.,  1., -1.]])
    """
    _check_signed(dtype)
    table, (start,) = _word_table(seed, step, members, [(stream, offset, count)], SIGNS_PER_BLOCK, device)
    return _unpacked(table, dtype)[:, start : start + count]


def signs_at(
    seed: int,
    step: int,
    members: range,
    stream: int,
    index: Int64[Tensor, "members chosen"],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Shaped[Tensor, "members chosen"]:
    """Chosen elements of the vectors of `signs`, for the price of a counter each: for a few of a long vector.

    Args:
        index: [len(members), chosen] int64, the elements of each member's vector, from 0 up; any more than
            once.
        seed, step, members, stream, dtype, device: as in `signs`.

    Returns:
        [len(members), chosen] signs.

    Raises:
        ConfigError: a number is outside its range, or dtype is unsigned.

    Example:
        >>> signs_at(seed=0, step=0, members=range(2), stream=0, index=torch.tensor([[5, 0], [3, 5]]))
        tensor([[ 1., -1.],
                [ 1., -1.]])
    """
    _check_signed(dtype)
    _check_names(seed, step, members, stream)
    index = index.to(device or torch.empty(0).device)
    if index.numel():
        _check("index", int(index.min()), SIGNS_PER_BLOCK * _WORD_VALUES - 1)
        _check("index", int(index.max()), SIGNS_PER_BLOCK * _WORD_VALUES - 1)
    numbers = torch.tensor(members, dtype=torch.int64, device=index.device).unsqueeze(1)
    result = torch.empty(index.shape, dtype=dtype, device=index.device)
    at_once = _COUNTERS_AT_ONCE.get(index.device.type, _ELSEWHERE)
    flat, owners, chosen = index.reshape(-1), numbers.expand(index.shape).reshape(-1), result.view(-1)
    for first in range(0, len(flat), at_once):
        element, member = flat[first : first + at_once], owners[first : first + at_once]
        block = element // SIGNS_PER_BLOCK
        counter = torch.stack(
            (block, block.new_full(block.shape, stream), member, torch.full_like(block, step))
        )
        number = element % SIGNS_PER_BLOCK // SIGNS_PER_WORD
        word = philox4x32(counter, _key(seed)).gather(0, number.unsqueeze(0))[0]
        chosen[first : first + at_once] = 1 - 2 * (word >> element % SIGNS_PER_WORD & 1)
    return result


def sign_table(
    seed: int,
    step: int,
    members: range,
    requests: Sequence[tuple[int, int]],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> list[Shaped[Tensor, "members _"]]:
    """The signs of many streams in one pass: what `signs` gives for each (stream, count), at one overhead.

    Args:
        requests: (stream, count) pairs.
        seed, step, members, dtype, device: as in `signs`.

    Returns:
        One tensor [len(members), count] a request, in order. They are views of one table, which lives as long
        as any of them.

    Raises:
        ConfigError: a number is outside its range, or dtype is unsigned.

    Example:
        >>> left, right = sign_table(seed=0, step=0, members=range(2), requests=[(0, 6), (1, 4)])
        >>> left.equal(signs(0, 0, range(2), stream=0, count=6)), tuple(right.shape)
        (True, (2, 4))
    """
    _check_signed(dtype)
    spans = [(stream, 0, count) for stream, count in requests]
    table, starts = _word_table(seed, step, members, spans, SIGNS_PER_BLOCK, device)
    signs = _unpacked(table, dtype)
    return [signs[:, start : start + count] for start, (_, count) in zip(starts, requests, strict=True)]


def sign_words(
    seed: int,
    step: int,
    members: range,
    stream: int,
    count: int,
    *,
    offset: int = 0,
    device: torch.device | str | None = None,
) -> Int32[Tensor, "members words"]:
    """The signs of `signs` in one bit each, a set bit for −1: a thirty-second of float32, to be kept.

    Element e is bit e % 32 of word e // 32: the words of the counter as they come.

    Args:
        offset: a multiple of 32.
        seed, step, members, stream, count, device: as in `signs`; the last word is filled with the signs that
            follow.

    Returns:
        ⌈count / 32⌉ words a member.

    Raises:
        ConfigError: a number is outside its range.

    Example:
        >>> kept = sign_words(seed=0, step=0, members=range(2), stream=0, count=6)
        >>> unpack_signs(kept, 6).equal(signs(seed=0, step=0, members=range(2), stream=0, count=6))
        True
    """
    if offset % SIGNS_PER_WORD:
        raise ConfigError(f"offset must be a multiple of {SIGNS_PER_WORD}, got {offset}: begin with a word")
    first, last = offset // SIGNS_PER_WORD, -(-(offset + count) // SIGNS_PER_WORD)
    spans = [(stream, first, last - first)]
    table, (start,) = _word_table(seed, step, members, spans, WORDS_PER_BLOCK, device)
    return table[:, start : start + last - first]


def unpack_signs(
    words: Int32[Tensor, "members words"], count: int, dtype: torch.dtype = torch.float32
) -> Shaped[Tensor, "members count"]:
    """The first `count` signs of what `sign_words` gave."""
    return _unpacked(words, dtype)[:, :count]


def _unpacked(words: Int32[Tensor, "members words"], dtype: torch.dtype) -> Shaped[Tensor, "members signs"]:
    """One sign a bit, eight at a time: a byte is the number of a row in a table of 256 rows of signs."""
    assert sys.byteorder == "little", "the bytes of a word are read in place, lowest first"
    result = torch.empty(len(words), words.shape[1] * SIGNS_PER_WORD, dtype=dtype, device=words.device)
    if words.device.type == "meta":
        return result
    octets, rows = words.view(torch.uint8).flatten(), result.view(-1, _SIGNS_PER_BYTE)
    signs_of_byte = _signs_of_byte(dtype, words.device)
    at_once = _BYTES_AT_ONCE.get(words.device.type, _ELSEWHERE)
    for first in range(0, len(octets), at_once):
        part = slice(first, first + at_once)
        torch.index_select(signs_of_byte, 0, octets[part].to(torch.int32), out=rows[part])
    return result


def normals(
    seed: int,
    step: int,
    members: range,
    stream: int,
    count: int,
    *,
    offset: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Float[Tensor, "members count"]:
    """Independent draws of N(0, 1), one row a member.

    Elements 2i and 2i + 1 are the Box-Muller transform (1958) of words 2i and 2i + 1, so four normals come
    from a block: √(−2 ln u) cos 2πv and √(−2 ln u) sin 2πv with u, v = (word + 1/2) / 2**32, never 0; the
    largest is 6.76. Computed in float64, rounded to float32 and then to dtype: devices and cuts agree bit for
    bit, except where the last bits of their float64 logarithms, sines and cosines differ beside a rounding
    boundary (fewer than one element in 10**8).

    Args:
        dtype: any floating type.
        seed, step, members, stream, count, offset, device: as in `signs`.

    Returns:
        Normals of elements offset to offset + count; the rows may be a strided view.

    Raises:
        ConfigError: a number is outside its range, or dtype is not floating.

    Example:
        >>> normals(seed=0, step=0, members=range(1), stream=0, count=3)
        tensor([[ 0.9911, -0.9247, -0.6176]])
    """
    if not dtype.is_floating_point:
        raise ConfigError(f"normals need a floating dtype, got {dtype}: take torch.float32 or torch.bfloat16")
    table, (start,) = _word_table(seed, step, members, [(stream, offset, count)], WORDS_PER_BLOCK, device)
    result = torch.empty(table.shape, dtype=dtype, device=table.device)
    pairs, result_pairs = table.view(-1, 2), result.view(-1, 2)
    at_once = _PAIRS_AT_ONCE.get(table.device.type, _ELSEWHERE)
    for first in range(0, len(pairs), at_once):
        uniforms = _unsigned(pairs[first : first + at_once]).to(torch.float64).add_(0.5).div_(_WORD_VALUES)
        radius = uniforms[:, 0].log().mul_(-2).sqrt_()
        angle = uniforms[:, 1].mul(2 * math.pi)
        pair = torch.stack((angle.cos().mul_(radius), angle.sin().mul_(radius)), dim=1)
        result_pairs[first : first + at_once] = pair.to(torch.float32)
    return result[:, start : start + count]


def words(
    seed: int,
    step: int,
    members: range,
    stream: int,
    count: int,
    *,
    offset: int = 0,
    device: torch.device | str | None = None,
) -> Int64[Tensor, "members count"]:
    """Uniform 32-bit words, one row a member: element e is word e % 4 of block e // 4.

    Args:
        count, offset: in words.
        seed, step, members, stream, device: as in `signs`.

    Returns:
        Words of elements offset to offset + count, values 0 to 2**32 - 1.

    Raises:
        ConfigError: a number is outside its range.

    Example:
        >>> [f"{word:08x}" for word in words(seed=0, step=0, members=range(1), stream=0, count=4)[0].tolist()]
        ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    table, (start,) = _word_table(seed, step, members, [(stream, offset, count)], WORDS_PER_BLOCK, device)
    return _unsigned(table[:, start : start + count])


def integers(
    seed: int,
    step: int,
    stream: int,
    count: int,
    bound: int,
    *,
    device: torch.device | str | None = None,
) -> Int64[Tensor, " count"]:
    """Uniform integers from 0 to bound − 1, of member 0: for sampling data.

    Element e is ⌊x · bound / 2**64⌋ with the high word of x at word 2e and its low word after it, so that no
    value is favoured by more than bound / 2**64.

    Args:
        bound: 1 to 2**32.
        seed, step, stream, count, device: as in `signs`.

    Returns:
        The integers, int64.

    Raises:
        ConfigError: a number is outside its range.

    Example:
        >>> integers(seed=0, step=0, stream=0, count=4, bound=10)
        tensor([3, 7, 9, 6])
    """
    _check("bound", bound, _WORD_VALUES, first=1)
    _check("count", count, 2 * _WORD_VALUES)
    high, low = words(seed, step, range(1), stream, 2 * count, device=device).view(-1, 2).unbind(1)
    return _high_word(high * bound + _high_word(low * bound))


def _word_table(
    seed: int,
    step: int,
    members: range,
    spans: Sequence[tuple[int, int, int]],
    block_size: int,
    device: torch.device | str | None,
) -> tuple[Int32[Tensor, "members words"], list[int]]:
    """The words of the blocks that hold each span (stream, offset, count), with block_size elements a block.

    Words are int32 here (the upper half are negative). Also returned is the column, in elements, where each
    span starts.
    """
    _check_names(seed, step, members, *(stream for stream, _, _ in spans))
    blocks, starts, width = [], [], 0
    for _, offset, count in spans:
        _check("count", count, block_size * _WORD_VALUES)
        _check("offset", offset, block_size * _WORD_VALUES - count)
        blocks.append(range(offset // block_size, -(-(offset + count) // block_size)))
        starts.append(width * block_size + offset % block_size)
        width += len(blocks[-1])
    table = torch.empty(len(members), width, WORDS_PER_BLOCK, dtype=torch.int32, device=device)
    device = table.device
    if device.type == "meta":  # sizes alone, as a plan of memory has them: there is nothing to draw
        return table.flatten(1), starts
    columns = torch.empty(2, width, dtype=torch.int64, device=device)  # block and stream of each column
    end = 0
    for (stream, _, _), span in zip(spans, blocks, strict=True):
        start, end = end, end + len(span)
        torch.arange(span.start, span.stop, out=columns[0, start:end])
        columns[1, start:end] = stream
    numbers = torch.arange(len(members), device=device).mul_(members.step).add_(members.start).unsqueeze(1)
    at_once = _COUNTERS_AT_ONCE.get(device.type, _ELSEWHERE)
    for first in range(0, width, at_once):
        part = columns[:, None, first : first + at_once]
        rows = at_once // part.shape[2]
        for member in range(0, len(members), rows):
            target = table[member : member + rows, first : first + at_once]
            counter = torch.empty(4, *target.shape[:2], dtype=torch.int64, device=device)
            counter[:2] = part
            counter[2] = numbers[member : member + rows]
            counter[3] = step
            found = philox4x32(counter.flatten(1), _key(seed))
            target.copy_(found.view(counter.shape).permute(1, 2, 0))
    return table.flatten(1), starts


@lru_cache(maxsize=32)
@torch.inference_mode(mode=False)
def _signs_of_byte(dtype: torch.dtype, device: torch.device) -> Shaped[Tensor, "256 8"]:
    """The 8 signs of each byte, lowest bit first."""
    bits = torch.arange(256, device=device).unsqueeze(1) >> torch.arange(_SIGNS_PER_BYTE, device=device)
    return (1 - 2 * (bits & 1)).to(dtype)


def _key(seed: int) -> tuple[int, int]:
    return seed % _WORD_VALUES, seed // _WORD_VALUES


def _unsigned(words: Int32[Tensor, "..."]) -> Int64[Tensor, "..."]:
    return words.to(torch.int64).bitwise_and_(_WORD_VALUES - 1)


def _high_word(product: Int64[Tensor, "..."]) -> Int64[Tensor, "..."]:
    return (product >> 32) & (_WORD_VALUES - 1)


def _check_signed(dtype: torch.dtype) -> None:
    if not dtype.is_signed:
        raise ConfigError(f"signs need a signed dtype to hold −1, got {dtype}: take torch.float32")


def _check_names(seed: int, step: int, members: range, *streams: int) -> None:
    _check("seed", seed, 2**64 - 1)
    _check("step", step, _WORD_VALUES - 1)
    for member in (members[0], members[-1]) if members else ():
        _check("member", member, _WORD_VALUES - 1)
    for stream in streams:
        _check("stream", stream, _WORD_VALUES - 1)


def _check(name: str, value: int, last: int, first: int = 0) -> None:
    if not first <= value <= last:
        raise ConfigError(f"{name} must be an integer from {first} to {last}, got {value}: give one in range")
