"""The draws: what determines them, what does not, and that they are random."""

import doctest
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zorn.random.draws
from zorn.errors import ConfigError
from zorn.random import integers, normals, philox4x32, sign_table, signs, signs_at, words

SEED = 0x0123456789ABCDEF
WORD = st.integers(0, 2**32 - 1)
DRAWS = [signs, normals, words]
STANDARD_ERRORS = 5


def bits_of(word: int) -> list[int]:
    return [word >> bit & 1 for bit in range(32)]


# What determines the draws ---------------------------------------------------------------------------------


@given(st.integers(0, 2**64 - 1), WORD, WORD, WORD, st.integers(0, 2**32 - 2))
@settings(max_examples=30, deadline=None)
def test_words_are_philox_of_block_stream_member_step_keyed_by_seed(seed, step, member, stream, block):
    counter = torch.tensor([[block, block + 1], [stream] * 2, [member] * 2, [step] * 2])
    expected = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32)).t().flatten()
    assert torch.equal(words(seed, step, range(member, member + 1), stream, 8, offset=4 * block)[0], expected)


def test_sign_is_the_bit_of_the_word_that_the_docstring_names():
    word_values = words(SEED, 3, range(5, 7), 2, 12).tolist()
    expected = [[1 - 2 * bit for word in row for bit in bits_of(word)] for row in word_values]
    assert signs(SEED, 3, range(5, 7), 2, 12 * 32).tolist() == expected


def test_normals_are_box_muller_of_the_words_in_pairs():
    values = words(SEED, 3, range(4), 2, 40).double().view(-1, 2)
    u, v = (values + 0.5).div(2**32).unbind(1)
    radius = torch.sqrt(-2 * torch.log(u))
    expected = torch.stack((radius * torch.cos(2 * math.pi * v), radius * torch.sin(2 * math.pi * v)), 1)
    torch.testing.assert_close(
        normals(SEED, 3, range(4), 2, 40), expected.view(4, 40).float(), rtol=2e-7, atol=1e-12
    )


@given(st.integers(1, 2**32), st.integers(0, 50))
@settings(max_examples=50, deadline=None)
def test_integers_are_the_high_part_of_a_64_bit_word_times_the_bound(bound, count):
    pairs = words(SEED, 1, range(1), 7, 2 * count).view(-1, 2).tolist()
    assert integers(SEED, 1, 7, count, bound).tolist() == [
        ((h << 32) + low) * bound >> 64 for h, low in pairs
    ]


def test_first_signs_of_seed_zero_never_change():
    """The words of counter 0 and key 0 are the published 6627e8d5 ...: the lowest bits first, set is −1."""
    expected = [1 - 2 * bit for bit in bits_of(0x6627E8D5) + bits_of(0xE169C58D)]
    assert signs(0, 0, range(1), 0, 64)[0].tolist() == expected


def test_golden_draws_of_another_seed():
    assert [f"{word:08x}" for word in words(SEED, 11, range(3, 4), 5, 4)[0].tolist()] == GOLDEN_WORDS
    assert normals(SEED, 11, range(3, 4), 5, 4)[0].tolist() == pytest.approx(GOLDEN_NORMALS, rel=1e-6)
    assert integers(SEED, 11, 5, 6, 1000).tolist() == GOLDEN_INTEGERS


GOLDEN_WORDS = ["de2f8f4f", "6c99dc63", "b1ab95ce", "937cdd2f"]
GOLDEN_NORMALS = [-0.4730834, 0.2439656, -0.7587757, -0.3933901]
GOLDEN_INTEGERS = [839, 44, 701, 591, 581, 625]


# What does not ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", DRAWS)
@given(
    cuts=st.lists(st.integers(0, 700), min_size=1, max_size=4),
    member_cut=st.integers(0, 5),
    seed=st.integers(0, 2**64 - 1),
    step=WORD,
    stream=WORD,
    start=st.integers(0, 4 * 2**32 - 700),
)
@settings(max_examples=30, deadline=None)
def test_any_cut_of_elements_and_members_gives_the_same(draw, cuts, member_cut, seed, step, stream, start):
    whole = draw(seed, step, range(5), stream, 700, offset=start)
    edges = [0, *sorted(cuts), 700]
    rows = [
        [draw(seed, step, part, stream, b - a, offset=start + a) for a, b in itertools.pairwise(edges)]
        for part in (range(member_cut), range(member_cut, 5))
    ]
    assert torch.equal(torch.cat([torch.cat(row, 1) for row in rows]), whole)


@pytest.mark.parametrize("draw", DRAWS)
def test_members_may_be_any_range(draw):
    whole = draw(SEED, 1, range(10), 2, 130)
    assert torch.equal(draw(SEED, 1, range(8, 1, -3), 2, 130), whole[[8, 5, 2]])
    assert draw(SEED, 1, range(4, 4), 2, 130).shape == (0, 130)
    assert draw(SEED, 1, range(10), 2, 0).shape == (10, 0)


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize(("members", "count"), [(40, 1000), (3, 2000)])
def test_what_is_processed_at_once_does_not_show(monkeypatch, draw, members, count):
    whole = draw(SEED, 1, range(members), 2, count)
    for name, at_once in (("_COUNTERS_AT_ONCE", 13), ("_BYTES_AT_ONCE", 17), ("_PAIRS_AT_ONCE", 19)):
        monkeypatch.setattr(zorn.random.draws, name, {"cpu": at_once})
    assert torch.equal(draw(SEED, 1, range(members), 2, count), whole)


@given(st.lists(st.tuples(WORD, st.integers(0, 400)), max_size=8), st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_sign_table_equals_signs(requests, first_member):
    members = range(first_member, first_member + 4)
    table = sign_table(SEED, 6, members, requests)
    assert len(table) == len(requests)
    for (stream, count), part in zip(requests, table, strict=True):
        assert torch.equal(part, signs(SEED, 6, members, stream, count))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int8])
def test_signs_are_the_same_in_every_dtype(dtype):
    result = signs(SEED, 1, range(3), 2, 1000, dtype=dtype)
    assert result.dtype == dtype
    assert torch.equal(result.float(), signs(SEED, 1, range(3), 2, 1000))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_normals_in_every_dtype_are_the_float32_ones_rounded(dtype):
    result = normals(SEED, 1, range(3), 2, 1000, dtype=dtype)
    assert torch.equal(result, normals(SEED, 1, range(3), 2, 1000).to(dtype))


def test_the_global_generator_is_neither_read_nor_moved():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = normals(SEED, 0, range(2), 0, 10)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(normals(SEED, 0, range(2), 0, 10), first)


def test_signs_made_in_inference_mode_first_serve_autograd_later():
    zorn.random.draws._signs_of_byte.cache_clear()
    zorn.random.philox._round_keys.cache_clear()
    with torch.inference_mode():
        inside = signs(SEED, 0, range(1), 0, 10).tolist()
    weight = torch.ones(10, requires_grad=True)
    (weight * signs(SEED, 0, range(1), 0, 10)).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == inside[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_bits_of_the_cpu():
    for draw in (signs, words):
        here = draw(SEED, 3, range(7), 2, 3000, offset=77)
        assert torch.equal(draw(SEED, 3, range(7), 2, 3000, offset=77, device="cuda").cpu(), here)
    here, there = (normals(SEED, 3, range(64), 2, 10_000, device=device).cpu() for device in ("cpu", "cuda"))
    assert (here != there).sum() <= 1
    torch.testing.assert_close(there, here, rtol=2e-7, atol=0)
    assert torch.equal(integers(SEED, 3, 2, 999, 77, device="cuda").cpu(), integers(SEED, 3, 2, 999, 77))


# That they are random --------------------------------------------------------------------------------------


def assert_mean(samples: torch.Tensor, expected: float) -> None:
    """The mean of independent samples lies within five standard errors, computed from them, of `expected`."""
    samples = samples.double().flatten()
    standard_error = samples.std() / math.sqrt(samples.numel())
    assert abs(samples.mean() - expected) <= STANDARD_ERRORS * standard_error


COUNT = 200_000


@pytest.mark.parametrize("draw", [signs, normals])
def test_mean_and_variance(draw):
    sample = draw(SEED, 1, range(1), 2, COUNT)
    assert_mean(sample, 0.0)
    if draw is signs:
        assert torch.equal(sample.abs(), torch.ones_like(sample))
    else:
        assert_mean(sample**2, 1.0)


@pytest.mark.parametrize("draw", [signs, normals])
def test_vectors_that_differ_in_one_number_only_are_uncorrelated(draw):
    vectors = [
        draw(SEED, 1, range(1), 2, COUNT),
        draw(SEED, 1, range(1, 2), 2, COUNT),
        draw(SEED, 1, range(1), 3, COUNT),
        draw(SEED, 2, range(1), 2, COUNT),
        draw(SEED + 1, 1, range(1), 2, COUNT),
        draw(SEED ^ 1 << 40, 1, range(1), 2, COUNT),
        draw(SEED, 1, range(1), 2, COUNT, offset=1),
        draw(SEED, 1, range(1), 2, COUNT, offset=32),
        draw(SEED, 1, range(1), 2, COUNT, offset=128),
    ]
    for one, other in itertools.combinations(vectors, 2):
        assert_mean(one * other, 0.0)


def test_each_bit_of_a_block_is_fair_and_independent_of_the_others():
    blocks = signs(SEED, 1, range(64), 2, 128 * 64).reshape(-1, 128).double()
    count = len(blocks)
    covariance = blocks.t() @ blocks / count - torch.eye(128)
    # 128 means and 8,128 covariances of standard error 1 / √count: five of them are passed once in 200 seeds.
    assert blocks.mean(0).abs().max() <= STANDARD_ERRORS / math.sqrt(count)
    assert covariance.abs().max() <= STANDARD_ERRORS / math.sqrt(count)


def test_normals_have_the_moments_and_tails_of_a_normal():
    sample = normals(SEED, 1, range(4), 2, COUNT).double()
    for power, moment in ((3, 0.0), (4, 3.0), (6, 15.0)):
        assert_mean(sample**power, moment)
    for bound in (0.5, 1.0, 2.0, 3.0, 4.0):
        beyond = math.erfc(bound / math.sqrt(2)) / 2
        assert_mean(sample > bound, beyond)
        assert_mean(sample < -bound, beyond)


def test_the_two_normals_of_a_pair_are_independent():
    even, odd = normals(SEED, 1, range(1), 2, COUNT).double().view(-1, 2).unbind(1)
    assert_mean(even * odd, 0.0)
    assert_mean((even**2 - 1) * (odd**2 - 1), 0.0)


def test_normals_are_finite_at_the_extreme_words(monkeypatch):
    extremes = torch.tensor([[0, 0, 0, 2**32 - 1, 2**32 - 1, 0, 2**32 - 1, 2**32 - 1]]).to(torch.int32)
    monkeypatch.setattr(zorn.random.draws, "_word_table", lambda *_: (extremes, [0]))
    result = normals(SEED, 0, range(1), 0, 8)
    assert result.isfinite().all()
    assert result.abs().max().item() == pytest.approx(math.sqrt(2 * 33 * math.log(2)))


@pytest.mark.parametrize("bound", [1, 7, 1000])
def test_integers_are_uniform(bound):
    sample = integers(SEED, 1, 2, COUNT, bound)
    assert sample.min() >= 0
    assert sample.max() < bound
    for value in {0, bound // 2, bound - 1}:
        if bound > 1:
            assert_mean(sample == value, 1 / bound)
        else:
            assert (sample == value).all()


# Mistakes --------------------------------------------------------------------------------------------------

TOO_LARGE = 2**32


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, r"seed must be an integer from 0 to 18446744073709551615, got -1"),
        ({"seed": 2**64}, r"seed .* got 18446744073709551616"),
        ({"step": -1}, r"step must be an integer from 0 to 4294967295, got -1"),
        ({"step": TOO_LARGE}, r"step .* got 4294967296"),
        ({"members": range(-1, 3)}, r"member must be an integer from 0 to 4294967295, got -1"),
        ({"members": range(2, TOO_LARGE + 1)}, r"member .* got 4294967296"),
        ({"stream": -1}, r"stream must be an integer from 0 to 4294967295, got -1"),
        ({"stream": TOO_LARGE}, r"stream .* got 4294967296"),
        ({"count": -1}, r"count must be an integer from 0 to \d+, got -1"),
        ({"offset": -1}, r"offset must be an integer from 0 to \d+, got -1"),
        ({"offset": 128 * TOO_LARGE}, r"offset must be an integer from 0 to \d+, got 549755813888"),
    ],
)
def test_numbers_out_of_range_are_named(draw, change, message):
    arguments = {"seed": SEED, "step": 1, "members": range(2), "stream": 3, "count": 4} | change
    with pytest.raises(ConfigError, match=message):
        draw(**arguments)


def test_sign_table_checks_every_request():
    with pytest.raises(ConfigError, match=r"stream .* got 4294967296"):
        sign_table(SEED, 0, range(2), [(0, 3), (TOO_LARGE, 3)])


@pytest.mark.parametrize("bound", [0, -3, 2**32 + 1])
def test_integers_need_a_bound_in_range(bound):
    with pytest.raises(ConfigError, match=rf"bound must be an integer from 1 to 4294967296, got {bound}"):
        integers(SEED, 0, 0, 5, bound)


def test_integers_need_a_count():
    with pytest.raises(ConfigError, match="count must be an integer from 0 to 8589934592, got -1"):
        integers(SEED, 0, 0, -1, 5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool])
def test_signs_need_a_signed_dtype(dtype):
    with pytest.raises(ConfigError, match=f"signed dtype to hold −1, got {dtype}"):
        signs(SEED, 0, range(1), 0, 5, dtype=dtype)


def test_normals_need_a_floating_dtype():
    with pytest.raises(ConfigError, match=r"floating dtype, got torch\.int32"):
        normals(SEED, 0, range(1), 0, 5, dtype=torch.int32)


def test_documented_examples():
    results = doctest.testmod(zorn.random.draws)
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_chosen_signs_are_those_of_the_whole_vector(dtype, monkeypatch):
    monkeypatch.setitem(zorn.random.draws._COUNTERS_AT_ONCE, "cpu", 7)
    members, index = (
        range(2, 11, 3),
        torch.randint(0, 1000, (3, 40), generator=torch.Generator().manual_seed(0)),
    )
    whole = signs(2**40 + 1, 9, members, 3, 1000, dtype=dtype)
    found = signs_at(2**40 + 1, 9, members, 3, index, dtype=dtype)
    assert found.dtype == dtype
    assert torch.equal(found, whole.gather(1, index))


def test_chosen_signs_reach_beyond_what_could_be_drawn_whole():
    far = 128 * (2**32 - 1) + 5
    found = signs_at(0, 0, range(1), 0, torch.tensor([[far]]))
    assert torch.equal(found, signs(0, 0, range(1), 0, 1, offset=far))


@pytest.mark.parametrize("index", [-1, 128 * 2**32])
def test_a_place_outside_the_vector_is_refused(index):
    with pytest.raises(ConfigError, match="index must be an integer from 0"):
        signs_at(0, 0, range(1), 0, torch.tensor([[index]]))
