from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.modules import module as for_all_modules
from torch.testing import assert_close

from zorn.errors import ConfigError
from zorn.models import BlockLinear, RecurrentMap
from zorn.models.maps import has_hooks
from zorn.native.sums import sum_forward


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_block_linear_is_a_block_diagonal_matrix(heads: int, bias: bool) -> None:
    layer = BlockLinear(6, 9, heads, bias=bias)
    x = torch.randn(4, 5, 6)
    dense = torch.block_diag(*layer.weight.detach())
    assert dense.shape == (9, 6)
    expected = x @ dense.T + (layer.bias if layer.bias is not None else 0)
    assert_close(layer(x), expected)
    assert_close(layer(x[:, 0]), expected[:, 0])


@pytest.mark.parametrize("heads", [1, 2])
def test_recurrent_map_is_the_affine_map_of_input_and_state(heads: int) -> None:
    gates = RecurrentMap(3, 8, num_gates=4, num_heads=heads)
    x, h = torch.randn(6, 5, 3), torch.randn(5, 8)
    (drive,) = gates.drive(x.transpose(0, 1).contiguous().transpose(0, 1))  # not contiguous
    recurrent = torch.block_diag(*gates.weight_state.detach())
    assert recurrent.shape == (32, 8)
    for t in range(6):
        expected = x[t] @ gates.weight_input.T + h @ recurrent.T + gates.bias
        assert_close(gates((drive[t],), h), expected)


@pytest.mark.parametrize("heads", [1, 2])
def test_gates_are_a_fresh_tensor(heads: int) -> None:
    gates = RecurrentMap(3, 8, num_gates=4, num_heads=heads)
    (drive,) = gates.drive(torch.randn(1, 5, 3))
    before = drive.clone()
    with torch.no_grad():
        gates((drive[0],), torch.randn(5, 8)).zero_()
    assert torch.equal(drive, before)


@pytest.mark.parametrize(
    "make", [lambda g: BlockLinear(8, 8, 2, generator=g), lambda g: RecurrentMap(8, 8, 4, generator=g)]
)
def test_first_values_come_from_the_generator_within_the_bound(make) -> None:
    first, same, other = (make(torch.Generator().manual_seed(seed)).state_dict() for seed in (1, 1, 2))
    for name, value in first.items():
        assert torch.equal(value, same[name])
        assert not torch.equal(value, other[name])
        assert value.abs().max() <= 8**-0.5 < value.abs().max() * 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BlockLinear(8, 9, 2), "9 is not a multiple of num_heads 2"),
        (lambda: BlockLinear(7, 8, 2), "7 is not a multiple of num_heads 2"),
        (lambda: BlockLinear(8, 8, 0), "num_heads must be a whole number of at least 1, got 0"),
        (lambda: RecurrentMap(0, 8, 4), "input_size must be a whole number of at least 1, got 0"),
        (lambda: RecurrentMap(3, 8, 0), "num_gates must be a whole number of at least 1, got 0"),
        (
            lambda: RecurrentMap(3, 8, 4, 3),
            "hidden_size 8 is not a multiple of num_heads 3.* take hidden_size 9",
        ),
    ],
)
def test_sizes_are_checked(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_printed_sizes() -> None:
    assert repr(BlockLinear(6, 9, 3)) == "BlockLinear(6, 9, num_heads=3, bias=True)"
    assert repr(RecurrentMap(3, 8, 4, 2)) == "RecurrentMap(3, 8, num_gates=4, num_heads=2)"


@pytest.mark.parametrize(
    "register",
    [
        for_all_modules.register_module_forward_hook,
        for_all_modules.register_module_forward_pre_hook,
        for_all_modules.register_module_full_backward_hook,
        for_all_modules.register_module_full_backward_pre_hook,
    ],
)
def test_a_hook_on_all_modules_is_seen(register: Callable) -> None:
    layer = BlockLinear(4, 4)
    assert sum_forward(layer) is not None
    handle = register(lambda *_: None)
    try:
        assert has_hooks(layer)
        assert sum_forward(layer) is None
    finally:
        handle.remove()
    assert not has_hooks(nn.Linear(2, 2))
