"""Reward-to-go against its definition."""

import pytest
import torch

from zorn.estimators.credit import reward_to_go


@pytest.mark.parametrize("discount", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("time", [1, 2, 7, 64])
def test_it_is_the_discounted_sum_of_what_follows(discount, time):
    losses = torch.randn(3, 2, time, dtype=torch.float64)
    expected = torch.zeros_like(losses)
    for t in range(time):
        for s in range(t, time):
            expected[..., t] += discount ** (s - t) * losses[..., s]
    torch.testing.assert_close(reward_to_go(losses, discount), expected)


def test_without_causality_every_step_gets_the_whole():
    losses = torch.tensor([[1.0, 2.0, 4.0]])
    assert reward_to_go(losses, 1.0, causal=False).tolist() == [[7.0, 7.0, 7.0]]
