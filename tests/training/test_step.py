"""One step: schedules reach every estimator, state ends where sequences do, both parts are clipped."""

import pytest
import torch
from torch import nn

from zorn.config import BudgetConfig, Choice, Config, ScheduleConfig, change, resolve
from zorn.run.checkpoint import Progress, load_checkpoint, save_checkpoint
from zorn.tasks import TextTask
from zorn.training.build import build_estimator, build_model, build_optimizers, build_task
from zorn.training.learner import Learner
from zorn.training.step import clip, move_weights, prepare_step

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
    optimizers = build_optimizers(config, model, estimator)
    batch = task.training_batch(0)
    move_weights(
        config,
        model,
        optimizers,
        0.1,
        lambda update: estimator.estimate(model, batch, task.objective, update=update),
    )
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    assert [group["lr"] for group in groups] == pytest.approx([0.05, 0.025])
    assert [group["betas"][0] for group in groups] == [0.9, 0.9]
    trained, credited = estimator.parts(model)
    for group, part in zip(groups, (trained, credited), strict=True):
        assert [id(parameter) for parameter in group["params"]] == [id(parameter) for parameter in part]
        assert all(parameter.grad.isfinite().all() for parameter in part)
    joint = change(config, separate=False, credit_every=1)
    assert len(build_optimizers(joint, model, build_estimator(joint))) == 1


def test_the_credit_of_a_bridge_has_adam_whatever_the_exact_part_has():
    config, _ = resolve(
        Config(
            estimator=Choice("bridge", truncation=2),
            optimizer=Choice("sgd", learning_rate=1.0, momentum=0.9),
            budget=BudgetConfig(steps=4),
        )
    )
    exact, credit = build_optimizers(config, build_model(config, 29), build_estimator(config))
    assert (type(exact), type(credit)) == (torch.optim.SGD, torch.optim.Adam)
    assert (exact.param_groups[0]["lr"], credit.param_groups[0]["lr"]) == (1.0, 0.003)
    adaptive, _ = resolve(change(config, optimizer="adamw", learning_rate=0.02))
    _, credit = build_optimizers(adaptive, build_model(adaptive, 29), build_estimator(adaptive))
    assert credit.param_groups[0]["lr"] == 0.02


def test_a_checkpoint_of_both_optimizers_resumes_bit_for_bit(tmp_path):
    config, _ = resolve(
        Config(
            task=Choice("copy", batch=4, maximum_length=3),
            model=Choice("lstm", hidden_size=6),
            estimator=Choice("bridge", truncation=2, draws=2),
            budget=BudgetConfig(steps=6),
        )
    )

    def learner():
        return Learner.build(config, build_task(config))

    run = learner()
    assert len(run.optimizers) == 2
    for _ in range(3):
        run.train_step(share=0.0)
    progress = Progress(
        step=3, seconds=0.0, forward_passes=0, dropped=0, seed=0, estimator=run.estimator.state_dict()
    )
    path = save_checkpoint(tmp_path, progress, run.model, run.optimizers)
    for _ in range(3):
        run.train_step(share=0.0)
    resumed = learner()
    saved = load_checkpoint(path, resumed.model, resumed.optimizers)
    resumed.estimator.load_state_dict(saved.estimator)
    resumed.step = saved.step
    for _ in range(3):
        resumed.train_step(share=0.0)
    for one, other in zip(run.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    counted = [{int(state["step"]) for state in each.state.values()} for each in resumed.optimizers]
    assert counted == [{6}, {3}], "credit comes at every second step"


def optimizer_of(gradient):
    """One whose only parameter has this gradient."""
    parameter = nn.Parameter(torch.zeros_like(gradient))
    parameter.grad = gradient.clone()
    return torch.optim.SGD([parameter], lr=1.0), parameter


def test_each_part_of_a_gradient_is_clipped_on_its_own():
    config = Config(schedule=ScheduleConfig(clip_norm=1.0), budget=BudgetConfig(steps=1))
    (exact, long), (credit, short) = (optimizer_of(torch.tensor(each)) for each in ([3.0, 4.0], [0.1, 0.2]))
    for optimizer in (exact, credit):
        optimizer.param_groups[0]["initial_lr"] = 1.0
    move_weights(config, nn.Identity(), [exact, credit], 1.0, lambda update: None)
    assert torch.allclose(long.grad, torch.tensor([0.6, 0.8]))
    assert torch.equal(short.grad, torch.tensor([0.1, 0.2])), "shorter: untouched"
    assert torch.allclose(long.data, torch.tensor([-0.6, -0.8]))


def test_an_optimizer_without_a_gradient_has_nothing_to_clip():
    optimizer, parameter = optimizer_of(torch.ones(2))
    parameter.grad = None
    clip(optimizer, 1.0)
    assert parameter.grad is None


def test_clipping_is_torchs():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = nn.Linear(5, 4), nn.Linear(5, 4)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        one.grad = torch.randn(one.shape, generator=generator)
        other.grad = one.grad.clone()
    clip(torch.optim.SGD(ours.parameters()), 0.7)
    nn.utils.clip_grad_norm_(theirs.parameters(), 0.7)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
