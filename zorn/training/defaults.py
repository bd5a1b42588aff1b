"""What is chosen where a setting is left None: the estimator, its settings, the optimizer and its step size.

All numbers stand here, each with the measurement that it comes from. What is given always wins.
"""

import dataclasses
import math
from typing import Any

from zorn.errors import ConfigError
from zorn.training.checks import flag
from zorn.training.config import Chosen, Config, EstimatorConfig, ModelConfig
from zorn.training.usage import STREAMING, USED_BY, WEIGHT_SPACE, given

CANDIDATES = ("activity", "cd-rge", "spsa-1.5", "nres")
"""What "auto" chooses from: the first that uses every setting that is given. Forward passes only."""

WEIGHT_NOISE = {"structure": "rank-one", "rank": 1, "group_size": 1, "population": 1024, "epsilon": 0.02}
"""Log, "short windows, many members": ε does not matter between 0.02 and 0.05, 1024 members learn text and
copy; concepts, "Groups": one member a sequence has the lowest variance for the same passes."""

ONE_PART = {"draws": 1, "credit_every": 1}
"""A bridge whose parts are not separate has credit in every step."""

DENSE = {"group_size": 0, "population": 96}
"""The paper's smallest population, on the whole batch, since dense members run one at a time."""

SETTINGS: dict[str, dict[str, Any]] = {
    "cd-rge": WEIGHT_NOISE,
    "fd-rge": WEIGHT_NOISE,
    "spsa-1.5": WEIGHT_NOISE,
    "pes": WEIGHT_NOISE,
    "nres": WEIGHT_NOISE,
    "activity": {"epsilon": 0.05, "draws": 4, "discount": 1.0},  # log, "draws and the batch"
    "bridge": {"epsilon": 0.1, "draws": 8, "discount": 1.0},  # log, "credit every eighth step"
    "bptt": {},
    "tbptt": {},
    "e-prop": {},
}
"""What each estimator takes where nothing else is said and nothing is known of the task."""

TEXT_DISCOUNT = 0.6
"""activity, log, "the discount on text": 2.84 bits per byte after 40 seconds, 2.90 with 0.8."""

TRANSDUCTION_DISCOUNT = 0.9
"""activity: what is read counts until it is written, some ten steps later; an overfitted batch takes 2.8
seconds, with 1 it takes 4.1."""

ADAM_RATES = {
    "cd-rge": 0.01,  # log, "overfitting one batch": best of 0.003, 0.01, 0.03
    "fd-rge": 0.01,
    "spsa-1.5": 0.01,
    "pes": 0.01,
    "nres": 0.01,
    "activity": 0.01,  # log, "draws and the batch"; 0.005 takes twice as long to overfit a batch
    "bridge": 0.003,  # log, "the bridge": of copy; text bears 0.01
    "bptt": 0.01,  # presets, copy: 0.003: 0.016, 0.01: 0.007, 0.03: 0.018
    "tbptt": 0.003,  # presets, copy: 0.003: 0.128, 0.01: 0.338
    "e-prop": 0.005,  # log, "what forward-only learning gains"
}
"""Step sizes with adam and adamw."""

PLAIN_RATE = 0.1
"""Step size with sgd and fused-sgd: the paper's smaller one. The best depends on the objective's scale."""

WHY = {
    "structure": "all members in one forward pass",
    "rank": "rank-one signs have the least variance",
    "group_size": "one sequence for each of many members, or the whole batch (0) for each of few",
    "epsilon": "what most models bear; zorn diagnose measures the plateau",
    "draws": "each is one more forward pass of every sequence",
}
"""Why the settings in `SETTINGS` are what they are, where it is the same for all."""

SMALL_HIDDEN_SIZE, SMALL_PARAMETERS = 128, 200_000
"""Log, "two threads gain nothing on small products": up to these one thread is as fast, or much faster."""


def completed(estimator: EstimatorConfig) -> EstimatorConfig:
    """The settings of a named estimator, those that it uses and that are None set to `SETTINGS`.

    Raises:
        ConfigError: the estimator is "auto": only the whole `Config` tells which suits, see `resolve`.

    >>> completed(EstimatorConfig(estimator="activity", draws=4)).epsilon
    0.05
    """
    name = estimator.estimator
    if name == "auto":
        raise ConfigError(
            "estimator must be named here, got auto: choose it with zorn.training.resolve(config), or give "
            'estimator="activity"'
        )
    defaults = SETTINGS[name] | (DENSE if estimator.structure == "dense" else {})
    if name == "bridge":
        every = estimator.draws or defaults["draws"]
        defaults = defaults | ({"credit_every": every} if estimator.separate else ONE_PART)
    missing = {field: value for field, value in defaults.items() if getattr(estimator, field) is None}
    return dataclasses.replace(estimator, **missing)


def resolve(config: Config) -> tuple[Config, list[str]]:
    """The settings with everything chosen that was left None or "auto", and a line for each choice. What was
    chosen is in `chosen` of the settings, beside what was chosen before.

    Choosing again changes nothing, so a run that is resumed from the settings that it wrote stays as it is.

    Raises:
        ConfigError: no estimator uses all that is given, or what is chosen does not fit what is given.

    >>> from zorn.training import BudgetConfig
    >>> chosen, reasons = resolve(Config(budget=BudgetConfig(steps=10)))
    >>> chosen.estimator.estimator, chosen.estimator.discount, chosen.optimizer.optimizer
    ('activity', 0.6, 'adam')
    >>> reasons[3]
    'discount 0.6: in text, what comes soon says most'
    >>> resolve(chosen) == (chosen, [])
    True
    """
    named, reasons = config, []
    chosen = dataclasses.asdict(config.chosen)
    if config.estimator.estimator == "auto":
        name, why = _estimator(config)
        named = dataclasses.replace(config, estimator=dataclasses.replace(config.estimator, estimator=name))
        reasons.append(f"estimator {name}: {why}")
        chosen["estimator"]["estimator"] = name
    choices = _choices(named)
    groups = {}
    for group in chosen:
        settings = getattr(named, group)
        names = [field.name for field in dataclasses.fields(settings) if field.name in choices]
        new = {name: choices[name] for name in names if getattr(settings, name) is None}
        reasons += [f"{name.replace('_', ' ')} {value}: {why}" for name, (value, why) in new.items()]
        values = {name: value for name, (value, _) in new.items()}
        groups[group] = dataclasses.replace(settings, **values)
        chosen[group] |= values
    return dataclasses.replace(named, **groups, chosen=Chosen(**chosen)), reasons


def _estimator(config: Config) -> tuple[str, str]:
    """The first candidate that uses all that is given, and why."""
    asked = [name for group in (config.task, config.estimator, config.optimizer) for name, *_ in given(group)]
    unfit = ("activity",) if config.model.simple_memory else ()  # its norm sees slots where time is expected
    for candidate in (name for name in CANDIDATES if name not in unfit):
        needed = [name for name in asked if candidate not in USED_BY[name]]
        if not needed and (candidate not in STREAMING or config.task.stream is not None):
            if not asked and candidate != CANDIDATES[0]:
                return candidate, "activity noise does not fit the simplified memory"
            if candidate == CANDIDATES[0]:
                return candidate, "of those with forward passes only, it learns most in the same time"
            return candidate, f"it uses {', '.join(map(flag, asked))}"
    users = "; ".join(f"{flag(name)} is of {', '.join(USED_BY[name])}" for name in asked)
    raise ConfigError(
        f"estimator must be named, got auto, and none of {', '.join(CANDIDATES)} uses all that is given "
        f"({users}): for example --estimator {USED_BY[asked[0]][0]}"
    )


def _choices(config: Config) -> dict[str, tuple[Any, str]]:
    """What every setting that may be None would be, and why: field -> (value, reason)."""
    name = config.estimator.estimator
    settings = completed(config.estimator)
    choices = {field: (getattr(settings, field), WHY[field]) for field in SETTINGS[name] if field in WHY}
    if name in WEIGHT_SPACE:
        group = dataclasses.replace(config.estimator, population=None, group_size=settings.group_size)
        multiple = dataclasses.replace(config, estimator=group).population_multiple
        size = math.ceil((settings.population or 1) / multiple) * multiple
        choices["population"] = size, f"a multiple of {multiple} uses all sequences equally often"
    if name == "activity":
        choices["discount"] = _discount(config)
    elif name == "bridge":
        choices["discount"] = 1.0, "no bias"
        why = "a step with credit has the draws of all between" if settings.separate else "parts not separate"
        choices["credit_every"] = settings.credit_every, why
    optimizer, why = "adam", "its steps do not depend on the scale of the estimate"
    if config.run.dtype == "bfloat16":
        optimizer, why = "fused-sgd", "it rounds small updates of bfloat16 weights so that none is lost"
    choices["optimizer"] = optimizer, why
    optimizer = config.optimizer.optimizer or optimizer
    adaptive = optimizer in ("adam", "adamw")
    rate = ADAM_RATES[name] if adaptive else PLAIN_RATE
    why = f"for {name} with {optimizer}"
    choices["learning_rate"] = rate, why if adaptive else f"{why}; search it"
    if name == "bridge" and settings.separate and optimizer == "sgd":
        choices["credit_learning_rate"] = ADAM_RATES[name], "the credit has adam, whatever the exact part has"
    if config.run.device == "cpu" and _small(config.model):
        choices["threads"] = 1, "small products gain nothing from more"
    return choices


def _discount(config: Config) -> tuple[float, str]:
    if config.task.objective != "cross-entropy":
        return 1.0, f"{config.task.objective} is one number a sequence"
    if config.task.task == "text":
        return TEXT_DISCOUNT, "in text, what comes soon says most"
    return TRANSDUCTION_DISCOUNT, "what is read counts until it is written"


def _small(model: ModelConfig) -> bool:
    if model.parameters is not None:
        return model.parameters <= SMALL_PARAMETERS
    return model.hidden_size <= SMALL_HIDDEN_SIZE
