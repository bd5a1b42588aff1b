"""What dense noise keeps of a direction between the uses of a member."""

import pytest
import torch
from torch import nn

from zorn.noise import Dense, Draw
from zorn.noise.weights import dense

DRAW = Draw(seed=4, step=9, epsilon=0.25)
each_noise = pytest.mark.parametrize("noise", ["rademacher", "gaussian"])


@each_noise
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_kept_of_a_direction_gives_the_same_bits(noise, dtype, monkeypatch):
    """In whatever order signs, members and steps come, and with a padding row."""
    model = nn.ModuleDict({"embedding": nn.Embedding(9, 5, padding_idx=2), "layer": nn.Linear(5, 9)}).to(
        dtype
    )
    bound = Dense(noise=noise).bind(model)
    monkeypatch.setattr("zorn.noise.weights.structure.FOLD_ELEMENTS", 24)
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
