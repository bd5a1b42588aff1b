"""Where a fold goes, and that it is the weighted sum of directions however it is cut."""

import pytest
import torch
from torch import nn

from zorn.errors import ConfigError, NonFiniteLossError
from zorn.estimators.update import FusedSGD, RoundingBits, fold_into_grad
from zorn.models import BlockLinear, LanguageModel
from zorn.noise import Dense, Draw, GradientBlock, RankOne, Target
from zorn.random import round_stochastically, words

DRAW = Draw(seed=4, step=9, epsilon=0.25)
STRUCTURES = [RankOne(), RankOne(noise="gaussian"), Dense(), Dense(noise="gaussian")]
each_structure = pytest.mark.parametrize("structure", STRUCTURES, ids=lambda s: repr(s))


def collect(bound, weights, draw=DRAW):
    """The folded gradient, and that every element came exactly once and in the promised dtype."""
    result = {}
    for target in bound.targets:
        result[target.name] = torch.zeros(target.parameter.numel(), dtype=torch.float64)
    counts = {name: torch.zeros_like(flat) for name, flat in result.items()}
    for block in bound.fold(draw, weights):
        assert block.values.dtype == torch.promote_types(block.target.parameter.dtype, torch.float32)
        part = slice(block.start, block.start + len(block.values))
        result[block.target.name][part] += block.values.double()
        counts[block.target.name][part] += 1
    assert all((count == 1).all() for count in counts.values())
    return result


def model_of_all_layouts():
    return nn.Sequential(
        nn.Linear(70, 90),
        BlockLinear(90, 60, num_heads=3),
        nn.Conv1d(4, 6, 3, groups=2),
        nn.LayerNorm(60),
        nn.Embedding(130, 50, padding_idx=1),
    )


@pytest.mark.parametrize("elements", [200, 1000, 5000])
@each_structure
def test_every_element_comes_once_however_small_the_blocks(structure, elements, monkeypatch):
    model = model_of_all_layouts()
    weights = torch.randn(11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = collect(structure.bind(model), weights)
    monkeypatch.setattr("zorn.noise.weights.structure.FOLD_ELEMENTS", elements)
    bound = structure.bind(model)
    found = collect(bound, weights)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-5)
    blocks = sum(1 for _ in bound.fold(DRAW, weights))
    assert blocks > len(bound.targets)


@each_structure
def test_the_fold_is_linear_in_the_weights(structure):
    bound = structure.bind(LanguageModel(7, 4).double())
    weights = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = collect(bound, weights)
    directions = [collect(bound, one) for one in torch.eye(6, dtype=torch.float64)]
    for name, gradient in found.items():
        expected = sum(w * z[name] for w, z in zip(weights, directions, strict=True))
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)
        assert gradient.abs().sum() > 0


@each_structure
def test_large_populations_are_summed_in_pieces(structure, monkeypatch):
    model = nn.Linear(8, 4).double()
    weights = torch.randn(5000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = collect(structure.bind(model), weights)
    monkeypatch.setattr("zorn.noise.weights.structure.FOLD_ELEMENTS", 4096)
    found = collect(structure.bind(model), weights)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-9)


def one_block(parameter, values, start=0):
    return [GradientBlock(Target("w", 0, parameter), start, values)]


def test_blocks_are_written_into_grad_in_place_of_what_was_there():
    parameter = nn.Parameter(torch.zeros(2, 3))
    parameter.grad = torch.full((2, 3), 9.0)
    blocks = one_block(parameter, torch.tensor([1.0, 2, 3, 4])) + one_block(
        parameter, torch.tensor([5.0, 6]), 4
    )
    norm = fold_into_grad(blocks, [blocks[0].target])
    assert parameter.grad.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert norm == pytest.approx(91**0.5)


def test_a_parameter_that_is_not_contiguous_gets_its_gradient_in_the_order_of_its_elements():
    parameter = nn.Parameter(torch.zeros(3, 2).t())
    blocks = one_block(parameter, torch.arange(6.0))
    fold_into_grad(blocks, [blocks[0].target])
    assert parameter.grad.tolist() == [[0, 1, 2], [3, 4, 5]]


# ------------------------------------------------------------------------------------ the fused update


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_fused_update_is_decay_and_a_step(dtype):
    parameter = nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=dtype))
    update = FusedSGD(learning_rate=0.5, weight_decay=0.1)
    norm = update.apply(one_block(parameter, torch.tensor([3.0, 4.0], dtype=dtype), 1), DRAW)
    expected = torch.tensor([1.0, -2 * 0.95 - 1.5, 3 * 0.95 - 2], dtype=dtype)
    torch.testing.assert_close(parameter.data, expected)
    assert norm == 5
    assert parameter.grad is None


def test_a_bfloat16_weight_drifts_in_the_mean_where_plain_rounding_would_lose_the_update():
    """Around 1 the unit in the last place is 2⁻⁷; 400 steps of a hundredth of one come to 4 of them."""
    size, steps, unit = 4000, 400, 2.0**-7
    parameter = nn.Parameter(torch.ones(size, dtype=torch.bfloat16))
    gradient = torch.full((size,), -unit / 100)
    update = FusedSGD(learning_rate=1.0)
    for step in range(steps):
        update.apply(one_block(parameter, gradient), Draw(seed=1, step=step, epsilon=0.1))
    moved = (parameter.detach().double() - 1) / unit
    assert (moved.mean() - steps / 100).abs() < 5 * moved.std() / size**0.5
    plain = torch.ones(size, dtype=torch.bfloat16)
    for _ in range(steps):
        plain -= gradient.to(torch.bfloat16)
    assert (plain == 1).all()


def test_the_rounding_repeats_with_the_step_and_does_not_depend_on_the_blocks():
    def updated(step, cuts):
        parameter = nn.Parameter(torch.ones(600, dtype=torch.bfloat16))
        gradient = torch.linspace(-0.01, 0.01, 600)
        for start in range(0, 600, cuts):
            block = one_block(parameter, gradient[start : start + cuts], start)
            FusedSGD(learning_rate=1.0).apply(block, Draw(seed=1, step=step, epsilon=0.1))
        return parameter.detach()

    assert torch.equal(updated(0, 600), updated(0, 7))
    assert not torch.equal(updated(0, 600), updated(1, 600))


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        (nn.Parameter(torch.zeros(2, 3).t()), "float32, contiguous: False"),
        (nn.Parameter(torch.zeros(2, dtype=torch.float16)), "float16, contiguous: True"),
    ],
)
def test_what_cannot_be_updated_in_place_is_named(parameter, message):
    with pytest.raises(ConfigError, match=f"layer.weight must be .* for FusedSGD, got torch.{message}"):
        FusedSGD(learning_rate=0.1).check([Target("layer.weight", 0, parameter)])


# --------------------------------------------------------------------------------- stochastic rounding

COUNT = 20_000
LARGEST = float(torch.finfo(torch.bfloat16).max)


def rounded(value):
    bits = words(7, 0, range(1), 0, COUNT, device="cpu")[0]
    return round_stochastically(torch.full((COUNT,), value), bits).double()


@pytest.mark.parametrize(
    "value", [1.001, -1.001, 3.14159, -0.3, 1e-3, 123456.7, -1e30, 1.1754944e-38 * 1.003, 1e-40]
)
def test_rounding_keeps_the_mean_and_takes_one_of_the_two_neighbours(value):
    value = float(torch.tensor(value))
    found = rounded(value)
    low, high = float(found.min()), float(found.max())
    assert low < value < high
    assert set(found.tolist()) == {low, high}
    nearest = torch.tensor(value).to(torch.bfloat16).double()
    assert float(nearest) in (low, high)
    scaled = found / value  # a mean of numbers near 1, also for those that float64 squares lose
    assert (scaled.mean() - 1).abs() < 5 * scaled.std() / COUNT**0.5


@pytest.mark.parametrize(
    "value", [0.0, -0.0, 1.0, -2.5, 2.0**-126, LARGEST, -LARGEST, float("inf"), -float("inf")]
)
def test_what_bfloat16_holds_stays_as_it_is(value):
    found = rounded(value)
    assert (found == value).all()
    assert (found.signbit() == torch.tensor(value).signbit()).all()


@pytest.mark.parametrize("value", [float("nan"), -float("nan")])
def test_nan_stays_nan_whatever_the_bits(value):
    assert rounded(value).isnan().all()


def test_between_the_largest_and_infinity_the_sign_stays():
    for sign in (1, -1):
        found = rounded(sign * 3.4e38)
        assert set(found.tolist()) <= {sign * LARGEST, sign * float("inf")}


def test_only_the_low_sixteen_bits_count():
    values = torch.linspace(-3, 3, 1000)
    bits = words(7, 0, range(1), 0, 1000, device="cpu")[0]
    assert torch.equal(round_stochastically(values, bits), round_stochastically(values, bits & 0xFFFF))


def test_the_values_are_left_as_they_were():
    values = torch.linspace(-3, 3, 1000)
    before = values.clone()
    round_stochastically(values, words(7, 0, range(1), 0, 1000, device="cpu")[0])
    assert torch.equal(values, before)


def test_each_parameter_is_rounded_with_bits_of_its_own():
    draw = Draw(seed=1, step=2, epsilon=0.1)
    values = torch.linspace(1, 2, 500)
    parameters = [nn.Parameter(torch.ones(500, dtype=torch.bfloat16)) for _ in range(2)]
    blocks = [GradientBlock(Target(f"p{i}", i, p), 0, values) for i, p in enumerate(parameters)]
    FusedSGD(learning_rate=1e-3).apply(blocks, draw)
    assert not torch.equal(*parameters)


def test_a_gradient_beyond_float16_is_an_error():
    parameter = nn.Parameter(torch.zeros(2, dtype=torch.float16))
    target = Target("weight", 0, parameter)
    with pytest.raises(NonFiniteLossError, match="gradient of weight is too large for its float16"):
        fold_into_grad([GradientBlock(target, 0, torch.tensor([1.0, 1e6]))], [target])


# -------------------------------------------------------------------------------------- bits of the rounding


def rounding_bits(count, step=3, number=2):
    target = Target("w", number, nn.Parameter(torch.zeros(count, dtype=torch.bfloat16)))
    return RoundingBits(Draw(seed=5, step=step, epsilon=0.1), target)


def test_the_rounding_bits_are_the_documented_function_of_the_index():
    count = 3 * 4096 + 17
    table = words(5, 3, range(1), 2 << 8 | 255, 4096 + 4)[0] & 0xFFFF
    expected = torch.tensor([int(table[4096 + e // 4096] ^ table[e % 4096]) for e in range(count)])
    assert torch.equal(rounding_bits(count)(0, count).long(), expected)


@pytest.mark.parametrize(("start", "length"), [(0, 1), (4095, 2), (4096, 4096), (5000, 7000), (3 * 4096, 17)])
def test_the_rounding_bits_do_not_depend_on_the_cut(start, length):
    count = 3 * 4096 + 17
    whole = rounding_bits(count)(0, count)
    assert torch.equal(rounding_bits(count)(start, length), whole[start : start + length])


def test_the_rounding_of_a_sum_varies_as_if_all_bits_were_independent():
    """Variance of the mean of n uniform bits over steps: 1 / 12 n; with shared bits it would be larger."""
    count, steps = 64 * 4096, 60
    means = (
        torch.stack([rounding_bits(count, step)(0, count).double().mean() for step in range(steps)]) / 65536
    )
    ratio = means.sub(0.5).square().mean() * 12 * count
    assert 0.3 < ratio < 2.2  # 5 standard errors are 5 √(2 / 60) = 0.9; the square is skewed


def test_parameters_and_steps_have_bits_of_their_own():
    first = rounding_bits(500)(0, 500)
    assert not torch.equal(first, rounding_bits(500, step=4)(0, 500))
    assert not torch.equal(first, rounding_bits(500, number=3)(0, 500))
