"""Members side by side against the plain model with its weights moved, for every rule: the reference twin of
the rank-one structure."""

import pytest
import torch
from torch import nn

from zorn.models import BlockLinear, GRUCell, LanguageModel, LSTMCell, RecurrentMap, run
from zorn.noise import Draw, Layout, MemberNoise, RankOne
from zorn.noise.weights.member_noise import Factors
from zorn.noise.weights.structure import BoundPerturbation

DRAW = Draw(seed=3, step=5, epsilon=0.1)
MEMBERS = range(2, 5)
SIGNS = (1, -1)
GROUP = 2
ROWS = len(SIGNS) * len(MEMBERS) * GROUP


class Runner(nn.Module):
    """A cell over a batch-first sequence, as a plain module."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x):
        y, _ = run(self.cell, x.transpose(0, 1), self.cell.initial_state(len(x)))
        return y.transpose(0, 1)


class Reader(nn.Module):
    """A language model as a plain module."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        return self.model(tokens)[0]


def language_model(**options):
    return Reader(LanguageModel(11, 8, **options))


def vectors(*shape):
    return torch.randn(ROWS, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def tokens(*shape):
    return torch.randint(0, 11, (ROWS, *shape), generator=torch.Generator().manual_seed(1))


CASES = {
    "linear": (lambda: nn.Linear(5, 4), vectors(5)),
    "linear over time": (lambda: nn.Linear(5, 4), vectors(7, 5)),
    "linear without bias": (lambda: nn.Linear(5, 4, bias=False), vectors(3, 2, 5)),
    "embedding": (lambda: nn.Embedding(11, 4), tokens(7)),
    "embedding of one token": (lambda: nn.Embedding(11, 4), tokens()),
    "embedding with padding": (lambda: nn.Embedding(11, 4, padding_idx=3), tokens(7)),
    "layer norm": (lambda: nn.LayerNorm(6), vectors(4, 6)),
    "layer norm of two dimensions": (lambda: nn.LayerNorm((2, 3)), vectors(4, 2, 3)),
    "layer norm without bias": (lambda: nn.LayerNorm(6, bias=False), vectors(6)),
    "rms norm": (lambda: nn.RMSNorm(6), vectors(4, 6)),
    "convolution": (lambda: nn.Conv1d(4, 6, 3), vectors(4, 9)),
    "convolution in groups": (lambda: nn.Conv1d(4, 6, 3, groups=2, padding=1), vectors(4, 9)),
    "convolution with strides": (lambda: nn.Conv1d(4, 6, 3, stride=2, dilation=2, padding=2), vectors(4, 9)),
    "circular convolution": (
        lambda: nn.Conv1d(4, 6, 3, padding=1, padding_mode="circular", bias=False),
        vectors(4, 9),
    ),
    "same convolution": (lambda: nn.Conv1d(4, 4, 5, padding="same", groups=4), vectors(4, 9)),
    "block linear": (lambda: BlockLinear(6, 9, num_heads=3), vectors(2, 6)),
    "lstm": (lambda: Runner(LSTMCell(5, 6)), vectors(4, 5)),
    "lstm with heads": (lambda: Runner(LSTMCell(5, 6, num_heads=3)), vectors(4, 5)),
    "gru": (lambda: Runner(GRUCell(5, 6)), vectors(4, 5)),
    "gru with heads": (lambda: Runner(GRUCell(5, 6, num_heads=2)), vectors(4, 5)),
    "language model": (lambda: language_model(num_layers=2), tokens(5)),
    "tied language model": (lambda: language_model(tie_embedding=True, num_heads=2), tokens(5)),
    "gru language model": (lambda: language_model(cell="gru"), tokens(5)),
}


def build(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().double()


def direction(bound: BoundPerturbation, member: int) -> dict[str, torch.Tensor]:
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


def moved_outputs(model, x, bound):
    """Each member's rows through the plain model, its weights explicitly moved."""
    rows = torch.arange(ROWS).view(len(SIGNS), len(MEMBERS), GROUP)
    outputs = [torch.tensor(0.0)] * ROWS
    for s, sign in enumerate(SIGNS):
        for j, member in enumerate(MEMBERS):
            z = direction(bound, member)
            moved = {
                name: p + sign * DRAW.epsilon * z[name] if name in z else p
                for name, p in model.named_parameters()
            }
            found = torch.func.functional_call(model, moved, (x[rows[s, j]],))
            for row, output in zip(rows[s, j].tolist(), found, strict=True):
                outputs[row] = output
    return torch.stack(outputs)


@torch.no_grad()
def check(model, x, structure):
    bound = structure.bind(model)
    before = {name: p.clone() for name, p in model.named_parameters()}
    plain = model(x)
    with bound.members(DRAW, MEMBERS, SIGNS, GROUP):
        side_by_side = model(x)
    assert not torch.allclose(side_by_side, plain)
    torch.testing.assert_close(side_by_side, moved_outputs(model, x, bound), rtol=1e-9, atol=1e-11)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    torch.testing.assert_close(model(x), plain, rtol=0, atol=0)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "structure",
    [RankOne(), RankOne(noise="gaussian")],
    ids=["signs", "gaussian"],
)
def test_side_by_side_equals_moved_weights(case, structure):
    make, x = CASES[case]
    check(build(make), x, structure)


@pytest.mark.parametrize("case", CASES)
def test_freezing_any_one_parameter_perturbs_the_others_alone(case):
    make, x = CASES[case]
    names = [name for name, _ in build(make).named_parameters()]
    for frozen in names if len(names) > 1 else []:
        model = build(make)
        model.get_parameter(frozen).requires_grad_(False)
        assert frozen not in {target.name for target in RankOne().bind(model).targets}
        check(model, x, RankOne())


@torch.no_grad()
def test_freezing_leaves_the_noise_of_the_others_as_it_was():
    model = build(lambda: language_model())
    everything = direction(RankOne().bind(model), 2)
    model.get_parameter("model.embedding.weight").requires_grad_(False)
    rest = direction(RankOne().bind(model), 2)
    assert set(everything) - set(rest) == {"model.embedding.weight"}
    for name, z in rest.items():
        torch.testing.assert_close(z, everything[name], rtol=0, atol=0)


@torch.no_grad()
def test_the_padding_row_of_an_embedding_is_never_perturbed():
    model = build(lambda: nn.Embedding(11, 4, padding_idx=3))
    z = direction(RankOne().bind(model), 2)["weight"]
    assert (z[3] == 0).all()
    assert (z[torch.arange(11) != 3].abs() == 1).all()


@torch.no_grad()
def test_the_directions_of_signs_are_signs_and_have_rank_one():
    model = build(lambda: Runner(LSTMCell(5, 6, num_heads=2)))
    z = direction(RankOne().bind(model), 3)
    assert all((value.abs() == 1).all() for value in z.values())
    whole = torch.cat(
        [
            z["cell.map.weight_input"].view(2, 12, 5),
            z["cell.map.weight_state"],
            z["cell.map.bias"].view(2, 12, 1),
        ],
        dim=2,
    )
    for head in whole:
        assert torch.linalg.matrix_rank(head) == 1


def test_a_recurrent_map_is_perturbed_in_its_step_even_when_only_the_input_weight_is_trained():
    cell = LSTMCell(5, 6).double()
    assert isinstance(cell.map, RecurrentMap)
    cell.map.weight_state.requires_grad_(False)
    cell.map.bias.requires_grad_(False)
    check(Runner(cell), vectors(4, 5), RankOne())


@torch.no_grad()
def test_scores_are_scaled_in_float32_and_rounded_once():
    signs = torch.tensor([1, -1])
    factors = {"weight": Factors(Layout(rows=1), torch.ones(3, 1, 1), torch.ones(3, 1, 1))}
    noise = MemberNoise(factors, signs=signs, members=3, group=1, epsilon=0.0123, site="")
    scores = torch.linspace(1, 2, 6).view(2, 3, 1).bfloat16()
    wanted = (scores.double() * 0.0123 * signs.view(2, 1, 1)).bfloat16()
    torch.testing.assert_close(noise.signed(scores, 0), wanted, rtol=0, atol=0)
