"""Rules for the layers that most models are made of."""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zorn.errors import ConfigError
from zorn.models import BlockLinear, RecurrentMap, linear_slice
from zorn.native import LaneNoise, Summands, scores, usable
from zorn.native.sums import SumForward, products
from zorn.noise.activity.site import SiteActivity
from zorn.noise.layout import Layout
from zorn.noise.rules.rule import Rule, register_rule
from zorn.noise.rules.torch_recurrent import TorchCellRule, TorchRecurrentRule
from zorn.noise.weights.member_noise import MemberNoise

Methods = dict[str, Callable[..., Any]]


class AffineRule(Rule):
    """y = W x + b in blocks, noise a [b; b₀]ᵀ over each: the weight has a factor pair for each block, the
    bias is one more column."""

    @abstractmethod
    def shape(self, module: Any) -> tuple[int, int, int]:
        """Blocks, and rows and columns of each."""

    def layouts(self, module: Any) -> dict[str, Layout]:
        """Of weight and bias."""
        blocks, rows, columns = self.shape(module)
        return {
            "weight": Layout(blocks=blocks, rows=rows, columns=columns),
            "bias": Layout(blocks=blocks, rows=rows, row_source="weight"),
        }

    def active(self, module: Any, site: SiteActivity) -> Methods:
        """Noise on y."""
        plain = type(module).forward
        return {"forward": lambda x: site.at(plain(module, x), x)}

    def pullback(self, module: Any, gradient: Tensor, *inputs: Tensor) -> dict[str, Tensor]:
        """∂W = Σ gradient xᵀ block by block, ∂b = Σ gradient."""
        (x,) = inputs
        of_blocks = block_products(self.shape(module), gradient, x)
        return {"weight": of_blocks.view(module.weight.shape), "bias": gradient.flatten(0, -2).sum(0)}


class LinearRule(AffineRule):
    """`nn.Linear`: one block."""

    def shape(self, module: nn.Linear) -> tuple[int, int, int]:
        """See `AffineRule`."""
        return 1, module.out_features, module.in_features

    def perturbed(self, module: nn.Linear, noise: MemberNoise) -> Methods:
        """x [rows, …, inputs] to [rows, …, outputs]; `sliced` gives some of the outputs at a time."""

        def forward(x: Tensor) -> Tensor:
            return noise.affine_(F.linear(x, module.weight, module.bias), x, "weight", "bias")

        def sliced(x: Tensor) -> Callable[[int, int], Tensor]:
            owner = noise.factors.get("weight") or noise.factors["bias"]
            scores = noise.scores(x, "weight", "bias")

            def outputs(first: int, last: int) -> Tensor:
                plain = linear_slice(module, x, first, last)
                return noise.add_rows_(plain, scores, owner.rows_between(first, last))

            return outputs

        return {"forward": forward, "sliced": sliced}


class BlockLinearRule(AffineRule):
    """`BlockLinear`, weight [heads, outputs, inputs]: a block is a head."""

    def shape(self, module: BlockLinear) -> tuple[int, int, int]:
        """See `AffineRule`."""
        heads, outputs, inputs = module.weight.shape
        return heads, outputs, inputs

    def perturbed(self, module: BlockLinear, noise: MemberNoise) -> Methods:
        """x [rows, …, heads·inputs] to [rows, …, heads·outputs]."""
        plain = type(module).forward

        def forward(x: Tensor) -> Tensor:
            return noise.affine_(plain(module, x), x, "weight", "bias")

        def summands(x: Tensor) -> Summands:
            return Summands(products(module.weight, x), module.bias, noise.lanes(x, "weight", "bias"), None)

        return {"forward": SumForward(forward, summands)}


class RecurrentMapRule(Rule):
    """All gates of a recurrent cell, W x + R h + b, as one affine map of [x, h, 1]: W and b borrow the row
    factor of R.

    The noise then costs a step two inner products and one pass over the gates; the drive carries the scores
    b·x + b₀ of its chunk along.
    """

    def layouts(self, module: RecurrentMap) -> dict[str, Layout]:
        """One row factor [heads, gates·d] for all three."""
        heads, rows, columns = module.weight_state.shape
        return {
            "weight_input": Layout(
                rows=heads * rows, columns=module.weight_input.shape[1], row_source="weight_state"
            ),
            "weight_state": Layout(blocks=heads, rows=rows, columns=columns),
            "bias": Layout(rows=heads * rows, row_source="weight_state"),
        }

    def perturbed(self, module: RecurrentMap, noise: MemberNoise) -> Methods:
        """`drive` is time-major, x [time, rows, inputs]; `forward` is one step, h [rows, heads·d]."""
        plain_drive, plain_forward = type(module).drive, type(module).forward
        heads = module.weight_state.shape[0]
        owner = next(iter(noise.factors.values()))  # all of the module's parameters have the same row factor
        a = owner.rows.reshape(noise.members, heads, -1)
        carries = "weight_input" in noise.factors or "bias" in noise.factors

        def drive(x: Tensor) -> tuple[Tensor, ...]:
            plain = plain_drive(module, x)
            return (*plain, _input_scores(x, noise)) if carries else plain

        def forward(drive: tuple[Tensor, ...], h: Tensor) -> Tensor:
            plain, *carried = drive
            gates = plain_forward(module, (plain,), h)
            lanes = noise.split(gates).unflatten(-1, (heads, -1))
            scores = noise.scores(h, "weight_state")
            if scores is None:
                scores = h.new_zeros(lanes.shape[:-1])
            for of_input in carried:
                scores.add_(of_input.view(*lanes.shape[:3], 1))
            lanes.addcmul_(noise.signed(scores, 1).unsqueeze(-1), a.unsqueeze(1))
            return gates

        def summands(drive: tuple[Tensor, ...], h: Tensor) -> Summands:
            of_state = noise.lanes(h, "weight_state", rows=a)
            return Summands(products(module.weight_state, h), None, of_state, drive[1] if carries else None)

        def lanes(x: Tensor, h: Tensor) -> tuple[LaneNoise | None, LaneNoise | None]:
            of_input = noise.lanes(x[0], "weight_input", "bias") if carries else None
            return of_input, noise.lanes(h, "weight_state", rows=a)

        return {"drive": drive, "forward": SumForward(forward, summands, lanes)}

    def active(self, module: RecurrentMap, site: SiteActivity) -> Methods:
        """Noise on the gates; the drive carries its input along."""
        plain_drive, plain_forward = type(module).drive, type(module).forward

        def drive(x: Tensor) -> tuple[Tensor, ...]:
            return (*plain_drive(module, x), x)

        def forward(drive: tuple[Tensor, ...], h: Tensor) -> Tensor:
            plain, x = drive
            return site.at(plain_forward(module, (plain,), h), x, h)

        return {"drive": drive, "forward": forward}

    def pullback(self, module: RecurrentMap, gradient: Tensor, *inputs: Tensor) -> dict[str, Tensor]:
        """∂W = Σ gradient xᵀ, ∂R = Σ gradient hᵀ head by head, ∂b = Σ gradient."""
        x, h = inputs
        return {
            "weight_input": gradient.mT @ x,
            "weight_state": block_products(module.weight_state.shape, gradient, h),
            "bias": gradient.sum(0),
        }


def _input_scores(x: Tensor, noise: MemberNoise) -> Tensor:
    """b·x + b₀ of the input of a recurrent map, `[time, rows, 1]`, x being [time, rows, inputs]."""
    if usable(x):
        of_input = noise.lanes(x[0], "weight_input", "bias")
        if of_input.fits(x.dtype, x.shape[1], 1, x.shape[2]):
            return scores(x, of_input)
    # Step by step: the product of a whole chunk with the signs would fall out of the cache.
    steps = [noise.scores(x_t, "weight_input", "bias") for x_t in x]
    return torch.stack([found.view(x.shape[1], 1) for found in steps if found is not None])


def block_products(shape: Sequence[int], gradient: Tensor, x: Tensor) -> Tensor:
    """Σ gradient xᵀ of each block of a block-diagonal map, of the shape [blocks, rows, columns]."""
    blocks, rows, columns = shape
    left, right = gradient.reshape(-1, blocks, rows), x.reshape(-1, blocks, columns)
    if blocks == 1:
        return (left[:, 0].mT @ right[:, 0]).unsqueeze(0)
    return torch.einsum("nhr,nhc->hrc", left, right)


class EmbeddingRule(Rule):
    """y = W[token]; the noise of a token's row is a[token] b."""

    def layouts(self, module: nn.Embedding) -> dict[str, Layout]:
        """Weight [vocabulary, size]; the padding row is never perturbed."""
        if module.max_norm is not None:
            raise ConfigError(
                "nn.Embedding(max_norm=…) rescales its weight in every forward pass; zero-order estimates "
                "leave weights as they are: "
                "set max_norm=None, or freeze the embedding with requires_grad_(False)"
            )
        fixed = () if module.padding_idx is None else (module.padding_idx,)
        return {"weight": Layout(rows=module.num_embeddings, columns=module.embedding_dim, fixed_rows=fixed)}

    def perturbed(self, module: nn.Embedding, noise: MemberNoise) -> Methods:
        """Index [rows, …] to [rows, …, size]; one that all rows share, [time] or [1, time], too."""

        def forward(index: Tensor) -> Tensor:
            index = noise.rows_of(index)
            return noise.lookup_(F.embedding(index, module.weight), index, "weight")

        return {"forward": forward}

    def active(self, module: nn.Embedding, site: SiteActivity) -> Methods:
        """Noise on the vectors that are read."""
        return {"forward": lambda index: site.at(F.embedding(index, module.weight), index)}

    def pullback(self, module: nn.Embedding, gradient: Tensor, *inputs: Tensor) -> dict[str, Tensor]:
        """The gradient of each vector, added up where it was read; none for the padding row."""
        (index,) = inputs
        total = gradient.new_zeros(module.weight.shape)
        total.index_add_(0, index.flatten(), gradient.flatten(0, -2))
        if module.padding_idx is not None:
            total[module.padding_idx] = 0
        return {"weight": total}


class NormRule(Rule):
    """`nn.LayerNorm` and `nn.RMSNorm`, y = x̂ · gain (+ bias); dense noise on each."""

    def layouts(self, module: nn.LayerNorm | nn.RMSNorm) -> dict[str, Layout]:
        """Vectors of the normalized size."""
        size = math.prod(module.normalized_shape)
        return {"weight": Layout(rows=size), "bias": Layout(rows=size)}

    def perturbed(self, module: nn.LayerNorm | nn.RMSNorm, noise: MemberNoise) -> Methods:
        """x [rows, …, *normalized_shape] to the same."""
        shape, bias = list(module.normalized_shape), getattr(module, "bias", None)
        normalize: Callable[..., Tensor] = F.layer_norm if isinstance(module, nn.LayerNorm) else F.rms_norm

        def forward(x: Tensor) -> Tensor:
            wide = x.to(torch.promote_types(x.dtype, torch.float32))  # bfloat16 would round a small ε away
            y = normalize(wide, shape, eps=module.eps).flatten(-len(shape))
            y = noise.scale(y, module.weight, "weight")
            if bias is not None:
                y = noise.shift_(y + bias.flatten(), "bias")
            return y.view(x.shape).to(x.dtype)

        return {"forward": forward}


class Conv1dRule(AffineRule):
    """`nn.Conv1d`: a convolution is a linear map of windows, in a block for each group of channels."""

    def shape(self, module: nn.Conv1d) -> tuple[int, int, int]:
        """Weight [outputs, inputs / groups, taps], seen as [groups, outputs / groups, inputs / groups ·
        taps]."""
        groups = module.groups
        columns = module.in_channels // groups * module.kernel_size[0]
        return groups, module.out_channels // groups, columns

    def perturbed(self, module: nn.Conv1d, noise: MemberNoise) -> Methods:
        """x [rows, inputs, time] to [rows, outputs, time]."""
        plain = type(module).forward
        (taps,), (stride,), (dilation,) = module.kernel_size, module.stride, module.dilation

        def windows(x: Tensor) -> Tensor:
            mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
            x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
            x = x.unfold(2, (taps - 1) * dilation + 1, stride)[..., ::dilation]  # [rows, inputs, time, taps]
            x = x.unflatten(1, (module.groups, -1)).permute(0, 3, 1, 2, 4)
            return x.flatten(2)  # [rows, time, groups · inputs / groups · taps]

        def forward(x: Tensor) -> Tensor:
            y = plain(module, x)
            return noise.affine_(y.transpose(1, 2), windows(x), "weight", "bias").transpose(1, 2)

        return {"forward": forward}

    def active(self, module: nn.Conv1d, site: SiteActivity) -> Methods:
        """Noise on y, whose time is its last dimension."""
        plain = type(module).forward
        return {"forward": lambda x: site.at(plain(module, x), x, time=2)}

    def pullback(self, module: nn.Conv1d, gradient: Tensor, *inputs: Tensor) -> dict[str, Tensor]:
        """By autograd, whose convolutions are faster than a product of windows."""
        return Rule.pullback(self, module, gradient, *inputs)


for _type, _rule in {
    nn.Linear: LinearRule(),
    nn.Embedding: EmbeddingRule(),
    nn.LayerNorm: NormRule(),
    nn.RMSNorm: NormRule(),
    nn.Conv1d: Conv1dRule(),
    BlockLinear: BlockLinearRule(),
    RecurrentMap: RecurrentMapRule(),
    **dict.fromkeys((nn.LSTM, nn.GRU, nn.RNN), TorchRecurrentRule()),
    **dict.fromkeys((nn.LSTMCell, nn.GRUCell, nn.RNNCell), TorchCellRule()),
}.items():
    register_rule(_type, _rule)
