"""A gradient that exists whole is folded and measured piece by piece, with the same bits."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import zorn
from zorn.estimators.activity import ActivityCredit
from zorn.estimators.update import FusedSGD
from zorn.noise import Draw, Target
from zorn.noise.weights import gradient_blocks as blocks

PIECE = 1 << 12


class Largest(TorchDispatchMode):
    """The numbers in the largest tensor of new memory that is made in the block, views left out."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {tensor.untyped_storage().data_ptr() for tensor in args if isinstance(tensor, torch.Tensor)}
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.untyped_storage().data_ptr() not in given:
            self.numbers = max(self.numbers, made.numel())
        return made


def weights_after(estimator, dtype):
    model = zorn.LanguageModel(61, 41, dtype=dtype)
    tokens = torch.randint(0, 61, (4, 7), generator=torch.Generator().manual_seed(0))
    update = FusedSGD(learning_rate=0.1, weight_decay=0.1)
    found = estimator.estimate(
        model, zorn.Batch(tokens[:, :-1], tokens[:, 1:]), zorn.TokenCrossEntropy(), update
    )
    return found.gradient_norm, [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(
    "make", [zorn.BPTT, lambda: ActivityCredit(epsilon=0.1, draws=1)], ids=["bptt", "activity"]
)
def test_an_update_has_the_same_bits_however_small_the_pieces(make, dtype, monkeypatch):
    norm, whole = weights_after(make(), dtype)  # no parameter has 2 ** 17 numbers
    monkeypatch.setattr("zorn.noise.weights.structure.FOLD_ELEMENTS", 1000)
    found, cut = weights_after(make(), dtype)
    assert all(torch.equal(one, other) for one, other in zip(whole, cut, strict=True))
    assert found == pytest.approx(norm, rel=1e-6)


def test_no_copy_of_a_whole_parameter_is_made(monkeypatch):
    monkeypatch.setattr("zorn.noise.weights.structure.FOLD_ELEMENTS", PIECE)
    parameter = torch.nn.Parameter(torch.ones(20 * PIECE + 5, dtype=torch.bfloat16))
    target, gradient = Target("weight", 0, parameter), torch.ones_like(parameter)
    with Largest() as largest, torch.no_grad():
        found = FusedSGD(learning_rate=0.5).apply(
            blocks.gradient_blocks(target, gradient), Draw(seed=0, step=0, epsilon=1.0)
        )
    assert found == pytest.approx(len(gradient) ** 0.5)
    assert torch.equal(parameter, torch.full_like(parameter, 0.5))
    assert PIECE <= largest.numbers <= 2 * PIECE  # the halves of the bits are 4096 and 21


def test_pieces_of_what_is_not_contiguous_and_of_nothing():
    turned = torch.arange(6.0).view(2, 3).mT
    assert torch.equal(torch.cat(list(blocks.pieces(turned))), torch.tensor([0.0, 3, 1, 4, 2, 5]))
    spread = torch.zeros(1).expand(5, 7)
    assert [len(piece) for piece in blocks.pieces(spread)] == [35]
    assert next(blocks.pieces(spread)).data_ptr() == spread.data_ptr()
