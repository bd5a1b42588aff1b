"""The memory of a training step, from settings alone."""

from __future__ import annotations

from zorn.planning.activity_space import activity_stages
from zorn.planning.differentiating import differentiating_stages
from zorn.planning.forward import TOKEN
from zorn.planning.sizes import ModelSizes
from zorn.planning.stages import Memory, Stage, all_with
from zorn.planning.weight_space import weight_space_stages
from zorn.training.config import Config
from zorn.training.usage import DIFFERENTIATING


def step_memory(sizes: ModelSizes, config: Config, steps: int) -> Memory:
    """What a training step of these settings holds at once, in its stages.

    Args:
        sizes: of the model.
        config: settings that leave nothing open (see `zorn.training.resolve`).
        steps: T, time steps of the batch's sequences.

    Example:
        >>> from zorn.training import BudgetConfig, ModelConfig, resolve
        >>> config, _ = resolve(Config(model=ModelConfig(hidden_size=512), budget=BudgetConfig(steps=1)))
        >>> memory = step_memory(ModelSizes.of(config.model, vocabulary=256), config, steps=32)
        >>> memory.part("weights")
        9446400
    """
    name = config.estimator.estimator
    if name == "activity":
        stages = activity_stages(sizes, config, steps)
    elif name in DIFFERENTIATING:
        stages = differentiating_stages(sizes, config, steps)
    else:
        stages = weight_space_stages(sizes, config, steps)
    return Memory(all_with(Stage(activations=batch_bytes(config, steps)), stages))


def batch_bytes(config: Config, steps: int) -> int:
    """The tokens that a batch reads and those that it should answer with, all of them on the device.

    >>> from zorn.training import BudgetConfig, TaskConfig
    >>> batch_bytes(Config(task=TaskConfig(batch=4), budget=BudgetConfig(steps=1)), steps=1000)
    64000
    """
    return 2 * TOKEN * config.task.batch * steps
