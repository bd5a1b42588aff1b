"""Known faults of public code: the noise, and what it is added to. Each test says its fault.

Most were measured in the code of the paper (Chaubard and Kochenderfer, 2025), others in libraries near it. A
fault that is found later gets a test here or in the files beside it.
"""

from collections import Counter

import pytest
import torch
from torch import nn

from zorn.estimators import CDRGE, FDRGE, SPSA15
from zorn.models import Batch, LanguageModel, row_losses
from zorn.noise import Dense, Draw, MemberwiseRule, RankOne, register_rule
from zorn.noise.rules import rule as rules
from zorn.noise.weights import dense
from zorn.noise.weights.structure import FOLD_ELEMENTS
from zorn.tasks import TokenCrossEntropy

DRAW = Draw(seed=4, step=9, epsilon=0.25)
STRUCTURES = {
    "rank one": RankOne(),
    "rank-one gaussian": RankOne(noise="gaussian"),
    "dense": Dense(),
    "dense gaussian": Dense(noise="gaussian"),
}
each_structure = pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)
each_noise = pytest.mark.parametrize("noise", ["rademacher", "gaussian"])


def direction(bound, member, draw=DRAW, members=8):
    one = torch.zeros(members, dtype=torch.float64)
    one[member] = 1
    flat = {t.name: torch.full((t.parameter.numel(),), torch.nan, dtype=torch.float64) for t in bound.targets}
    for block in bound.fold(draw, one):
        flat[block.target.name][block.start : block.start + len(block.values)] = block.values.double()
    return {t.name: flat[t.name].view_as(t.parameter) for t in bound.targets}


def assert_uncorrelated(one, other):
    products = (one * other).flatten()
    assert products.mean().abs() < 5 * products.std() / len(products) ** 0.5


@each_structure
def test_every_tensor_and_chunk_has_noise_of_its_own(structure):
    """Public code seeds its generator anew, with one seed, for every tensor and every chunk of a tensor."""
    rows, columns = 2 * FOLD_ELEMENTS // 512 + 40, 512
    model = nn.ModuleDict({name: nn.Linear(columns, rows, bias=False) for name in ("one", "other")})
    model["gain"] = nn.LayerNorm(2 * FOLD_ELEMENTS + 100, bias=False)
    found = direction(structure.bind(model), 0)
    one, other, gain = found["one.weight"], found["other.weight"], found["gain.weight"]
    assert one.numel() > 2 * FOLD_ELEMENTS
    if isinstance(structure, RankOne):  # a product of factors has fewer independent entries: compare those
        vectors = {
            "one row": one[:, 0],
            "one column": one[0],
            "other row": other[:, 0],
            "other column": other[0],
        }
        pairs = [(vectors["one row"], vectors["other row"]), (vectors["one column"], vectors["other column"])]
        cut = FOLD_ELEMENTS // 512
        pairs += [(one[:cut, 0], one[cut : 2 * cut, 0]), (one[:cut, 0], one[-cut:, 0])]
        pairs += [(one[:500, 0], gain[:500]), (one[0, :500], gain[:500])]
    else:
        flat = one.flatten()
        pairs = [(one, other), (flat[:FOLD_ELEMENTS], flat[FOLD_ELEMENTS : 2 * FOLD_ELEMENTS])]
        pairs += [(flat[:1000], flat[2 * FOLD_ELEMENTS :][:1000]), (flat[: len(gain)], gain[: len(flat)])]
    pairs += [(gain[:FOLD_ELEMENTS], gain[FOLD_ELEMENTS : 2 * FOLD_ELEMENTS])]
    for first, second in pairs:
        assert_uncorrelated(first, second)


class Layers(nn.Module):
    """A layer of each kind: with a rule, one that runs member by member, and one that is normalised."""

    def __init__(self):
        super().__init__()
        self.body, self.slope, self.norm = nn.Linear(6, 8), nn.PReLU(8), nn.LayerNorm(8)
        self.scale = nn.BatchNorm1d(8)

    def forward(self, x):
        return self.norm(self.scale(self.slope(self.body(x))))


@pytest.fixture
def layers(monkeypatch):
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))
    register_rule(nn.PReLU, MemberwiseRule())
    register_rule(nn.BatchNorm1d, MemberwiseRule())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Layers().eval()
    model.scale.running_mean.normal_(generator=torch.Generator().manual_seed(2))
    return model


def inputs(rows, dtype=torch.float32):
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("structure", [RankOne(), Dense()], ids=["rank one", "dense"])
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_hundred_perturbations_leave_the_weights_bit_identical(structure, dtype, layers):
    """Public code adds ε z and takes it away again: in bfloat16, weights drift by up to 0.5 in 100 rounds."""
    model, x = layers.to(dtype), inputs(2, dtype)
    before = {name: p.clone() for name, p in model.named_parameters()}
    drifted = {name: p.clone() for name, p in before.items()}
    bound, plain = structure.bind(model), model(x)
    for member in range(50):
        z = {name: value.to(dtype) for name, value in direction(bound, member, members=50).items()}
        for sign in (1, -1):
            with bound.members(DRAW, range(member, member + 1), (sign,)):
                assert not torch.equal(model(x), plain)
            for name, value in drifted.items():
                value.add_(z[name], alpha=sign * DRAW.epsilon).sub_(z[name], alpha=sign * DRAW.epsilon)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert torch.equal(model(x), plain)
    assert any(not torch.equal(value, before[name]) for name, value in drifted.items())  # the fault is real


@each_structure
@torch.no_grad()
def test_frozen_parameters_and_buffers_are_never_perturbed(structure, layers):
    """Public code perturbs all that a model holds, frozen parameters and buffers with it."""
    frozen = ["body.bias", "slope.weight", "norm.weight"]
    for name in frozen:
        layers.get_parameter(name).requires_grad_(False)
    fixed = {name: layers.get_parameter(name) for name in frozen} | dict(layers.named_buffers())
    before = {name: tensor.clone() for name, tensor in fixed.items()}
    seen = Counter()

    def look(*_):
        for name, tensor in fixed.items():
            assert torch.equal(tensor, before[name])
            seen[name] += 1

    layers.body.register_forward_hook(look)
    layers.norm.register_forward_pre_hook(look)
    for module in (layers.slope, layers.scale):
        module.register_forward_hook(look)
    estimator = CDRGE(population=4, epsilon=0.25, perturbation=structure, group_size=None)
    estimator.estimate(layers, Batch(inputs(4), torch.zeros(4)), lambda y, _: y.square().mean(1))
    assert min(seen.values()) > 0
    look()
    assert all(layers.get_parameter(name).grad is None for name in frozen)
    assert set(direction(structure.bind(layers), 0)) == {
        name for name, _ in layers.named_parameters() if name not in frozen
    }


@torch.no_grad()
@pytest.mark.parametrize("name", ["body.weight", "slope.weight", "scale.bias"])
def test_of_a_frozen_model_only_what_is_thawed_moves_the_output(name, layers):
    """The same fault, seen from the output."""
    layers.requires_grad_(False)
    layers.get_parameter(name).requires_grad_(True)
    for structure in (RankOne(), Dense()):
        bound, x = structure.bind(layers), inputs(3)
        z = direction(bound, 2)
        assert set(z) == {name}
        moved = {name: layers.get_parameter(name) + DRAW.epsilon * z[name].float()}
        with bound.members(DRAW, range(2, 3), (1,)):
            found = layers(x)
        torch.testing.assert_close(found, torch.func.functional_call(layers, moved, (x,)))


# ------------------------------------------------------------------------------------- drawn at most twice


@each_noise
@pytest.mark.parametrize("kind", [CDRGE, FDRGE])
@pytest.mark.parametrize("micro_batch", [512, 3])
def test_noise_is_drawn_at_most_twice_a_member(kind, noise, micro_batch, monkeypatch):
    """Public code draws it three times: for θ + ε z, for θ − ε z, and for the update."""
    model, drawn, plain_noise = LanguageModel(7, 4), Counter(), dense.noise
    plain_words = dense.sign_words

    def spy(kind, draw, members, stream, count, *, offset=0, **options):
        drawn.update((m, stream, e) for m in members for e in range(offset, offset + count))
        return plain_noise(kind, draw, members, stream, count, offset=offset, **options)

    def spy_words(seed, step, members, stream, count, *, offset=0, **options):
        drawn.update((m, stream, e) for m in members for e in range(offset, offset + count))
        return plain_words(seed, step, members, stream, count, offset=offset, **options)

    monkeypatch.setattr(dense, "noise", spy)
    monkeypatch.setattr(dense, "sign_words", spy_words)
    monkeypatch.setattr("zorn.noise.weights.structure.FOLD_ELEMENTS", 64)  # whole words of signs
    batch = Batch(torch.ones(4, 5, dtype=torch.int64), torch.zeros(4))
    estimator = kind(
        population=3, epsilon=0.1, group_size=None, perturbation=Dense(noise=noise), micro_batch=micro_batch
    )
    estimator.estimate(model, batch, lambda outputs, targets: outputs.square().mean((1, 2)))
    assert len(drawn) == 3 * sum(p.numel() for p in model.parameters())
    assert set(drawn.values()) == {2}


# ------------------------------------------------------------------------------- whose weights a row meets


@each_structure
@torch.no_grad()
def test_members_never_see_weights_of_another_member(structure, layers):
    """Public code leaves a member's perturbation in the weights that the next member is evaluated at."""
    model, group = layers.double(), 2
    bound, x, members, signs = structure.bind(model), inputs(12, torch.float64), range(3), (1, -1)
    lanes = [(sign, member) for sign in signs for member in members]
    weights, alone = {name: p.clone() for name, p in model.named_parameters()}, []
    for lane, (sign, member) in enumerate(lanes):
        z = direction(bound, member)
        moved = {name: p + sign * DRAW.epsilon * z[name] for name, p in weights.items()}
        rows = x[lane * group : (lane + 1) * group]
        with bound.members(DRAW, range(member, member + 1), (sign,)):
            alone.append(model(rows))
        expected = torch.func.functional_call(model, moved, (rows,))
        torch.testing.assert_close(alone[-1], expected, rtol=1e-9, atol=1e-11)
    if not structure.side_by_side:
        return
    for lane in range(len(lanes)):
        mine = slice(lane * group, (lane + 1) * group)
        others = torch.full_like(x, torch.nan)
        others[mine] = x[mine]
        with bound.members(DRAW, members, signs, group):
            found = model(others)
        torch.testing.assert_close(found[mine], alone[lane], rtol=1e-9, atol=1e-11)
        assert found.isnan().all(1).sum() == len(x) - group


# ------------------------------------------------------------------------------------ the ε of a step


@pytest.mark.parametrize("kind", [CDRGE, FDRGE, SPSA15])
def test_epsilon_is_that_of_the_question_when_a_schedule_has_moved(kind):
    """Public code reads ε again when the losses come back, at its next value on the schedule."""
    model = nn.Linear(3, 2)
    estimator = kind(population=4, epsilon=0.25, group_size=None)
    asked = estimator.ask(model)
    slopes = torch.tensor([1.0, -2.0, 0.5, 4.0], dtype=torch.float64)
    losses = torch.stack([sign * 0.25 * slopes for sign in asked.signs])  # of a linear objective
    estimator.epsilon = 0.125
    found = estimator.tell(model, asked, losses)
    assert torch.equal(found.coefficients, slopes)
    z = torch.stack([direction(asked.perturbation.bind(model), j, asked.draw, 4)["weight"] for j in range(4)])
    expected = (slopes[:, None, None] * z).mean(0).float()
    torch.testing.assert_close(model.weight.grad, expected)


# ------------------------------------------------------------------------------- parameters without effect

MODELS: dict[str, dict] = {
    **{cell: {"cell": cell} for cell in ("lstm", "gru", "min-gru")},
    "dnc": {"cell": "dnc", "cell_settings": {"memory_slots": 5, "memory_width": 4, "read_heads": 2}},
    "dnc, simple memory": {
        "cell": "dnc",
        "cell_settings": {"memory_slots": 5, "memory_width": 4, "simple_memory": True},
    },
    "stack": {"num_layers": 2, "num_heads": 2, "norm": "layer", "residual": True},
    "tied stack": {"cell": "gru", "num_layers": 2, "norm": "rms", "tie_embedding": True},
}


@pytest.mark.parametrize("structure", [RankOne(), Dense()], ids=["rank one", "dense"])
@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
@torch.no_grad()
def test_every_parameter_that_is_perturbed_changes_the_loss(structure, options):
    """Public code perturbs parameters that nothing reads: half of them on the CPU, and one in the DNC."""
    model = LanguageModel(7, 8, **options).double()
    tokens = torch.randint(7, (4, 9), generator=torch.Generator().manual_seed(0))
    batch = Batch(tokens[:, :-1], tokens[:, 1:])
    plain = row_losses(model, batch, TokenCrossEntropy())
    for name, parameter in model.named_parameters():
        model.requires_grad_(False)
        parameter.requires_grad_(True)
        with structure.bind(model).members(DRAW, range(1), (1,)):
            moved = row_losses(model, batch, TokenCrossEntropy())
        assert float((moved - plain).abs().max()) > 1e-9, name
