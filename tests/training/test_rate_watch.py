"""The learning rate of a run that stands still is searched again."""

import json
import math

import pytest
import torch

from zorn.training import BudgetConfig, Config, EstimatorConfig, ModelConfig, OptimizerConfig, TaskConfig
from zorn.training import rate_watch as watching
from zorn.training.build import build_task
from zorn.training.defaults import resolve
from zorn.training.learner import Learner
from zorn.training.rate_watch import RateWatch


def learner(rate, **optimizer):
    config, _ = resolve(
        Config(
            task=TaskConfig(task="copy", batch=4, minimum_length=1, maximum_length=2),
            model=ModelConfig(hidden_size=4),
            estimator=EstimatorConfig(estimator="bptt"),
            optimizer=OptimizerConfig(learning_rate=rate, **optimizer),
            budget=BudgetConfig(steps=100),
        )
    )
    return Learner.build(config, build_task(config))


@pytest.fixture(autouse=True)
def short_probes(monkeypatch):
    monkeypatch.setattr(watching, "PROBE_STEPS", 4)


@pytest.mark.parametrize(("rate", "up"), [(1e-5, True), (3.0, False)])
def test_a_rate_that_is_wrong_is_moved_the_right_way(rate, up):
    own, watch = learner(rate), RateWatch(window=3)
    for _ in range(2):
        own.train_step(share=0.0)
    state = own.state_dict()
    records = [watch.trained(own, 3.0, share=0.5) for _ in range(6)]
    assert records[:5] == [None] * 5
    assert watch.factor == records[5]["factor"]
    assert (watch.factor > 3.0) if up else (watch.factor < 0.34)
    assert records[5]["held_out_loss"] < records[5]["held_out_loss_before"]
    assert (records[5]["kind"], records[5]["step"], records[5]["factor_before"]) == ("rate", 2, 1.0)
    after = own.state_dict()
    assert after["step"] == state["step"]
    assert all(torch.equal(after["model"][name], value) for name, value in state["model"].items())


def test_while_training_gets_better_nothing_is_searched(monkeypatch):
    monkeypatch.setattr(Learner, "probe", lambda *_, **__: pytest.fail("searched"))
    watch = RateWatch(window=3)
    assert [watch.trained(learner(0.01), 3.0 - 0.1 * step, share=0.0) for step in range(12)] == [None] * 12


def test_where_every_rate_diverges_it_stays(monkeypatch):
    monkeypatch.setattr(Learner, "probe", lambda *_, **__: math.inf)
    own, watch = learner(0.01), RateWatch(window=2)
    record = [watch.trained(own, 1.0, share=0.0) for _ in range(4)][-1]
    assert record["factor"] == watch.factor == 1.0


def test_where_all_rates_are_equal_it_stays(monkeypatch):
    monkeypatch.setattr(Learner, "probe", lambda *_, **__: 2.0)  # as with steps too small to move a weight
    own, watch = learner(0.01), RateWatch(window=2)
    record = [watch.trained(own, 1.0, share=0.0) for _ in range(4)][-1]
    assert record["factor"] == watch.factor == 1.0


@pytest.mark.parametrize(("decay", "high"), [(1.0, 1.0), (0.1, math.sqrt(10))])
def test_no_rate_is_tried_that_weight_decay_would_turn_weights_around_at(monkeypatch, decay, high):
    tried = []

    def probe(_self, _steps, *, rate_factor, share):
        tried.append(rate_factor)
        return 1 / rate_factor

    monkeypatch.setattr(Learner, "probe", probe)
    optimizer = {"optimizer": "fused-sgd", "weight_decay": decay}
    own, watch = learner(0.5, **optimizer), RateWatch(window=2)
    record = [watch.trained(own, 1.0, share=0.0) for _ in range(4)][-1]
    assert record["factor"] == max(tried)
    assert high <= max(tried) < 1 / (0.5 * decay)


@pytest.mark.parametrize("stop", [3, 4, 7])
def test_a_resumed_one_finds_the_same(stop):
    losses = [2.0, 2.1] * 5
    whole, first, second = (RateWatch(window=2) for _ in range(3))
    own = learner(1e-4)
    expected = [whole.trained(own, loss, share=0.0) for loss in losses]
    before = [first.trained(own, loss, share=0.0) for loss in losses[:stop]]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert before + [second.trained(own, loss, share=0.0) for loss in losses[stop:]] == expected
    assert second.factor == whole.factor != 1.0
