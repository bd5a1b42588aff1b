"""Ask and tell: losses evaluated anywhere, folded by what the question carried and nothing else."""

import dataclasses
import json
import multiprocessing
import pickle

import numpy as np
import pytest
import torch
from elsewhere import answer, mean_square
from small_language import (
    POPULATION,
    STRUCTURES,
    assert_close,
    assert_same,
    folded,
    gradients,
    language_batch,
    language_model,
    weights,
    without_type_checks,
)
from torch import nn

from zorn.errors import ConfigError
from zorn.estimators import CDRGE, FDRGE, SPSA15
from zorn.estimators.update import FusedSGD
from zorn.models import Batch
from zorn.tasks import TokenCrossEntropy

each_structure = pytest.mark.parametrize("structure", STRUCTURES)
each_estimator = pytest.mark.parametrize("kind", [CDRGE, FDRGE, SPSA15])


def ask(kind, structure="rank one", **options):
    model = language_model()
    options = {"population": POPULATION, "epsilon": 0.01, "seed": 3, "group_size": None, **options}
    estimator = kind(perturbation=STRUCTURES[structure], **options)
    return estimator, model, estimator.ask(model)


@each_structure
@each_estimator
def test_a_population_is_plain_and_survives_pickling(kind, structure):
    _, _, population = ask(kind, structure)
    assert pickle.loads(pickle.dumps(population)) == population
    assert len(pickle.dumps(population)) < 1000
    json.dumps(dataclasses.asdict(population))
    assert (population.draw.seed, population.draw.step, population.draw.epsilon) == (3, 0, 0.01)
    assert population.size == POPULATION


@each_estimator
def test_asking_counts_steps_and_carries_the_epsilon_of_its_time(kind):
    estimator, model, first = ask(kind)
    estimator.epsilon = 0.5
    second = estimator.ask(model)
    assert (first.draw.step, second.draw.step, estimator.step) == (0, 1, 2)
    assert (first.draw.epsilon, second.draw.epsilon) == (0.01, 0.5)


@each_structure
@each_estimator
def test_settings_changed_between_ask_and_tell_change_nothing(kind, structure):
    estimator, model, population = ask(kind, structure)
    losses, _ = estimator.evaluate(model, population, language_batch(), TokenCrossEntropy())
    expected = estimator.tell(model, population, losses)
    expected_gradients = gradients(model)
    estimator.epsilon, estimator.seed, estimator.population = 0.5, 99, 77
    estimator.step = 1234
    found = estimator.tell(model, population, losses)
    assert found.gradient_norm == expected.gradient_norm
    assert torch.equal(found.coefficients, expected.coefficients)
    assert_same(gradients(model), expected_gradients)
    assert estimator.step == 1234


LOSSES = torch.tensor([[1.0, 4.0, 0.0, 2.5], [3.0, 0.0, 0.0, 2.0], [1.0, 1.0, 0.0, 2.0]], dtype=torch.float64)
"""Of three signs and four members."""

BY_HAND = {  # at ε = 1/4: the coefficients, and the loss that is reported
    CDRGE: ([-4.0, 8.0, 0.0, 1.0], 12.5 / 8),
    FDRGE: ([-8.0, 16.0, 0.0, 2.0], 5 / 4),
    SPSA15: ([-4.0 / 32**0.1, 8.0 / 32**0.1, 0.0, 1.0 / 8**0.1], 4 / 4),  # κ = 32, 32, 0 (the floor is 1), 8
}


@each_structure
@pytest.mark.parametrize("kind", BY_HAND)
def test_tell_is_the_mean_of_coefficients_times_directions(kind, structure):
    estimator, model, population = ask(kind, structure, epsilon=0.25)
    coefficients = torch.tensor(BY_HAND[kind][0], dtype=torch.float64)
    found = estimator.tell(model, population, LOSSES[: len(kind.signs)], forward_passes=12)
    torch.testing.assert_close(found.coefficients, coefficients, rtol=1e-14, atol=0)
    assert found.loss == BY_HAND[kind][1]
    assert found.forward_passes == 12
    assert found.dropped == 0
    assert found.coefficient_norm == pytest.approx(float((coefficients.square().sum() / 4).sqrt()))
    assert_close(
        gradients(model), folded(population, model, coefficients / POPULATION), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("kind", [CDRGE, FDRGE])
def test_shaping_is_applied_to_the_coefficients_before_they_are_averaged(kind):
    estimator, model, population = ask(kind, shaping=lambda c: c.sign() * 3)
    losses = torch.tensor([[1.0, 4.0, 0.0, 2.5], [3.0, 0.0, 0.0, 2.0]])
    found = estimator.tell(model, population, losses)
    shaped = torch.tensor([-3.0, 3.0, 0.0, 3.0], dtype=torch.float64)
    assert_close(gradients(model), folded(population, model, shaped / POPULATION), rtol=1e-12, atol=1e-12)
    assert found.coefficients.abs().max() > 3  # those that are reported are not shaped


def test_another_process_answers_the_same():
    context = multiprocessing.get_context("spawn")
    cases = [ask(kind, structure) for kind in (CDRGE, FDRGE) for structure in ("rank one", "dense gaussian")]
    with context.Pool(1) as pool:
        answers = pool.starmap(answer, [(population, weights(model)) for _, model, population in cases])
    for (estimator, model, population), losses in zip(cases, answers, strict=True):
        estimator.tell(model, population, torch.tensor(losses, dtype=torch.float64))
        told = gradients(model)
        estimator.step = 0
        estimator.estimate(model, language_batch(), mean_square)
        assert_close(told, gradients(model), rtol=1e-8, atol=1e-10)


@each_structure
def test_a_member_that_is_visited_computes_with_moved_weights(structure):
    _, model, population = ask(CDRGE, structure, epsilon=0.3)
    batch = language_batch()
    one = torch.zeros(POPULATION, dtype=torch.float64)
    one[2] = 1
    z = folded(population, model, one)
    moved = {name: p - 0.3 * z[name] for name, p in model.named_parameters()}
    with torch.no_grad():
        expected, _ = torch.func.functional_call(model, moved, (batch.inputs,))
        with population.perturbed(model, 2, -1):
            found, _ = model(batch.inputs)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
        assert not torch.allclose(found, model(batch.inputs)[0])


def test_sign_zero_is_the_model_itself():
    _, model, population = ask(FDRGE)
    with torch.no_grad(), population.perturbed(model, 0, 0):
        found, _ = model(language_batch().inputs)
    assert torch.equal(found, model(language_batch().inputs)[0])


@pytest.mark.parametrize(
    ("member", "sign", "message"),
    [(-1, 1, "member"), (4, 1, "0 to 3"), (0, 0, "sign must be one of .*, got 0")],
)
def test_a_question_that_was_not_asked(member, sign, message):
    _, model, population = ask(CDRGE)
    with pytest.raises(ConfigError, match=message), population.perturbed(model, member, sign):
        pass


@pytest.mark.parametrize("shape", [(4,), (4, 2), (2, 3), (1, 4), (2, 4, 1)])
def test_losses_of_another_shape(shape):
    estimator, model, population = ask(CDRGE)
    with pytest.raises(ConfigError, match=r"losses must be .* of shape \(2, 4\), got shape"):
        estimator.tell(model, population, torch.zeros(shape))
    assert not gradients(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_losses_of_any_real_dtype(dtype):
    estimator, model, population = ask(CDRGE)
    losses = torch.tensor([[1, 4, 0, 2], [3, 0, 0, 2]], dtype=dtype)
    found = estimator.tell(model, population, losses)
    assert found.coefficients.tolist() == pytest.approx([-100, 200, 0, 0])


@pytest.mark.parametrize("convert", [list, tuple, np.array, lambda losses: np.array(losses, dtype=np.int32)])
def test_losses_as_sequences_and_arrays(convert):
    estimator, model, population = ask(CDRGE)
    found = estimator.tell(model, population, convert([[1.1, 4.0, 0.0, 2.0], [3.0, 0.0, 0.0, 2.0]]))
    first = int(1.1) if "int" in str(getattr(convert([[1.1]]), "dtype", "")) else 1.1  # in full precision
    assert found.coefficients.tolist() == [(first - 3.0) / (2 * 0.01), 4 / (2 * 0.01), 0, 0]


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (
            torch.zeros(2, POPULATION, dtype=torch.complex64),
            "losses must be .* real numbers, .* got torch.complex64",
        ),
        (np.zeros((2, POPULATION), dtype=complex), "losses must be .* real numbers, .* got torch.complex128"),
        ([[1j] * POPULATION] * 2, "losses must be .* real numbers, .* got torch.complex128"),
        ([["low"] * POPULATION] * 2, r"losses must be a table of real numbers.* got a value of type list"),
        ([[1.0] * POPULATION, [1.0]], r"losses must be a table of real numbers"),
        ([[None] * POPULATION] * 2, r"losses must be a table of real numbers"),
        ("zeros", r"losses must be a table of real numbers.* got 'zeros'"),
    ],
)
def test_losses_that_are_no_real_numbers(losses, message):
    estimator, model, population = ask(CDRGE)
    with without_type_checks(), pytest.raises(ConfigError, match=message):
        estimator.tell(model, population, losses)
    assert not gradients(model)


def test_losses_that_carry_a_graph_are_only_read():
    estimator, model, population = ask(CDRGE)
    losses = torch.ones(2, POPULATION, requires_grad=True) * torch.arange(4.0)
    found = estimator.tell(model, population, losses)
    assert not found.coefficients.requires_grad
    assert losses.requires_grad


def test_a_parameter_that_the_fused_update_cannot_change_is_refused_before_any_work():
    model = nn.Linear(3, 2).half()
    calls = []
    estimator = CDRGE(population=4, epsilon=0.1, group_size=None)
    batch_inputs = torch.zeros(4, 3, dtype=torch.float16)
    with pytest.raises(ConfigError, match=r"weight must be .* for FusedSGD, got torch.float16"):
        estimator.estimate(
            model,
            Batch(batch_inputs, batch_inputs),
            lambda outputs, targets: calls.append(1) or outputs.float().sum(1),
            FusedSGD(learning_rate=0.1),
        )
    assert not calls


def test_a_population_of_another_estimator_is_refused():
    model = torch.nn.Linear(3, 1)
    population = CDRGE(population=4, epsilon=0.1, group_size=None).ask(model)
    with pytest.raises(ConfigError, match=r"signs \(1, 0\), got \(1, -1\)"):
        FDRGE(population=4, epsilon=0.1, group_size=None).tell(model, population, torch.zeros(2, 4))
