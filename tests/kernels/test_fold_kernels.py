"""Folds straight into the weights: kernel against twin bit by bit, rounding, members in two calls."""

import pytest
import torch
from pairs import pairwise

import zorn
from zorn.errors import ConfigError
from zorn.kernels import (
    fold_dense_,
    fold_dense_reference_,
    fold_rank_one_,
    fold_rank_one_reference_,
)
from zorn.kernels.fold_kernels import fold_dense_kernel_, fold_rank_one_kernel_
from zorn.random import signs

PAIRS = {
    "rank_one": (
        fold_rank_one_kernel_,
        fold_rank_one_reference_,
        {"row_stream": 2**31 + 7, "column_stream": 8},
    ),
    "dense": (fold_dense_kernel_, fold_dense_reference_, {"stream": 2**31 + 7}),
}
COUNTER = {"seed": 2**63 + 5, "step": 2**32 - 1}


def exact(shape, device, dtype=torch.float32, seed=0):
    """Values of few bits: their sums are exact in any order, so results can be compared bit by bit."""
    drawn = torch.randint(-64, 65, shape, generator=torch.Generator().manual_seed(seed)) / 64
    return drawn.to(device, dtype)


SIZES = [
    ((20, 70), range(5, 11, 2)),
    ((3, 5, 9), range(35)),
    ((5, 1), range(2**32 - 2, 2**32)),
    ((1, 1), range(1)),
]


@pytest.mark.parametrize(
    ("kind", "size", "dtype", "rounding"),
    pairwise(PAIRS, SIZES, [torch.float32, torch.bfloat16], [None, (2**63 + 5, 7, 2**31 + 1)]),
)
def test_the_kernel_gives_what_its_twin_does(device, kind, size, dtype, rounding):
    (kernel, twin, streams), (shape, members) = PAIRS[kind], size
    settings = {"keep": 0.5, "scale": -0.25, "rounding": rounding, "fixed": range(2, 4)}
    found = exact(shape, device, dtype)
    expected, c = found.clone(), exact((len(members),), device, seed=1)
    norms = [
        fold(weight, c, **COUNTER, members=members, **streams, **settings)
        for fold, weight in ((kernel, found), (twin, expected))
    ]
    assert torch.equal(found, expected)
    torch.testing.assert_close(*norms, rtol=1e-6, atol=0)


def test_a_coefficient_is_kept_to_its_last_bit(device):
    weight, c = torch.zeros(16, 16, device=device), torch.tensor([1 / 3, -0.1, 12345.678], device=device)
    for member in range(3):
        streams = {"row_stream": 0, "column_stream": 1}
        own = c[member : member + 1]
        fold_rank_one_kernel_(weight, own, **COUNTER, members=range(member, member + 1), keep=0.0, **streams)
        assert torch.equal(weight.abs(), own.abs().expand(16, 16))


@pytest.mark.parametrize("kind", PAIRS)
def test_members_in_two_calls_are_those_of_one(device, kind):
    fold, _, streams = PAIRS[kind]
    c = exact((7,), device)
    whole, parts = torch.zeros(20, 33, device=device), torch.zeros(20, 33, device=device)
    fold(whole, c, **COUNTER, members=range(7), **streams)
    for part in (range(3), range(3, 7)):
        fold(parts, c[part.start : part.stop], **COUNTER, members=part, **streams)
    assert torch.equal(whole, parts)


def test_infinities_and_nan_stay_what_they_are(device):
    weight = torch.tensor([float("inf"), -float("inf"), float("nan"), 1.0], device=device).bfloat16()
    c = torch.zeros(1, device=device)
    fold_dense_kernel_(weight, c, **COUNTER, members=range(1), stream=0, rounding=(0, 0, 1))
    assert weight.tolist()[:2] == [float("inf"), -float("inf")]
    assert weight[2].isnan()
    assert weight[3] == 1


def test_the_twins_are_the_sums_of_their_directions():
    c, members = torch.randn(4, dtype=torch.float64), range(4)
    weight = torch.zeros(2, 3, 5, dtype=torch.float64)
    norm = fold_rank_one_(weight, c, **COUNTER, members=members, row_stream=1, column_stream=2, scale=-2)
    a = signs(*COUNTER.values(), members, 1, 6).double().view(4, 2, 3)
    b = signs(*COUNTER.values(), members, 2, 10).double().view(4, 2, 5)
    torch.testing.assert_close(weight, -2 * torch.einsum("m,mhr,mhk->hrk", c, a, b))
    torch.testing.assert_close(norm, (weight / 2).square().sum())
    fold_dense_(weight, c, **COUNTER, members=members, stream=1, keep=0.0)
    z = signs(*COUNTER.values(), members, 1, 30).double()
    torch.testing.assert_close(weight.flatten(), c @ z)


def test_the_twin_is_the_update_of_fused_sgd():
    """A bias of a model: dense signs of its own stream, coefficients of few bits."""
    weight = torch.nn.Parameter(exact((5000,), "cpu", torch.bfloat16))
    target = zorn.noise.targets.Target("bias", 3, weight)
    draw = zorn.noise.Draw(seed=5, step=7, epsilon=0.1)
    found, c = weight.detach().clone(), exact((4,), "cpu", seed=1)
    z = signs(5, 7, range(4), 3 << 8, 5000)
    block = zorn.noise.weights.structure.GradientBlock(target, 0, c @ z)
    norm = zorn.estimators.FusedSGD(learning_rate=2**-9, weight_decay=0.5).apply([block], draw)
    squared = fold_dense_(
        found, c, seed=5, step=7, members=range(4), stream=3 << 8, keep=1 - 2**-10, scale=-(2**-9),
        rounding=(5, 7, 3 << 8 | 255),
    )  # fmt: skip
    assert torch.equal(found, weight.detach())
    assert float(squared) ** 0.5 == pytest.approx(norm)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(4, 3).T}, "weight must be contiguous"),
        ({"weight": torch.zeros(3, 4).half()}, "weight must be .* got torch.float16"),
        ({"weight": torch.zeros(12)}, "weight must have two or three dimensions, got 1"),
        ({"coefficients": torch.zeros(3)}, r"coefficients must be a tensor \[2\], got \[3\]"),
        ({"members": [0, 1]}, "members must be a range"),
        ({"keep": float("nan")}, "keep must be a number"),
        ({"rounding": (0, 0, -1)}, "rounding_stream must be a whole number"),
        ({"rounding": 7}, r"rounding must be None or \(seed, step, stream\), got 7"),
        ({"fixed": range(5, 13)}, "fixed must be a range of the weight's 12 elements"),
    ],
)
def test_bad_input_is_named_and_changes_nothing(change, message):
    weight = torch.zeros(3, 4)
    given = {"weight": weight, "coefficients": torch.ones(2), "members": range(2), **change}
    with pytest.raises(ConfigError, match=message):
        fold_rank_one_(**given, **COUNTER, row_stream=0, column_stream=1)
    assert not weight.any()
