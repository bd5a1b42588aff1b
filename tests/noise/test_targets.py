"""Which parameters are perturbed: each once, also where it is shared; none silently left out."""

import pytest
import torch
from torch import nn

from zorn.errors import ConfigError, UncoveredParameterError
from zorn.models import LanguageModel
from zorn.noise import Activity, Dense, Draw, Layout, RankOne, Rule
from zorn.noise.targets import trainable_targets

DRAW = Draw(seed=1, step=2, epsilon=0.1)
each_structure = pytest.mark.parametrize("structure", [RankOne(), Dense()])


def direction(bound, member=1):
    one = torch.zeros(member + 1, dtype=torch.float64)
    one[member] = 1
    found = {}
    for block in bound.fold(DRAW, one):
        flat = found.setdefault(block.target.name, torch.full((block.target.parameter.numel(),), torch.nan))
        flat[block.start : block.start + len(block.values)] = block.values.float()
    return {t.name: found[t.name].view_as(t.parameter) for t in bound.targets}


class Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))


class Tower(nn.Module):
    """Owns parameters itself, beside modules that own theirs."""

    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))
        self.first, self.second = Unknown(), nn.Linear(2, 2)


def test_every_uncovered_parameter_is_named_with_its_modules_type():
    with pytest.raises(UncoveredParameterError) as error:
        Activity().bind(Tower())
    message = str(error.value)
    for part in ("temperature (in Tower)", "first.one (in Unknown)", "first.two (in Unknown)"):
        assert part in message
    assert "second.weight" not in message
    assert "zorn.CDRGE" in message
    assert "requires_grad_(False)" in message


def test_a_dense_structure_needs_no_rule():
    assert [t.name for t in Dense().bind(Tower()).targets] == [name for name, _ in Tower().named_parameters()]


@each_structure
def test_a_frozen_parameter_is_no_target_and_keeps_its_number(structure):
    model = Tower()
    for parameter in (model.temperature, *model.first.parameters()):
        parameter.requires_grad_(False)
    targets = structure.bind(model).targets
    assert [(t.name, t.number) for t in targets] == [("second.weight", 3), ("second.bias", 4)]


@each_structure
def test_nothing_to_train(structure):
    for model in (nn.ReLU(), nn.Linear(2, 2).requires_grad_(False)):
        with pytest.raises(
            UncoveredParameterError, match=r"(ReLU|Linear) has no parameter that requires a gradient"
        ):
            structure.bind(model)


@each_structure
def test_a_tied_parameter_is_one_target(structure):
    model = LanguageModel(7, 4, tie_embedding=True)
    names = [t.name for t in structure.bind(model).targets]
    assert names == [name for name, _ in model.named_parameters()]
    assert sum("weight" in name and ("embedding" in name or "head" in name) for name in names) == 1


class Twice(nn.Module):
    """One Linear called twice, and its weight again as that of another."""

    def __init__(self):
        super().__init__()
        self.first, self.other = nn.Linear(3, 3), nn.Linear(3, 3)
        self.again = self.first
        self.other.weight = self.first.weight

    def forward(self, x):
        return self.other(self.again(self.first(x).tanh()).tanh())


@each_structure
@torch.no_grad()
def test_shared_modules_and_tied_weights_are_perturbed_once_and_alike(structure):
    model = Twice().double()
    bound = structure.bind(model)
    assert [t.name for t in bound.targets] == ["first.weight", "first.bias", "other.bias"]
    z = direction(bound)
    moved = {name: p + DRAW.epsilon * z[name].double() for name, p in model.named_parameters()}
    x = torch.randn(4, 3, dtype=torch.float64)
    with bound.members(DRAW, range(1, 2), (1,)):
        found = model(x)
    torch.testing.assert_close(found, torch.func.functional_call(model, moved, (x,)), rtol=1e-9, atol=1e-11)


def test_the_gradient_of_a_tied_parameter_is_written_once():
    """A fold over a tied model gives the direction itself, not twice of it."""
    assert all((z.abs() == 1).all() for z in direction(RankOne().bind(Twice())).values())


def test_modules_that_would_lay_out_a_shared_parameter_differently():
    model = nn.Module()
    model.embedding = nn.Embedding(5, 3, padding_idx=2)
    model.head = nn.Linear(3, 5, bias=False)
    model.head.weight = model.embedding.weight
    with pytest.raises(UncoveredParameterError, match=r"embedding\.weight \(shared by .* differently"):
        Activity().bind(model)
    assert len(RankOne().bind(model).targets) == len(Dense().bind(model).targets) == 1
    model.head.weight.requires_grad_(False)
    model.other = nn.Linear(2, 2)
    assert [t.name for t in RankOne().bind(model).targets] == ["other.weight", "other.bias"]


def test_a_bias_tied_between_layers_of_different_weights():
    """It can borrow the row factor of one weight only."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].bias = model[0].bias
    with pytest.raises(UncoveredParameterError, match=r"0\.bias \(shared"):
        Activity().bind(model)
    assert [t.name for t in RankOne().bind(model).targets] == ["0.weight", "0.bias", "1.weight"]


def test_a_bias_beside_a_weight_that_is_no_parameter():
    """A parametrized weight is computed: the bias has no row factor to borrow and takes one of its own."""
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    with pytest.raises(UncoveredParameterError, match=r"parametrizations\.weight\.original0"):
        Activity().bind(layer)
    for parameter in layer.parametrizations.parameters():
        parameter.requires_grad_(False)
    class_name = type(layer).__name__
    bound = RankOne().bind(layer)
    assert class_name == "ParametrizedLinear"
    z = direction(bound)
    assert set(z) == {"bias"}
    assert (z["bias"].abs() == 1).all()
    x = torch.randn(4, 3)
    with torch.no_grad():
        with bound.members(DRAW, range(1, 2), (1,)):
            found = layer(x)
        torch.testing.assert_close(found, layer(x) + DRAW.epsilon * z["bias"])


def test_numbers_are_places_among_all_parameters():
    model = LanguageModel(7, 4)
    model.head.weight.requires_grad_(False)
    numbers = {name: number for number, (name, _) in enumerate(model.named_parameters())}
    assert {t.name: t.number for t in trainable_targets(model)} == {
        name: number for name, number in numbers.items() if name != "head.weight"
    }


class Gain(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return x * self.gain


@pytest.mark.parametrize(
    ("layouts", "message"),
    [
        ([], "Mistaken.layouts must return a dictionary of a zorn.noise.Layout .* of Gain, got list"),
        ({"gain": 3}, "Mistaken.layouts must return a dictionary of a zorn.noise.Layout"),
        ({"gain": Layout(rows=4)}, "gives gain of Gain a layout of 4 elements, but it has 3"),
        (
            {"gain": Layout(rows=3, row_source="weight")},
            "from 'weight', which Gain does not have: name one",
        ),
    ],
)
def test_a_mistake_in_a_rule_of_ones_own_is_named(layouts, message, monkeypatch):
    class Mistaken(Rule):
        def layouts(self, module):
            return layouts

        def perturbed(self, module, noise):
            raise AssertionError("never run")

    monkeypatch.setattr("zorn.noise.targets.find_rule", lambda module: Mistaken())
    with pytest.raises(ConfigError, match=message):
        RankOne().bind(Gain())
