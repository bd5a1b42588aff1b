"""One step: schedules reach every estimator, state ends where sequences do, both parts are clipped."""

import pytest
import torch
from torch import nn

from zorn.config import BudgetConfig, Choice, Config, ScheduleConfig, change, resolve
from zorn.estimators.two_part import TwoPartOptimizer
from zorn.tasks import TextTask
from zorn.training.build import build_estimator, build_model, build_optimizer, build_task
from zorn.training.step import clip, prepare_step, update_weights

STREAMED = {
    "activity": Choice("activity"),
    "bridge": Choice("bridge", truncation=2),
    "tbptt": Choice("tbptt", truncation=2),
    "pes": Choice("pes", population=4),
    "nres": Choice("nres", population=4),
}


@pytest.mark.parametrize("name", STREAMED)
def test_schedules_reach_the_estimator_and_reset_comes_with_new_sequences(name):
    falling = {} if name == "tbptt" else {"epsilon_schedule": "cosine", "schedule_floor": 0.5}
    config, _ = resolve(
        Config(
            task=Choice("text", batch=2, length=4, stream=3),
            estimator=STREAMED[name],
            optimizer=Choice("auto", learning_rate=0.5),
            schedule=ScheduleConfig(warmup_steps=2, **falling),
            budget=BudgetConfig(steps=6),
        )
    )
    task = TextTask(source="python-docs", batch=2, length=4, seed=0, stream=3)
    estimator = build_estimator(config)
    resets = []
    estimator.reset = lambda: resets.append(step)
    for step in range(6):
        record = prepare_step(config, task, estimator, step, share=step / 6)
        assert record["learning_rate"] == (0.25 if step == 0 else 0.5)
        if name != "tbptt":
            assert record["epsilon"] == estimator.epsilon
    assert resets == [0, 3]
    if name != "tbptt":
        assert estimator.epsilon < config.estimator.epsilon


def test_the_two_parts_of_a_bridge_have_rates_and_moments_of_their_own():
    config, _ = resolve(
        Config(
            task=Choice("copy", batch=2, maximum_length=2),
            estimator=STREAMED["bridge"].but(credit_learning_rate=0.25, credit_momentum=0.9),
            optimizer=Choice("auto", learning_rate=0.5),
            budget=BudgetConfig(steps=4),
        )
    )
    task = build_task(config)
    model = build_model(config, task.vocabulary)
    estimator = build_estimator(config)
    optimizer = build_optimizer(config, model, estimator)
    update_weights(config, task, model, estimator, optimizer, task.training_batch(0), rate_factor=0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.025]
    assert [group["betas"][0] for group in optimizer.param_groups] == [0.9, 0.9]
    assert all(parameter.credit_grad.isfinite().all() for parameter in model.parameters())
    joint = change(config, separate=False, credit_every=1)
    assert len(build_optimizer(joint, model, build_estimator(joint)).param_groups) == 1


def test_the_credit_of_a_bridge_has_adam_whatever_the_exact_part_has():
    config, _ = resolve(
        Config(
            estimator=Choice("bridge", truncation=2),
            optimizer=Choice("sgd", learning_rate=1.0, momentum=0.9),
            budget=BudgetConfig(steps=4),
        )
    )
    model = build_model(config, 29)
    optimizer = build_optimizer(config.optimizer, model, two_part=config.two_part)
    assert isinstance(optimizer, TwoPartOptimizer)
    assert (type(optimizer.exact), type(optimizer.credit)) == (torch.optim.SGD, torch.optim.Adam)
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 0.003]


def test_each_part_of_a_gradient_is_clipped_on_its_own():
    layer = nn.Linear(2, 1)
    before = {"grad": torch.tensor([[3.0, 0.0]]), "credit_grad": torch.tensor([[0.1, 0.2]])}
    for name, gradient in before.items():
        setattr(layer.weight, name, gradient.clone())
    layer.bias.grad, layer.bias.credit_grad = torch.tensor([4.0]), torch.tensor([0.2])
    clip(layer, 1.0)
    assert torch.allclose(layer.weight.grad, torch.tensor([[0.6, 0.0]]))
    assert torch.allclose(layer.bias.grad, torch.tensor([0.8]))
    assert torch.equal(layer.weight.credit_grad, before["credit_grad"]), "shorter: untouched"
    clip(layer, 0.15)
    assert torch.allclose(layer.weight.credit_grad, torch.tensor([[0.05, 0.1]]), atol=1e-5)
    assert float(layer.bias.credit_grad) == pytest.approx(0.1, rel=1e-4)


def test_clipping_is_torchs():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = nn.Linear(5, 4), nn.Linear(5, 4)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        one.grad = torch.randn(one.shape, generator=generator)
        other.grad = one.grad.clone()
    clip(ours, 0.7)
    nn.utils.clip_grad_norm_(theirs.parameters(), 0.7)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
