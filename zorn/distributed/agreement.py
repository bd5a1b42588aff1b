"""Facts on which all processes must agree, as names and short texts that a message compares."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

import zorn
from zorn.estimators import Estimator
from zorn.models import Batch


def model_facts(model: nn.Module) -> dict[str, str]:
    """Class, and of each parameter number format, shape, and whether it is trained.

    >>> model_facts(nn.Linear(2, 1, bias=False))
    {'model': 'Linear', 'parameter weight': 'float32 (1, 2), trained'}
    """
    facts = {"model": type(model).__name__}
    for name, parameter in model.named_parameters():
        trained = "trained" if parameter.requires_grad else "frozen"
        facts[f"parameter {name}"] = f"{_form(parameter)}, {trained}"
    return facts


def weight_facts(model: nn.Module) -> dict[str, str]:
    """A hash of each parameter and buffer.

    >>> sorted(weight_facts(nn.BatchNorm1d(3)))[0]
    'buffer num_batches_tracked'
    """
    parameters = {f"weights of {name}": digest(tensor) for name, tensor in model.named_parameters()}
    return parameters | {f"buffer {name}": digest(tensor) for name, tensor in model.named_buffers()}


def batch_facts(batch: Batch) -> dict[str, str]:
    """Number format, shape and a hash of inputs and targets: every process is given the whole batch.

    >>> batch_facts(Batch(torch.zeros(2, 3), torch.zeros(2)))["batch.inputs"]
    'float32 (2, 3)'
    """
    parts = batch._asdict().items()
    forms = {f"batch.{name}": _form(part) for name, part in parts}
    return forms | {f"values in batch.{name}": digest(part) for name, part in parts}


def estimator_facts(estimator: Estimator) -> dict[str, str]:
    """Class and settings of an estimator; functions by their names.

    >>> estimator_facts(zorn.CDRGE(population=8, epsilon=0.1))["epsilon of CDRGE"]
    '0.1'
    """
    kind = type(estimator).__name__
    values = estimator.settings() | {"seed": getattr(estimator, "seed", None)}
    texts = {f"{name} of {kind}": described(value) for name, value in values.items()}
    return {"estimator": kind, **{name: text for name, text in texts.items() if text is not None}}


def described(value: object) -> str | None:
    """A setting as a text that is the same in every process; None for what is none.

    >>> described([0.5, digest]), described(object())
    ('[0.5, digest]', None)
    """
    if isinstance(value, list | tuple):
        return f"[{', '.join(str(described(each)) for each in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {described(each)}' for name, each in value.items())}}}"
    if value is None or isinstance(value, str | int | float) or is_dataclass(value):
        return str(value)
    return _name(value) if isinstance(value, Callable) and hasattr(value, "__qualname__") else None


def setup_facts(model: nn.Module, batch: Batch, objective: object, estimator: Estimator) -> dict[str, str]:
    """All of them, in the order in which a difference is looked for.

    >>> batch = Batch(torch.zeros(2, 3), torch.zeros(2, 1))
    >>> facts = setup_facts(nn.Linear(3, 1), batch, nn.MSELoss(), zorn.CDRGE(population=8, epsilon=0.1))
    >>> facts["objective"]
    'MSELoss'
    """
    versions = {"version of zorn": zorn.__version__, "version of torch": torch.__version__}
    own = {"objective": _name(objective) if hasattr(objective, "__qualname__") else type(objective).__name__}
    parts = (model_facts(model), estimator_facts(estimator), own, batch_facts(batch), weight_facts(model))
    return versions | {name: text for part in parts for name, text in part.items()}


def digest(tensor: Tensor) -> str:
    """A hash of a tensor's bytes, 16 digits.

    >>> digest(torch.zeros(2)) == digest(torch.zeros(3))
    False
    """
    flat = tensor.detach().reshape(-1).contiguous().view(torch.uint8).cpu()
    return hashlib.blake2b(flat.numpy().data, digest_size=8).hexdigest()


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _name(function: Any) -> str:
    return function.__qualname__
