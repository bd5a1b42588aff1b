"""Faults that public code of zero-order training is known for, each with a test that would catch it here."""

from collections import Counter

import pytest
import torch
from torch import nn

from zorn.estimators import CDRGE, FDRGE
from zorn.models import Batch, LanguageModel
from zorn.perturbations import Dense, Draw, MemberwiseRule, RankOne, dense, register_rule, rules
from zorn.perturbations.perturbation import FOLD_ELEMENTS

DRAW = Draw(seed=4, step=9, epsilon=0.25)
STRUCTURES = {
    "rank one": RankOne(),
    "rank-one gaussian": RankOne(noise="gaussian"),
    "dense": Dense(),
    "dense gaussian": Dense(noise="gaussian"),
}
each_structure = pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)
each_noise = pytest.mark.parametrize("noise", ["rademacher", "gaussian"])


def direction(bound, member, members=8):
    one = torch.zeros(members, dtype=torch.float64)
    one[member] = 1
    flat = {t.name: torch.full((t.parameter.numel(),), torch.nan, dtype=torch.float64) for t in bound.targets}
    for block in bound.fold(DRAW, one):
        flat[block.target.name][block.start : block.start + len(block.values)] = block.values.double()
    return {t.name: flat[t.name].view_as(t.parameter) for t in bound.targets}


def assert_uncorrelated(one, other):
    products = (one * other).flatten()
    assert products.mean().abs() < 5 * products.std() / len(products) ** 0.5


@each_structure
def test_every_tensor_and_chunk_has_noise_of_its_own(structure):
    """Public code seeds a generator anew for each tensor, or each chunk of one, with the same seed."""
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


@each_structure
@torch.no_grad()
def test_a_hundred_perturbations_leave_bfloat16_weights_bit_identical(structure, layers):
    """Public code adds ε z and takes it away again: single weights drift by up to 0.5 in a hundred rounds."""
    model, x = layers.bfloat16(), inputs(2, torch.bfloat16)
    before = {name: p.clone() for name, p in model.named_parameters()}
    drifted = {name: p.clone() for name, p in before.items()}
    bound, plain = structure.bind(model), model(x)
    for member in range(50):
        z = {name: value.bfloat16() for name, value in direction(bound, member, 50).items()}
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
    estimator = CDRGE(population=4, epsilon=0.25, perturbation=structure)
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

    def spy(kind, draw, members, stream, count, *, offset=0, **options):
        drawn.update((m, stream, e) for m in members for e in range(offset, offset + count))
        return plain_noise(kind, draw, members, stream, count, offset=offset, **options)

    monkeypatch.setattr(dense, "noise", spy)
    monkeypatch.setattr(dense, "FOLD_ELEMENTS", 50)
    batch = Batch(torch.ones(4, 5, dtype=torch.int64), torch.zeros(4))
    estimator = kind(population=3, epsilon=0.1, perturbation=Dense(noise=noise), micro_batch=micro_batch)
    estimator.estimate(model, batch, lambda outputs, targets: outputs.square().mean((1, 2)))
    assert len(drawn) == 3 * sum(p.numel() for p in model.parameters())
    assert set(drawn.values()) == {2}


@each_noise
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_kept_of_a_direction_gives_the_same_bits(noise, dtype, monkeypatch):
    """In whatever order signs, members and steps come, and with a padding row."""
    model = nn.ModuleDict({"embedding": nn.Embedding(9, 5, padding_idx=2), "layer": nn.Linear(5, 9)}).to(
        dtype
    )
    bound = Dense(noise=noise).bind(model)
    monkeypatch.setattr(dense, "FOLD_ELEMENTS", 24)
    wide = torch.promote_types(dtype, torch.float32)
    for member, sign, step in [
        (0, 1, 9),
        (0, -1, 9),
        (0, 1, 9),
        (1, -1, 9),
        (1, 1, 9),
        (0, 1, 9),
        (0, -1, 8),
    ]:
        draw, expected = Draw(seed=4, step=step, epsilon=0.25), {}
        for target in bound.targets:
            p = target.parameter
            z = dense.noise(
                noise,
                draw,
                range(member, member + 1),
                dense.stream_of(target.number, 0),
                p.numel(),
                dtype=dtype,
                device=p.device,
            )[0].view_as(p)
            if target.name == "embedding.weight":
                z[2] = 0
            expected[target.name] = torch.add(p.detach().to(wide), z, alpha=sign * 0.25).to(dtype)
        with bound.members(draw, range(member, member + 1), (sign,)):
            for name, p in model.named_parameters():
                assert torch.equal(p.data, expected[name])


@pytest.mark.parametrize(("noise", "share"), [("rademacher", 1 / 32), ("gaussian", 1.0)])
def test_what_is_kept_of_a_direction_is_as_small_as_is_said(noise, share):
    model = nn.Linear(800, 800, bias=False)
    bound = Dense(noise=noise).bind(model)
    for sign in (1, -1):
        with bound.members(DRAW, range(1), (sign,)):
            pass
    kept = sum(tensor.untyped_storage().nbytes() for tensor in bound._kept.values())
    assert kept == pytest.approx(share * model.weight.nbytes, rel=1e-3)


# ------------------------------------------------------------------------------- whose weights a row meets


@each_structure
@torch.no_grad()
def test_members_never_see_weights_of_another_member(structure, layers):
    """A member's rows are the same alone and beside others, whatever the others are given."""
    model, group = layers.double(), 2
    bound, x, members, signs = structure.bind(model), inputs(12, torch.float64), range(3), (1, -1)
    lanes = [(sign, member) for sign in signs for member in members]
    alone = []
    for lane, (sign, member) in enumerate(lanes):
        z = direction(bound, member)
        moved = {name: p + sign * DRAW.epsilon * z[name] for name, p in model.named_parameters()}
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
