"""A setting outside its range is refused before any work, by a message that names it."""

import pytest
import torch
from small_language import language_batch, language_model, without_type_checks

from zorn.checks import Count, Positive
from zorn.errors import ConfigError, UncoveredParameterError
from zorn.estimators import (
    BPTT,
    CDRGE,
    ESTIMATORS,
    FDRGE,
    SPSA15,
    TBPTT,
    ActivityCredit,
    Bridge,
    EProp,
    Estimator,
)
from zorn.estimators.update import FusedSGD
from zorn.noise import Dense, RankOne
from zorn.settings import settings_of
from zorn.tasks import TokenCrossEntropy

SETTINGS = [
    ("population", 0),
    ("population", -4),
    ("epsilon", 0.0),
    ("epsilon", -0.1),
    ("epsilon", float("nan")),
    ("epsilon", float("inf")),
    ("seed", -1),
    ("seed", 2**64),
    ("group_size", 0),
    ("micro_batch", 0),
    ("micro_batch", -1),
    ("time_chunk", 0),
    ("maximum_nonfinite_share", -0.1),
    ("maximum_nonfinite_share", 1.5),
    ("maximum_nonfinite_share", float("nan")),
]


@pytest.mark.parametrize("kind", [CDRGE, FDRGE, SPSA15])
@pytest.mark.parametrize(("name", "value"), SETTINGS)
def test_a_setting_outside_its_range(kind, name, value):
    with pytest.raises(ConfigError, match=rf"^{name} must be a .*, got {value}"):
        kind(**{"population": 4, "epsilon": 0.1, name: value})


@pytest.mark.parametrize("value", ["no", -1, 1.5j, [1], float("nan"), torch.tensor(0.5)], ids=str)
@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in ESTIMATORS for name in settings_of(ESTIMATORS[kind])]
)
def test_every_setting_of_every_estimator_is_checked(kind, name, value):
    made, settings = ESTIMATORS[kind], settings_of(ESTIMATORS[kind])
    needed = {each: 2 for each, setting in settings.items() if setting.required}
    with without_type_checks(), pytest.raises(ConfigError, match=rf"^{name}\b"):
        made(**{**needed, name: value})


@pytest.mark.parametrize("kind", [TBPTT, Bridge, EProp, ActivityCredit])
def test_carry_is_a_switch(kind):
    needed = {} if kind in (EProp, ActivityCredit) else {"truncation": 2}
    with without_type_checks(), pytest.raises(ConfigError, match=r"^carry must be True or False, got 'no'"):
        kind(carry="no", **needed)


@pytest.mark.parametrize("perturbation", ["dense", Dense()])
def test_a_noise_that_is_none_whatever_the_structure_is_given_by(perturbation):
    with without_type_checks(), pytest.raises(ConfigError, match=r"^noise must be one of .*, got 'uniform'"):
        CDRGE(perturbation=perturbation, noise="uniform", group_size=None)


@pytest.mark.parametrize("structure", [RankOne, Dense])
def test_the_noise_is_told_of_a_structure_that_is_given(structure):
    given = structure(noise="gaussian")
    assert CDRGE(perturbation=given).settings()["noise"] == "gaussian"
    assert CDRGE(perturbation=given, noise="gaussian").settings()["noise"] == "gaussian"
    with pytest.raises(ConfigError, match=r"^noise must be 'rademacher' .*, got 'gaussian': leave it out"):
        CDRGE(perturbation=structure(), noise="gaussian")


@pytest.mark.parametrize(
    "options",
    [{"seed": 0}, {"seed": 2**64 - 1}, {"maximum_nonfinite_share": 0.0}, {"maximum_nonfinite_share": 1.0}],
)
def test_the_ends_of_the_ranges_are_allowed(options):
    estimator = CDRGE(population=1, epsilon=1e-30, micro_batch=1, time_chunk=1, group_size=1, **options)
    assert estimator.population == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("curvature_power", -0.1),
        ("curvature_power", 1.1),
        ("curvature_power", float("nan")),
        ("curvature_floor", 0.0),
        ("curvature_floor", -1.0),
        ("curvature_floor", float("inf")),
        ("curvature_floor", float("nan")),
    ],
)
def test_the_settings_of_the_curvature(name, value):
    with pytest.raises(ConfigError, match=rf"^{name} must be a number .*, got {value}"):
        SPSA15(population=4, epsilon=0.1, **{name: value})


@pytest.mark.parametrize("value", [0, -1])
def test_population_is_checked_when_a_schedule_sets_it(value):
    estimator = CDRGE(population=4, epsilon=0.1, group_size=None)
    with pytest.raises(ConfigError, match=f"population must be a whole number of at least 1, got {value}"):
        estimator.population = value
    assert estimator.population == 4


def test_a_population_set_between_steps_is_the_next_ones():
    model, estimator = language_model(), CDRGE(population=4, epsilon=0.1, group_size=None)
    earlier = estimator.ask(model)
    estimator.population = 12
    assert (earlier.size, estimator.ask(model).size) == (4, 12)
    found = estimator.estimate(model, language_batch(), TokenCrossEntropy())
    assert len(found.coefficients) == 12


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_epsilon_is_checked_when_a_schedule_sets_it(value):
    estimator = CDRGE(population=4, epsilon=0.1, group_size=None)
    with pytest.raises(ConfigError, match="epsilon"):
        estimator.epsilon = value
    assert estimator.epsilon == 0.1


@pytest.mark.parametrize(
    ("population", "group", "message"),
    [
        (4, 3, "group_size must be a divisor of the batch, 4 sequences .*, got 3"),
        (4, 8, "group_size must be a divisor of the batch, 4 sequences .*, got 8"),
        (6, 1, "population must be a multiple of 4 .*, got 6"),
        (3, 2, "population must be a multiple of 2 .*, got 3"),
    ],
)
@pytest.mark.parametrize("perturbation", [RankOne(), Dense()])
def test_members_that_do_not_cover_the_batch_evenly(population, group, message, perturbation):
    model, calls = language_model(), []
    model.register_forward_hook(lambda *arguments: calls.append(1))
    estimator = CDRGE(population=population, epsilon=0.1, group_size=group, perturbation=perturbation)
    with pytest.raises(ConfigError, match=message):
        estimator.estimate(model, language_batch(), TokenCrossEntropy())
    assert not calls


@pytest.mark.parametrize("structure", [RankOne(), Dense()])
def test_an_unknown_noise(structure):
    object.__setattr__(
        structure, "noise", "uniform"
    )  # past the type checks of the tests, which users do not run
    with pytest.raises(ConfigError, match=r"noise: got 'uniform', expected 'rademacher' or 'gaussian'"):
        structure.__post_init__()


@pytest.mark.parametrize("value", [0, -2])
def test_the_micro_batch_of_bptt(value):
    with pytest.raises(ConfigError, match=f"micro_batch must be a whole number of at least 1, got {value}"):
        BPTT(micro_batch=value)


@pytest.mark.parametrize("rate", [0.0, -0.1, float("nan"), float("inf")])
def test_the_rate_of_the_fused_update(rate):
    with pytest.raises(ConfigError, match="learning_rate must be a number above 0, got"):
        FusedSGD(learning_rate=rate)


@pytest.mark.parametrize(("rate", "decay"), [(0.1, -1.0), (0.1, 10.0), (0.1, float("nan")), (2.0, 0.5)])
def test_the_decay_of_the_fused_update(rate, decay):
    with pytest.raises(ConfigError, match=r"weight_decay must be a number .*, got"):
        FusedSGD(learning_rate=rate, weight_decay=decay)


@pytest.mark.parametrize("estimator", [CDRGE(population=4, epsilon=0.1, group_size=None), BPTT()])
def test_a_model_without_anything_to_train(estimator):
    model = language_model().requires_grad_(False)
    with pytest.raises(UncoveredParameterError, match="no parameter that requires a gradient"):
        estimator.estimate(model, language_batch(), TokenCrossEntropy())


@pytest.mark.parametrize("estimator", [CDRGE(population=4, epsilon=0.1, group_size=None), BPTT()])
def test_a_batch_in_which_nothing_counts(estimator):
    batch = language_batch()
    batch.targets.fill_(-100)
    with pytest.raises(ValueError, match="no token"):
        estimator.estimate(language_model(), batch, TokenCrossEntropy())


class Fields(Estimator):
    """An estimator whose settings are fields."""

    draws: Count = 2
    rate: Positive | None = None
    carry: bool = False

    def passes(self, batch, steps):
        return batch

    def _estimate(self, model, batch, objective, update):
        raise AssertionError


def test_a_field_is_a_setting_and_checked_whenever_it_is_set():
    made = Fields(draws=3, rate=1)
    assert made.settings() == {"draws": 3, "rate": 1.0}  # carry is the run's to give
    assert type(made.rate) is float
    for name, wrong in (("draws", 0), ("draws", 2.0), ("rate", 0.0), ("rate", "1"), ("carry", "no")):
        with pytest.raises(ConfigError, match=rf"^{name} must be "):
            setattr(made, name, wrong)
        with pytest.raises(ConfigError, match=rf"^{name} must be "):
            Fields(**{name: wrong})
    assert (made.draws, made.rate, made.carry) == (3, 1.0, False)


def test_a_constructor_of_its_own_stays_that_of_a_class_and_of_those_below():
    class Own(Fields):
        def __init__(self, *, draws: int = 5) -> None:
            super().__init__(draws=draws, rate=0.5)

    class Below(Own):
        label: str = "kept as a class attribute"

    assert Below().settings() == Own().settings() == {"draws": 5}
    with pytest.raises(ConfigError, match=r"^draws must be "):
        Below(draws=0)
