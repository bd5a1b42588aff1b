"""Two optimizers as one: each steps its own part as it would alone; and what torch expects of one."""

import copy
import pickle

import pytest
import torch
from small_language import assert_same, language_batch, language_model, weights, without_type_checks
from torch import nn

from zorn.errors import ConfigError
from zorn.estimators import BPTT, CDRGE, ActivityCredit
from zorn.estimators.bridge import Bridge
from zorn.estimators.two_part import TwoPartOptimizer
from zorn.tasks import TokenCrossEntropy
from zorn.training.tensor_tree import join_tree, split_tree

KINDS = {
    "adam": lambda parameters, lr: torch.optim.Adam(parameters, lr=lr),
    "momentum": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
    "rmsprop": lambda parameters, lr: torch.optim.RMSprop(parameters, lr=lr),
}


def parts(step, shape=(3, 2)):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def fill(parameter, step):
    parameter.grad, parameter.credit_grad = parts(step, tuple(parameter.shape))


def weight():
    return nn.Parameter(parts(100)[0])


def steps(optimizer, parameter, numbers):
    for number in numbers:
        fill(parameter, number)
        optimizer.step()
    return parameter.detach().clone()


@pytest.mark.parametrize("credit", KINDS)
@pytest.mark.parametrize("exact", KINDS)
def test_it_is_the_two_taking_turns(exact, credit):
    parameter = weight()
    optimizer = TwoPartOptimizer(KINDS[exact]([parameter], 0.1), KINDS[credit]([parameter], 0.03))
    found = steps(optimizer, parameter, range(5))

    reference = weight()
    one, other = KINDS[exact]([reference], 0.1), KINDS[credit]([reference], 0.03)
    for number in range(5):
        for optimizer_of_part, part in zip((one, other), parts(number), strict=True):
            reference.grad = part
            optimizer_of_part.step()
    assert torch.equal(found, reference)


def test_both_parts_are_as_they_were_after_a_step():
    parameter = weight()
    optimizer = TwoPartOptimizer.adam([parameter], lr=0.1)
    steps(optimizer, parameter, [0])
    assert torch.equal(parameter.grad, parts(0)[0])
    assert torch.equal(parameter.credit_grad, parts(0)[1])


def test_also_when_the_credits_step_raises():
    parameter = weight()
    optimizer = TwoPartOptimizer(torch.optim.SGD([parameter], lr=0.1), torch.optim.LBFGS([parameter]))
    fill(parameter, 0)
    with pytest.raises(TypeError, match="closure"):
        optimizer.step()
    assert torch.equal(parameter.grad, parts(0)[0])


def test_the_size_of_the_credit_does_not_touch_the_step_of_the_exact_part():
    """What it is for: in one Adam a large credit drowns the exact part."""
    moved = []
    for size in (1e-3, 1e3):
        parameter = weight()
        optimizer = TwoPartOptimizer.adam([parameter], lr=0.1, credit_lr=0.01)
        parameter.grad, parameter.credit_grad = parts(0)[0], size * parts(0)[1]
        optimizer.step()
        moved.append(parameter.detach())
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-4, atol=1e-5)


def test_adam_makes_two_with_decay_in_the_exact_one():
    optimizer = TwoPartOptimizer.adam(iter([weight()]), lr=0.1, weight_decay=0.5)
    exact, credit = optimizer.param_groups
    assert (exact["lr"], exact["betas"], exact["weight_decay"]) == (0.1, (0.9, 0.999), 0.5)
    assert (credit["lr"], credit["betas"], credit["weight_decay"]) == (0.1, (0.99, 0.999), 0)
    (parameter,) = exact["params"]
    before = parameter.detach().clone()
    parameter.grad, parameter.credit_grad = torch.zeros_like(before), torch.zeros_like(before)
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), before * (1 - 0.1 * 0.5))


def test_schedules_move_the_rates_of_both():
    optimizer = TwoPartOptimizer.adam([weight()], lr=0.4, credit_lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    fill(optimizer.param_groups[0]["params"][0], 0)
    optimizer.step()
    schedule.step()
    assert [optimizer.exact.param_groups[0]["lr"], optimizer.credit.param_groups[0]["lr"]] == [0.2, 0.05]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    parameter = optimizer.param_groups[0]["params"][0]
    before = parameter.detach().clone()
    optimizer.step()
    assert torch.equal(parameter, before)


def by_tensor_tree(state):
    plain, tensors = split_tree(state, "optimizer")
    return join_tree(plain, {name: tensor.clone() for name, tensor in tensors.items()})


@pytest.mark.parametrize("through", [copy.deepcopy, by_tensor_tree], ids=["copy", "checkpoint"])
def test_a_state_that_is_loaded_goes_on_as_it_would_have(through):
    parameter, resumed = weight(), weight()
    optimizer = TwoPartOptimizer.adam([parameter], lr=0.1, credit_lr=0.05)
    other = TwoPartOptimizer.adam([resumed], lr=9.0)
    halfway = steps(optimizer, parameter, range(3))
    state = through(optimizer.state_dict())
    expected = steps(optimizer, parameter, range(3, 6))
    other.load_state_dict(state)
    assert [group["lr"] for group in other.param_groups] == [0.1, 0.05]
    resumed.data.copy_(halfway)
    assert torch.equal(steps(other, resumed, range(3, 6)), expected)
    for group in other.param_groups:  # those that step, not those from before
        group["lr"] = 0.0
    assert torch.equal(steps(other, resumed, [6]), expected)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])
def test_a_copy_steps_as_the_original(duplicate):
    optimizer = TwoPartOptimizer.adam([weight()], lr=0.1)
    (parameter,) = optimizer.param_groups[0]["params"]
    steps(optimizer, parameter, range(2))
    copied = duplicate(optimizer)
    (other,) = copied.param_groups[0]["params"]
    assert other is not parameter
    assert torch.equal(steps(copied, other, [2]), steps(optimizer, parameter, [2]))


def test_parameters_that_come_later():
    first, second = weight(), weight()
    optimizer = TwoPartOptimizer.adam([first], lr=0.1)
    optimizer.add_param_group({"params": [second], "lr": 0.2})
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2, 0.1, 0.2]
    fill(first, 0)
    fill(second, 0)
    optimizer.step()
    assert not torch.equal(second, weight())
    assert not torch.equal(second, first)


@pytest.mark.parametrize("to_none", [True, False])
def test_zero_grad_clears_both(to_none):
    parameter = weight()
    optimizer = TwoPartOptimizer.adam([parameter], lr=0.1)
    fill(parameter, 0)
    optimizer.zero_grad(set_to_none=to_none)
    credit = getattr(parameter, "credit_grad", None)
    if to_none:
        assert (parameter.grad, credit) == (None, None)
        optimizer.step()  # nothing to do, as in torch
    else:
        assert not parameter.grad.any()
        assert not credit.any()


def test_a_closure_is_called_once_with_gradients_on():
    parameter, calls = weight(), []
    optimizer = TwoPartOptimizer.adam([parameter], lr=0.1)

    def closure():
        calls.append(torch.is_grad_enabled())
        fill(parameter, 0)
        return 1.5

    assert optimizer.step(closure) == 1.5
    assert calls == [True]
    assert not torch.equal(parameter, weight())


def test_a_missing_credit_is_an_error_that_changes_nothing():
    parameter = weight()
    optimizer = TwoPartOptimizer.adam([parameter], lr=0.1)
    parameter.grad = parts(0)[0]
    with pytest.raises(ConfigError, match=r"1 of 1 .* no .credit_grad .*shape \(3, 2\).*separate=True"):
        optimizer.step()
    assert torch.equal(parameter, weight())


def test_what_it_is_not_made_of():
    first, second = weight(), weight()
    one = torch.optim.SGD([first], lr=0.1)
    with (
        without_type_checks(),
        pytest.raises(ConfigError, match=r"credit must be a torch.optim.Optimizer, got float"),
    ):
        TwoPartOptimizer(one, 0.1)
    with pytest.raises(ConfigError, match="two optimizers, got one twice"):
        TwoPartOptimizer(one, one)
    with pytest.raises(ConfigError, match="got 1 that exact has not"):
        TwoPartOptimizer(one, torch.optim.SGD([second], lr=0.1))


def test_it_trains_on_what_the_bridge_leaves_and_resumes_bit_for_bit():
    batch, objective = language_batch(), TokenCrossEntropy()

    def make():
        model = language_model(torch.float32)
        optimizer = TwoPartOptimizer.adam(model.parameters(), lr=0.05, credit_lr=0.01)
        return model, Bridge(truncation=1, epsilon=0.1, separate=True, seed=5, draws=1), optimizer

    def train(model, estimator, optimizer, count):
        losses = []
        for _ in range(count):
            losses.append(estimator.estimate(model, batch, objective).loss)
            optimizer.step()
        return losses

    model, estimator, optimizer = make()
    losses = train(model, estimator, optimizer, 20)
    assert losses[-1] < 0.5 * losses[0]
    again, other, its_optimizer = make()
    assert train(again, other, its_optimizer, 8) == losses[:8]
    resumed, third, its = make()
    resumed.load_state_dict(again.state_dict())
    third.load_state_dict(other.state_dict())
    its.load_state_dict(by_tensor_tree(its_optimizer.state_dict()))
    assert train(resumed, third, its, 12) == losses[8:]
    assert_same(weights(resumed), weights(model))


def test_the_credit_of_an_earlier_estimate_is_not_stepped_again():
    model, batch = language_model(), language_batch()
    optimizer = TwoPartOptimizer.adam(model.parameters(), lr=0.01)
    later = (
        BPTT(),
        ActivityCredit(epsilon=0.01, draws=1),
        CDRGE(population=4, epsilon=0.01, group_size=None),
    )
    for estimator in later:
        Bridge(truncation=2, epsilon=0.1, separate=True, draws=1).estimate(model, batch, TokenCrossEntropy())
        estimator.estimate(model, batch, TokenCrossEntropy())
        with pytest.raises(ConfigError, match="credit_grad"):
            optimizer.step()
