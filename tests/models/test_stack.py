"""Stacks with norms and residuals: equations, exact sizes, chunks, sampling, members side by side."""

import itertools

import pytest
import torch
from pairs import pairwise
from torch import Tensor, nn
from torch.testing import assert_close

from zorn.errors import ConfigError
from zorn.models import CELLS, DNCSettings, LanguageModel, map_state, parameter_count, sample
from zorn.noise import Draw, RankOne
from zorn.noise.weights.structure import BoundPerturbation

VOCABULARY, HIDDEN = 11, 8
MEMORY = {"memory_slots": 5, "memory_width": 4, "read_heads": 2}

NORMS, SWITCH = ("none", "layer", "rms"), (False, True)

every_cell = pytest.mark.parametrize("cell", list(CELLS))
every_stack = pytest.mark.parametrize(("cell", "norm", "residual"), pairwise(CELLS, NORMS, SWITCH))


def build(cell: str, **options) -> LanguageModel:
    if cell == "dnc":
        options["cell_settings"] = MEMORY
    return LanguageModel(VOCABULARY, HIDDEN, cell=cell, num_layers=2, **options)


def tokens(rows: int = 4, time: int = 19) -> Tensor:
    return torch.randint(0, VOCABULARY, (rows, time), generator=torch.Generator().manual_seed(0))


def unsettled(model: LanguageModel) -> LanguageModel:
    """Gains and biases of the norms away from 1 and 0."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.LayerNorm | nn.RMSNorm):
                for parameter in module.parameters():
                    parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.5)
    return model


def normalised(x: Tensor, norm: nn.Module) -> Tensor:
    """Both norms from their papers."""
    if isinstance(norm, nn.LayerNorm):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias
    if isinstance(norm, nn.RMSNorm):
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight
    return x


@torch.no_grad()
@every_stack
def test_a_stack_is_its_equations(cell: str, norm: str, residual: bool) -> None:
    model = unsettled(build(cell, norm=norm, residual=residual)).double()
    logits, _ = model(tokens())
    states = list(model.initial_state(4))
    for t in range(tokens().shape[1]):
        x = model.embedding(tokens()[:, t])
        for layer in range(2):
            y, states[layer] = model.cells[layer](normalised(x, model.norms[layer]), states[layer])
            x = x + y if residual else y
        assert_close(logits[:, t], model.head(normalised(x, model.final_norm)))


@pytest.mark.parametrize(
    ("cell", "norm", "residual", "dtype", "chunk"),
    pairwise(CELLS, NORMS, SWITCH, (torch.float32, torch.bfloat16), (1, 7)),
)
def test_time_chunks_equal_the_whole(
    cell: str, norm: str, residual: bool, dtype: torch.dtype, chunk: int
) -> None:
    model = unsettled(build(cell, norm=norm, residual=residual)).to(dtype)
    whole, last = model(tokens())
    assert whole.dtype == dtype
    state, parts = None, []
    for part in tokens().split(chunk, dim=1):
        logits, state = model(part, state)
        parts.append(logits)
    largest = float(whole.detach().abs().max())
    rounding = 8 * torch.finfo(dtype).eps * largest  # of the terms that a logit sums
    assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=rounding)
    pairs: list[Tensor] = []
    map_state(lambda tensor: (pairs.append(tensor), tensor)[1], (state, last))
    for mine, theirs in zip(pairs[: len(pairs) // 2], pairs[len(pairs) // 2 :], strict=True):
        assert_close(mine, theirs)


@pytest.mark.parametrize(
    ("cell", "norm", "tie_embedding", "residual", "parameters"),
    pairwise(CELLS, NORMS, SWITCH, SWITCH, (4_000, 40_000)),
)
def test_the_dial_counts_every_parameter(
    cell: str, norm: str, tie_embedding: bool, residual: bool, parameters: int
) -> None:
    options = {"cell": cell, "norm": norm, "tie_embedding": tie_embedding, "residual": residual}
    options |= {"num_layers": 2, "cell_settings": MEMORY if cell == "dnc" else None}
    wanted = parameter_count(LanguageModel(VOCABULARY, 24, **options))
    model = LanguageModel.with_parameters(wanted, VOCABULARY, **options)
    assert (model.head.in_features, parameter_count(model)) == (24, wanted)
    assert model.residual == residual
    model = LanguageModel.with_parameters(parameters, VOCABULARY, **options)
    hidden, distance = model.head.in_features, abs(parameter_count(model) - parameters)
    step = 1 if hidden <= 64 else 8
    for neighbour in (hidden - step, hidden + step):
        size = parameter_count(LanguageModel(VOCABULARY, neighbour, **options))
        assert distance <= abs(size - parameters)


@every_cell
def test_every_parameter_of_a_stack_gets_a_gradient(cell: str) -> None:
    model = build(cell, norm="layer", residual=True)
    model(tokens(time=40))[0].square().mean().backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert missing == []


@every_cell
def test_greedy_sampling_equals_reading_everything_again(cell: str) -> None:
    model = unsettled(build(cell, norm="rms", residual=True))
    with torch.no_grad():
        model.head.weight.mul_(20)
    text = tokens(rows=2, time=5)
    for _ in range(6):
        text = torch.cat([text, model(text)[0][:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(sample(model, tokens(rows=2, time=5), 6, temperature=0.0), text[:, 5:])


def test_norms_keep_the_scale_of_the_embedding_out_of_the_layers() -> None:
    model = build("lstm", norm="rms")
    logits, _ = model(tokens())
    with torch.no_grad():
        model.embedding.weight.mul_(1000)
    assert_close(model(tokens())[0], logits, rtol=1e-3, atol=1e-4)


def test_residuals_of_silent_cells_pass_the_embedding_on() -> None:
    model = build("lstm", residual=True)
    with torch.no_grad():
        for parameter in model.cells.parameters():
            parameter.zero_()
    assert_close(model(tokens())[0], model.head(model.embedding(tokens())))


def test_a_model_without_norms_has_the_parameters_it_always_had() -> None:
    names = {name.split(".")[0] for name, _ in build("lstm").named_parameters()}
    assert names == {"embedding", "cells", "head"}


DRAW = Draw(seed=3, step=5, epsilon=0.1)
MEMBERS, SIGNS, GROUP = range(2, 5), (1, -1), 2


class Reader(nn.Module):
    """A language model as a plain module."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens)[0]


def direction(bound: BoundPerturbation, member: int) -> dict[str, Tensor]:
    """z of one member, from the fold: the sum of directions with weight 1 on it and 0 on the others."""
    weights = torch.zeros(MEMBERS.stop, dtype=torch.float64)
    weights[member] = 1
    flat = {
        target.name: torch.full((target.parameter.numel(),), torch.nan, dtype=torch.float64)
        for target in bound.targets
    }
    for block in bound.fold(DRAW, weights):
        flat[block.target.name][block.start : block.start + len(block.values)] = block.values
    return {target.name: flat[target.name].view_as(target.parameter) for target in bound.targets}


@torch.no_grad()
@every_stack
def test_members_side_by_side_equal_each_member_alone(cell: str, norm: str, residual: bool) -> None:
    model = Reader(unsettled(build(cell, norm=norm, residual=residual))).double()
    bound = RankOne().bind(model)
    assert {target.name for target in bound.targets} == {name for name, _ in model.named_parameters()}
    x = tokens(rows=len(SIGNS) * len(MEMBERS) * GROUP, time=10)
    with bound.members(DRAW, MEMBERS, SIGNS, GROUP):
        together = model(x).unflatten(0, (len(SIGNS), len(MEMBERS), GROUP))
    rows = x.unflatten(0, (len(SIGNS), len(MEMBERS), GROUP))
    for (s, sign), (j, member) in itertools.product(enumerate(SIGNS), enumerate(MEMBERS)):
        z = direction(bound, member)
        moved = {name: p + sign * DRAW.epsilon * z[name] for name, p in model.named_parameters()}
        alone = torch.func.functional_call(model, moved, (rows[s, j],))
        assert_close(together[s, j], alone, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "batch"}, "norm must be one of 'none', 'layer', 'rms', got 'batch'"),
        ({"residual": True, "embedding_size": 5}, "embedding_size 5 differs from hidden_size 8.*residual"),
        ({"cell_settings": MEMORY}, "memory_slots: cell lstm has no such setting, it has none"),
        (
            {"cell": "dnc", "cell_settings": {"slots": 3}},
            "slots: cell dnc has no such setting, it has me",
        ),
        (
            {"cell": "dnc", "cell_settings": {"memory_slots": 0}},
            "memory_slots must be a whole number of at least 1, got 0",
        ),
        ({"cell": "rnn"}, "cell must be one of lstm, gru, min-gru, dnc, or .*, got 'rnn'"),
        ({"cell": "min-gru", "num_heads": 2}, "num_heads must be 1 in a minGRU, got 2"),
    ],
)
def test_options_are_checked(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LanguageModel(VOCABULARY, HIDDEN, **options)
    options.pop("embedding_size", None)
    if options != {"residual": True}:
        with pytest.raises(ConfigError, match=message):
            LanguageModel.with_parameters(10_000, VOCABULARY, **options)


def test_the_settings_reach_the_cell() -> None:
    small, large = ({"memory_slots": 4, "memory_width": 3}, {"memory_slots": 9, "memory_width": 7})
    sizes = [
        parameter_count(LanguageModel(VOCABULARY, HIDDEN, cell="dnc", cell_settings=settings))
        for settings in (small, large, None, vars(DNCSettings()))
    ]
    assert sizes[0] < sizes[1]
    assert sizes[2] == sizes[3]
