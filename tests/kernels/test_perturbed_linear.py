"""The dense perturbed linear map: kernel against twin, members together against apart."""

import pytest
import torch
from pairs import each_once

from zorn.kernels import DenseNoise, perturbed_linear
from zorn.random import signs as draw_signs

NOISE = {"seed": 2**63 + 5, "step": 2**32 - 1, "stream": 2**31 + 77, "epsilon": 0.0625}


def case(device, dtype, heads, outputs, inputs, group, members, signs, bias):
    """Values that bfloat16 and sums in any order hold exactly, so that results can be compared bit by bit."""
    generator = torch.Generator().manual_seed(0)

    def values(*shape):
        return (torch.randint(-4, 5, shape, generator=generator) / 4).to(device, dtype)

    weight = values(heads, outputs, inputs) if heads > 1 else values(outputs, inputs)
    x = values(len(signs) * len(members) * group, heads * inputs)
    return x, weight, values(heads * outputs) if bias else None


CASES = [
    (1, 70, 40, 3, range(5, 9, 2), (1, -1), True),
    (3, 20, 33, 1, range(2), (-1,), False),
    (2, 5, 70, 17, range(2**32 - 2, 2**32), (-1, 1), True),
    (1, 1, 1, 1, range(1), (1,), True),
]


@pytest.mark.parametrize(("shape", "dtype"), each_once(CASES, [torch.float32, torch.bfloat16]))
def test_the_kernel_gives_what_its_twin_does(device, dtype, shape):
    x, weight, bias = case(device, dtype, *shape)
    stream = 9 if bias is not None else None
    noise = DenseNoise(**NOISE, members=shape[4], signs=shape[5], bias_stream=stream)
    before = weight.clone()
    found = perturbed_linear.kernel(x, weight, bias, noise)
    assert torch.equal(found, perturbed_linear.reference(x, weight, bias, noise))
    assert torch.equal(weight, before)


def test_a_bias_without_noise_stays_as_it_is(device):
    x, weight, bias = case(device, torch.float32, 1, 20, 33, 2, range(2), (1, -1), True)
    found = perturbed_linear.kernel(x, weight, bias, DenseNoise(**NOISE, members=range(2)))
    plain = perturbed_linear.kernel(x, weight, None, DenseNoise(**NOISE, members=range(2)))
    assert torch.equal(found, plain + bias)


def test_members_in_two_calls_are_those_of_one(device):
    """Of values that sums in any order hold exactly: Triton's interpreter multiplies with numpy's BLAS, which
    may sum a row in another order when it stands elsewhere in its tile."""
    x, weight, _ = case(device, torch.float32, 1, 24, 20, 2, range(3), (1, -1), False)
    x = x.view(2, 3, 2, 20)

    def run(members):
        rows = x[:, members.start : members.stop].flatten(0, 2)
        found = perturbed_linear.kernel(rows, weight, None, DenseNoise(**NOISE, members=members))
        return found.view(2, len(members), 2, 24)

    assert torch.equal(run(range(3)), torch.cat([run(range(1)), run(range(1, 3))], 1))


def test_the_twin_is_a_product_with_the_moved_weight():
    x, weight, bias = case("cpu", torch.float64, 1, 4, 5, 3, range(1), (1, -1), True)
    found = perturbed_linear(x, weight, bias, DenseNoise(**NOISE, members=range(7, 8), bias_stream=3))
    z = draw_signs(NOISE["seed"], NOISE["step"], range(7, 8), NOISE["stream"], 20).view(4, 5).double()
    b = draw_signs(NOISE["seed"], NOISE["step"], range(7, 8), 3, 4)[0].double()
    for rows, part, scale in ((x[:3], found[:3], 0.0625), (x[3:], found[3:], -0.0625)):
        torch.testing.assert_close(part, rows @ (weight + scale * z).T + bias + scale * b)
