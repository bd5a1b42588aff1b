"""Activity noise: where it is, what it is, and what a layer's pullback makes of it."""

import pytest
import torch
from torch import nn

import zorn
from zorn.errors import ConfigError, UncoveredParameterError
from zorn.models import BlockLinear
from zorn.models.maps import RecurrentMap
from zorn.noise import Activity, Draw, find_rule
from zorn.noise.draw import ACTIVITY_FACTOR, noise, stream_of

DRAW = Draw(seed=3, step=5, epsilon=0.25)


def bound_to(model: nn.Module, **options) -> zorn.noise.BoundActivity:
    bound = Activity(**options).bind(model)
    bound.sizes = {site.name: 1.0 for site in bound.sites}
    return bound


class Stack(nn.Module):
    """Layers of every rule, each [rows, time, 6] to the same."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.Linear(6, 6),
                nn.LayerNorm(6),
                nn.RMSNorm(6),
                BlockLinear(6, 6, 2),
                nn.Linear(6, 6, bias=False),
            ]
        )
        self.convolution = nn.Conv1d(6, 6, 3)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).tanh()
        padded = nn.functional.pad(x.transpose(1, 2), (2, 0))
        return self.convolution(padded).transpose(1, 2)


def test_the_noise_of_each_lane_is_its_sign_times_scale_times_the_counters_bits():
    layer = nn.Linear(3, 4).double()
    model = nn.Sequential(layer)
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    plain = model(x)
    bound = bound_to(model)
    with torch.no_grad(), bound.perturbed(DRAW, range(7, 9), (1, -1), steps=5):
        found = model(x.repeat(2, 1, 1)).view(2, 2, 5, 4)
    stream = stream_of([name for name, _ in model.named_modules()].index("0"), ACTIVITY_FACTOR)
    xi = noise(
        "rademacher", DRAW, range(7, 9), stream, 20, dtype=torch.float64, device=torch.device("cpu")
    ).view(2, 5, 4)
    torch.testing.assert_close(found[0], plain + 0.25 * xi)
    torch.testing.assert_close(found[1], plain - 0.25 * xi)
    assert model(x).equal(plain), "the module is as it was"
    assert "forward" not in layer.__dict__


def test_a_relative_scale_is_a_share_of_the_size_of_the_output():
    model = nn.Sequential(nn.Linear(3, 4))
    bound = Activity().bind(model)
    x = torch.randn(6, 3)
    with torch.no_grad(), bound.measured() as seen:
        y = model(x)
    assert not seen["0"].returned(y, 2), "it was called once"
    assert not seen["0"].returned(y.clone(), 1)
    sizes = bound.measured_sizes()
    assert sizes["0"] == pytest.approx(float(y.square().mean().sqrt()), rel=1e-5)
    bound.sizes = sizes
    assert bound.scale("0", 0.1) == pytest.approx(0.1 * sizes["0"])
    absolute = Activity(relative=False).bind(model)
    assert absolute.scale("0", 0.1) == 0.1


def test_an_lstm_has_a_unit_of_its_own():
    bound = Activity().bind(zorn.LanguageModel(5, 4))
    bound.sizes = {"embedding": 3.0, "cells.0": 3.0, "head": 3.0}
    assert [bound.scale(name, 0.1) for name in bound.sizes] == pytest.approx([0.3, 0.1, 0.3])
    other = Activity().bind(zorn.LanguageModel(5, 4, cell="gru"))
    other.sizes = bound.sizes
    assert other.scale("cells.0", 0.1) == pytest.approx(0.3)


def test_a_silent_site_is_not_left_without_noise():
    bound = bound_to(nn.Sequential(nn.Linear(3, 4)))
    bound.sizes = {"0": 0.0}
    assert bound.scale("0", 0.5) > 0


@pytest.mark.parametrize(
    ("module", "inputs"),
    [
        (nn.Linear(3, 4), (torch.randn(5, 3),)),
        (nn.Linear(3, 4, bias=False), (torch.randn(5, 2, 3),)),
        (BlockLinear(6, 4, 2), (torch.randn(5, 6),)),
        (BlockLinear(6, 4, 1, bias=False), (torch.randn(5, 2, 6),)),
        (nn.Embedding(7, 4, padding_idx=2), (torch.tensor([[0, 2, 5], [5, 5, 1]]),)),
        (nn.LayerNorm(4), (torch.randn(5, 3, 4),)),
        (nn.RMSNorm(4), (torch.randn(5, 4),)),
        (nn.Conv1d(4, 6, 3, groups=2), (torch.randn(5, 4, 8),)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_pullback_is_the_derivative_of_the_layer(module, inputs):
    y = module(*inputs)
    gradient = torch.randn_like(y)
    expected = dict(
        zip(
            (name for name, _ in module.named_parameters()),
            torch.autograd.grad(y, list(module.parameters()), gradient),
            strict=True,
        )
    )
    rule = find_rule(module)
    assert rule is not None
    with torch.inference_mode():
        found = rule.pullback(module, gradient, *inputs)
    for name, value in expected.items():
        torch.testing.assert_close(found[name].reshape(value.shape), value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("heads", [1, 2])
def test_the_pullback_of_the_gates_is_their_derivative(heads):
    module = RecurrentMap(3, 4, 4, heads)
    x, h = torch.randn(5, 3), torch.randn(5, 4)
    (drive,) = module.drive(x.unsqueeze(0))
    y = module((drive[0],), h)
    gradient = torch.randn_like(y)
    names = [name for name, _ in module.named_parameters()]
    expected = torch.autograd.grad(y, list(module.parameters()), gradient)
    rule = find_rule(module)
    assert rule is not None
    found = rule.pullback(module, gradient, x, h)
    for name, value in zip(names, expected, strict=True):
        torch.testing.assert_close(found[name].reshape(value.shape), value)


def test_a_layer_with_the_default_works_under_noise_and_replay():
    """Against a gradient by hand: Σ_t credit ξ_t through autograd of the whole, clean, stack's last layer."""
    model = Stack().double()
    bound = bound_to(model)
    x = torch.randn(2, 8, 6, dtype=torch.float64)
    with torch.inference_mode(), bound.perturbed(DRAW, range(2), (1, -1), steps=8):
        model(x.repeat(2, 1, 1))
    credit = torch.randn(2, 1, 8, dtype=torch.float64)
    with torch.inference_mode(), bound.replay(DRAW, range(2), credit, 8, None):
        model(x)
    stream = stream_of([n for n, _ in model.named_modules()].index("convolution"), ACTIVITY_FACTOR)
    xi = noise("rademacher", DRAW, range(2), stream, 48, dtype=torch.float64, device=torch.device("cpu"))
    gradient = xi.view(2, 8, 6) * credit.view(2, 8, 1) / 0.25
    parameters = list(model.convolution.parameters())
    expected = torch.autograd.grad(model(x), parameters, gradient)
    found = {block.target.name: block.values for block in bound.blocks()}
    torch.testing.assert_close(found["convolution.weight"], expected[0].flatten())
    torch.testing.assert_close(found["convolution.bias"], expected[1].flatten())
    assert all(values.abs().sum() > 0 for values in found.values())


class TwoTensors(nn.Bilinear):
    pass


def test_a_layer_of_two_tensors_needs_a_rule_of_its_own():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = TwoTensors(3, 3, 2)

        def forward(self, x):
            return self.layer(x, x)

    zorn.register_rule(TwoTensors, zorn.noise.MemberwiseRule())
    model = Model()
    with (
        pytest.raises(ConfigError, match="takes or returns more than one tensor"),
        bound_to(model).perturbed(DRAW, range(1), (1, -1), steps=1),
    ):
        model(torch.zeros(2, 3))
    assert "forward" not in model.layer.__dict__


def test_a_layer_that_is_never_called_is_named():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.used(x)

    model = Model()
    with (
        pytest.raises(UncoveredParameterError, match=r"idle\.weight, idle\.bias"),
        bound_to(model).perturbed(DRAW, range(1), (1, -1), steps=1),
    ):
        model(torch.zeros(2, 3))


def test_a_site_that_does_not_go_along_with_time_is_named():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(self.layer(x))

    model = Twice()
    with (
        pytest.raises(ConfigError, match="'layer' returned 8 time steps for sequences of 4"),
        bound_to(model).perturbed(DRAW, range(2), (1, -1), steps=4),
    ):
        model(torch.zeros(4, 4, 3))


def test_a_model_is_perturbed_in_one_block_at_a_time():
    model = nn.Sequential(nn.Linear(3, 3))
    first, second = bound_to(model), bound_to(model)
    x = torch.zeros(2, 3)
    with first.perturbed(DRAW, range(1), (1, -1), steps=1):
        model(x)
        with (
            pytest.raises(ConfigError, match="already perturbed"),
            second.perturbed(DRAW, range(1), (1, -1), steps=1),
        ):
            pass


def test_an_exception_in_the_block_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(3, 3))
    with (
        pytest.raises(RuntimeError, match="mine"),
        bound_to(model).perturbed(DRAW, range(1), (1, -1), steps=1),
    ):
        raise RuntimeError("mine")
    assert "forward" not in model[0].__dict__
