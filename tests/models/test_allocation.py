"""Weights are allocated once, in their dtype, and filled with the values of a float32 model."""

import pytest
import torch

import zorn
from zorn.errors import ConfigError
from zorn.models import initialise


@pytest.mark.parametrize("cell", ["lstm", "gru", "min-gru", "dnc"])
@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_a_model_made_in_a_dtype_is_the_converted_one_bit_for_bit(cell, tie, norm):
    options = {"cell": cell, "tie_embedding": tie, "num_layers": 2, "norm": norm, "seed": 3}
    made = zorn.LanguageModel(13, 16, **options, dtype=torch.bfloat16)
    converted = zorn.LanguageModel(13, 16, **options).to(torch.bfloat16)
    assert list(made.state_dict()) == list(converted.state_dict())
    for name, weight in made.state_dict().items():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, converted.state_dict()[name]), name
    assert (made.head.weight is made.embedding.weight) == tie


@pytest.mark.parametrize("count", [1, 15, 16, 17, 100, 160, 161, 175, 176, 177, 500])
def test_slices_give_the_bits_of_one_draw(monkeypatch, count):
    monkeypatch.setattr(initialise, "SLICE", 80)
    for fill, draw in (
        (initialise.normal_, lambda values, generator: values.normal_(generator=generator)),
        (
            lambda weight, generator: initialise.uniform_(weight, 0.3, generator),
            lambda values, generator: values.uniform_(-0.3, 0.3, generator=generator),
        ),
    ):
        ours, theirs = (torch.Generator().manual_seed(4) for _ in range(2))
        weight, expected = torch.empty(count), draw(torch.empty(count), theirs)
        fill(weight, ours)
        assert torch.equal(weight, expected)
        assert torch.equal(torch.rand(3, generator=ours), torch.rand(3, generator=theirs))


def test_nothing_larger_than_a_slice_is_made_beside_the_weights(monkeypatch):
    monkeypatch.setattr(initialise, "SLICE", 64)
    sizes, plain = [], torch.empty

    def counted(*args, **options):
        made = plain(*args, **options)
        sizes.append((made.numel(), made.dtype, made.is_meta))
        return made

    monkeypatch.setattr(torch, "empty", counted)
    initialise.uniform_(plain(50, 20, dtype=torch.bfloat16), 1.0)
    assert len(sizes) >= 1000 // 80
    assert max(size for size, _, _ in sizes) < 64 + 16


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_every_parameter_is_made_on_the_device_that_is_named_or_the_default(tie, named):
    if named:
        model = zorn.LanguageModel(9, 6, tie_embedding=tie, device="meta")
    else:
        with torch.device("meta"):
            model = zorn.LanguageModel(9, 6, tie_embedding=tie)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_on_the_meta_device_a_model_has_shapes_and_no_values():
    model = zorn.LanguageModel(100, 350 * 850, embedding_size=100, num_heads=350, device="meta")
    assert all(parameter.is_meta for parameter in model.parameters())
    assert zorn.models.parameter_count(model) == 1_160_250_000 + 4 * 297_500 + 100 * 100 + 100


def test_torchs_default_dtype_still_holds_without_one():
    torch.set_default_dtype(torch.float64)
    try:
        assert zorn.LanguageModel(5, 4).head.weight.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "options", [{"dtype": torch.int8}, {"dtype": "bfloat16"}, {"device": "gpu9"}, {"device": []}]
)
def test_what_is_no_dtype_or_device_is_refused(options):
    with pytest.raises(ConfigError, match=r"dtype is|device is"):
        zorn.LanguageModel(5, 4, **options)
