"""The error for a parameter without a rule: the code that it shows is run, and the model then trains."""

import pytest
import torch
from torch import nn

import zorn
from zorn.errors import UncoveredParameterError
from zorn.noise.rules import rule as rules

EXAMPLE_ESTIMATOR = {"population": 4, "epsilon": 0.1}


class Scale(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, size))

    def forward(self, x):
        return x * self.gain


class Outer:
    class Inner(Scale):
        def forward(self, x):
            return x + self.gain


class Started(nn.Module):
    """Owns a parameter itself, beside modules that own theirs."""

    def __init__(self, layer=None):
        super().__init__()
        self.start, self.body = nn.Parameter(torch.zeros(4)), nn.Linear(3, 4)
        self.layer = Scale(4) if layer is None else layer

    def forward(self, x):
        return self.layer(self.body(x) + self.start)


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.shifts = nn.Linear(3, 4), nn.ParameterList([torch.zeros(4), torch.ones(4)])

    def forward(self, x):
        return self.body(x) + self.shifts[0] + self.shifts[1]


@pytest.fixture(autouse=True)
def _registry(monkeypatch):
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))


def local_layer():
    class Hidden(Scale):
        def forward(self, x):
            return x - self.gain

    return Hidden(4)


def model_with(layer):
    return nn.Sequential(nn.Linear(3, 4), nn.ModuleDict({"block": layer}).block)


def train_a_step(model, estimator=None):
    generator = torch.Generator().manual_seed(1)
    batch = zorn.Batch(torch.randn(2, 3, generator=generator), torch.zeros(2))
    for parameter in model.parameters():
        parameter.grad = None
    estimator = zorn.CDRGE(**EXAMPLE_ESTIMATOR) if estimator is None else estimator
    estimator.estimate(model, batch, lambda outputs, targets: outputs.square().flatten(1).mean(1))
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def ways_out(model):
    """The message, and the code of each way out by its first words."""
    with pytest.raises(UncoveredParameterError) as error:
        train_a_step(model)
    ways, name = {}, None
    for line in str(error.value).splitlines():
        if line.startswith("- "):
            name = line[2:].split()[0]
            ways[name] = []
        elif line.startswith("    "):
            ways[name].append(line[4:])
    return str(error.value), {name: "\n".join(code) for name, code in ways.items()}


def follow(code, model):
    names = {"torch": torch, "zorn": zorn, "model": model}
    exec(code, names)
    return names


LAYERS = {
    "user's": lambda: Scale(4),
    "nested": lambda: Outer.Inner(4),
    "local": local_layer,
    "torch's": lambda: nn.PReLU(4),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_registering_a_memberwise_rule_as_shown(layer):
    model = model_with(LAYERS[layer]())
    message, ways = ways_out(model)
    assert "help(zorn.noise.Rule)" in message
    assert follow(ways["Run"], model)
    gradients = train_a_step(model)
    assert all(gradients[name].abs().sum() > 0 for name, _ in model.named_parameters())


@pytest.mark.parametrize("layer", LAYERS)
def test_freezing_as_shown(layer):
    model = model_with(LAYERS[layer]())
    _, ways = ways_out(model)
    follow(ways["Freeze"], model)
    assert set(train_a_step(model)) == {"0.weight", "0.bias"}


@pytest.mark.parametrize("layer", LAYERS)
def test_dense_directions_as_shown(layer):
    model = model_with(LAYERS[layer]())
    _, ways = ways_out(model)
    estimator = follow(ways["Perturb"], model)["estimator"]
    assert isinstance(estimator.perturbation, zorn.Dense)
    assert set(train_a_step(model, estimator)) == {name for name, _ in model.named_parameters()}


def test_the_import_is_the_one_that_a_user_would_write():
    _, ways = ways_out(model_with(nn.PReLU()))
    assert ways["Run"].startswith("from torch.nn import PReLU\n")
    _, ways = ways_out(model_with(Scale(4)))
    assert ways["Run"].startswith(f"from {__name__} import Scale\n")


@pytest.mark.parametrize(
    ("make", "names", "reason"),
    [
        (
            lambda: Started(nn.Tanh()),
            ["start"],
            "Started holds modules that are perturbed by themselves (body)",
        ),
        (Listed, ["shifts.0", "shifts.1"], "ParameterList is no layer with a forward of rows"),
    ],
)
def test_a_parameter_of_a_container_is_not_sent_to_the_memberwise_rule(make, names, reason):
    model = make()
    message, ways = ways_out(model)
    assert "Run" not in ways
    assert all(f"{name}: {reason}" in message for name in names)
    estimator = follow(ways["Perturb"], model)["estimator"]
    assert set(names) < set(train_a_step(model, estimator))
    follow(ways["Freeze"], model)
    assert set(train_a_step(model)) == {"body.weight", "body.bias"}


def test_a_parameter_of_a_container_in_a_small_module_as_shown():
    """Started, with its parameter held by the class that the message shows."""
    _, ways = ways_out(Started(nn.Tanh()))
    held = follow(ways["MemberwiseRule,"], None)["Held"]

    class Moved(nn.Module):
        def __init__(self):
            super().__init__()
            self.held, self.body = held(torch.zeros(4)), nn.Linear(3, 4)

        def forward(self, x):
            return self.body(x) + self.held(x)

    assert train_a_step(Moved())["held.value"].abs().sum() > 0


def test_each_parameter_gets_the_way_that_works_for_it():
    """A layer and a bare parameter at once: register one, freeze the other."""
    model = Started()
    message, ways = ways_out(model)
    for part in ("start (in Started)", "layer.gain (in Scale)", "start: Started holds"):
        assert part in message
    assert "Started, zorn.noise.MemberwiseRule" not in message
    follow(ways["Run"], model)
    message, ways = ways_out(model)
    assert "layer.gain" not in message
    follow(ways["Freeze"], model)
    assert train_a_step(model)["layer.gain"].abs().sum() > 0


def test_attention_is_frozen_or_dense_and_nothing_else():
    message, ways = ways_out(
        nn.Sequential(nn.Linear(3, 4), nn.TransformerEncoderLayer(4, 2, batch_first=True))
    )
    assert "Run" not in ways
    assert ways["MemberwiseRule,"] == ""
    assert "MultiheadAttention holds modules that are perturbed by themselves (out_proj)" in message


def test_a_recurrent_layer_with_time_in_front_is_told_how_to_turn():
    message, ways = ways_out(nn.Sequential(nn.Linear(3, 4), nn.GRU(4, 3)))
    assert "GRU puts time in front of rows (make it with batch_first=True)" in message
    assert "Run" not in ways


def test_a_forward_on_the_instance_is_none_that_a_rule_would_serve():
    layer = Scale(4)
    layer.forward = lambda x: x
    message, ways = ways_out(model_with(layer))
    assert "has a forward that was replaced on the instance" in message
    assert "Run" not in ways


def test_a_deep_model_is_not_listed_whole_and_the_code_still_frees_it():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), *(Scale(4) for _ in range(40)), nn.Linear(4, 2))
    batch = zorn.Batch(torch.randn(4, 3), torch.zeros(4).long())
    estimator = zorn.CDRGE(**EXAMPLE_ESTIMATOR)
    with pytest.raises(UncoveredParameterError) as refused:
        estimator.estimate(model, batch, nn.CrossEntropyLoss(reduction="none"))
    told = str(refused.value)
    assert "1.gain (in Scale), 2.gain (in Scale)" in told
    assert "and 35 more" in told
    assert len(told.splitlines()) < 14
    lines = told.splitlines()
    start = lines.index("- Freeze what need not be trained:") + 1
    exec("\n".join(line[4:] for line in lines[start : start + 4]), {"model": model})
    assert {name for name, each in model.named_parameters() if each.requires_grad} == {
        *("0.weight", "0.bias", "41.weight", "41.bias")
    }
    estimator.estimate(model, batch, nn.CrossEntropyLoss(reduction="none"))
