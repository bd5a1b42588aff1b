"""Counter-based random bits: any part of any vector of noise, again at any time, the same on every device."""

from zorn.random.draws import integers, normals, sign_table, signs, signs_at, words
from zorn.random.philox import philox4x32
from zorn.random.rounding import round_stochastically, rounding_halves

__all__ = [
    "integers",
    "normals",
    "philox4x32",
    "round_stochastically",
    "rounding_halves",
    "sign_table",
    "signs",
    "signs_at",
    "words",
]
