"""The context benchmark: the transformer, the watchdog, what is measured and what is recorded."""

import doctest
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import context
import transformer
from context import CHUNK, SEQUENCES, VOCABULARY, WAYS
from results import Results
from transformer import HEAD_SIZE, Transformer

import zorn
from zorn.models import parameter_count


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_the_transformer_with_its_cache_is_torchs_causal_encoder():
    """Token by token behind the cache against `nn.TransformerEncoder` on all tokens, causally masked."""
    torch.manual_seed(0)
    rows, length, width = 3, 7, 2 * HEAD_SIZE
    model = Transformer(50, width).double()
    layer = nn.TransformerEncoderLayer(
        width, 2, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    reference = nn.TransformerEncoder(layer, transformer.LAYERS, enable_nested_tensor=False).double()
    for block, theirs in zip(model.blocks, reference.layers, strict=True):
        theirs.self_attn.in_proj_weight.data = block.inputs.weight.data
        theirs.self_attn.in_proj_bias.data = block.inputs.bias.data
        theirs.self_attn.out_proj = block.output
        theirs.linear1, theirs.linear2 = block.widen, block.narrow
        theirs.norm1, theirs.norm2 = block.attention_norm, block.feedforward_norm
    tokens = torch.randint(0, 50, (rows, length))
    places = torch.stack([transformer.positions(place, width) for place in range(length)])
    mask = nn.Transformer.generate_square_subsequent_mask(length, dtype=torch.float64)
    with torch.no_grad():
        x = reference(model.embedding(tokens) + places, mask=mask, is_causal=True)
        expected = model.head(model.norm(x))
        cache = transformer.Cache(*(part.double() for part in model.filled_cache(rows, length)))
        found = [model(tokens[:, place], cache, place) for place in range(length)]
    torch.testing.assert_close(torch.stack(found, 1), expected)


def test_both_models_have_about_as_many_parameters():
    counts = [parameter_count(context.make_model(way, context.PARAMETERS)) for way in WAYS]
    assert max(counts) / min(counts) < 1.1
    assert min(counts) > 0.9 * context.PARAMETERS


def test_inference_reads_one_token_at_a_time_and_ends_as_the_whole_does():
    model, tokens = zorn.LanguageModel(VOCABULARY, 8), context.tokens_of(9)
    torch.testing.assert_close(context.read(model, tokens), model(tokens)[0][:, -1])


def test_the_transformer_goes_on_from_the_end_of_a_full_cache():
    model = Transformer.with_parameters(10_000, VOCABULARY)
    places = []
    forward = model.forward

    def noting(tokens, cache, place):
        places.append(place)
        return forward(tokens, cache, place)

    model.forward = noting
    run, steps = context.work("transformer", model, context.tokens_of(30))
    run()
    assert places == list(range(10, 30))
    assert steps == context.NEW_TOKENS == 20


@pytest.mark.parametrize("way", [way for way in WAYS if way != "transformer"])
def test_every_way_runs_over_all_sequences_and_steps(way):
    model = zorn.LanguageModel(VOCABULARY, 4)
    length = CHUNK + 2
    seen = []
    run, steps = context.work(way, model, context.tokens_of(length))
    model.embedding.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    before = model.head.weight.detach().clone()
    run()
    assert steps == length
    tokens = sum(rows * time for rows, time in seen)
    # rank-one: both signs; activity: the sizes, beside the noise and under it, and the replay
    passes = {"inference": 1, "rank-one": 2, "activity": 4, "tbptt": 1, "bptt": 1}[way]
    assert tokens == passes * SEQUENCES * length
    assert max(time for _, time in seen) == {"inference": 1, "bptt": length}.get(way, CHUNK)
    assert torch.equal(model.head.weight, before) == (way == "inference")


def test_a_process_that_holds_too_much_is_stopped():
    assert context.measured("inference", 20, 20_000, limit_bytes=0) is None


def test_a_measurement_is_above_what_was_held_and_below_the_limit():
    found = context.measured("inference", 20, 1_000_000, limit_bytes=2**30)
    assert found is not None
    weights = 4 * found["parameters"]
    assert weights < found["bytes"] < 2 * weights + 2**23
    assert 0 < found["seconds_per_token"] < 1


def test_a_process_that_fails_is_told(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="bptt at 20 tokens failed"):
        context.measured("bptt", 20, 20_000, 2**30)


def test_records_page_and_picture(tmp_path):
    results = Results(tmp_path / "context.json")
    context.show(results, tmp_path / "p.png")
    assert not (tmp_path / "p.png").exists()
    found = {"bytes": 3 * 2**20, "seconds_per_token": 0.002, "parameters": 1234, "repeats": 5}
    for length, one in ((100, found), (1000, None), (100, found)):
        results.add(context.records_of("bptt", length, 4.0, one), [])
    results.add(context.records_of("inference", 1000, 4.0, found), [])
    assert len(results.rows()) == 6  # what is repeated is replaced
    assert context.curve(results.rows(), "bptt", "peak_memory_bytes")[100] == 3 * 2**20
    assert math.isnan(context.curve(results.rows(), "bptt", "peak_memory_bytes")[1000])
    context.show(results, tmp_path / "p.png")
    page = (tmp_path / "context.md").read_text()
    assert "| BPTT step | LSTM | 1,234 | 3.0 | over 4 GiB | 2 | – |" in page
    assert "| LSTM inference | LSTM | 1,234 | – | 3.0 | – | 2 |" in page
    assert (tmp_path / "p.png").stat().st_size > 10_000


def test_documented_examples():
    for module in (context, transformer):
        assert doctest.testmod(module).failed == 0
