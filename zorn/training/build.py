"""From settings to parts: task, model, estimator, optimizer; each checks what the settings cannot tell."""

import os
from typing import Any

import torch
from torch import nn

from zorn.distributed import SharedEstimator
from zorn.errors import ConfigError
from zorn.estimators import BPTT, CDRGE, FDRGE, SHAPINGS, SPSA15, TBPTT, EProp
from zorn.estimators.activity import ActivityCredit
from zorn.estimators.bridge import Bridge
from zorn.estimators.nres import NRES
from zorn.estimators.pes import PES
from zorn.estimators.two_part import TwoPartOptimizer
from zorn.models import DNCMemory, LanguageModel
from zorn.perturbations import Dense, FusedSGD, Perturbation, RankOne
from zorn.tasks import (
    OBJECTIVES,
    AddTask,
    CopyTask,
    RepeatCopyTask,
    ReverseTask,
    SortTask,
    TextTask,
    TransductionTask,
)
from zorn.training.config import Config, EstimatorConfig, ModelConfig, OptimizerConfig, TaskConfig
from zorn.training.defaults import completed
from zorn.training.limits import out_of_memory
from zorn.training.run_folder import RunFolder

Estimator = (
    CDRGE | FDRGE | SPSA15 | ActivityCredit | Bridge | PES | NRES | BPTT | TBPTT | EProp | SharedEstimator
)

EXACT_OUTPUT = {"auto": None, "yes": True, "no": False}


def build_task(config: Config, folder: RunFolder | None = None) -> TextTask | TransductionTask:
    """The task of a run. With the run's folder, a tokenizer that was learned is read from there.

    Raises ConfigError for a text that is missing or too short.

    >>> from zorn.training import BudgetConfig
    >>> task = build_task(Config(task=TaskConfig(task="sort"), budget=BudgetConfig(steps=1)))
    >>> task.name, task.vocabulary
    ('sort', 29)
    """
    seed = config.run.seed
    if config.task.task == "text":
        task = _text(config.task, seed, folder)
    else:
        task = _transduction(config.task, seed)
    task.objective = OBJECTIVES[config.task.objective]()
    return task


def _text(task: TaskConfig, seed: int, folder: RunFolder | None) -> TextTask:
    kept = folder.read_tokenizer() if folder is not None and task.tokenizer != "bytes" else None
    return TextTask(
        source=task.source,
        tokenizer=kept or task.tokenizer,
        vocabulary_size=task.vocabulary_size if task.tokenizer == "bpe" and kept is None else None,
        batch=task.batch,
        length=task.length,
        seed=seed,
        stream=task.stream,
        overfit=task.overfit,
    )


def _transduction(task: TaskConfig, seed: int) -> TransductionTask:
    options: dict[str, Any] = {
        "batch": task.batch,
        "minimum_length": task.minimum_length,
        "maximum_length": task.maximum_length,
        "seed": seed,
        "overfit": task.overfit,
    }
    match task.task:
        case "copy":
            return CopyTask(**options)
        case "reverse":
            return ReverseTask(**options)
        case "sort":
            return SortTask(**options)
        case "repeat-copy":
            return RepeatCopyTask(**options, maximum_repeats=task.maximum_repeats)
        case "add":
            return AddTask(**options)
        case other:
            raise AssertionError(other)


def build_model(config: Config, vocabulary: int) -> LanguageModel:
    """The model of a run, freshly initialised from the seed, on its device and in its number format.

    Raises ConfigError for sizes that do not fit each other or the memory, and for a device that cannot
    compute.
    """
    device = checked_device(config.run.device)
    options = {"seed": config.run.seed, "dtype": getattr(torch, config.run.dtype), "device": device}
    try:
        return model_of(config.model, vocabulary, **options)
    except (RuntimeError, MemoryError) as error:
        if (reason := out_of_memory(error)) is None:
            raise
        raise ConfigError(
            f"the model does not fit into the memory of {config.run.device} ({reason}): choose a smaller "
            "--hidden-size or --parameters; zorn plan with these settings and --fit 8GiB (what there is) "
            "proposes some that fit"
        ) from error


def model_of(settings: ModelConfig, vocabulary: int, **options: Any) -> LanguageModel:
    """The model of these settings; `options` are those of `LanguageModel` that no setting tells, such as
    its device: on "meta" it has shapes and takes no memory.

    Raises ConfigError for sizes that do not fit each other.
    """
    options |= {
        "cell": settings.cell,
        "memory": _memory(settings),
        "num_layers": settings.num_layers,
        "num_heads": settings.num_heads,
        "norm": settings.norm,
        "residual": settings.residual,
        "tie_embedding": settings.tie_embedding,
    }
    if settings.parameters is not None:
        return LanguageModel.with_parameters(settings.parameters, vocabulary, **options)
    size = settings.embedding_size
    return LanguageModel(vocabulary, settings.hidden_size, embedding_size=size, **options)


def _memory(model: ModelConfig) -> DNCMemory | None:
    if model.cell != "dnc":
        return None
    return DNCMemory(
        slots=model.memory_slots,
        width=model.memory_width,
        read_heads=model.read_heads,
        simple=model.simple_memory,
    )


def build_perturbation(config: EstimatorConfig) -> Perturbation:
    """The structure of a run's directions.

    >>> build_perturbation(EstimatorConfig(structure="dense"))
    Dense(noise='rademacher')
    """
    if config.structure == "dense":
        return Dense(noise=config.noise)
    return RankOne(rank=config.rank or 1, noise=config.noise)


def build_estimator(config: EstimatorConfig, seed: int, *, carry: bool = False) -> Estimator:
    """The estimator of a run; what is None is set to its defaults, see `zorn.training.defaults`.

    Args:
        config: of a named estimator.
        seed: of its noise.
        carry: carry the model's state over the windows of a stream; pes and nres always do.

    Raises:
        ConfigError: the estimator is "auto", or cannot carry.

    >>> build_estimator(EstimatorConfig(estimator="activity"), seed=0).epsilon
    0.05
    """
    config = completed(config)
    name, micro_batch = config.estimator, config.micro_batch
    options: dict[str, Any] = {"seed": seed, "micro_batch": micro_batch}
    options |= {"maximum_nonfinite_share": config.maximum_nonfinite_share, "epsilon": config.epsilon}
    match name:
        case "bptt":
            return BPTT(micro_batch=micro_batch)
        case "tbptt":
            assert config.truncation is not None
            return TBPTT(truncation=config.truncation, micro_batch=micro_batch, carry=carry)
        case "e-prop":
            return EProp(truncation=config.truncation, micro_batch=micro_batch, carry=carry)
        case "activity":
            return ActivityCredit(
                **options,
                **_credit(config, carry),
                exact_output=EXACT_OUTPUT[config.exact_output],
                time_chunk=config.time_chunk,
            )
        case "bridge":
            for name in ("truncation", "separate", "credit_every"):
                options[name] = getattr(config, name)
            return Bridge(**options, **_credit(config, carry))
        case _:
            return _weight_space(config, options)


def _credit(config: EstimatorConfig, carry: bool) -> dict[str, Any]:
    return {
        "relative": config.relative_epsilon,
        "draws": config.draws,
        "discount": config.discount,
        "noise": config.noise,
        "carry": carry,
    }


def _weight_space(config: EstimatorConfig, options: dict[str, Any]) -> CDRGE | FDRGE | SPSA15 | PES | NRES:
    options |= {
        "population": config.population,
        "perturbation": build_perturbation(config),
        "group_size": config.group_size or None,
        "shaping": SHAPINGS[config.shaping],
    }
    match config.estimator:
        case "pes":
            return PES(**options)
        case "nres":
            return NRES(**options)
        case "fd-rge":
            return FDRGE(**options, time_chunk=config.time_chunk)
        case "spsa-1.5":
            power, floor = config.curvature_power, config.curvature_floor
            return SPSA15(
                **options, time_chunk=config.time_chunk, curvature_power=power, curvature_floor=floor
            )
        case _:
            return CDRGE(**options, time_chunk=config.time_chunk)


def build_optimizer(
    config: OptimizerConfig, model: nn.Module, *, two_part: bool = False
) -> torch.optim.Optimizer | None:
    """The torch optimizer of a run; None with fused-sgd, which `fused_update` makes for each step.

    Args:
        config: with a learning rate that is not None.
        model: whose parameters it moves.
        two_part: keep the credit part of a bridge's gradient apart, in an Adam of its own.
    """
    rate, decay, parameters = config.learning_rate, config.weight_decay, list(model.parameters())
    if rate is None:
        raise ConfigError(
            "learning_rate must be chosen here, got None: choose it with zorn.training.resolve(config), or "
            "give one"
        )
    match config.optimizer or "adam":
        case "adam":
            optimizer = torch.optim.Adam(parameters, lr=rate, weight_decay=decay)
        case "adamw":
            optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
        case "sgd":
            optimizer = torch.optim.SGD(parameters, lr=rate, momentum=config.momentum, weight_decay=decay)
        case "fused-sgd":
            fused_update(config, rate)  # raises when the learning rate and the decay do not fit
            return None
    if two_part:
        betas = config.credit_momentum, 0.999
        credit_rate = rate if config.credit_learning_rate is None else config.credit_learning_rate
        optimizer = TwoPartOptimizer(optimizer, torch.optim.Adam(parameters, lr=credit_rate, betas=betas))
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]  # torch's name for what schedules multiply
    return optimizer


def fused_update(config: OptimizerConfig, learning_rate: float) -> FusedSGD:
    """The in-place update of one step."""
    return FusedSGD(learning_rate=learning_rate, weight_decay=config.weight_decay)


def set_threads(threads: int | None) -> None:
    """Let torch compute on this many CPU threads; None leaves its choice."""
    if threads is not None:
        available = os.cpu_count() or threads
        if threads > available:
            raise ConfigError(f"threads must be at most {available} here, got {threads}: lower --threads")
        torch.set_num_threads(threads)


def checked_device(name: str) -> torch.device:
    """The device of this name; ConfigError unless it is there and computes (the meta device does not)."""
    try:
        device = torch.device(name)
        (torch.ones(2, device=device) + 1).sum().item()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device {name} cannot be used here ({reason}): for example --device cpu"
        ) from error
    return device
