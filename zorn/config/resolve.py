"""From the settings that are asked for to all settings: everything that is left open is chosen, with its
reason.

Numbers that suit an estimator stand in its class, with the measurement that they come from.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from zorn.checks import check_whole_number, wrong
from zorn.config.config import AUTO, Config, component_settings
from zorn.errors import ConfigError
from zorn.estimators import AUTOMATIC, ESTIMATORS, Estimator, Facts, Need
from zorn.models import TokenObjective
from zorn.optimizers import OPTIMIZERS, PLAIN_RATE, optimizer_kind
from zorn.settings import Choice, completed, flag, settings_of
from zorn.tasks import TASKS, has_derivative, objective_of

SMALL_HIDDEN_SIZE, SMALL_PARAMETERS = 128, 200_000
"""Log, "two threads gain nothing on small products": up to these one thread is as fast, or much faster."""


def resolve(config: Config) -> tuple[Config, list[str]]:
    """All settings of a run, and a line for each that was chosen because it was not given.

    Resolving again changes nothing.

    Raises:
        ConfigError: no estimator has all that is given, or settings that do not fit each other.

    >>> from zorn.config import BudgetConfig
    >>> found, reasons = resolve(Config(budget=BudgetConfig(steps=10)))
    >>> found.estimator.name, found.estimator.discount, found.optimizer.name
    ('activity', 0.6, 'adam')
    >>> reasons[1]
    'discount 0.6: in text, what comes soon says most'
    >>> resolve(found) == (found, [])
    True
    """
    task = completed(config.task, component_settings("task", config.task.name), "task")
    model = completed(config.model, component_settings("model", config.model.name), "cell")
    kind = TASKS[task.name]
    if task.get("batch") is not None:
        check_whole_number("batch", task.batch, minimum=1)
    facts = Facts(
        batch=task.get("batch"),
        objective=config.objective,
        tokens=isinstance(objective_of(config.objective), TokenObjective),
        fading=kind.fading,
        why_fading=kind.why_fading,
        model=model,
    )
    reasons: list[str] = []
    name = config.estimator.name
    if name == AUTO:
        name, why = _automatic(config, facts)
        reasons.append(f"estimator {name}: {why}")
    estimator = _estimator(Choice(name, **config.estimator.given), facts, reasons)
    optimizer = _optimizer(config, ESTIMATORS[name], reasons)
    run = config.run
    if run.threads is None and run.device == "cpu" and _is_small(model):
        run = dataclasses.replace(run, threads=1)
        reasons.append("threads 1: small products gain nothing from more")
    found = dataclasses.replace(
        config, task=task, model=model, estimator=estimator, optimizer=optimizer, run=run
    )
    _check(found, facts)
    return found, reasons


def _automatic(config: Config, facts: Facts) -> tuple[str, str]:
    """The first estimator that has all that is given, and the reason."""
    given = set(config.estimator.given)
    streams = config.task.get("stream") is not None
    scheduled = {"population": config.schedule.final_population is not None}
    first = AUTOMATIC[0]
    obstacle = ESTIMATORS[first].unfit(facts)
    for name in AUTOMATIC:
        kind = ESTIMATORS[name]
        lacking = given - settings_of(kind).keys()
        lacking |= {each for each, asked in scheduled.items() if asked and each not in kind.scheduled}
        if lacking or kind.unfit(facts) or (streams and not kind.carries()):
            continue
        if Need.STREAM in kind.needs and not streams:
            continue
        if name == first:
            return name, "of those with forward passes only, it learns most in the same time"
        if obstacle is not None:
            return name, obstacle
        return name, f"it has {', '.join(map(flag, sorted(given)))}" if given else "it serves what is asked"
    owners = "; ".join(
        f"{flag(each)} is of {', '.join(n for n, kind in ESTIMATORS.items() if each in settings_of(kind))}"
        for each in sorted(given)
    )
    got = f"auto, and none of {', '.join(AUTOMATIC)} has all that is given ({owners})"
    raise wrong("estimator", "named", got)


def _estimator(asked: Choice, facts: Facts, reasons: list[str]) -> Choice:
    """The estimator with all of its settings."""
    kind = ESTIMATORS[asked.name]
    chosen = kind.choose(asked.given, facts)
    for name, (value, why) in chosen.items():
        if name not in asked.given:
            reasons.append(f"{name.replace('_', ' ')} {value}: {why}")
            asked = asked.but(**{name: value})
    return completed(asked, settings_of(kind), "estimator")


def _optimizer(config: Config, estimator: type[Estimator], reasons: list[str]) -> Choice:
    """The optimizer with all of its settings."""
    asked = config.optimizer
    if asked.name == AUTO:
        name, why = "adam", "its steps do not depend on the scale of the estimate"
        if config.run.dtype == "bfloat16":
            name, why = "fused-sgd", "it rounds small updates of bfloat16 weights so that none is lost"
        has = {each: settings_of(optimizer_kind(each).make).keys() for each in OPTIMIZERS}
        if lacking := ", ".join(sorted(asked.given.keys() - has[name])):
            owner = next(each for each in OPTIMIZERS if asked.given.keys() <= has[each])
            got = f"auto, which is {name} here and has no {lacking}"
            raise wrong("optimizer", "named", got, f"take {flag('optimizer')} {owner}")
        reasons.append(f"optimizer {name}: {why}")
        asked = Choice(name, **asked.given)
    kind = optimizer_kind(asked.name)
    found = completed(asked, settings_of(kind.make), "optimizer")
    if found.get("learning_rate", 0.0) is None:
        rate = estimator.learning_rate if kind.adaptive else PLAIN_RATE
        reasons.append(f"learning rate {rate}: suits {asked.name}" + ("" if kind.adaptive else "; search it"))
        found = found.but(learning_rate=rate)
    return found


def _is_small(model: Choice) -> bool:
    if model.parameters is not None:
        return model.parameters <= SMALL_PARAMETERS
    return model.hidden_size <= SMALL_HIDDEN_SIZE


def _check(config: Config, facts: Facts) -> None:
    """Raise ConfigError for settings of different components that do not fit each other."""
    kind, name = ESTIMATORS[config.estimator.name], config.estimator.name
    stream = config.task.get("stream")
    conditions = {
        Need.DERIVATIVE: has_derivative(config.objective),
        Need.TOKENS: facts.tokens,
        Need.STREAM: stream is not None,
    }
    for need, fulfilled in conditions.items():
        if need in kind.needs and not fulfilled:
            got, fix = (
                f"the objective {config.objective}",
                "take cross-entropy, or an estimator such as activity",
            )
            if need is Need.STREAM:
                got, fix = "no stream", f"for example {flag('stream')} 32"
            raise ConfigError(f"estimator {name} needs {need.value}, got {got}: {fix}")
    if stream is not None and not kind.carries():
        raise wrong("stream", f"None with estimator {name}, which carries no state", stream)
    kind(**config.estimator.given).check(facts)
    _check_schedule(config, kind)
    _check_optimizer(config, kind)


def _check_schedule(config: Config, kind: type[Estimator]) -> None:
    schedule, name = config.schedule, config.estimator.name
    asked = {
        "epsilon_schedule": ("epsilon", schedule.epsilon_schedule != "constant", "constant"),
        "tie_epsilon": ("epsilon", schedule.tie_epsilon, False),
        "final_population": ("population", schedule.final_population is not None, None),
    }
    for setting, (scheduled, given, default) in asked.items():
        if given and scheduled not in kind.scheduled:
            expected = f"{default} with estimator {name}, which has no {scheduled}"
            raise wrong(setting, expected, getattr(schedule, setting), "leave it out")
    final = schedule.final_population
    if final is not None and config.task.get("batch") is not None:
        estimator: Any = kind(**config.estimator.given)
        estimator.population = final  # refuses what the last step would
        multiple = estimator.population_multiple(config.task.batch)
        if final % multiple:
            expected = (
                f"a multiple of {multiple} (batch / group size), so that all sequences are used equally often"
            )
            fix = f"for example {flag('final_population')} {4 * multiple}"
            raise wrong("final_population", expected, final, fix)


def _check_optimizer(config: Config, kind: type[Estimator]) -> None:
    name = config.optimizer.name
    in_place = optimizer_kind(name).in_place
    if config.run.dtype == "bfloat16" and not in_place:
        fix = "take --optimizer fused-sgd, which keeps them"
        raise wrong("dtype", f"float32 with {name}, which loses small updates", "bfloat16", fix)
    clip = config.schedule.clip_norm
    if in_place and clip is not None:
        raise wrong("clip_norm", f"None with {name}, which holds no gradient to clip", clip, "leave it out")
    if in_place and kind(**config.estimator.given).two_part:
        expected = f"False with {name}, which keeps no gradient and so no two parts of one"
        raise wrong("separate", expected, "True", "add --no-separate")
