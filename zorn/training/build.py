"""From settings to parts: task, model, estimator, optimizer; each checks what the settings cannot tell."""

import os
from typing import Any

import torch
from torch import nn

from zorn.errors import ConfigError
from zorn.estimators import BPTT, CDRGE, FDRGE, SHAPINGS
from zorn.models import LanguageModel
from zorn.perturbations import Dense, FusedSGD, RankOne
from zorn.tasks import CopyTask, TextTask, tokenizer_from_json
from zorn.training.config import Config, EstimatorConfig, OptimizerConfig
from zorn.training.run_folder import RunFolder

Estimator = CDRGE | FDRGE | BPTT


def build_task(config: Config, folder: RunFolder | None = None) -> TextTask | CopyTask:
    """The task of a run. With the run's folder, a tokenizer that was learned is read from there."""
    task = config.task
    if task.task == "copy":
        return CopyTask(
            batch=task.batch,
            minimum_length=task.minimum_length,
            maximum_length=task.maximum_length,
            seed=config.run.seed,
            overfit=task.overfit,
        )
    kept = folder is not None and folder.tokenizer.is_file()
    return TextTask(
        source=task.source,
        tokenizer=tokenizer_from_json(folder.tokenizer.read_text(encoding="utf-8"))
        if folder is not None and kept
        else task.tokenizer,
        vocabulary_size=task.vocabulary_size if task.tokenizer == "bpe" and not kept else None,
        batch=task.batch,
        length=task.length,
        seed=config.run.seed,
    )


def build_model(config: Config, vocabulary: int) -> LanguageModel:
    """The model of a run, freshly initialised from the seed, on its device and in its number format."""
    model = config.model
    device = _device(config.run.device)
    options: dict[str, Any] = {
        "cell": model.cell,
        "num_layers": model.num_layers,
        "num_heads": model.num_heads,
        "tie_embedding": model.tie_embedding,
        "seed": config.run.seed,
    }
    try:
        if model.parameters is not None:
            made = LanguageModel.with_parameters(model.parameters, vocabulary, **options)
        else:
            size = model.embedding_size
            made = LanguageModel(vocabulary, model.hidden_size, embedding_size=size, **options)
        return made.to(device=device, dtype=getattr(torch, config.run.dtype))
    except RuntimeError as error:  # torch has no narrower one for memory on the CPU
        raise ConfigError(
            f"the model does not fit into the memory of {config.run.device} "
            f"({str(error).splitlines()[0]}): choose a smaller --hidden-size or --parameters"
        ) from error


def build_estimator(config: EstimatorConfig, seed: int) -> Estimator:
    """The estimator of a run."""
    if config.estimator == "bptt":
        return BPTT(micro_batch=config.micro_batch)
    perturbation = (
        RankOne(rank=config.rank, noise=config.noise)
        if config.structure == "rank-one"
        else Dense(noise=config.noise)
    )
    return (CDRGE if config.estimator == "cd-rge" else FDRGE)(
        population=config.population,
        epsilon=config.epsilon,
        perturbation=perturbation,
        group_size=config.group_size or None,
        seed=seed,
        micro_batch=config.micro_batch,
        time_chunk=config.time_chunk,
        shaping=SHAPINGS[config.shaping],
        maximum_nonfinite_share=config.maximum_nonfinite_share,
    )


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer | None:
    """The torch optimizer of a run; None with fused-sgd, which `fused_update` makes for each step."""
    rate, decay = config.learning_rate, config.weight_decay
    match config.optimizer:
        case "adam":
            return torch.optim.Adam(model.parameters(), lr=rate, weight_decay=decay)
        case "adamw":
            return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
        case "sgd":
            return torch.optim.SGD(model.parameters(), lr=rate, momentum=config.momentum, weight_decay=decay)
        case "fused-sgd":
            fused_update(config, rate)  # raises when the learning rate and the decay do not fit
            return None


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


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device {name} cannot be used here ({reason}): for example --device cpu"
        ) from error
    return device
