"""Estimates with the kernels in place against the same without: losses, gradients, updates, trajectories."""

from dataclasses import replace

import pytest
import torch
from pairs import each_once
from torch import nn

import zorn
from zorn import kernels
from zorn.errors import ConfigError
from zorn.kernels import availability, twins
from zorn.models import GRUCell, LSTMCell, run
from zorn.noise import Draw
from zorn.noise.weights.kernel_fold import KernelFold

KERNELS = {
    name: getattr(kernels, name)
    for name in kernels.__all__
    if isinstance(getattr(kernels, name), kernels.Twins)
}
DRAW = Draw(seed=1, step=2, epsilon=0.3)
OBJECTIVE = zorn.TokenCrossEntropy()


def clear():
    availability._reason_against.cache_clear()
    availability.say_once.cache_clear()


@pytest.fixture
def switch(monkeypatch, device):
    """Turns the kernels on (interpreted on a CPU) and off, untried, and counts the calls of each."""
    calls = dict.fromkeys(KERNELS, 0)

    def counted(name, kernel):
        def call(*arguments, **options):
            calls[name] += 1
            return kernel(*arguments, **options)

        return call

    for name, one in KERNELS.items():
        monkeypatch.setattr(one, "kernel", counted(name, one.kernel))
        monkeypatch.setattr(one, "_trusted", {})
        monkeypatch.setattr(one, "_agrees", lambda device, dtype: True)

    def turn(on):
        calls.update(dict.fromkeys(calls, 0))
        monkeypatch.setenv(availability.SWITCH, "interpret" if on else "0")
        clear()
        return calls

    yield turn
    clear()


def model_of(cell, device):
    """Of which the cell alone is trained: the interpreter is slow."""
    heads = 1 if cell == "min-gru" else 2
    model = zorn.LanguageModel(29, 4, cell=cell, num_heads=heads, seed=1, device=device)
    model.requires_grad_(False)
    model.cells.requires_grad_(True)
    return model


def batch_on(device):
    batch = zorn.tasks.CopyTask(batch=2, minimum_length=1, maximum_length=1, seed=0).training_batch(0)
    return zorn.Batch(*(tensor.to(device) for tensor in batch))


USED = {
    ("lstm", "rank-one"): {"lstm_step", "fold_rank_one_"},
    ("gru", "rank-one"): {"gru_step", "fold_rank_one_"},
    ("min-gru", "rank-one"): {"min_gru_steps", "fold_rank_one_"},
    ("lstm", "dense"): {"perturbed_linear", "fold_dense_"},
    ("gru", "dense"): {"perturbed_linear", "fold_dense_"},
    ("min-gru", "dense"): {"perturbed_linear", "fold_dense_"},
}
STRUCTURES = {"rank-one": zorn.RankOne(), "dense": zorn.Dense()}


@pytest.mark.parametrize(("cell", "structure"), USED)
def test_a_step_with_kernels_is_the_step_without(switch, device, cell, structure):
    """The loss and the weights after it, from the same weights: only sums' round-off apart."""

    def step(on):
        calls, model = switch(on), model_of(cell, device)
        members = 2 if structure == "rank-one" else 1
        estimator = zorn.CDRGE(
            population=members, epsilon=0.1, perturbation=STRUCTURES[structure], group_size=None
        )
        update = zorn.estimators.FusedSGD(learning_rate=0.01, weight_decay=0.1)
        found = estimator.estimate(model, batch_on(device), OBJECTIVE, update=update)
        assert {name for name, count in calls.items() if count} == (USED[cell, structure] if on else set())
        return found, [parameter.detach() for parameter in model.parameters()]

    (found, weights), (expected, reference) = step(True), step(False)
    assert found.loss == pytest.approx(expected.loss, abs=2e-6)
    assert found.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-4)
    for one, other in zip(weights, reference, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-6)


@pytest.mark.parametrize("frozen", [(), ("map.weight_input", "map.bias"), ("map.weight_state",)])
def test_an_lstm_over_time_under_members(switch, device, frozen):
    """Outputs and state of a trajectory in bfloat16, whichever of the map's parameters have noise."""
    torch.manual_seed(0)
    cell = LSTMCell(5, 8, 2).to(device, torch.bfloat16)
    for name in frozen:
        cell.get_parameter(name).requires_grad_(False)
    x = torch.randn(3, 12, 5).to(device, torch.bfloat16)

    def trajectory(on):
        calls = switch(on)
        members = zorn.RankOne().bind(cell).members(DRAW, range(3), (1, -1), 2)
        with members, torch.inference_mode():
            y, state = run(cell, x, cell.initial_state(12))
        assert calls["lstm_step"] == (3 if on else 0)
        return y.float(), state.cell

    for found, expected in zip(trajectory(True), trajectory(False), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0.03)  # a few roundings of gates up to 4


@pytest.mark.parametrize("frozen", [(), ("state_map.weight",), ("state_map.bias",)])
def test_a_gru_over_time_under_members(switch, device, frozen):
    torch.manual_seed(0)
    cell = GRUCell(5, 8, 2).to(device)
    for name in frozen:
        cell.get_parameter(name).requires_grad_(False)
    x = torch.randn(2, 12, 5).to(device)

    def trajectory(on):
        calls = switch(on)
        members = zorn.RankOne().bind(cell).members(DRAW, range(3), (1, -1), 2)
        with members, torch.inference_mode():
            y, _ = run(cell, x, cell.initial_state(12))
        assert calls["gru_step"] == (2 if on else 0)
        return y

    torch.testing.assert_close(trajectory(True), trajectory(False), rtol=0, atol=2e-6)


def test_where_someone_listens_the_cell_runs_as_its_rules_have_it(switch, device):
    calls, cell = switch(True), LSTMCell(3, 4).to(device)
    seen = []
    cell.map.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with zorn.RankOne().bind(cell).members(DRAW, range(1), (1,)), torch.inference_mode():
        run(cell, torch.ones(2, 1, 3, device=device), cell.initial_state(1))
    assert len(seen) == 2
    assert not calls["lstm_step"]
    assert not {"step", "drive", "rollout"} & cell.__dict__.keys()


def test_gradients_that_are_recorded_are_refused_in_a_dense_product(switch, device):
    switch(True)
    cell = LSTMCell(3, 4).to(device)
    members = zorn.Dense().bind(cell).members(DRAW, range(1), (1,))
    with members, pytest.raises(ConfigError, match=r"torch.no_grad.*ZORN_GPU_KERNELS=0"):
        cell(torch.ones(1, 3, device=device), cell.initial_state(1))


def test_a_weight_that_two_modules_share_is_moved_as_a_copy(switch, device):
    calls, first = switch(True), LSTMCell(4, 4).to(device)
    second = LSTMCell(4, 4).to(device)
    second.map.weight_state = first.map.weight_state
    members = zorn.Dense().bind(nn.ModuleList([first, second])).members(DRAW, range(1), (1,))
    with members, torch.inference_mode():
        first(torch.ones(1, 4, device=device), first.initial_state(1))
    assert not calls["perturbed_linear"]


@pytest.mark.parametrize("structure", [zorn.RankOne(noise="gaussian"), zorn.Dense(noise="gaussian")])
def test_other_noise_keeps_to_torch(switch, device, structure):
    calls = switch(True)
    model = model_of("lstm", device)
    zorn.CDRGE(population=1, epsilon=0.1, perturbation=structure, group_size=None).estimate(
        model, batch_on(device), OBJECTIVE
    )
    assert not any(calls.values())


@pytest.mark.parametrize("structure", ["rank-one", "dense"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_of_the_blocks(switch, device, structure, dtype):
    """Into `.grad`, which held something else, with a padding row that has none."""
    model = nn.Sequential(nn.Embedding(5, 3, padding_idx=2), nn.LayerNorm(3), nn.Linear(3, 4)).to(
        device, dtype
    )
    weights, draw = torch.tensor([0.5, -0.25, 0.125], dtype=torch.float64), Draw(seed=3, step=1, epsilon=0.1)

    def folded(on):
        calls, bound = switch(on), STRUCTURES[structure].bind(model)
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, float("inf"))
        blocks = bound.fold(draw, weights)
        assert isinstance(blocks, KernelFold) == on
        norm = zorn.estimators.update.fold_into_grad(blocks, bound.targets)
        assert any(calls.values()) == on
        return norm, [parameter.grad for parameter in model.parameters()]

    (norm, found), (reference, expected) = folded(True), folded(False)
    assert norm == pytest.approx(reference)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    assert not found[0][2].any()


def test_stochastic_rounding_is_that_of_the_blocks(switch, device):
    """Also where the directions are of another step than the update, as over the windows of a stream."""
    weights, draw = torch.tensor([0.5, -0.25], dtype=torch.float64), Draw(seed=3, step=1, epsilon=0.1)

    def updated(on):
        switch(on)
        torch.manual_seed(0)
        model = nn.Linear(70, 3).to(device, torch.bfloat16)
        blocks = zorn.RankOne().bind(model).fold(draw, weights)
        zorn.estimators.FusedSGD(learning_rate=2**-9).apply(blocks, Draw(seed=3, step=5, epsilon=0.1))
        return model.weight.detach()

    assert torch.equal(updated(True), updated(False))


# The trial of a kernel --------------------------------------------------------------------------------------


def twins_of(kernel):
    def trial(run, device, dtype):
        return [run(torch.ones(4, device=device, dtype=dtype))]

    return twins.Twins(kernel, lambda x: 2 * x, trial)


def broken(x):
    raise RuntimeError("illegal instruction")


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        (lambda x: 3 * x, "differs from its reference by 0.5"),
        (lambda x: x * float("nan"), "differs from its reference by inf"),
        (broken, "failed on a small case: RuntimeError: illegal instruction"),
        (lambda x: x + x, None),
    ],
)
def test_a_kernel_is_tried_once_and_a_wrong_one_never_used(switch, device, caplog, kernel, said):
    switch(True)
    one, x = twins_of(kernel), torch.ones(3, device=device)
    for _ in range(3):
        assert torch.equal(one(x), 2 * x)
    assert one.serves(x) == (said is None)
    assert len(caplog.records) == (said is not None)
    if said:
        assert said in caplog.text
        assert "ZORN_GPU_KERNELS=0 turns all kernels off" in caplog.text
    assert not one.serves(x.double())


def test_what_cannot_be_launched_for_a_size_is_left_to_the_twin(switch, device, caplog):
    switch(True)

    def kernel(x):
        if len(x) > 4:
            raise twins.TritonError("out of resource: shared memory")
        return x + x

    one, x = twins_of(kernel), torch.ones(5, device=device)
    assert one.serves(x)
    assert torch.equal(one(x), 2 * x)
    assert not one.serves(x)
    assert "shared memory" in caplog.text


@pytest.mark.parametrize(("name", "dtype"), each_once(KERNELS, [torch.float32, torch.bfloat16]))
def test_every_kernel_passes_its_trial(device, name, dtype):
    one = twins.Twins(KERNELS[name].kernel, KERNELS[name].reference, KERNELS[name]._trial)
    assert one._agrees(device, dtype)


@pytest.mark.parametrize("name", KERNELS)
def test_every_trial_notices_signs_of_another_step(device, name, monkeypatch, caplog):
    """The bits are what a kernel gets wrong unseen: those of one word shifted must not pass."""
    trial, reference = KERNELS[name]._trial, KERNELS[name].reference

    def shifted(*arguments):
        if isinstance(arguments[-1], kernels.Fold | kernels.DenseNoise):
            arguments = [*arguments[:-1], replace(arguments[-1], step=arguments[-1].step + 1)]
        else:
            noise = next(a for a in arguments if type(a).__name__ == "RankOneNoise")
            arguments = [a._replace(rows=a.rows + 1) if a is noise else a for a in arguments]
        return reference(*arguments)

    assert not twins.Twins(shifted, reference, trial)._agrees(torch.device("cpu"), torch.bfloat16)
    assert "differs from its reference" in caplog.text
