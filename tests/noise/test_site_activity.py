"""One site's activity noise: how its gradients are added up."""

import pytest
import torch

from zorn.noise import Draw
from zorn.noise.activity.site import STEPS_AHEAD, NoiseTape, Replaying


@pytest.mark.parametrize("shape", [(1, 2), (1, STEPS_AHEAD, 2)], ids=["step by step", "chunk by chunk"])
def test_gradients_of_bfloat16_add_up_in_float32(shape):
    """600 contributions of 1: in bfloat16 256 + 1 is 256."""
    calls = 600 * (STEPS_AHEAD if len(shape) == 2 else 1)  # steps are summed up together, so many at a time
    steps = 600 * STEPS_AHEAD
    tape = NoiseTape("rademacher", Draw(seed=3, step=5, epsilon=0.25), range(1), 7, steps)
    y = torch.zeros(shape, dtype=torch.bfloat16)
    one = torch.ones(3, dtype=torch.bfloat16)
    site = Replaying(tape, torch.ones(1, 1, steps), lambda *_: {"weight": one}, keep=True)
    for _ in range(calls):
        assert site.at(y, y) is y
    site.flush()
    assert site.gradients["weight"].dtype == torch.float32
    assert site.gradients["weight"].tolist() == [600.0] * 3
    assert one.tolist() == [1.0] * 3, "what a pullback gives is left as it is"
