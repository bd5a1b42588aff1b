"""Schedules of the learning rate, ε and the population: functions of the step and of the used budget."""

import math

from zorn.config import ScheduleConfig


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


def rate_factor_at(schedule: ScheduleConfig, step: int, progress: float) -> float:
    """The factor of every learning rate at a step (from 0) when `progress` (0 to 1) of the budget is used."""
    factor = cosine(progress, schedule.schedule_floor) if schedule.schedule == "cosine" else 1.0
    return factor * warmup(step, schedule.warmup_steps)


def epsilon_at(schedule: ScheduleConfig, epsilon: float, learning_rate: float, progress: float) -> float:
    """ε of a step: `epsilon` along its own schedule, or the step's learning rate where the two are tied.

    >>> epsilon_at(ScheduleConfig(tie_epsilon=True), 0.5, 0.01, 0.0)
    0.01
    """
    if schedule.tie_epsilon:
        return learning_rate
    falls = schedule.epsilon_schedule == "cosine"
    return epsilon * (cosine(progress, schedule.schedule_floor) if falls else 1.0)


def population_at(population: int, final: int | None, multiple: int, progress: float) -> int:
    """Members of a step when `progress` (0 to 1) of the budget is used, a multiple of `multiple`: from
    `population` to `final` in equal ratios, rounded to the nearest multiple.

    >>> [population_at(16, 256, 4, progress / 4) for progress in range(5)]
    [16, 32, 64, 128, 256]
    """
    if final is None:
        return population
    exact = population * (final / population) ** progress
    return max(1, round(exact / multiple)) * multiple
