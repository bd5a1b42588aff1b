"""Folds straight into the weights: kernel against twin bit by bit, rounding, members in two calls."""

import pytest
import torch
from pairs import pairwise

import zorn
from zorn.kernels import Fold, fold_dense_, fold_rank_one_
from zorn.random import signs

FOLDS = {"rank_one": (fold_rank_one_, (2**31 + 7, 8)), "dense": (fold_dense_, (2**31 + 7,))}
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
    pairwise(FOLDS, SIZES, [torch.float32, torch.bfloat16], [None, (2**63 + 5, 7, 2**31 + 1)]),
)
def test_the_kernel_gives_what_its_twin_does(device, kind, size, dtype, rounding):
    (twins, streams), (shape, members) = FOLDS[kind], size
    fold = Fold(**COUNTER, members=members, keep=0.5, scale=-0.25, rounding=rounding, fixed=range(2, 4))
    found = exact(shape, device, dtype)
    expected, c = found.clone(), exact((len(members),), device, seed=1)
    norms = [
        run(weight, c, streams, fold) for run, weight in ((twins.kernel, found), (twins.reference, expected))
    ]
    assert torch.equal(found, expected)
    torch.testing.assert_close(*norms, rtol=1e-6, atol=0)


def test_a_coefficient_is_kept_to_its_last_bit(device):
    weight, c = torch.zeros(16, 16, device=device), torch.tensor([1 / 3, -0.1, 12345.678], device=device)
    for member in range(3):
        own = c[member : member + 1]
        fold = Fold(**COUNTER, members=range(member, member + 1), keep=0.0)
        fold_rank_one_.kernel(weight, own, (0, 1), fold)
        assert torch.equal(weight.abs(), own.abs().expand(16, 16))


@pytest.mark.parametrize("kind", FOLDS)
def test_members_in_two_calls_are_those_of_one(device, kind):
    twins, streams = FOLDS[kind]
    c = exact((7,), device)
    whole, parts = torch.zeros(20, 33, device=device), torch.zeros(20, 33, device=device)
    twins.kernel(whole, c, streams, Fold(**COUNTER, members=range(7)))
    for part in (range(3), range(3, 7)):
        twins.kernel(parts, c[part.start : part.stop], streams, Fold(**COUNTER, members=part))
    assert torch.equal(whole, parts)


def test_infinities_and_nan_stay_what_they_are(device):
    weight = torch.tensor([float("inf"), -float("inf"), float("nan"), 1.0], device=device).bfloat16()
    c = torch.zeros(1, device=device)
    fold_dense_.kernel(weight, c, (0,), Fold(**COUNTER, members=range(1), rounding=(0, 0, 1)))
    assert weight.tolist()[:2] == [float("inf"), -float("inf")]
    assert weight[2].isnan()
    assert weight[3] == 1


def test_the_twins_are_the_sums_of_their_directions():
    c, members = torch.randn(4, dtype=torch.float64), range(4)
    weight = torch.zeros(2, 3, 5, dtype=torch.float64)
    norm = fold_rank_one_(weight, c, (1, 2), Fold(**COUNTER, members=members, scale=-2))
    a = signs(*COUNTER.values(), members, 1, 6).double().view(4, 2, 3)
    b = signs(*COUNTER.values(), members, 2, 10).double().view(4, 2, 5)
    torch.testing.assert_close(weight, -2 * torch.einsum("m,mhr,mhk->hrk", c, a, b))
    torch.testing.assert_close(norm, (weight / 2).square().sum())
    fold_dense_(weight, c, (1,), Fold(**COUNTER, members=members, keep=0.0))
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
    kept, rounding = 1 - 2**-10, (5, 7, 3 << 8 | 255)
    fold = Fold(seed=5, step=7, members=range(4), keep=kept, scale=-(2**-9), rounding=rounding)
    squared = fold_dense_(found, c, (3 << 8,), fold)
    assert torch.equal(found, weight.detach())
    assert float(squared) ** 0.5 == pytest.approx(norm)
