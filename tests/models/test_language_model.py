import pytest
import torch
from torch.testing import assert_close

from zorn.errors import ConfigError
from zorn.models import LanguageModel, parameter_count

VOCABULARY = 13
OPTIONS = {
    "lstm": {"cell": "lstm"},
    "gru": {"cell": "gru"},
    "min-gru": {"cell": "min-gru"},
    "dnc": {"cell": "dnc"},
    "two layers, heads": {"num_layers": 2, "num_heads": 4},
    "tied": {"tie_embedding": True},
    "tied gru, heads": {"tie_embedding": True, "cell": "gru", "num_heads": 2},
    "norms, residual": {"num_layers": 2, "norm": "layer", "residual": True},
}
every_structure = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def tokens(rows: int = 3, time: int = 21) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (rows, time), generator=torch.Generator().manual_seed(0))


@every_structure
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [1, 4])
def test_streaming_equals_the_whole(options: dict, dtype: torch.dtype, chunk: int) -> None:
    model = LanguageModel(VOCABULARY, 16, **options).to(dtype)
    whole, last = model(tokens())
    assert whole.shape == (3, 21, VOCABULARY)
    assert whole.dtype == dtype
    state, parts = model.initial_state(3), []
    for part in tokens().split(chunk, dim=1):
        logits, state = model(part, state)
        parts.append(logits)
    largest = float(whole.detach().abs().max())
    rounding = 4 * torch.finfo(dtype).eps * largest  # of the terms that a logit sums
    assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=rounding)
    continued = (model(tokens()[:, :1], carried)[0] for carried in (state, last))
    assert_close(*continued, rtol=0, atol=rounding)


def test_rows_do_not_see_each_other_and_the_state_matters() -> None:
    model = LanguageModel(VOCABULARY, 16)
    together, state = model(tokens())
    alone, _ = model(tokens()[1:2])
    assert_close(together[1:2], alone)
    continued, _ = model(tokens(), state)
    assert not torch.allclose(continued, together)


def test_later_tokens_do_not_change_earlier_logits() -> None:
    model, changed = LanguageModel(VOCABULARY, 16), tokens()
    changed[:, 10] = (changed[:, 10] + 1) % VOCABULARY
    before, after = model(tokens())[0], model(changed)[0]
    assert_close(before[:, :10], after[:, :10])
    assert not torch.allclose(before[:, 10:], after[:, 10:])


def test_every_parameter_gets_a_gradient() -> None:
    model = LanguageModel(VOCABULARY, 16, num_layers=2, num_heads=2, embedding_size=5)
    model(tokens())[0].square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@every_structure
def test_seed_alone_determines_the_weights(options: dict) -> None:
    before = torch.get_rng_state()
    first = LanguageModel(VOCABULARY, 16, seed=1, **options).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    same = LanguageModel(VOCABULARY, 16, seed=1, **options).state_dict()
    other = LanguageModel(VOCABULARY, 16, seed=2, **options).state_dict()
    for name, value in first.items():
        assert torch.equal(value, same[name])
        assert "norm" in name or not torch.equal(value, other[name])


def test_tied_embedding_is_the_head() -> None:
    model = LanguageModel(VOCABULARY, 16, tie_embedding=True)
    assert model.embedding.weight is model.head.weight
    untied = LanguageModel(VOCABULARY, 16)
    assert untied.embedding.weight is not untied.head.weight
    assert parameter_count(untied) - parameter_count(model) == VOCABULARY * 16


def test_parameter_count_leaves_out_the_frozen() -> None:
    model = LanguageModel(VOCABULARY, 16)
    whole = parameter_count(model)
    model.embedding.requires_grad_(False)
    assert parameter_count(model) == whole - VOCABULARY * 16


@every_structure
@pytest.mark.parametrize("target", [3_000, 40_000, 300_000])
def test_the_dial_finds_the_closest_size(options: dict, target: int) -> None:
    model = LanguageModel.with_parameters(target, VOCABULARY, **options)
    hidden, heads = model.head.in_features, options.get("num_heads", 1)
    multiple = heads if hidden <= 64 else 8
    assert hidden % multiple == 0
    assert model.embedding.weight.shape == (VOCABULARY, hidden)
    distance = abs(parameter_count(model) - target)
    for neighbour in (hidden - multiple, hidden + multiple):
        assert distance <= abs(parameter_count(LanguageModel(VOCABULARY, neighbour, **options)) - target)


def test_the_dial_hits_an_exact_size_and_passes_its_options_on() -> None:
    options = {"num_layers": 2, "num_heads": 2, "tie_embedding": True, "cell": "gru", "seed": 5}
    wanted = LanguageModel(VOCABULARY, 24, **options)
    model = LanguageModel.with_parameters(parameter_count(wanted), VOCABULARY, **options)
    for name, value in wanted.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


def test_the_dial_refuses_a_target_below_the_smallest_model() -> None:
    smallest = parameter_count(LanguageModel(VOCABULARY, 2, num_heads=2))
    assert parameter_count(LanguageModel.with_parameters(smallest, VOCABULARY, num_heads=2)) == smallest
    with pytest.raises(ConfigError, match=f"smallest such model .hidden_size 2. has {smallest}"):
        LanguageModel.with_parameters(smallest - 1, VOCABULARY, num_heads=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocabulary": 0}, "vocabulary must be a whole number of at least 1, got 0"),
        ({"hidden_size": 0}, "hidden_size must be a whole number of at least 1, got 0"),
        ({"embedding_size": -1}, "embedding_size must be a whole number of at least 1, got -1"),
        ({"num_layers": 0}, "num_layers must be a whole number of at least 1, got 0"),
        ({"num_heads": 3}, "hidden_size 16 is not a multiple of num_heads 3"),
        ({"cell": "rnn"}, "cell must be one of lstm, gru, min-gru, dnc, or path/to/file.py:Name, got 'rnn'"),
        ({"tie_embedding": True, "embedding_size": 8}, "embedding_size 8 differs from hidden_size 16"),
        ({"seed": -1}, "seed must be a whole number of at least 0"),
    ],
)
def test_options_are_checked(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LanguageModel(**{"vocabulary": VOCABULARY, "hidden_size": 16, **options})


def test_the_dial_checks_its_options() -> None:
    with pytest.raises(ConfigError, match="cell must be one of"):
        LanguageModel.with_parameters(10_000, VOCABULARY, cell="rnn")
    with pytest.raises(ConfigError, match="parameters must be a whole number of at least 1, got 0"):
        LanguageModel.with_parameters(0, VOCABULARY)
