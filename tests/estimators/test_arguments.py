"""Slips in calling an estimator: refused before any work, by a message that says what to do."""

import numpy as np
import pytest
import torch
from small_language import gradients, language_batch, language_model, without_type_checks

from zorn.errors import ConfigError
from zorn.estimators import BPTT, CDRGE, FDRGE, SPSA15, TBPTT, ActivityCredit, Bridge, smoothed_loss
from zorn.models import Batch
from zorn.noise import Dense, RankOne
from zorn.tasks import TokenCrossEntropy

WHOLE = [2.0, True, "4", np.float64(4)]

SETTINGS = [
    *((name, value) for name in ("population", "micro_batch", "seed") for value in [*WHOLE, None]),
    *((name, value) for name in ("group_size", "time_chunk") for value in WHOLE),
    *(
        (name, value)
        for name in ("epsilon", "maximum_nonfinite_share")
        for value in ("0.1", True, None, 0.1j, torch.tensor(0.1), [0.1])
    ),
]


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [*((CDRGE, *setting) for setting in SETTINGS), (FDRGE, "epsilon", "0.1"), (SPSA15, "population", 2.0)],
)
def test_a_setting_of_another_type(kind, name, value):
    """Every rule at one estimator, as the others inherit them; each of those once."""
    with without_type_checks(), pytest.raises(ConfigError, match=f"^{name} must be a .*number.*, got "):
        kind(**{"population": 4, "epsilon": 0.1, name: value})


@pytest.mark.parametrize("value", [0.1, 1, np.float32(0.5), np.int64(2)])
def test_an_epsilon_of_any_real_type(value):
    with without_type_checks():
        estimator = CDRGE(population=4, epsilon=value, group_size=None)
    assert estimator.epsilon == float(value)
    assert type(estimator.epsilon) is float


@pytest.mark.parametrize(
    ("perturbation", "got"),
    [
        ("sparse", "got 'sparse'"),
        (Dense, "got the class Dense, not an instance of it"),
        (1, "got 1"),
    ],
)
def test_a_perturbation_that_is_none(perturbation, got):
    message = r"zorn.RankOne\(\) or zorn.Dense\(\), "
    with without_type_checks():
        with pytest.raises(ConfigError, match=f"perturbation must be one of rank-one, dense, {message}{got}"):
            CDRGE(population=4, epsilon=0.1, perturbation=perturbation, group_size=None)
        with pytest.raises(ConfigError, match=f"perturbation must be one of rank-one, dense, {message}{got}"):
            smoothed_loss(
                language_model(),
                language_batch(),
                TokenCrossEntropy(),
                epsilon=0.1,
                members=4,
                perturbation=perturbation,
            )


def test_a_structure_by_its_name_has_the_noise_that_is_set():
    estimator = CDRGE(population=4, epsilon=0.1, perturbation="dense", noise="gaussian", group_size=None)
    assert estimator.perturbation == Dense(noise="gaussian")


@pytest.mark.parametrize(("shaping", "got"), [("rank", "'rank'"), (3, "3")])
def test_a_shaping_that_is_none(shaping, got):
    message = f"shaping must be one of none, zscore, sign, std, or a function, got {got}"
    with without_type_checks(), pytest.raises(ConfigError, match=message):
        CDRGE(population=4, epsilon=0.1, shaping=shaping, group_size=None)


# ------------------------------------------------------------------------------------------------ calls


def smoothed(model, batch, objective):
    return smoothed_loss(model, batch, objective, epsilon=0.1, members=4)


CALLS = {
    "rank one": lambda *call: CDRGE(
        population=4, epsilon=0.1, perturbation=RankOne(), group_size=None
    ).estimate(*call),
    "dense": lambda *call: CDRGE(population=4, epsilon=0.1, perturbation=Dense(), group_size=None).estimate(
        *call
    ),
    "bptt": lambda *call: BPTT().estimate(*call),
    "tbptt": lambda *call: TBPTT(truncation=2).estimate(*call),
    "bridge": lambda *call: Bridge(truncation=2, epsilon=0.1, draws=1, separate=False).estimate(*call),
    "activity": lambda *call: ActivityCredit(epsilon=0.1, draws=1).estimate(*call),
    "smoothed": smoothed,
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
INPUTS, TARGETS = language_batch()


def once_and_everywhere(*bad):
    """Every bad argument to one caller, and the first to the others: all callers make the same check."""
    first, *others = CALLS.values()
    return [(first, *each) for each in bad] + [(other, *bad[0]) for other in others]


@pytest.mark.parametrize(
    ("call", "batch", "message"),
    once_and_everywhere(
        ((INPUTS, TARGETS), r"batch must be zorn.Batch\(inputs, targets\), got \(Tensor, Tensor\): wrap it"),
        ([INPUTS, TARGETS], r"batch must be zorn.Batch\(inputs, targets\), got a value of type list"),
        (INPUTS, r"batch must be zorn.Batch\(inputs, targets\), got a value of type Tensor"),
        (Batch, r"batch must be zorn.Batch\(inputs, targets\), got the class Batch"),
        ((INPUTS.tolist(), TARGETS), r"batch.inputs must be a tensor .* got a value of type list"),
        ((INPUTS, TARGETS.numpy()), r"batch.targets must be a tensor .* got a value of type ndarray"),
        ((torch.tensor(1), TARGETS), r"batch.inputs must be a tensor .* got a tensor of shape \(\)"),
        ((INPUTS, TARGETS[:3]), "got 4 rows of inputs and 3 of targets"),
        ((INPUTS[:0], TARGETS[:0]), "got 0 rows of inputs and 0 of targets"),
    ),
)
def test_a_batch_that_is_none(call, batch, message):
    model, calls = language_model(), []
    model.register_forward_hook(lambda *arguments: calls.append(1))
    with without_type_checks():
        if isinstance(batch, tuple) and "wrap" not in message:
            batch = Batch(*batch)
        with pytest.raises(ConfigError, match=message):
            call(model, batch, TokenCrossEntropy())
    assert not calls
    assert not gradients(model)


@pytest.mark.parametrize(
    ("call", "model"), once_and_everywhere((torch.nn.Linear,), (lambda inputs: inputs,), ("lstm",))
)
def test_a_model_that_is_none(call, model):
    with without_type_checks(), pytest.raises(ConfigError, match=r"^model must be a torch.nn.Module, got "):
        call(model, language_batch(), TokenCrossEntropy())


def test_a_model_that_is_none_in_ask_and_tell():
    estimator = CDRGE(population=4, epsilon=0.1, group_size=None)
    population = estimator.ask(language_model())
    with without_type_checks():
        with pytest.raises(ConfigError, match="model must be"):
            estimator.ask("lstm")
        with pytest.raises(ConfigError, match="model must be"):
            estimator.evaluate("lstm", population, language_batch(), TokenCrossEntropy())
        with pytest.raises(ConfigError, match="model must be"):
            estimator.tell("lstm", population, torch.zeros(2, 4))
    assert estimator.step == 1


@pytest.mark.parametrize("name", [name for name in CALLS if name != "smoothed"])
def test_an_optimizer_as_the_update(name):
    model, calls = language_model(), []
    model.register_forward_hook(lambda *arguments: calls.append(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    message = r"update must be zorn.estimators.FusedSGD\(...\) or None, got a value of type SGD"
    with without_type_checks(), pytest.raises(ConfigError, match=message):
        CALLS[name](model, language_batch(), TokenCrossEntropy(), optimizer)
    assert not calls


@pytest.mark.parametrize(
    ("call", "objective", "message"),
    once_and_everywhere(
        (
            TokenCrossEntropy,
            r"got the class TokenCrossEntropy, not an instance of it: write Token",
        ),
        ("cross-entropy", r"objective must be a token objective .*, got 'cross-entropy'"),
        (None, r"objective must be .*, got None"),
    ),
)
def test_an_objective_that_is_none(call, objective, message):
    model, calls = language_model(), []
    model.register_forward_hook(lambda *arguments: calls.append(1))
    with without_type_checks(), pytest.raises(ConfigError, match=message):
        call(model, language_batch(), objective)
    assert not calls
    assert not gradients(model)


@each_call
def test_a_model_with_a_lazy_layer(call):
    lazy = torch.nn.Sequential(torch.nn.LazyLinear(3))
    with (
        without_type_checks(),
        pytest.raises(ConfigError, match=r"^0\.weight has no shape yet, .* once on"),
    ):
        call(lazy, Batch(torch.zeros(4, 2), torch.zeros(4, 3)), TokenCrossEntropy())


@pytest.mark.parametrize(
    ("estimator", "missing"),
    [
        (CDRGE(population=4, epsilon=0.1, group_size=None), "seed, epsilon, population"),
        (TBPTT(truncation=2, carry=True), "carried"),
        (Bridge(truncation=2, epsilon=0.1, draws=1, separate=False), "seed, epsilon, mean_squares"),
        (ActivityCredit(epsilon=0.1, draws=1), "seed, epsilon, sizes, output"),
    ],
    ids=["cd-rge", "tbptt", "bridge", "activity"],
)
def test_a_state_that_is_none(estimator, missing):
    before = estimator.state_dict()
    with without_type_checks():
        with pytest.raises(ConfigError, match=r"what state_dict\(\) gave, got 3"):
            estimator.load_state_dict(3)
        with pytest.raises(ConfigError, match=f"got one without {missing}$"):
            estimator.load_state_dict({"step": 1})
    assert estimator.state_dict() == before
