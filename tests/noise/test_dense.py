"""Dense directions: the weights are moved on a scratch copy, one member and one sign at a time."""

import pytest
import torch
from torch import nn

from zorn.errors import ConfigError
from zorn.estimators import CDRGE
from zorn.models import Batch, LanguageModel
from zorn.noise import Dense, Draw

DRAW = Draw(seed=4, step=9, epsilon=0.25)
each_noise = pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])


def direction(bound, member, size=5):
    one = torch.zeros(size, dtype=torch.float64)
    one[member] = 1
    flat = {t.name: torch.full((t.parameter.numel(),), torch.nan, dtype=torch.float64) for t in bound.targets}
    for block in bound.fold(DRAW, one):
        flat[block.target.name][block.start : block.start + len(block.values)] = block.values.double()
    return {t.name: flat[t.name].view_as(t.parameter) for t in bound.targets}


@each_dtype
@each_noise
@pytest.mark.parametrize("sign", [1, -1])
def test_within_the_block_the_weights_are_theta_plus_s_epsilon_z(noise, dtype, sign):
    model = LanguageModel(7, 4).to(dtype)
    bound = Dense(noise=noise).bind(model)
    before = {name: (p.detach().clone(), p.data_ptr()) for name, p in model.named_parameters()}
    z = direction(bound, 3)
    wide = torch.promote_types(dtype, torch.float32)
    with bound.members(DRAW, range(3, 4), (sign,)):
        for name, p in model.named_parameters():
            expected = before[name][0].to(wide) + sign * DRAW.epsilon * z[name].to(wide)
            torch.testing.assert_close(
                p.data, expected.to(dtype), rtol=1e-6 if dtype != torch.bfloat16 else 0, atol=1e-7
            )
            assert p.data_ptr() != before[name][1]
            assert not p.data.is_inference()
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name][0])
        assert p.data_ptr() == before[name][1]


@each_noise
def test_the_entries_of_members_and_parameters_are_independent_draws(noise):
    model = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40))
    bound = Dense(noise=noise).bind(model)
    first, second = direction(bound, 0), direction(bound, 1)
    pairs = [
        (first[a], other[b])
        for a, other, b in [("0.weight", second, "0.weight"), ("0.weight", first, "2.weight")]
        if b in other
    ]
    pairs += [(first["0.weight"], first["1.weight"]), (first["0.weight"], first["0.weight"].roll(1, 1))]
    for one, other in pairs:
        products = (one * other).flatten()
        assert products.mean().abs() < 5 * products.std() / len(products) ** 0.5
    square = first["0.weight"].square().flatten()
    if noise == "rademacher":
        assert (square == 1).all()
    else:
        assert (square.mean() - 1).abs() < 5 * square.std() / len(square) ** 0.5
    assert torch.linalg.matrix_rank(first["0.weight"]) > 30


def test_a_scratch_copy_is_made_once_for_all_members():
    model = nn.Linear(3, 2)
    bound, seen = Dense().bind(model), set()
    for member in range(3):
        for sign in (1, -1):
            with bound.members(DRAW, range(member, member + 1), (sign,)):
                seen.add(model.weight.data_ptr())
    assert len(seen) == 1


@pytest.mark.parametrize(("members", "signs"), [(range(2), (1,)), (range(1), (1, -1)), (range(0), (1,))])
def test_more_than_one_member_or_sign_at_a_time(members, signs):
    bound = Dense().bind(nn.Linear(3, 2))
    with (
        pytest.raises(ConfigError, match=f"got {len(members)} members and {len(signs)} signs"),
        bound.members(DRAW, members, signs),
    ):
        pass


def test_a_parameter_that_is_not_contiguous():
    model = nn.Linear(3, 2)
    model.weight = nn.Parameter(torch.arange(6.0).view(3, 2).t())
    assert not model.weight.is_contiguous()
    bound, before, stride = Dense().bind(model), model.weight.detach().clone(), model.weight.stride()
    z = direction(bound, 0)["weight"]
    with bound.members(DRAW, range(1), (1,)):
        torch.testing.assert_close(model.weight.data, before + 0.25 * z.float())
    assert torch.equal(model.weight, before)
    assert model.weight.stride() == stride


def test_freezing_leaves_the_noise_of_the_others_as_it_was():
    model = LanguageModel(7, 4)
    everything = direction(Dense().bind(model), 2)
    model.embedding.weight.requires_grad_(False)
    rest = direction(Dense().bind(model), 2)
    assert set(everything) - set(rest) == {"embedding.weight"}
    assert all(torch.equal(z, everything[name]) for name, z in rest.items())


def test_nothing_drifts_in_bfloat16():
    """Adding and taking away ε z would: θ + ε z − ε z is not θ in floating point."""
    model = LanguageModel(7, 4).to(torch.bfloat16)
    before = [p.detach().clone() for p in model.parameters()]
    z = direction(Dense().bind(model), 0)["head.weight"].to(torch.bfloat16)
    weight = model.head.weight.detach()
    assert not torch.equal(weight + 0.25 * z - 0.25 * z, weight)
    bound = Dense().bind(model)
    for member in range(5):
        for sign in (1, -1):
            with bound.members(DRAW, range(member, member + 1), (sign,)):
                pass
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_a_block_inside_inference_mode_leaves_plain_tensors():
    model = nn.Linear(3, 2)
    bound = Dense().bind(model)
    with torch.inference_mode(), bound.members(DRAW, range(1), (1,)):
        model(torch.ones(1, 3))
    assert not model.weight.is_inference()
    model(torch.ones(1, 3)).sum().backward()


def test_the_padding_row_of_an_embedding_is_never_trained():
    embedding = nn.Embedding(5, 3, padding_idx=1)
    batch = Batch(torch.tensor([[0, 1], [1, 4]]), torch.zeros(2))
    estimator = CDRGE(population=8, epsilon=0.1, perturbation=Dense(), group_size=None)
    estimator.estimate(embedding, batch, lambda outputs, targets: outputs.square().sum((1, 2)))
    assert embedding.weight.grad is not None
    assert (embedding.weight.grad[1] == 0).all()
    assert (embedding.weight.grad[0] != 0).all()
