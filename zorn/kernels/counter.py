"""The random bits of `zorn.random`, made inside a tile: Philox 4x32-10 (Salmon et al. 2011) with

    key     = (low word of seed, high word of seed)
    counter = (block, stream, member, step)

Sign e of a vector is bit e % 32 of word (e % 128) // 32 of its block e // 128, word e of it word e % 4 of
block e // 4: bit for bit what `zorn.random.signs` gives.
"""

from zorn.kernels.language import jit, tl

_WORD_VALUES = 2**32

VARYING = ("step", "key_low", "key_high", "first_member", "member_step", "stream", "other_stream")
"""Arguments of kernels that name random bits: they change from step to step."""


def signed_word(value: int) -> int:
    """A 32-bit word as the signed number of the same bits: kernels take their integers signed.

    Example:
        >>> signed_word(2**32 - 1)
        -1
    """
    return value - _WORD_VALUES if value >= _WORD_VALUES // 2 else value


def counter_arguments(seed: int, step: int, members: range) -> dict[str, int]:
    """A kernel's arguments that name the members' bits: `first_member`, `member_step`, `step` and the key.

    Example:
        >>> counter_arguments(2**32, 7, range(3, 5))
        {'first_member': 3, 'member_step': 1, 'step': 7, 'key_low': 0, 'key_high': 1}
    """
    numbers = {
        "first_member": members.start,
        "member_step": members.step % _WORD_VALUES,
        "step": step,
        "key_low": seed % _WORD_VALUES,
        "key_high": seed // _WORD_VALUES,
    }
    return {name: signed_word(number) for name, number in numbers.items()}


@jit
def member_number(index, first_member, member_step):
    """The member at each place of a range, as a word."""
    return (first_member + index * member_step).to(tl.uint32, bitcast=True)


@jit
def _block_words(block, stream, member, step, key_low, key_high):
    """The four words of each block."""
    return tl.philox_impl(
        block.to(tl.uint32),
        stream.to(tl.uint32, bitcast=True) + tl.zeros_like(block).to(tl.uint32),
        member + tl.zeros_like(block).to(tl.uint32),
        step.to(tl.uint32, bitcast=True) + tl.zeros_like(block).to(tl.uint32),
        key_low.to(tl.uint32, bitcast=True),
        key_high.to(tl.uint32, bitcast=True),
    )


@jit
def _spread(first, second, third, fourth, WIDTH: tl.constexpr):
    """The bits of up to four words a row, lowest first, [rows, WIDTH]: True for −1."""
    column = tl.arange(0, WIDTH)[None, :]
    word = first[:, None]
    if WIDTH > 32:
        word = tl.where(column < 32, word, second[:, None])
    if WIDTH > 64:
        word = tl.where(column < 64, word, tl.where(column < 96, third[:, None], fourth[:, None]))
    return ((word >> (column & 31).to(tl.uint32)) & 1) != 0


@jit
def block_signs(block, stream, member, step, key_low, key_high):
    """The 128 signs of each block, [blocks, 128]: True for −1."""
    first, second, third, fourth = _block_words(block, stream, member, step, key_low, key_high)
    return _spread(first, second, third, fourth, 128)


@jit
def _joined(low, high, shift):
    """The 32 bits from bit `shift` (0 to 31) of `low` on, the rest from `high`."""
    return (low >> shift) | ((high << (31 - shift)) << 1)


@jit
def sign_tile(start, stream, member, step, key_low, key_high, WIDTH: tl.constexpr):
    """Signs start .. start + WIDTH of each row's own vector, [rows, WIDTH]: True for −1.

    The signs of a row lie in two blocks at most, whose eight words are shifted into place, by words and then
    by bits: two calls of the generator for up to 128 signs, wherever they start.

    Args:
        start: [rows] int64.
        member: a word, or one for each row.
        WIDTH: 16, 32, 64 or 128.
    """
    block = start >> 7
    a, b, c, d = _block_words(block, stream, member, step, key_low, key_high)
    e, f, g, h = _block_words(block + 1, stream, member, step, key_low, key_high)
    odd, two = (start & 32) != 0, (start & 64) != 0
    a, b, c, d = tl.where(odd, b, a), tl.where(odd, c, b), tl.where(odd, d, c), tl.where(odd, e, d)
    e, f, g = tl.where(odd, f, e), tl.where(odd, g, f), tl.where(odd, h, g)
    a, b, c = tl.where(two, c, a), tl.where(two, d, b), tl.where(two, e, c)
    d, e = tl.where(two, f, d), tl.where(two, g, e)
    shift = (start & 31).to(tl.uint32)
    return _spread(
        _joined(a, b, shift), _joined(b, c, shift), _joined(c, d, shift), _joined(d, e, shift), WIDTH
    )


@jit
def sign_at(element, stream, member, step, key_low, key_high):
    """Sign `element` of a vector, for int64 elements of any shape: True for −1."""
    first, second, third, fourth = _block_words(element >> 7, stream, member, step, key_low, key_high)
    odd, two = (element & 32) != 0, (element & 64) != 0
    word = tl.where(two, tl.where(odd, fourth, third), tl.where(odd, second, first))
    return ((word >> (element & 31).to(tl.uint32)) & 1) != 0


@jit
def packed_sign(table, words_per_member, member, element):
    """Signs from what `sign_words` gave, for members and elements that broadcast: True for −1."""
    word = tl.load(table + member * words_per_member + (element >> 5))
    return ((word >> (element & 31)) & 1) != 0
