"""Small Differentiable Neural Computers of every kind, for the tests."""

import pytest
import torch
from torch import Tensor

from zorn.models import DNCCell, DNCMemory

TIME, ROWS, INPUT, HIDDEN = 9, 3, 3, 6
KINDS = {
    "whole": DNCMemory(slots=5, width=4, read_heads=1),
    "whole, heads": DNCMemory(slots=4, width=3, read_heads=3),
    "whole, one slot": DNCMemory(slots=1, width=1, read_heads=1),
    "simple": DNCMemory(slots=5, width=4, read_heads=1, simple=True),
    "simple, heads": DNCMemory(slots=4, width=3, read_heads=2, simple=True),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def random_cell(kind: str, seed: int = 7, dtype: torch.dtype = torch.float64) -> DNCCell:
    """Weights large enough for gates to open and close, and norms with gains and biases of all kinds."""
    generator = torch.Generator().manual_seed(seed)
    cell = DNCCell(INPUT, HIDDEN, memory=KINDS[kind], generator=generator)
    with torch.no_grad():
        for name, parameter in cell.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) / 2)
            else:
                parameter.mul_(4)
    return cell.to(dtype)


def random_input(rows: int = ROWS, time: int = TIME, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(time, rows, INPUT, generator=torch.Generator().manual_seed(9)).to(dtype)
