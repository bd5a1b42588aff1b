"""Facts that all processes must have alike, which a message compares: names and short texts."""

import hashlib
from collections.abc import Mapping
from dataclasses import is_dataclass

import torch
from torch import Tensor, nn

import zorn
from zorn.estimators import Estimator
from zorn.models import Batch


def weight_facts(model: nn.Module) -> dict[str, str]:
    """A hash of each parameter and buffer.

    >>> sorted(weight_facts(nn.BatchNorm1d(3)))[0]
    'buffer num_batches_tracked'
    """
    parameters = {f"weights of {name}": _digest(tensor) for name, tensor in model.named_parameters()}
    return parameters | {f"buffer {name}": _digest(tensor) for name, tensor in model.named_buffers()}


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

    >>> described([0.5, setup_facts]), described(object())
    ('[0.5, setup_facts]', None)
    """
    if isinstance(value, list | tuple):
        return f"[{', '.join(str(described(each)) for each in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {described(each)}' for name, each in value.items())}}}"
    if value is None or isinstance(value, str | int | float) or is_dataclass(value):
        return str(value)
    return getattr(value, "__qualname__", None) if callable(value) else None


def setup_facts(model: nn.Module, batch: Batch, objective: object, estimator: Estimator) -> dict[str, str]:
    """All that processes must have alike, in the order in which a difference is looked for: every process is
    given the whole batch.

    >>> batch = Batch(torch.zeros(2, 3), torch.zeros(2, 1))
    >>> facts = setup_facts(nn.Linear(3, 1), batch, nn.MSELoss(), zorn.CDRGE(population=8, epsilon=0.1))
    >>> facts["objective"], facts["parameter bias"], facts["batch.inputs"]
    ('MSELoss', 'float32 (1,), trained', 'float32 (2, 3)')
    """
    facts = {"version of zorn": zorn.__version__, "version of torch": torch.__version__}
    facts["model"] = type(model).__name__
    for name, parameter in model.named_parameters():
        trained = "trained" if parameter.requires_grad else "frozen"
        facts[f"parameter {name}"] = f"{_form(parameter)}, {trained}"
    facts |= estimator_facts(estimator)
    facts["objective"] = getattr(objective, "__qualname__", type(objective).__name__)
    parts = batch._asdict().items()
    facts |= {f"batch.{name}": _form(part) for name, part in parts}
    facts |= {f"values in batch.{name}": _digest(part) for name, part in parts}
    return facts | weight_facts(model)


def _digest(tensor: Tensor) -> str:
    """A hash of a tensor's bytes, 16 digits."""
    flat = tensor.detach().reshape(-1).contiguous().view(torch.uint8).cpu()
    return hashlib.blake2b(flat.numpy().data, digest_size=8).hexdigest()


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
