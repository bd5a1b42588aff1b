"""The gradient of the smoothed loss in closed form, at an ε so large that it is far from that of the loss.

The model is u = θ·x, the loss (1/B) Σ_b f(u_b). With s = z·x the coefficient of one sequence is the odd part
(f(u + εs) − f(u − εs)) / 2ε, so for f = u⁴/4 it is u³ s + ε² u s³, and E[s z] = x for every structure. What
differs is E[s³ z_i], for d inputs and one output:

    dense Gaussian        3 |x|² x_i                (so the estimate is that of ∇L_ε exactly)
    signs                 (3 |x|² − 2 x_i²) x_i     (a rank-one sign matrix of one row is a dense one)
    rank-one Gaussian     9 |x|² x_i                (z = a b, E a⁴ = 3)
"""

import dataclasses
import math

import pytest
import torch
from samples import SIGMAS, assert_mean_is_not, assert_mean_vector, assert_same_mean, estimates
from torch import nn
from torch.func import functional_call, grad, vmap

from zorn.errors import ConfigError, NonFiniteLossError
from zorn.estimators import CDRGE, smoothed_loss
from zorn.models import Batch
from zorn.noise import Dense, RankOne

EPSILON = 1.0
X = torch.tensor([[0.6, -0.3, 0.5], [0.2, 0.7, -0.4]], dtype=torch.float64)
WEIGHT = torch.tensor([[0.8, 0.4, -0.5]], dtype=torch.float64)


def line():
    model = nn.Linear(3, 1, bias=False).double()
    model.weight.data.copy_(WEIGHT)
    return model, Batch(X, torch.zeros(2, dtype=torch.float64))


U = X @ WEIGHT[0]
SQUARE = X.square().sum(1)
QUARTIC = X * U.pow(3)[:, None]  # ∇L of each sequence
THIRD_MOMENTS = {
    "dense gaussian": 3 * SQUARE[:, None] * X,
    "dense signs": (3 * SQUARE[:, None] - 2 * X.square()) * X,
    "rank-one signs": (3 * SQUARE[:, None] - 2 * X.square()) * X,
    "rank-one gaussian": 9 * SQUARE[:, None] * X,
}
STRUCTURES = {
    "dense gaussian": (Dense(noise="gaussian"), 12),
    "dense signs": (Dense(), 12),
    "rank-one signs": (RankOne(), 1000),
    "rank-one gaussian": (RankOne(noise="gaussian"), 1000),
}


def sampled(structure, objective, group):
    perturbation, population = STRUCTURES[structure]
    model, batch = line()
    estimator = CDRGE(
        population=population,
        epsilon=EPSILON,
        perturbation=perturbation,
        group_size=group,
        seed=1,
        micro_batch=4096,
    )
    return estimates(estimator, model, batch, objective, 30)


def quartic(outputs, targets):
    return outputs[:, 0].pow(4) / 4


def cubic(outputs, targets):
    return outputs[:, 0].pow(3)


def quadratic(outputs, targets):
    return outputs[:, 0].square() / 2


@pytest.mark.parametrize(
    ("structure", "group"),
    [*((name, None) for name in STRUCTURES), ("rank-one signs", 1), ("rank-one gaussian", 1)],
)
def test_of_a_quartic(structure, group):
    found = sampled(structure, quartic, group)
    smoothed = (QUARTIC + EPSILON**2 * U[:, None] * THIRD_MOMENTS[structure]).mean(0)
    assert_mean_vector(found, smoothed)
    plain = QUARTIC.mean(0)
    assert_mean_is_not(found @ smoothed, float(plain @ smoothed))
    with pytest.raises(AssertionError):
        assert_mean_vector(found, plain)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_of_a_cubic(structure):
    """f = u³: 3u² s + ε² s³."""
    found = sampled(structure, cubic, None)
    plain = 3 * (U.square()[:, None] * X).mean(0)
    smoothed = plain + EPSILON**2 * THIRD_MOMENTS[structure].mean(0)
    assert_mean_vector(found, smoothed)
    assert_mean_is_not(found @ smoothed, float(plain @ smoothed))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_of_a_quadratic_it_is_the_gradient_at_any_epsilon(structure):
    assert_mean_vector(sampled(structure, quadratic, None), (X * U[:, None]).mean(0))


def test_autograd_agrees_on_the_smoothed_loss():
    """The formula for Gaussian noise against autograd on E f(u + ε|x| ξ) = (u⁴ + 6 u²σ² + 3 σ⁴) / 4."""
    weight = WEIGHT[0].clone().requires_grad_()
    u, variance = X @ weight, EPSILON**2 * SQUARE
    loss = ((u.pow(4) + 6 * u.square() * variance + 3 * variance.square()) / 4).mean()
    expected = (QUARTIC + EPSILON**2 * U[:, None] * THIRD_MOMENTS["dense gaussian"]).mean(0)
    torch.testing.assert_close(torch.autograd.grad(loss, weight)[0], expected)


# ------------------------------------------------------------------------------ the smoothed loss itself

GROUPS = [None, 1]


def smoothed_line(structure, objective, group, members=None, seed=3):
    perturbation, population = STRUCTURES[structure]
    model, batch = line()
    return smoothed_loss(
        model,
        batch,
        objective,
        epsilon=EPSILON,
        members=members or 10 * population,
        perturbation=perturbation,
        group_size=group,
        seed=seed,
        micro_batch=8192,
    )


PLAIN = float(U.square().mean() / 2)
TRACE = float(SQUARE.mean())


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_smoothed_loss_of_a_quadratic(structure, group):
    """L + ε²/2 tr H, for every structure of unit variance without correlations."""
    found = smoothed_line(structure, quadratic, group)
    expected = PLAIN + EPSILON**2 / 2 * TRACE
    assert abs(found.loss - expected) < SIGMAS * found.standard_error
    assert abs(found.loss - PLAIN) > SIGMAS * found.standard_error
    assert found.forward_passes == 2 * found.members * (group or 2)


@pytest.mark.parametrize("group", GROUPS)
def test_the_smoothed_loss_of_a_cubic(group):
    """f = u³: E (u + εs)³ = u³ + 3 u ε² E s²; the odd terms cancel in each pair."""
    found = smoothed_line("rank-one signs", cubic, group)
    expected = float((U.pow(3) + 3 * U * EPSILON**2 * SQUARE).mean())
    assert abs(found.loss - expected) < SIGMAS * found.standard_error


@pytest.mark.parametrize("group", GROUPS)
def test_the_standard_error_is_that_of_the_directions(group):
    """(found − true) / error has the variance 1 over seeds; differences between the sequences are no part of
    it, though they are large here."""
    true = float((U.square() / 2 + 100 * torch.tensor([0.0, 1.0]) + EPSILON**2 / 2 * SQUARE).mean())

    def apart(outputs, targets):
        return quadratic(outputs, targets) + 100 * targets

    model, batch = line()
    batch.targets[1] = 1.0
    scores = []
    for seed in range(300):
        found = smoothed_loss(
            model, batch, apart, epsilon=EPSILON, members=128, group_size=group, seed=seed, micro_batch=4096
        )
        scores.append((found.loss - true) / found.standard_error)
    squares = torch.tensor(scores, dtype=torch.float64).square()
    assert abs(squares.mean() - 1) < SIGMAS * squares.std() / math.sqrt(len(squares))
    assert (squares.mean() - 0.5).abs() > SIGMAS * squares.std() / math.sqrt(len(squares))


def test_it_repeats_and_depends_on_neither_splits_nor_the_mode():
    model, batch = line()

    def found(**options):
        return smoothed_loss(
            model, batch, quartic, **{"epsilon": 0.5, "members": 8, "group_size": 1} | options
        )

    expected = found()
    assert found() == expected
    assert found(seed=1).loss != expected.loss
    split = found(micro_batch=2)
    assert dataclasses.replace(split, loss=0.0, standard_error=0.0) == dataclasses.replace(
        expected, loss=0.0, standard_error=0.0
    )
    assert split.loss == pytest.approx(expected.loss, rel=1e-12)
    assert split.standard_error == pytest.approx(expected.standard_error, rel=1e-9)
    assert torch.equal(model.weight, WEIGHT)
    assert model.weight.grad is None
    assert model.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"members": 1}, "members must be a whole number of at least 2, got 1"),
        ({"members": 2, "group_size": 1}, "members must be a multiple of 2 and at least 4 .* got 2"),
        ({"members": 5, "group_size": 1}, "members must be a multiple of 2 and at least 4 .* got 5"),
        ({"group_size": 3}, "group_size must be a divisor of the batch, 2 sequences .*, got 3"),
        ({"group_size": 0}, "group_size must be a whole number of at least 1, got 0"),
        ({"epsilon": 0.0}, "epsilon must be a number above 0, got 0.0"),
        ({"micro_batch": 0}, "micro_batch must be"),
        ({"time_chunk": 0}, "time_chunk must be"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_what_cannot_be_evaluated(options, message):
    model, batch = line()
    with pytest.raises(ConfigError, match=message):
        smoothed_loss(model, batch, quartic, **{"epsilon": 0.1, "members": 4} | options)


def test_a_mean_that_does_not_exist():
    model, batch = line()

    def diverging(outputs, targets):
        return torch.where(outputs[:, 0] > U[0], torch.inf, outputs[:, 0])

    with pytest.raises(NonFiniteLossError, match=r"the losses of 4 of 4 members are not finite.* epsilon"):
        smoothed_loss(model, batch, diverging, epsilon=0.1, members=4)


# --------------------------------------------------- what CD-RGE descends, on a model that is no polynomial


def network():
    """Six weights, tanh, and an ε of the size of the weights."""
    generator = torch.Generator().manual_seed(5)
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Tanh()).double()
    model[0].weight.data.normal_(generator=generator)
    inputs = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    return model, Batch(inputs, inputs[:, :2].sin())


def squared_error(outputs, targets):
    return (outputs - targets).square().mean(1)


def gradients_around(model, batch, count):
    """∇L(θ + ε z) by autograd at `count` Gaussian points, [count, d]; at θ itself for None."""
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(weights):
        return squared_error(functional_call(model, weights, (batch.inputs,)), batch.targets).mean()

    if count is None:
        return torch.cat([part.flatten() for part in grad(loss)(weights).values()])
    generator = torch.Generator().manual_seed(6)
    noise = {n: torch.randn(count, *w.shape, generator=generator, dtype=w.dtype) for n, w in weights.items()}
    moved = {name: weight + EPSILON * noise[name] for name, weight in weights.items()}
    return torch.cat([part.flatten(1) for part in vmap(grad(loss))(moved).values()], dim=1)


def test_the_mean_of_cd_rge_is_the_gradient_of_the_smoothed_loss():
    model, batch = network()
    perturbation = Dense(noise="gaussian")
    estimator = CDRGE(population=24, epsilon=EPSILON, perturbation=perturbation, seed=1, group_size=None)
    found = estimates(estimator, model, batch, squared_error, 30)
    around = gradients_around(model, batch, 100_000)
    plain, smooth = gradients_around(model, batch, None), around.mean(0)
    assert_same_mean(found, around)
    assert_mean_vector(found, smooth)
    direction = smooth / smooth.norm()
    assert_mean_is_not(found @ direction, float(plain @ direction))

    def smoothed_at(step, seed):
        torch.nn.utils.vector_to_parameters(theta + step * direction, model.parameters())
        options = {"epsilon": EPSILON, "members": 16, "perturbation": perturbation, "seed": seed}
        return smoothed_loss(model, batch, squared_error, **options).loss

    theta = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    slopes = [(smoothed_at(0.01, seed) - smoothed_at(-0.01, seed)) / 0.02 for seed in range(100, 112)]
    slopes = torch.tensor(slopes, dtype=torch.float64)
    assert_same_mean(slopes, found @ direction)
    assert_same_mean(slopes, around @ direction)
    assert_mean_is_not(slopes, float(plain @ direction))
