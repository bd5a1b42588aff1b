"""How the learning rate, ε and the population move over a run: functions of the step and of the share of the
budget used."""

import math

from zorn.training.config import EstimatorConfig, OptimizerConfig


def warmup(step: int, warmup_steps: int) -> float:
    """Factor of a linear warm-up at a step (from 0): 1 / warmup_steps at first, 1 after `warmup_steps`.

    >>> [warmup(step, 4) for step in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


def cosine(progress: float, floor: float) -> float:
    """Factor of half a cosine: 1 at progress 0, `floor` at progress 1 (Loshchilov and Hutter, SGDR, 2017).

    >>> cosine(0.0, 0.1), cosine(1.0, 0.1)
    (1.0, 0.1)
    """
    return floor + (1.0 - floor) * (1.0 + math.cos(math.pi * progress)) / 2.0


def rate_factor_at(config: OptimizerConfig, step: int, progress: float) -> float:
    """What every learning rate is multiplied by at a step (from 0) when `progress` (0 to 1) of the budget is
    used."""
    factor = cosine(progress, config.schedule_floor) if config.schedule == "cosine" else 1.0
    return factor * warmup(step, config.warmup_steps)


def learning_rate_at(config: OptimizerConfig, step: int, progress: float) -> float:
    """The learning rate of a step (from 0) when `progress` (0 to 1) of the budget is used."""
    assert config.learning_rate is not None, "settings are resolved before a run"
    return config.learning_rate * rate_factor_at(config, step, progress)


def epsilon_at(config: OptimizerConfig, epsilon: float, step: int, progress: float) -> float:
    """ε of a step: `epsilon` along its own schedule, or the learning rate where the two are tied.

    >>> epsilon_at(OptimizerConfig(learning_rate=0.01, tie_epsilon=True), 0.5, 0, 0.0)
    0.01
    """
    if config.tie_epsilon:
        return learning_rate_at(config, step, progress)
    falls = config.epsilon_schedule == "cosine"
    return epsilon * (cosine(progress, config.schedule_floor) if falls else 1.0)


def population_at(config: EstimatorConfig, multiple: int, progress: float) -> int:
    """Members of a step when `progress` (0 to 1) of the budget is used, a multiple of `multiple`.

    Between `population` and `final_population` in equal ratios, rounded to the nearest multiple.

    >>> config = EstimatorConfig(population=16, final_population=256)
    >>> [population_at(config, 4, progress / 4) for progress in range(5)]
    [16, 32, 64, 128, 256]
    """
    assert config.population is not None, "settings are resolved before a run"
    if config.final_population is None:
        return config.population
    exact = config.population * (config.final_population / config.population) ** progress
    return max(1, round(exact / multiple)) * multiple
