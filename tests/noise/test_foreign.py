"""Modules that zorn has never seen: they work unmodified where rules cover their layers; elsewhere the error
says what is missing."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from zorn.errors import ConfigError, SlowerWayWarning, UncoveredParameterError
from zorn.estimators import BPTT, CDRGE
from zorn.models import Batch, LSTMCell, run
from zorn.noise import Activity, Dense, Draw, Layout, RankOne, Rule, find_rule, register_rule
from zorn.noise.rules import rule as rules

VOCABULARY, SIZE, TIME = 9, 8, 5


class Attention(nn.Module):
    def __init__(self, size, heads):
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(size, 3 * size)
        self.out = nn.Linear(size, size, bias=False)

    def forward(self, x):
        parts = self.query_key_value(x).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        weights = (query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1)
        return self.out((weights @ value).transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(size), Attention(size, 2)
        self.mlp = nn.Sequential(
            nn.LayerNorm(size),
            nn.Linear(size, 2 * size),
            nn.GELU(),
            nn.Dropout(0.5),
            nn.Linear(2 * size, size),
        )

    def forward(self, x):
        x = x + self.attention(self.norm(x))
        return x + self.mlp(x)


class Encoder(nn.Module):
    """A transformer encoder with learned positions; mean pooling, or an output a token."""

    def __init__(self, pooled):
        super().__init__()
        self.pooled = pooled
        self.token, self.position = nn.Embedding(VOCABULARY, SIZE), nn.Embedding(TIME, SIZE)
        self.layers = nn.Sequential(EncoderLayer(SIZE), EncoderLayer(SIZE))
        self.head = nn.Linear(SIZE, VOCABULARY)

    def forward(self, tokens):
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        x = self.layers(self.token(tokens) + self.position(positions))
        return self.head(x.mean(1) if self.pooled else x)


class ConvolutionNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, SIZE)
        self.body = nn.Sequential(
            nn.Conv1d(SIZE, 6, 3, padding=1),
            nn.ReLU(),
            nn.Conv1d(6, 6, 3, groups=2, stride=2, bias=False),
            nn.Tanh(),
        )
        self.norm, self.head = nn.RMSNorm(6), nn.Linear(6, VOCABULARY)

    def forward(self, tokens):
        x = self.body(self.token(tokens).transpose(1, 2)).transpose(1, 2)
        return self.head(self.norm(x).mean(1))


class TorchLSTM(nn.Module):
    def __init__(self):
        super().__init__()
        self.token, self.lstm = (
            nn.Embedding(VOCABULARY, SIZE),
            nn.LSTM(SIZE, SIZE, num_layers=2, batch_first=True),
        )
        self.head = nn.Linear(SIZE, VOCABULARY)

    def forward(self, tokens):
        return self.head(self.lstm(self.token(tokens))[0])


class ScalarForecast(nn.Module):
    """Layers of one input: a weight that is one column is a matrix nevertheless."""

    def __init__(self):
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, 1)
        self.spread, self.mix = nn.Linear(1, SIZE, bias=False), nn.Conv1d(1, 3, 1)
        self.depthwise = nn.Conv1d(3, 3, 1, groups=3, bias=False)
        self.recurrent = LSTMCell(1, 3, num_heads=3)
        self.head = nn.Linear(SIZE + 6, VOCABULARY)

    def forward(self, tokens):
        x = self.token(tokens)
        mixed = self.depthwise(self.mix(x.transpose(1, 2)).tanh()).transpose(1, 2)
        carried, _ = run(self.recurrent, x.transpose(0, 1), self.recurrent.initial_state(len(x)))
        return self.head(torch.cat([self.spread(x), mixed, carried.transpose(0, 1)], dim=2).tanh())


MODELS = {
    "one input": ScalarForecast,
    "pooled encoder": lambda: Encoder(pooled=True),
    "token encoder": lambda: Encoder(pooled=False),
    "convolutions": ConvolutionNet,
    "torch lstm": TorchLSTM,
}
COVERED = ["pooled encoder", "token encoder", "convolutions", "one input"]
BOTH = [(name, structure) for name in COVERED for structure in (RankOne(), Dense())]
each_foreign = pytest.mark.parametrize(("name", "structure"), [*BOTH, ("torch lstm", Dense())])


def build(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODELS[name]().double()


def batch(rows=4):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, VOCABULARY, (rows, TIME + 1), generator=generator)
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())


def row_cross_entropy(outputs, targets):
    """For outputs per token and, of the last target, per row."""
    if outputs.dim() == 2:
        return F.cross_entropy(outputs, targets[:, -1], reduction="none")
    return F.cross_entropy(outputs.transpose(1, 2), targets, reduction="none").mean(1)


def gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def direction(bound, draw, size, member):
    one = torch.zeros(size, dtype=torch.float64)
    one[member] = 1
    flat = {t.name: torch.full((t.parameter.numel(),), torch.nan, dtype=torch.float64) for t in bound.targets}
    for block in bound.fold(draw, one):
        flat[block.target.name][block.start : block.start + len(block.values)] = block.values
    return {t.name: flat[t.name].view_as(t.parameter) for t in bound.targets}


@each_foreign
@pytest.mark.parametrize("group", [1, 2])
def test_coefficients_are_those_of_moved_weights(name, structure, group):
    model, data, epsilon = build(name), batch(), 0.05
    estimator = CDRGE(population=4, epsilon=epsilon, perturbation=structure, group_size=group, seed=7)
    found = estimator.estimate(model, data, row_cross_entropy).coefficients
    bound, draw = structure.bind(model), Draw(seed=7, step=0, epsilon=epsilon)
    model.eval()
    for member in range(4):
        start = member % (4 // group) * group
        rows = slice(start, start + group)
        z = direction(bound, draw, 4, member)
        losses = []
        for sign in (1, -1):
            moved = {key: p + sign * epsilon * z[key] for key, p in model.named_parameters()}
            with torch.no_grad():
                outputs = torch.func.functional_call(model, moved, (data.inputs[rows],))
            losses.append(row_cross_entropy(outputs, data.targets[rows]).mean())
        expected = (losses[0] - losses[1]) / (2 * epsilon)
        torch.testing.assert_close(found[member], expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("name", "structure", "population"),
    [
        *((name, RankOne(), 64) for name in COVERED),
        ("pooled encoder", Dense(), 4),
        ("convolutions", Dense(), 4),
        ("torch lstm", Dense(), 4),
    ],
)
def test_estimates_correlate_with_autograd_as_theory_says(name, structure, population):
    """⟨ĝ, g⟩ = |g|² and E‖ĝ‖² = (1 + (d − 1) / n) |g|² for signs, so a cosine of about √(n / (n + d − 1))."""
    model, data = build(name).eval(), batch()
    BPTT().estimate(model, data, row_cross_entropy)
    exact = gradient(model)
    square, size = exact.square().sum(), len(exact)
    estimator = CDRGE(population=population, epsilon=1e-5, perturbation=structure, seed=2, group_size=None)
    along, norms = [], []
    for _ in range(20):
        norms.append(estimator.estimate(model, data, row_cross_entropy).gradient_norm ** 2)
        along.append(gradient(model) @ exact / square)
    for values, expected in ((along, 1.0), (norms, float(square) * (1 + (size - 1) / population))):
        sample = torch.tensor(values, dtype=torch.float64)
        error = sample.std() / math.sqrt(len(sample))
        assert abs(sample.mean() - expected) < 5 * error
        assert sample.mean() > 5 * error


# --------------------------------------------------------------------------------- what is not covered


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


def vectors(rows=4):
    x = torch.randn(rows, 3, 4, generator=torch.Generator().manual_seed(1))
    return Batch(x, x)


def mean_square(outputs, targets):
    return outputs.square().mean((1, 2))


def test_activity_noise_names_multihead_attention():
    with pytest.raises(
        UncoveredParameterError, match=r"attention\.in_proj_weight \(in MultiheadAttention\)"
    ) as error:
        Activity().bind(SelfAttention())
    assert "attention.in_proj_bias" in str(error.value)
    assert "requires_grad_(False)" in str(error.value)


def test_a_weight_that_is_read_past_its_module_is_named():
    model = SelfAttention()
    model.attention.in_proj_weight.requires_grad_(False)
    model.attention.in_proj_bias.requires_grad_(False)
    with pytest.warns(SlowerWayWarning, match=r"attention\.out_proj\.weight.*never called"):
        CDRGE(population=4, epsilon=0.1, group_size=None).estimate(model, vectors(), mean_square)
    assert model.attention.out_proj.weight.grad.abs().sum() > 0
    assert "forward" not in model.attention.out_proj.__dict__


@pytest.mark.parametrize("structure", [RankOne(), Dense()])
def test_multihead_attention_works(structure):
    model = SelfAttention()
    CDRGE(population=4, epsilon=0.1, perturbation=structure, group_size=None).estimate(
        model, vectors(), mean_square
    )
    assert model.attention.in_proj_weight.grad is not None
    assert model.attention.in_proj_weight.grad.abs().sum() > 0


class TimeFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.map = nn.Linear(4, 4)

    def forward(self, x):
        return self.map(x.transpose(0, 1)).transpose(0, 1)


class Flattened(TimeFirst):
    def forward(self, x):
        return self.map(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class SharedPositions(TimeFirst):
    """Adds a vector for each position; the index of the positions has no rows in front."""

    def __init__(self, index):
        super().__init__()
        self.position, self.index = nn.Embedding(3, 4), index

    def forward(self, x):
        return self.map(x + self.position(self.index(x)))


@pytest.mark.parametrize(
    "index", [lambda x: torch.arange(3), lambda x: torch.arange(3).unsqueeze(0)], ids=["[time]", "[1, time]"]
)
@pytest.mark.parametrize("group", [1, 2, 4])
def test_positions_that_all_rows_share_are_perturbed_as_if_written_out(index, group):
    found = []
    for kind in (index, lambda x: torch.arange(3).expand(x.shape[:2])):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = SharedPositions(kind).double()
        estimator = CDRGE(population=8, epsilon=0.1, group_size=group)
        found.append(estimator.estimate(model, vectors(), mean_square).coefficients)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_time_in_front_is_found_out_also_where_it_is_as_long_as_the_rows_are_many():
    """8 steps, and 4 members with their antithetic twins: the shapes alone cannot tell."""
    batch = Batch(torch.randn(4, 8, 4), torch.zeros(4))
    with pytest.warns(SlowerWayWarning, match=r"module 'map' was called with a tensor of shape \(8, 4, 4\)"):
        CDRGE(population=4, epsilon=0.1, group_size=1).estimate(TimeFirst(), batch, mean_square)


@pytest.mark.filterwarnings("ignore::zorn.errors.SlowerWayWarning")
@pytest.mark.parametrize("population", [1, 2, 4])
def test_a_pass_of_as_many_rows_as_steps_holds_one_member_and_sign_and_so_is_right(population):
    """6 steps, and a micro-batch of 6 rows: time in front cannot be told from rows in front."""
    batch = Batch(torch.randn(6, 6, 4, dtype=torch.float64), torch.zeros(6))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TimeFirst().double()
    options = {"population": population, "epsilon": 0.1, "micro_batch": 6, "group_size": None}
    found = CDRGE(**options).estimate(model, batch, mean_square).coefficients
    wanted = CDRGE(**options).estimate(nn.Sequential(model.map), batch, mean_square).coefficients
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("norm", [nn.LayerNorm(64, bias=False), nn.RMSNorm(64)], ids=["layer", "rms"])
def test_the_gain_of_a_bfloat16_norm_feels_a_small_epsilon(norm):
    """1e-3 is below the rounding of a gain of 1: the sum must not be rounded before it is used."""
    batch = Batch(torch.randn(512, 64), torch.zeros(512))
    small = Batch(batch.inputs.bfloat16(), batch.targets)
    options = {"population": 32, "epsilon": 1e-3, "group_size": None}

    def weighted(outputs, targets):
        return (outputs.double().square() * torch.linspace(-1, 1, 64).double()).sum(-1)

    wide = CDRGE(**options).estimate(norm.float(), batch, weighted).coefficients
    found = CDRGE(**options).estimate(norm.bfloat16(), small, weighted).coefficients
    slope = float(found @ wide / (wide @ wide))
    error = float((found - slope * wide).norm() / wide.norm()) / math.sqrt(len(wide))
    assert abs(slope - 1) < 5 * error
    assert slope > 5 * error


@pytest.mark.parametrize(
    ("model", "site", "shape"),
    [
        (TimeFirst(), "map", r"\(3, 4, 4\)"),
        (Flattened(), "map", r"\(12, 4\)"),
    ],
)
def test_a_module_that_is_called_without_rows_in_front_is_named(model, site, shape):
    estimator = CDRGE(population=4, epsilon=0.1, group_size=1)
    with pytest.warns(SlowerWayWarning, match=f"module '{site}' was called with a tensor of shape {shape}"):
        found = estimator.estimate(model, vectors(), mean_square).coefficients
    expected = estimator_of_rows(model.map)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def estimator_of_rows(map):
    """The coefficients of the same map with rows in front."""
    estimator = CDRGE(population=4, epsilon=0.1, group_size=1)
    return estimator.estimate(nn.Sequential(map), vectors(), mean_square).coefficients


# --------------------------------------------------------------------------------- a rule of one's own


class Scale(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, size))

    def forward(self, x):
        return x * self.gain


class NamedScale(Scale):
    """Keeps `forward`."""


class OtherScale(Scale):
    def forward(self, x):
        return x * self.gain.exp()


class ScaleRule(Rule):
    def layouts(self, module):
        return {"gain": Layout(rows=module.gain.numel())}

    def perturbed(self, module, noise):
        return {"forward": lambda x: noise.scale(x, module.gain, "gain")}


@pytest.fixture
def _registered(monkeypatch):
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))
    register_rule(Scale, ScaleRule())


@pytest.mark.usefixtures("_registered")
@pytest.mark.parametrize("kind", [Scale, NamedScale])
def test_a_registered_rule_serves_the_type_and_subclasses_that_keep_forward(kind):
    model = nn.Sequential(nn.Linear(4, 5), kind(5)).double()
    data, epsilon = Batch(*(part.double() for part in vectors())), 0.1
    estimator = CDRGE(population=2, epsilon=epsilon, group_size=None)
    found = estimator.estimate(model, data, mean_square).coefficients
    bound, draw = RankOne().bind(model), Draw(seed=0, step=0, epsilon=epsilon)
    for member in range(2):
        z = direction(bound, draw, 2, member)
        assert (z["1.gain"].abs() == 1).all()
        losses = []
        for sign in (1, -1):
            moved = {key: p + sign * epsilon * z[key] for key, p in model.named_parameters()}
            losses.append(mean_square(torch.func.functional_call(model, moved, (data.inputs,)), None).mean())
        expected = (losses[0] - losses[1]) / (2 * epsilon)
        torch.testing.assert_close(found[member], expected.detach(), rtol=1e-9, atol=1e-11)


@pytest.mark.usefixtures("_registered")
def test_a_subclass_that_overrides_forward_needs_a_rule_of_its_own():
    assert find_rule(OtherScale(3)) is None
    with pytest.raises(UncoveredParameterError, match=r"0\.gain \(in OtherScale\)"):
        Activity().bind(nn.Sequential(OtherScale(3)))
    assert RankOne().bind(nn.Sequential(OtherScale(3))).way == "by operation"


def test_an_instance_that_overrides_forward_is_no_layer_of_its_type():
    """Its own forward would silently be left out."""
    layer = nn.Linear(3, 3)
    layer.forward = lambda x: F.linear(x, layer.weight, layer.bias).square()
    with pytest.raises(UncoveredParameterError, match=r"weight \(in Linear\)"):
        Activity().bind(layer)
    assert RankOne().bind(layer).way == "by operation"
    Dense().bind(layer)


@pytest.mark.usefixtures("_registered")
def test_the_last_registration_holds():
    second = ScaleRule()
    register_rule(Scale, second)
    assert find_rule(Scale(3)) is second


def test_a_rule_is_not_registered_for_what_is_no_module_or_is_no_rule():
    unchecked = getattr(register_rule, "__wrapped__", register_rule)  # without the type checks of the tests
    with pytest.raises(ConfigError, match=r"subclass of torch\.nn\.Module"):
        unchecked(int, ScaleRule())
    with pytest.raises(ConfigError, match=r"subclass of zorn\.noise\.Rule"):
        unchecked(Scale, ScaleRule)


def test_without_a_registration_the_layer_runs_by_operation():
    assert RankOne().bind(Scale(3)).way == "by operation"
