"""Every diagnosis leaves weights, gradients and the estimator as they were, whatever happens in it."""

import pytest
import torch

import zorn
from zorn.diagnostics import diagnose, find_epsilon, measure_signal, sampling, step_curve
from zorn.estimators import BPTT, CDRGE, FDRGE, TBPTT, ActivityCredit
from zorn.estimators.bridge import Bridge
from zorn.estimators.nres import NRES
from zorn.models import Batch
from zorn.tasks import TokenCrossEntropy

ESTIMATORS = {
    "rank one": lambda: CDRGE(population=4, epsilon=0.02, group_size=1, seed=3),
    "dense": lambda: FDRGE(population=2, epsilon=0.02, perturbation=zorn.Dense(), group_size=None),
    "activity": lambda: ActivityCredit(epsilon=0.05, carry=True, draws=1),
    "bridge": lambda: Bridge(truncation=2, epsilon=0.05, carry=True, draws=1, separate=False),
    "bridge in two parts": lambda: Bridge(truncation=2, epsilon=0.05, separate=True, draws=1),
    "nres": lambda: NRES(population=4, epsilon=0.02, group_size=1),
    "bptt": BPTT,
    "tbptt": lambda: TBPTT(truncation=2, carry=True),
}


def batch(seed=0):
    tokens = torch.randint(0, 7, (4, 6), generator=torch.Generator().manual_seed(seed))
    return Batch(tokens[:, :-1], tokens[:, 1:])


def plain(state):
    if isinstance(state, torch.Tensor):
        return state.tolist()
    if isinstance(state, dict):
        return {key: plain(value) for key, value in state.items()}
    return [plain(value) for value in state] if isinstance(state, list | tuple) else state


def everything(model, estimator):
    """Values that must be the same afterwards, and objects that must be the same ones."""
    parts = estimator.parts(model)
    grads = {f"{part} {place}": p.grad for part, ps in enumerate(parts) for place, p in enumerate(ps)}
    return {
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "gradients": {name: None if grad is None else grad.clone() for name, grad in grads.items()},
        "objects": {name: id(grad) for name, grad in grads.items()},
        "attributes": {name: sorted(vars(p)) for name, p in model.named_parameters()},
        "parameters": [[id(p) for p in part] for part in parts],
        "training": [module.training for module in model.modules()],
        "state": plain(estimator.state_dict()),
    }


def assert_same(found, expected):
    for part in ("objects", "attributes", "parameters", "training", "state"):
        assert found[part] == expected[part], part
    for part in ("weights", "gradients"):
        for name, tensor in expected[part].items():
            assert (tensor is None and found[part][name] is None) or torch.equal(found[part][name], tensor)


def used(name, steps=2):
    """A model and an estimator in the middle of a training run."""
    model, estimator = zorn.LanguageModel(7, 6), ESTIMATORS[name]()
    for step in range(steps):
        estimator.estimate(model, batch(step), TokenCrossEntropy())
    model.train()
    model.head.eval()
    return model, estimator


def next_estimate(model, estimator):
    estimator.estimate(model, batch(9), TokenCrossEntropy())
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_diagnosis_changes_nothing(name):
    model, estimator = used(name)
    before = everything(model, estimator)
    found = diagnose(model, batch(5), TokenCrossEntropy(), estimator, estimates=4)
    assert_same(everything(model, estimator), before)
    twin_model, twin = used(name)
    expected = next_estimate(twin_model, twin)
    for key, gradient in next_estimate(model, estimator).items():
        assert torch.equal(gradient, expected[key]), key
    assert (found.epsilon is None) == (name in ("bptt", "tbptt"))


class Bomb(TokenCrossEntropy):
    """Raises at its `fuse`-th evaluation."""

    def __init__(self, fuse):
        self.fuse = fuse

    def token_losses(self, outputs, targets):
        self.fuse -= 1
        if self.fuse == 0:
            raise RuntimeError("boom")
        return super().token_losses(outputs, targets)


@pytest.mark.parametrize("fuse", [1, 2, 5, 12])
@pytest.mark.parametrize("function", [measure_signal, find_epsilon, step_curve])
def test_nor_does_one_that_raises(function, fuse):
    model, estimator = used("activity")
    before = everything(model, estimator)
    with pytest.raises(RuntimeError, match="boom"):
        function(model, batch(5), Bomb(fuse), estimator)
    assert_same(everything(model, estimator), before)


def test_what_is_broken_inside_is_mended():
    model, estimator = used("rank one")
    before = everything(model, estimator)

    def break_it():
        with sampling(model, batch(), TokenCrossEntropy(), estimator) as sampler:
            sampler.draw(3, epsilon=0.5)
            model.head.weight.zero_()
            raise KeyError

    with pytest.raises(KeyError):
        break_it()
    assert_same(everything(model, estimator), before)


def test_estimates_begin_new_sequences_and_differ_in_their_noise_alone():
    model, estimator = used("bridge")
    fresh = Bridge(truncation=2, epsilon=0.05, draws=1, separate=False)
    with sampling(model, batch(5), TokenCrossEntropy(), estimator) as sampler:
        losses = {sampler.draw(number)[1].loss for number in range(2)}
        first, again = sampler.draw(1)[0], sampler.draw(1)[0]
        other = sampler.draw(2)[0]
    assert losses == {fresh.estimate(model, batch(5), TokenCrossEntropy()).loss}
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"]) or not torch.equal(
        first["cells.0.map.weight_state"], other["cells.0.map.weight_state"]
    )


def test_between_steps_with_credit_the_optimizer_goes_on_after_a_diagnosis():
    model = zorn.LanguageModel(7, 6)
    estimator = Bridge(truncation=2, epsilon=0.05, separate=True, credit_every=4, draws=1)
    exact = torch.optim.Adam(model.parameters(), lr=0.01)
    credit = torch.optim.Adam(estimator.credit_parameters(model), lr=0.01)
    for _ in range(2):
        estimator.estimate(model, batch(), TokenCrossEntropy())
        if estimator.step == 1:
            exact.step()
            credit.step()
    with sampling(model, batch(), TokenCrossEntropy(), estimator) as sampler:
        sampler.draw(0)
    exact.step()
    credit.step()
    assert {int(state["step"]) for state in exact.state.values()} == {2}
    assert {int(state["step"]) for state in credit.state.values()} == {1}


def test_the_two_parts_of_a_bridge_are_added():
    model = zorn.LanguageModel(7, 6)
    pairs = []
    for separate, every in ((False, 1), (True, 1), (True, 4)):
        estimator = Bridge(truncation=2, epsilon=0.05, separate=separate, credit_every=every, draws=1)
        with sampling(model, batch(), TokenCrossEntropy(), estimator) as sampler:
            pairs.append((sampler.draw(1)[0], sampler.draw_noisy_part(1, 0.05), sampler.exact()))
        assert (estimator.separate, estimator.credit_every) == (separate, every)
    (whole, credit, exact), *others = pairs
    for name in whole:
        for in_parts, same_credit, _ in others:
            torch.testing.assert_close(whole[name], in_parts[name])
            torch.testing.assert_close(credit[name], same_credit[name])
    truncated = TBPTT(truncation=2)
    with sampling(model, batch(), TokenCrossEntropy(), truncated) as sampler:
        for name, gradient in sampler.draw(0)[0].items():
            torch.testing.assert_close(whole[name] - credit[name], gradient, atol=1e-6, rtol=1e-4)
    assert exact.keys() == whole.keys()


@pytest.mark.parametrize("wrong", [CDRGE, "cd-rge", None], ids=["class", "name", "none"])
def test_what_is_no_estimator_is_refused(wrong):
    with pytest.raises(zorn.errors.ConfigError, match=r"estimator must be a zorn.Estimator, got .*: give"):
        measure_signal(zorn.LanguageModel(7, 6), batch(), TokenCrossEntropy(), wrong)
