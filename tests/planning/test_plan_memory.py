"""The planned memory of a step against the peak of a process that does it, and against its own logic."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import planner as benchmark
from zorn.training.defaults import resolve

from zorn.models.sliced_head import LOGITS_AT_ONCE
from zorn.planning import Memory, ModelSizes, Stage, step_memory
from zorn.planning.kinds import compared
from zorn.training import BudgetConfig, Config, EstimatorConfig, ModelConfig, OptimizerConfig, TaskConfig

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")

FEW = {
    "rank-one": benchmark.case("lstm", benchmark.RANK_ONE, 512, 32, 128, 1000, optimizer="fused-sgd"),
    "activity": benchmark.case("gru", benchmark.ACTIVITY, 512, 16, 96, 500),
    "bptt": benchmark.case("min-gru", benchmark.BPTT, 512, 32, 64),
}


@needs_linux
@pytest.mark.parametrize("name", FEW)
def test_a_measured_peak_is_as_planned(name):
    assert benchmark.predicted(FEW[name]) == pytest.approx(benchmark.measured(FEW[name]), rel=0.15)


def planned(length=64, hidden=64, batch=32, optimizer="adam", **estimator):
    config, _ = resolve(
        Config(
            task=TaskConfig(batch=batch, length=length),
            model=ModelConfig(hidden_size=hidden),
            estimator=EstimatorConfig(**estimator),
            optimizer=OptimizerConfig(optimizer=optimizer),
            budget=BudgetConfig(steps=1),
        )
    )
    return step_memory(ModelSizes.of(config.model, 256), config, length)


RANK_ONE = {"estimator": "cd-rge", "population": 32}
ROW_OBJECTIVE = TaskConfig(batch=32, objective="token-error")


def test_only_the_tokens_grow_with_the_context_in_chunks_of_time():
    chunked = {"time_chunk": 64, **RANK_ONE}
    tokens = 2 * 8 * 32 * 99_000
    assert planned(length=100_000, **chunked).peak == planned(length=1000, **chunked).peak + tokens
    assert planned(length=1000, **RANK_ONE).peak > 5 * planned(length=100, **RANK_ONE).peak
    assert planned(length=1000, estimator="bptt").peak > 5 * planned(length=100, estimator="bptt").peak
    within = {"estimator": "tbptt", "truncation": 10}
    assert planned(length=1000, **within).peak == planned(length=100, **within).peak + 2 * 8 * 32 * 900


@pytest.mark.parametrize(("optimizer", "copies"), [("adam", 2), ("adamw", 2), ("sgd", 0), ("fused-sgd", 0)])
def test_the_optimizer_keeps_its_moments(optimizer, copies):
    memory = planned(optimizer=optimizer, **RANK_ONE)
    weights = memory.part("weights")
    assert memory.stages["fold"].optimizer == copies * weights
    assert memory.part("gradients") == (0 if optimizer == "fused-sgd" else weights)


def test_dense_members_hold_a_copy_of_the_weights_and_a_bit_each():
    dense = {"estimator": "cd-rge", "structure": "dense", "group_size": 0, "population": 2}
    memory = planned(hidden=256, optimizer="fused-sgd", **dense)
    weights = memory.part("weights")
    assert memory.stages["evaluate: loss"].perturbations == weights * (1 + 1 / 32)
    normals = planned(hidden=256, optimizer="fused-sgd", noise="gaussian", **dense)
    assert normals.stages["evaluate: loss"].perturbations == 2 * weights


def test_a_bridge_holds_rollouts_only_where_it_crosses_a_boundary():
    crossing = planned(estimator="bridge", truncation=16)
    assert any(name.startswith("rollouts") for name in crossing.stages)
    whole = planned(estimator="bridge", truncation=64)
    assert not any(name.startswith("rollouts") for name in whole.stages)


def test_every_estimator_is_planned():
    config, _ = resolve(Config(budget=BudgetConfig(steps=1)))
    sizes = ModelSizes.of(config.model, 256)
    found = {name: step_memory(sizes, other, 32).peak for name, other in compared(config).items()}
    assert list(found) == [
        "cd-rge, rank-one",
        "cd-rge, dense",
        "activity",
        "bridge",
        "e-prop",
        "tbptt",
        "bptt",
    ]
    assert all(peak > sizes.weight_bytes for peak in found.values())
    assert found["bptt"] > found["tbptt"]


def test_streaming_members_hold_their_states():
    def streams(population):
        estimator = EstimatorConfig(estimator="pes", population=population)
        task = TaskConfig(batch=8, stream=4)
        asked = Config(task=task, estimator=estimator, budget=BudgetConfig(steps=1))
        config, _ = resolve(asked)
        sizes = ModelSizes.of(config.model, 256)
        return step_memory(sizes, config, 32).stages["fold"].states, sizes.state_bytes

    (some, state), (more, _) = streams(8), streams(16)
    assert more - some == 2 * 2 * 8 * state


def test_objectives_without_derivative_leave_out_what_differentiates():
    task = TaskConfig(objective="token-error")
    config, _ = resolve(Config(task=task, budget=BudgetConfig(steps=1)))
    assert list(compared(config)) == ["cd-rge, rank-one", "cd-rge, dense", "activity"]


def test_a_wide_dtype_costs_twice_a_narrow_one():
    config, _ = resolve(Config(model=ModelConfig(hidden_size=512), budget=BudgetConfig(steps=1)))
    wide, narrow = (ModelSizes.of(config.model, 256, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert wide.weight_bytes == 2 * narrow.weight_bytes


def test_parts_add_up_within_a_stage():
    memory = Memory({"one": Stage(weights=1, logits=5), "two": Stage(weights=1, states=3)})
    assert (memory.peak, memory.part("states"), memory.fullest) == (6, 3, "one")
    assert dataclasses.asdict(Stage(weights=1) + Stage(weights=2))["weights"] == 3


def test_a_large_vocabulary_is_planned_in_slices():
    config, _ = resolve(
        Config(estimator=EstimatorConfig(**RANK_ONE), task=TaskConfig(batch=32), budget=BudgetConfig(steps=1))
    )
    few, many = (
        step_memory(ModelSizes.of(config.model, vocabulary), config, 32) for vocabulary in (10_000, 100_000)
    )
    assert few.part("logits") == many.part("logits") == 2 * 4 * LOGITS_AT_ONCE
    assert few.part("perturbations") == many.part("perturbations")  # signs are drawn with the slices
    whole = step_memory(
        ModelSizes.of(config.model, 100_000), dataclasses.replace(config, task=ROW_OBJECTIVE), 32
    )
    assert whole.part("logits") > 10 * many.part("logits")
    assert whole.part("perturbations") > 32 * 2 * 100_000 * 4


def test_the_packed_weights_of_a_compiled_rollout_are_planned(monkeypatch):
    """Of plain runs without gradients; noise on activities goes step by step."""
    monkeypatch.setattr("zorn.planning.forward.rollout_bytes", lambda *place, **sizes: 10**9)
    assert planned(estimator="bridge", truncation=16).stages["rollouts: layers"].total > 10**9
    assert planned(**RANK_ONE).stages["evaluate: layers"].total > 10**9
    for name in ("activity", "bptt"):
        assert planned(estimator=name).peak < 10**9
