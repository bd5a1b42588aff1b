"""Which rows run together."""

from collections import Counter

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from zorn.errors import ConfigError, ZornError
from zorn.estimators.population import Workload, member_losses
from zorn.models import Batch
from zorn.noise import Dense, Draw, RankOne

DRAW = Draw(seed=1, step=0, epsilon=0.1)


def workload(population, group, micro_batch=512, time_chunk=None):
    return Workload(population=population, group=group, micro_batch=micro_batch, time_chunk=time_chunk)


groups, counts = st.integers(1, 9), st.integers(1, 6)


@given(group=groups, blocks=counts, rounds=counts)
def test_every_sequence_is_used_equally_often(group, blocks, rounds):
    work, sequences = workload(blocks * rounds, group), group * blocks
    work.check(sequences)
    used = work.sequences_of(range(work.population), slice(None), sequences).tolist()
    assert Counter(used) == dict.fromkeys(range(sequences), rounds)


@given(group=groups, blocks=counts, rounds=counts)
def test_each_member_has_one_block_of_neighbouring_sequences(group, blocks, rounds):
    work, sequences = workload(blocks * rounds, group), group * blocks
    for member in range(work.population):
        found = work.sequences_of(range(member, member + 1), slice(None), sequences).tolist()
        start = member % blocks * group
        assert found == list(range(start, start + group))


@given(
    group=st.integers(1, 20),
    population=st.integers(1, 20),
    micro_batch=st.integers(1, 100),
    signs=st.integers(1, 2),
    side_by_side=st.booleans(),
)
def test_portions_cover_every_row_once_within_the_micro_batch(
    group, population, micro_batch, signs, side_by_side
):
    work, seen = workload(population, group, micro_batch), Counter()
    for members, parts, _ in work.portions(signs, side_by_side=side_by_side):
        assert side_by_side or len(members) == 1
        for part in parts:
            rows = signs * len(members) * (part.stop - part.start)
            assert rows <= max(micro_batch, signs)  # the signs of a row are not parted
            seen.update((member, place) for member in members for place in range(group)[part])
    assert seen == dict.fromkeys(
        [(member, place) for member in range(population) for place in range(group)], 1
    )


@given(group=st.integers(1, 20), population=st.integers(1, 20), signs=st.integers(1, 2))
def test_all_rows_run_at_once_where_they_fit(group, population, signs):
    work = workload(population, group, micro_batch=signs * population * group)
    whole = (range(population), [slice(0, group)], True)
    assert list(work.portions(signs, side_by_side=True)) == [whole]


@given(sequences=st.integers(1, 30), group=st.integers(-1, 35), population=st.integers(1, 40))
def test_check_refuses_exactly_what_does_not_divide(sequences, group, population):
    fits = group >= 1 and sequences % group == 0 and population % (sequences // group) == 0
    if fits:
        workload(population, group).check(sequences)
    else:
        with pytest.raises(ConfigError, match=r"group_size|population"):
            workload(population, group).check(sequences)


@given(group=groups, blocks=counts, start=st.integers(0, 8), length=st.integers(1, 9))
def test_a_part_of_each_group(group, blocks, start, length):
    assume(start < group)
    part = slice(start, min(start + length, group))
    work, sequences = workload(blocks, group), group * blocks
    whole = work.sequences_of(range(blocks), slice(None), sequences).view(blocks, group)
    assert torch.equal(work.sequences_of(range(blocks), part, sequences), whole[:, part].flatten())


# ---------------------------------------------------------------------------------------------- losses


class Pass(nn.Module):
    """Gives its input back, after a layer that is perturbed, so that a row's loss names the row."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Linear(1, 1, bias=False)
        self.gain.weight.data.fill_(1.0)
        self.sizes = []

    def forward(self, x):
        self.sizes.append(len(x))
        return self.gain(x)


def first(outputs, targets):
    return outputs[:, 0]


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("group", [1, 2, 3, 6])
@pytest.mark.parametrize(
    ("structure", "signs"), [(RankOne(), (1, -1)), (RankOne(), (1, 0)), (Dense(), (0, -1)), (Dense(), (1,))]
)
def test_losses_come_back_in_the_order_of_signs_and_members(structure, signs, group, micro_batch):
    """The model is y = w x with w = 1 ± ε z: the loss of a member is that times the mean of its sequences."""
    model = Pass().double()
    sequences, population = 6, 6
    x = torch.tensor([[1.0], [2], [4], [8], [16], [32]], dtype=torch.float64)
    bound = structure.bind(model)
    bound.prove(x)
    model.sizes.clear()
    work = workload(population, group, micro_batch)
    losses, passes = member_losses(
        model, bound, DRAW, signs, Batch(x, x), first, work, side_by_side=structure.side_by_side
    )
    z = torch.cat(
        [torch.cat([b.values for b in bound.fold(DRAW, one)]) for one in torch.eye(6, dtype=torch.float64)]
    )
    index = torch.stack(
        [torch.arange(group) + member % (sequences // group) * group for member in range(population)]
    )
    means = x[index, 0].mean(1)
    expected = torch.stack([(1 + sign * DRAW.epsilon * z) * means for sign in signs])
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=1e-12)
    assert passes == sum(model.sizes)
    moved = sum(sign != 0 for sign in signs)
    assert passes == moved * population * group + (sequences if 0 in signs else 0)
    at_once = moved if structure.side_by_side else 1
    assert max(model.sizes) <= max(micro_batch, at_once)
    assert losses.dtype == torch.float64
    assert not losses.is_inference()


def test_a_batch_of_no_rows():
    model, x = Pass(), torch.zeros(0, 1)
    with pytest.raises(ZornError):
        member_losses(
            model, RankOne().bind(model), DRAW, (1,), Batch(x, x), first, workload(1, 1), side_by_side=True
        )


def test_an_objective_that_is_not_per_row():
    model, x = Pass(), torch.zeros(2, 1)
    with pytest.raises(ZornError, match="one loss per row"):
        member_losses(
            model,
            RankOne().bind(model),
            DRAW,
            (1,),
            Batch(x, x),
            lambda outputs, targets: outputs.mean(),
            workload(1, 2),
            side_by_side=True,
        )


@given(
    group=st.integers(1, 6),
    population=st.integers(1, 20),
    micro_batch=st.integers(1, 40),
    signs=st.integers(1, 2),
    avoid=st.frozensets(st.integers(1, 40), max_size=3),
)
def test_several_lanes_never_make_as_many_rows_as_another_dimension_has(
    group, population, micro_batch, signs, avoid
):
    work = Workload(population=population, group=group, micro_batch=micro_batch, time_chunk=None)
    seen = []
    for members, parts, pairs in work.portions(signs, side_by_side=True, avoid=avoid):
        lanes = len(members) * (signs if pairs else 1)
        seen += members
        assert all(lanes == 1 or lanes * (part.stop - part.start) not in avoid for part in parts)
    assert seen == list(range(population))
