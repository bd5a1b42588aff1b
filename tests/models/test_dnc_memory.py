"""Each part of the memory's addressing: numbers worked out by hand, what holds for any input, gradients."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from zorn.errors import ConfigError
from zorn.models import DNCSettings, dnc_memory
from zorn.models.dynamic_memory import interface_parts, interface_size
from zorn.models.simple_memory import slot_codes

tensor = torch.tensor
ROUNDING = 1e-6  # some tens of units in the last place of float32 at 1


# --------------------------------------------------------------------------------- by hand


def test_content_weights_by_hand() -> None:
    # Cosines of (3, 4) with (1, 0), (0, 2), (-3, -4): 3/5, 4/5, -1; strength 2: exp(1.2), exp(1.6), exp(-2).
    memory = tensor([[[1.0, 0.0], [0.0, 2.0], [-3.0, -4.0]]])
    raised = [math.exp(1.2), math.exp(1.6), math.exp(-2.0)]
    found = dnc_memory.content_weights(memory, tensor([[[3.0, 4.0]]]), tensor([[2.0]]))
    assert_close(found, tensor([[[r / sum(raised) for r in raised]]]), rtol=1e-5, atol=0)


def test_content_weights_of_each_head_are_its_own() -> None:
    memory = torch.eye(2).unsqueeze(0)
    keys = tensor([[[5.0, 0.0], [0.0, 0.5]]])
    found = dnc_memory.content_weights(memory, keys, tensor([[1.0, 3.0]]))
    # Cosines (1, 0) at strength 1: e / (e + 1); (0, 1) at strength 3: 1 / (1 + e³).
    e, cube = math.e, math.exp(3)
    expected = tensor([[[e / (e + 1), 1 / (e + 1)], [1 / (1 + cube), cube / (1 + cube)]]])
    assert_close(found, expected, rtol=1e-4, atol=0)


def test_content_weights_of_an_empty_memory_and_key_are_even_and_have_finite_gradients() -> None:
    memory, keys, strengths = torch.zeros(1, 4, 3), torch.zeros(1, 2, 3), torch.ones(1, 2)
    inputs = [part.requires_grad_() for part in (memory, keys, strengths)]
    found = dnc_memory.content_weights(*inputs)
    assert_close(found, torch.full((1, 2, 4), 0.25), rtol=0, atol=0)
    for gradient in torch.autograd.grad(found[..., 0].sum(), inputs):
        assert gradient.isfinite().all()


def test_retention_by_hand() -> None:
    # Slot 0: (1 - 1·0.25)(1 - 0.5·0.5) = 0.75²; slot 1: (1 - 0)(1 - 0.5·0.5) = 0.75; slot 2, read by none: 1.
    found = dnc_memory.retention(tensor([[1.0, 0.5]]), tensor([[[0.25, 0.0, 0.0], [0.5, 0.5, 0.0]]]))
    assert_close(found, tensor([[0.5625, 0.75, 1.0]]), rtol=0, atol=0)


def test_usage_by_hand() -> None:
    # (0.5 + 0.5 - 0.25)·1 = 0.75; (0 + 0.25 - 0)·0.5 = 0.125; (1 + 0.5 - 0.5)·0.25 = 0.25; freed: 0.
    found = dnc_memory.usage_after(
        tensor([[0.5, 0.0, 1.0, 1.0]]), tensor([[0.5, 0.25, 0.5, 0.0]]), tensor([[1.0, 0.5, 0.25, 0.0]])
    )
    assert_close(found, tensor([[0.75, 0.125, 0.25, 0.0]]), rtol=0, atol=0)


def test_allocation_by_hand() -> None:
    # Free list: slots 2, 0, 3, 1 of usage 0.25, 0.5, 0.75, 1:
    # 1 - 0.25 = 0.75;  (1 - 0.5)·0.25 = 0.125;  (1 - 0.75)·0.25·0.5 = 0.03125;  (1 - 1)·… = 0.
    found = dnc_memory.allocation_weights(tensor([[0.5, 1.0, 0.25, 0.75]]))
    assert_close(found, tensor([[0.125, 0.0, 0.75, 0.03125]]), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ([0.0, 0.0, 0.0], [1.0, 0.0, 0.0]),  # all free: the first
        ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0]),  # then the next
        ([1.0, 1.0, 1.0], [0.0, 0.0, 0.0]),  # none free: nowhere
        ([0.5, 0.5, 0.5], [0.5, 0.25, 0.125]),  # equals by number
    ],
)
def test_allocation_of_equal_usage_goes_by_number(usage: list[float], expected: list[float]) -> None:
    assert_close(dnc_memory.allocation_weights(tensor([usage])), tensor([expected]), rtol=0, atol=0)


def test_allocation_of_many_equal_slots_goes_by_number() -> None:
    """Also where an unstable sort would show."""
    found = dnc_memory.allocation_weights(torch.zeros(3, 200))
    assert_close(found, torch.eye(200)[:1].expand(3, 200), rtol=0, atol=0)


def test_write_weights_by_hand() -> None:
    content, allocation = tensor([[0.5, 0.5, 0.0]]), tensor([[0.0, 0.25, 0.75]])
    # Half of 0.25·allocation + 0.75·content: (0.375, 0.4375, 0.1875) / 2.
    found = dnc_memory.write_weights(content, allocation, tensor([[0.25]]), tensor([[0.5]]))
    assert_close(found, tensor([[0.1875, 0.21875, 0.09375]]), rtol=0, atol=0)
    for gate, expected in ((0.0, content), (1.0, allocation)):
        found = dnc_memory.write_weights(content, allocation, tensor([[gate]]), tensor([[1.0]]))
        assert_close(found, expected, rtol=0, atol=0)


def test_memory_after_a_write_by_hand() -> None:
    # Slot 0 of weight 0.5, erase (1, 0.5), vector (2, -4): 4·(1 - 0.5) + 1 = 3;  8·(1 - 0.25) - 2 = 4.
    # Slot 1 of weight 0.25: 1·(1 - 0.25) + 0.5 = 1.25;  16·(1 - 0.125) - 1 = 13.
    memory = tensor([[[4.0, 8.0], [1.0, 16.0]]])
    found = dnc_memory.memory_after(
        memory, tensor([[0.5, 0.25]]), tensor([[1.0, 0.5]]), tensor([[2.0, -4.0]])
    )
    assert_close(found, tensor([[[3.0, 4.0], [1.25, 13.0]]]), rtol=0, atol=0)


def test_a_slot_written_over_holds_the_new_vector_alone() -> None:
    memory, vector = torch.full((1, 2, 3), 1e8), tensor([[1e-3, 2e-3, 3e-3]])
    found = dnc_memory.memory_after(memory, tensor([[1.0, 0.0]]), torch.ones(1, 3), vector)
    assert torch.equal(found[0, 0], vector[0])
    assert torch.equal(found[0, 1], memory[0, 1])


def test_link_by_hand() -> None:
    link = tensor([[[0.0, 0.5, 0.0], [0.25, 0.0, 0.5], [0.5, 0.0, 0.0]]])
    write, precedence = tensor([[0.5, 0.25, 0.0]]), tensor([[0.0, 0.5, 0.5]])
    # [0, 1]: (1 - 0.75)·0.5 + 0.5·0.5 = 0.375;  [0, 2]: 0.5·0 + 0.5·0.5 = 0.25;
    # [1, 0]: 0.25·0.25 + 0.25·0 = 0.0625;  [1, 2]: 0.75·0.5 + 0.25·0.5 = 0.5;
    # [2, 0]: 0.5·0.5 + 0 = 0.25;  [2, 1]: 0.
    expected = tensor([[[0.0, 0.375, 0.25], [0.0625, 0.0, 0.5], [0.25, 0.0, 0.0]]])
    assert_close(dnc_memory.link_after(link, write, precedence), expected, rtol=0, atol=0)


def test_precedence_by_hand() -> None:
    # (1 - 0.75)·(0, 0.5, 0.5) + (0.5, 0.25, 0).
    found = dnc_memory.precedence_after(tensor([[0.0, 0.5, 0.5]]), tensor([[0.5, 0.25, 0.0]]))
    assert_close(found, tensor([[0.5, 0.375, 0.125]]), rtol=0, atol=0)


@pytest.mark.parametrize("heads", [1, 2])
def test_directional_weights_follow_the_order_of_writing(heads: int) -> None:
    """Slots written one after the other in the order 2, 0, 1: from 0, back is 2 and ahead is 1."""
    link, precedence = torch.zeros(1, 3, 3), torch.zeros(1, 3)
    for slot in (2, 0, 1):
        write = torch.eye(3)[slot].unsqueeze(0)
        link = dnc_memory.link_after(link, write, precedence)
        precedence = dnc_memory.precedence_after(precedence, write)
    assert_close(link, tensor([[[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]]), rtol=0, atol=0)
    read = torch.eye(3)[torch.arange(heads)].unsqueeze(0)  # the second head reads slot 1
    backward, forward = dnc_memory.directional_weights(link, read)
    assert_close(backward, tensor([[[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]])[:, :heads], rtol=0, atol=0)
    assert_close(forward, tensor([[[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]])[:, :heads], rtol=0, atol=0)


def test_read_weights_by_hand() -> None:
    modes = tensor([[[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]]])
    backward = tensor([[[1.0, 0.0], [1.0, 0.0]]])
    content = tensor([[[0.5, 0.5], [0.25, 0.75]]])
    forward = tensor([[[0.0, 0.5], [1.0, 0.0]]])
    # Head 0: 0.5·(1, 0) + 0.25·(0.5, 0.5) + 0.25·(0, 0.5); head 1: content alone.
    expected = tensor([[[0.625, 0.25], [0.25, 0.75]]])
    assert_close(dnc_memory.read_weights(modes, backward, content, forward), expected, rtol=0, atol=0)


@pytest.mark.parametrize("heads", [1, 2])
def test_read_vectors_by_hand(heads: int) -> None:
    memory = tensor([[[1.0, 2.0, 3.0], [4.0, 0.0, -4.0]]])
    weights = tensor([[[0.5, 0.25], [0.0, 0.5]]])[:, :heads]
    expected = tensor([[[1.5, 1.0, 0.5], [2.0, 0.0, -2.0]]])[:, :heads]
    assert_close(dnc_memory.read_vectors(memory, weights), expected, rtol=0, atol=0)


def test_the_interface_is_cut_where_its_docstring_says() -> None:
    sizes = DNCSettings(memory_slots=3, memory_width=2, read_heads=2)
    # Read keys 0-3, write key 4-5, vector 6-7, erase 8-9, free 10-11, allocation 12, write 13,
    # read strengths 14-15, write strength 16, modes 17-22.
    assert interface_size(sizes) == 23
    emitted = torch.arange(23.0).unsqueeze(0) / 10
    parts = interface_parts(emitted, sizes)
    assert_close(parts.read_keys, tensor([[[0.0, 0.1], [0.2, 0.3]]]))
    assert_close(parts.write_key, tensor([[[0.4, 0.5]]]))
    assert_close(parts.vector, tensor([[0.6, 0.7]]))
    assert_close(parts.erase, 1 / (1 + torch.exp(-tensor([[0.8, 0.9]]))))
    assert_close(parts.free_gates, 1 / (1 + torch.exp(-tensor([[1.0, 1.1]]))))
    assert_close(parts.allocation_gate, 1 / (1 + torch.exp(-tensor([[1.2]]))))
    assert_close(parts.write_gate, 1 / (1 + torch.exp(-tensor([[1.3]]))))
    assert_close(parts.read_strengths, 1 + torch.log(1 + torch.exp(tensor([[1.4, 1.5]]))))
    assert_close(parts.write_strength, 1 + torch.log(1 + torch.exp(tensor([[1.6]]))))
    raised = torch.exp(tensor([[0.0, 0.1, 0.2]]))
    assert_close(parts.modes, (raised / raised.sum()).expand(1, 2, 3))


def test_slot_codes_tell_all_slots_apart() -> None:
    codes = torch.nn.functional.layer_norm(slot_codes(64, 16), (16,))
    distances = torch.cdist(codes, codes) + 10 * torch.eye(64)
    assert distances.min() > 0.1


# --------------------------------------------------------------------------------- for any input


def random_numbers(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def random_weights(seed: int, *shape: int) -> torch.Tensor:
    """None negative, together at most 1; some of them one slot alone, some nothing."""
    numbers = random_numbers(seed, *shape)
    spread = numbers / numbers.sum(-1, keepdim=True) * random_numbers(seed + 1, *shape[:-1], 1)
    single = torch.nn.functional.one_hot(numbers.argmax(-1), shape[-1]).float()
    choice = random_numbers(seed + 2, *shape[:-1], 1)
    return torch.where(choice < 0.6, spread, torch.where(choice < 0.8, single, torch.zeros_like(single)))


seeds = st.integers(0, 2**20)
few_slots = st.integers(1, 9)


@settings(max_examples=20, deadline=None)
@given(seeds, few_slots, st.integers(1, 3))
def test_what_holds_after_any_writes_and_reads(seed: int, slots: int, heads: int) -> None:
    usage, precedence, link = torch.zeros(5, slots), torch.zeros(5, slots), torch.zeros(5, slots, slots)
    for t in range(4):
        write = random_weights(seed + 10 * t, 5, slots)
        read = random_weights(seed + 10 * t + 3, 5, heads, slots)
        kept = dnc_memory.retention(random_numbers(seed + t, 5, heads), read)
        assert ((kept >= 0) & (kept <= 1)).all()
        usage = dnc_memory.usage_after(usage, write, kept)
        assert ((usage >= 0) & (usage <= 1)).all()
        link = dnc_memory.link_after(link, write, precedence)
        precedence = dnc_memory.precedence_after(precedence, write)
        for part in (precedence, link, link.mT):
            assert (part >= -ROUNDING).all()
            assert (part.sum(-1) <= 1 + ROUNDING).all()
        assert (link.diagonal(dim1=1, dim2=2) == 0).all()
        for part in dnc_memory.directional_weights(link, read):
            assert (part >= -ROUNDING).all()
            assert (part.sum(-1) <= 1 + ROUNDING).all()


@settings(max_examples=20, deadline=None)
@given(seeds, few_slots)
def test_allocation_is_what_the_used_slots_leave(seed: int, slots: int) -> None:
    """Σ a = 1 − Π u, and a less used slot never gets less."""
    usage = random_numbers(seed, 4, slots)
    found = dnc_memory.allocation_weights(usage)
    assert_close(found.sum(-1), 1 - usage.prod(-1))
    assert (found.gather(1, usage.argsort(-1)).diff(dim=-1) <= 0).all()


@settings(max_examples=20, deadline=None)
@given(seeds, few_slots, st.floats(0.1, 100))
def test_content_weights_do_not_depend_on_lengths(seed: int, slots: int, factor: float) -> None:
    memory, keys = random_numbers(seed, 2, slots, 4) + 0.5, random_numbers(seed + 1, 2, 3, 4) + 0.5
    strengths = 1 + random_numbers(seed + 2, 2, 3)
    found = dnc_memory.content_weights(memory, keys, strengths)
    assert_close(found.sum(-1), torch.ones(2, 3))
    assert_close(dnc_memory.content_weights(factor * memory, keys, strengths), found, rtol=1e-3, atol=1e-5)
    assert_close(dnc_memory.content_weights(memory, factor * keys, strengths), found, rtol=1e-3, atol=1e-5)


# --------------------------------------------------------------------------------- gradients

SHAPES = {
    "content_weights": [(2, 3, 4), (2, 2, 4), (2, 2)],
    "retention": [(2, 2), (2, 2, 3)],
    "usage_after": [(2, 3)] * 3,
    "allocation_weights": [(2, 5)],
    "write_weights": [(2, 3), (2, 3), (2, 1), (2, 1)],
    "memory_after": [(2, 3, 4), (2, 3), (2, 4), (2, 4)],
    "link_after": [(2, 3, 3), (2, 3), (2, 3)],
    "precedence_after": [(2, 3), (2, 3)],
    "directional_weights": [(2, 3, 3), (2, 2, 3)],
    "read_weights": [(2, 2, 3)] + [(2, 2, 5)] * 3,
    "read_vectors": [(2, 3, 4), (2, 1, 3)],
}


@pytest.mark.parametrize("name", SHAPES)
def test_gradients_are_right_and_inputs_left_as_they_were(name: str) -> None:
    inputs = [random_numbers(k, *shape).double().requires_grad_() for k, shape in enumerate(SHAPES[name])]
    before = [part.detach().clone() for part in inputs]
    assert torch.autograd.gradcheck(getattr(dnc_memory, name), inputs)
    assert all(torch.equal(now, then) for now, then in zip(inputs, before, strict=True))


@pytest.mark.parametrize("usage", [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
def test_gradients_of_allocation_are_finite_at_its_corners(usage: list[float]) -> None:
    at = tensor([usage], requires_grad=True)
    (gradient,) = torch.autograd.grad(dnc_memory.allocation_weights(at)[0, 1], at)
    assert gradient.isfinite().all()


# --------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("name", ["memory_slots", "memory_width", "read_heads"])
def test_sizes_are_checked(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be a whole number of at least 1, got 0"):
        DNCSettings(**{name: 0})


def test_a_simple_memory_of_two_numbers_a_slot_is_refused() -> None:
    with pytest.raises(ConfigError, match="layer-normalised over its width"):
        DNCSettings(memory_width=2, simple_memory=True)
    assert DNCSettings(memory_width=1).memory_width == 1


def test_a_kind_that_is_a_text_is_refused():
    memory = object.__new__(DNCSettings)  # past the type checks of pytest
    for name, value in (DNCSettings().__dict__ | {"simple_memory": "no"}).items():
        object.__setattr__(memory, name, value)
    with pytest.raises(ConfigError, match="simple_memory must be True or False, got 'no'"):
        memory.__post_init__()
