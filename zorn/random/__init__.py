"""Counter-based random bits: any part of any vector of noise, again at any time, the same on every device."""

from zorn.random.draws import (
    SIGNS_PER_WORD,
    integers,
    normals,
    sign_table,
    sign_words,
    signs,
    signs_at,
    unpack_signs,
    words,
)
from zorn.random.philox import philox4x32
from zorn.random.rounding import round_stochastically, rounding_halves

__all__ = [
    "SIGNS_PER_WORD",
    "integers",
    "normals",
    "philox4x32",
    "round_stochastically",
    "rounding_halves",
    "sign_table",
    "sign_words",
    "signs",
    "signs_at",
    "unpack_signs",
    "words",
]
