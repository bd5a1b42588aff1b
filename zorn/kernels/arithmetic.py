"""Arithmetic inside a tile: products, roundings, the nonlinearities of gates.

Triton's interpreter, on which the kernels are tested without a GPU, multiplies the bits of bfloat16 instead
of its values and cuts instead of rounding to nearest (3.9); `product` and `rounded` do there what a GPU does.
"""

from zorn.kernels.language import INTERPRETED, jit, tl


@jit
def product(left, right, total, PRECISION: tl.constexpr):
    """total + left · right, summed in float32. PRECISION is of float32 factors: "ieee" or "tf32"."""
    if INTERPRETED:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, total, input_precision=PRECISION)


@jit
def rounded(x, dtype: tl.constexpr):
    """float32 rounded to `dtype`, to the nearest, ties to even."""
    if INTERPRETED and dtype == tl.bfloat16:
        raw = x.to(tl.uint32, bitcast=True)
        x = ((raw + 0x7FFF + ((raw >> 16) & 1)) & 0xFFFF0000).to(tl.float32, bitcast=True)
    return x.to(dtype)


@jit
def stochastically_rounded(x, bits):
    """float32 rounded to bfloat16, up or down with probability in proportion to the distance, by 16 random
    bits, which carry from the half that is dropped into the one that is kept."""
    kept = (x.to(tl.uint32, bitcast=True) + bits.to(tl.uint32)) & 0xFFFF0000
    return kept.to(tl.float32, bitcast=True).to(tl.bfloat16)


@jit
def signed(negative, x):
    """−x where `negative`, else x."""
    return tl.where(negative, -x, x)


@jit
def sigmoid(x):
    """1 / (1 + e⁻ˣ), without an overflow for any x."""
    small = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, small) / (1.0 + small)


@jit
def tanh(x):
    """tanh x; by its series near 0, where the quotient of exponentials loses all its digits."""
    small = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - small) / (1.0 + small)
    s = x * x
    near = x * (1.0 + s * (-1.0 / 3 + s * (2.0 / 15 + s * (-17.0 / 315 + s * (62.0 / 2835)))))
    return tl.where(s < 0.05, near, tl.where(x < 0, -far, far))
