"""Small Differentiable Neural Computers of every kind, for the tests."""

import pytest
import torch
from torch import Tensor

from zorn.models import DNCCell, DNCSettings

TIME, ROWS, INPUT, HIDDEN = 9, 3, 3, 6
KINDS = {
    "whole": DNCSettings(memory_slots=5, memory_width=4, read_heads=1),
    "whole, heads": DNCSettings(memory_slots=4, memory_width=3, read_heads=3),
    "whole, one slot": DNCSettings(memory_slots=1, memory_width=1, read_heads=1),
    "simple": DNCSettings(memory_slots=5, memory_width=4, read_heads=1, simple_memory=True),
    "simple, heads": DNCSettings(memory_slots=4, memory_width=3, read_heads=2, simple_memory=True),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def random_cell(kind: str, seed: int = 7, dtype: torch.dtype = torch.float64) -> DNCCell:
    """Weights large enough for gates to open and close, and norms with gains and biases of all kinds."""
    generator = torch.Generator().manual_seed(seed)
    cell = DNCCell(INPUT, HIDDEN, **vars(KINDS[kind]), generator=generator)
    with torch.no_grad():
        for name, parameter in cell.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) / 2)
            else:
                parameter.mul_(4)
    return cell.to(dtype)


def random_input(rows: int = ROWS, time: int = TIME, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(time, rows, INPUT, generator=torch.Generator().manual_seed(9)).to(dtype)
