"""Layers without a rule, run member by member: what they put out is what moved weights would."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from zorn.errors import ConfigError, UncoveredParameterError
from zorn.estimators import CDRGE
from zorn.models import Batch
from zorn.noise import Activity, Dense, Draw, MemberwiseRule, RankOne, register_rule
from zorn.noise.rules import rule as rules

DRAW = Draw(seed=3, step=5, epsilon=0.1)
MEMBERS, SIGNS, GROUP = range(2, 5), (1, -1), 2
LANES = [(sign, member) for sign in SIGNS for member in MEMBERS]
ROWS = len(LANES) * GROUP
STRUCTURES = [RankOne(), RankOne(noise="gaussian")]
each_structure = pytest.mark.parametrize("structure", STRUCTURES, ids=["signs", "gaussian"])


class Scale(nn.Module):
    """A user's layer, with a list of its own of its parameters, and outputs in a dictionary."""

    def __init__(self, size):
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.linspace(0.5, 1.5, size)), nn.Parameter(torch.ones(()))
        self.pair = [self.gain, self.shift]

    def forward(self, x, power=1, *, offset=None):
        gain, shift = self.pair
        y = x**power * gain + shift
        return {"y": y if offset is None else y + offset, "rest": [None, (x.mean(-1),)]}


class Recurrent(nn.Module):
    """Carries the state of a torch.nn layer, rows first, through two chunks of time."""

    def __init__(self, kind, **options):
        super().__init__()
        self.layer = kind(4, 3, num_layers=2, batch_first=True, **options)

    def forward(self, x):
        first, state = self.layer(x[:, :2])
        second, state = self.layer(x[:, 2:], state)
        last = state if isinstance(state, tuple) else (state,)
        return torch.cat([first, second], 1), tuple(part.transpose(0, 1) for part in last)


def vectors(*shape, dtype=torch.float64):
    return torch.randn(ROWS, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(
        dtype
    )


def attention():
    layer = nn.MultiheadAttention(4, 2, batch_first=True)
    layer.out_proj.requires_grad_(False)
    return layer


CASES = {
    "user's layer": (lambda: Scale(4), (vectors(3, 4), 2), {"offset": torch.ones(4)}),
    "one output of one number": (lambda: nn.Bilinear(4, 5, 1), (vectors(4), vectors(5)), {}),
    "two inputs": (lambda: nn.Bilinear(4, 5, 3), (vectors(2, 4), vectors(2, 5)), {}),
    "convolution": (lambda: nn.Conv2d(2, 3, 3, padding=1), (vectors(2, 4, 5),), {}),
    "as many channels as rows of a member": (lambda: nn.Conv2d(2, GROUP, 3), (vectors(2, 4, 5),), {}),
    "slope": (lambda: nn.PReLU(4), (vectors(4, 3),), {}),
    "batch norm": (lambda: nn.BatchNorm1d(4).eval(), (vectors(4, 3),), {}),
    "gru": (lambda: Recurrent(nn.GRU), (vectors(5, 4),), {}),
    "lstm": (lambda: Recurrent(nn.LSTM), (vectors(5, 4),), {}),
    "lstm with projection": (lambda: Recurrent(nn.LSTM, proj_size=2), (vectors(5, 4),), {}),
    "two directions": (lambda: Recurrent(nn.RNN, bidirectional=True), (vectors(5, 4),), {}),
    "gru cell": (lambda: nn.GRUCell(4, 3), (vectors(4), vectors(3)), {}),
    "attention": (
        attention,
        (vectors(3, 4), vectors(5, 4), vectors(5, 4)),
        {"attn_mask": torch.zeros(3, 5, dtype=torch.float64)},
    ),
}
TYPES = (
    Scale,
    nn.Bilinear,
    nn.Conv2d,
    nn.PReLU,
    nn.BatchNorm1d,
    nn.GRU,
    nn.LSTM,
    nn.RNN,
    nn.GRUCell,
    nn.MultiheadAttention,
)


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))
    rule = MemberwiseRule()
    for kind in TYPES:
        register_rule(kind, rule)


def build(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().double()


def direction(bound, member):
    one = torch.zeros(MEMBERS.stop, dtype=torch.float64)
    one[member] = 1
    flat = {t.name: torch.zeros(t.parameter.numel(), dtype=torch.float64) for t in bound.targets}
    for block in bound.fold(DRAW, one):
        flat[block.target.name][block.start : block.start + len(block.values)] = block.values.double()
    return {t.name: flat[t.name].view_as(t.parameter) for t in bound.targets}


def tensors(tree):
    if isinstance(tree, torch.Tensor):
        yield tree
    elif tree is not None:
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from tensors(part)


def rows_of(value, lane):
    """A member's rows of what has them; what all share as it is."""
    part = slice(lane * GROUP, (lane + 1) * GROUP)
    return value[part] if isinstance(value, torch.Tensor) and len(value) == ROWS else value


def moved_copy(model, z, sign):
    """A copy of the model whose weights are θ + s ε z, rounded once: what `Dense` runs."""
    other = copy.deepcopy(model)
    for name, p in other.named_parameters():
        if name in z:
            wide = torch.promote_types(p.dtype, torch.float32)
            p.data.copy_(p.data.to(wide) + sign * DRAW.epsilon * z[name].to(wide))
    return other


def expected_outputs(model, bound, arguments, options):
    lanes = []
    for lane, (sign, member) in enumerate(LANES):
        other = moved_copy(model, direction(bound, member), sign)
        cut = [rows_of(value, lane) for value in arguments]
        lanes.append(list(tensors(other(*cut, **{key: rows_of(v, lane) for key, v in options.items()}))))
    return [torch.cat(parts) for parts in zip(*lanes, strict=True)]


@each_structure
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_every_members_rows_are_those_of_moved_weights(case, structure):
    make, arguments, options = CASES[case]
    model = build(make)
    bound = structure.bind(model)
    before = {name: (p, p.data_ptr(), p.clone()) for name, p in model.named_parameters()}
    plain = list(tensors(model(*arguments, **options)))
    with bound.members(DRAW, MEMBERS, SIGNS, GROUP):
        found = list(tensors(model(*arguments, **options)))
    for one, wanted in zip(found, expected_outputs(model, bound, arguments, options), strict=True):
        torch.testing.assert_close(one, wanted, rtol=1e-9, atol=1e-11)
    assert not torch.allclose(found[0], plain[0])
    for name, p in model.named_parameters():
        assert p is before[name][0]
        assert p.data_ptr() == before[name][1]
        assert torch.equal(p, before[name][2])
    for one, wanted in zip(tensors(model(*arguments, **options)), plain, strict=True):
        assert torch.equal(one, wanted)


@torch.no_grad()
def test_bfloat16_weights_are_moved_in_float32_and_rounded_once():
    """Rounding s ε z and then the sum would give other weights."""
    model = nn.PReLU(512).bfloat16()
    model.weight.data = torch.linspace(0.3, 3, 512).bfloat16()
    x = -torch.ones(ROWS, 512, dtype=torch.bfloat16)
    bound = RankOne(noise="gaussian").bind(model)
    with bound.members(DRAW, MEMBERS, SIGNS, GROUP):
        found = model(x)
    assert torch.equal(found, expected_outputs(model, bound, (x,), {})[0])


@torch.no_grad()
def test_the_noise_is_dense_and_independent_between_members_and_parameters():
    bound = RankOne().bind(nn.Bilinear(20, 20, 20))
    first, second = direction(bound, 0)["weight"], direction(bound, 1)["weight"]
    assert (first.abs() == 1).all()
    products = (first * second).flatten()
    assert products.mean().abs() < 5 * products.std() / len(products) ** 0.5
    assert torch.linalg.matrix_rank(first[0]) > 15


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("micro_batch", [3, 512])
def test_estimates_are_those_of_one_member_at_a_time(group, micro_batch):
    """The layer stands between layers whose members run side by side."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.body, self.last = (
                nn.Linear(4, 4),
                nn.GRU(4, 3, batch_first=True),
                nn.Linear(3, 1),
            )

        def forward(self, x):
            y, state = self.body(self.first(x))
            return self.last(y + state[-1].unsqueeze(1))

    model, x = build(Net), vectors(5, 4)[:4]
    estimator = CDRGE(population=8, epsilon=0.1, group_size=group, micro_batch=micro_batch, seed=2)
    found = estimator.estimate(model, Batch(x, x), lambda y, _: y.square().mean((1, 2))).coefficients
    bound = RankOne().bind(model)
    for member in range(8):
        start = member % (4 // group) * group
        losses = []
        for sign in (1, -1):
            block = bound.members(Draw(seed=2, step=0, epsilon=0.1), range(member, member + 1), (sign,))
            with torch.no_grad(), block:
                losses.append(model(x[start : start + group]).square().mean())
        torch.testing.assert_close(found[member], (losses[0] - losses[1]) / 0.2, rtol=1e-9, atol=1e-11)


class Failing(Scale):
    calls = 0

    def forward(self, x):
        self.calls += 1
        if self.calls == 6:
            raise RuntimeError("from the layer")
        return x * self.gain


def test_weights_come_back_after_an_exception_in_the_layer():
    register_rule(Failing, MemberwiseRule())
    model = Failing(4)
    before = [(p, p.data_ptr(), p.detach().clone()) for p in model.parameters()]
    bound = RankOne().bind(model)
    with pytest.raises(RuntimeError, match="from the layer"), bound.members(DRAW, MEMBERS, SIGNS, GROUP):
        model(vectors(4))
    assert "forward" not in model.__dict__
    for p, (original, place, value) in zip(model.parameters(), before, strict=True):
        assert p is original
        assert p.data_ptr() == place
        assert torch.equal(p, value)


def test_frozen_parameters_of_the_layer_stay_as_they_are():
    model = build(lambda: nn.Bilinear(4, 5, 3)).requires_grad_(False)
    model.bias.requires_grad_(True)
    bound = RankOne().bind(model)
    with torch.no_grad():
        with bound.members(DRAW, MEMBERS, SIGNS, GROUP):
            found = model(vectors(4), vectors(5))
        shift = found - model(vectors(4), vectors(5))
    assert [t.name for t in bound.targets] == ["bias"]
    torch.testing.assert_close(shift.abs(), torch.full_like(shift, 0.1))


# ------------------------------------------------------------------------------------- what is refused


class Parent(nn.Module):
    def __init__(self):
        super().__init__()
        self.start, self.body, self.fixed = nn.Parameter(torch.ones(4)), nn.Linear(4, 4), nn.Linear(4, 4)
        self.fixed.requires_grad_(False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Parent, r"cannot run Parent, which holds modules that are perturbed by themselves \(body\)"),
        (lambda: nn.GRU(4, 3), r"cannot run GRU, which puts time in front .*batch_first=True"),
        (lambda: nn.MultiheadAttention(4, 2), r"MultiheadAttention, which holds .*\(out_proj\)"),
        (lambda: nn.ParameterList([torch.ones(2)]), "ParameterList, which is no layer with a forward"),
        (
            lambda: prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5),
            "Linear, which has a forward pre-hook",
        ),
        (lambda: nn.utils.spectral_norm(nn.Linear(4, 4)), "Linear, which has a forward pre-hook"),
    ],
)
def test_a_module_that_cannot_run_member_by_member_is_named(make, message):
    model = make()
    register_rule(type(model), MemberwiseRule())
    with pytest.raises(ConfigError, match=message):
        RankOne().bind(model)


class Counting(nn.Module):
    """A layer that writes a buffer, in place or by another tensor."""

    def __init__(self, in_place):
        super().__init__()
        self.gain, self.in_place = nn.Parameter(torch.ones(4)), in_place
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        if self.in_place:
            self.calls += 1
        else:
            self.calls = self.calls + 1
        return x * self.gain * self.calls


@pytest.mark.parametrize("in_place", [True, False])
def test_a_layer_that_writes_a_buffer_is_refused(in_place):
    register_rule(Counting, MemberwiseRule())
    batch = Batch(torch.ones(2, 4), torch.ones(2, 4))
    with pytest.raises(ConfigError, match="other outputs for the same inputs"):
        CDRGE(population=4, epsilon=0.1, group_size=None).estimate(
            Counting(in_place), batch, lambda outputs, targets: outputs.sum(1)
        )


class Odd(nn.Module):
    """A layer that answers as it is told."""

    def __init__(self, answer):
        super().__init__()
        self.weight, self.answer = nn.Parameter(torch.ones(GROUP)), answer

    def forward(self, *arguments):
        return self.answer(self, *arguments)


@pytest.mark.parametrize(
    ("answer", "arguments", "message"),
    [
        (lambda layer: layer.weight, (), "module '' .* called without rows"),
        (lambda layer, n: layer.weight.expand(n, -1), (ROWS,), "called without rows"),
        (lambda layer, x: x, (torch.tensor(1.0),), "called without rows"),
        (lambda layer, x: x, (vectors(3).T,), r"called with a tensor of shape \(3, 12\)"),
        (lambda layer, x: x.mean(), (vectors(3),), r"Odd .* output of it has shape \[\] for 2 rows and \[\]"),
        (lambda layer, x: layer.weight, (vectors(3),), r"shape \[2\] for 2 rows and \[2\] for 3"),
        (lambda layer, x: x @ x.T, (vectors(3),), r"shape \[2, 2\] for 2 rows and \[3, 3\] for 3"),
        (lambda layer, x: (x, 7), (vectors(3),), "returned a int: expected tensors"),
        (
            lambda layer, x: x,
            (nn.utils.rnn.pack_sequence([torch.ones(3, 2)] * ROWS),),
            "PackedSequence cannot be cut",
        ),
    ],
)
def test_a_call_whose_rows_cannot_be_told_is_refused(answer, arguments, message):
    register_rule(Odd, MemberwiseRule())
    model = Odd(answer)
    with (
        torch.no_grad(),
        pytest.raises(ConfigError, match=message),
        RankOne().bind(model).members(DRAW, MEMBERS, SIGNS, GROUP),
    ):
        model(*arguments)


def test_a_layer_that_shares_a_weight_with_one_that_has_a_rule():
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.PReLU())
    model[1].weight = model[0].weight
    assert RankOne().bind(model).way == "by operation"
    with pytest.raises(UncoveredParameterError, match=r"0\.weight \(shared by"):
        Activity().bind(model)


def test_two_layers_that_share_a_weight_have_one_noise():
    model = nn.Sequential(nn.PReLU(4), nn.Tanh(), nn.PReLU(4)).double()
    model[2].weight = model[0].weight
    bound, x = RankOne().bind(model), vectors(4)
    with torch.no_grad():
        with bound.members(DRAW, MEMBERS, SIGNS, GROUP):
            found = model(x)
        torch.testing.assert_close(found, expected_outputs(model, bound, (x,), {})[0], rtol=1e-9, atol=1e-11)


def test_the_same_layer_under_dense_needs_no_rule(monkeypatch):
    monkeypatch.setattr(rules, "_RULES", {})
    assert [t.name for t in Dense().bind(nn.GRU(4, 3)).targets]
