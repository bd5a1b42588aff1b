import pytest
import torch
from torch import nn

from zorn.errors import ConfigError
from zorn.models import LanguageModel, sample
from zorn.models.generate import PROMPT_CHUNK


class Unigram(nn.Module):
    """A model whose next token has fixed probabilities, and whose state counts the tokens it has read."""

    def __init__(self, probabilities: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(probabilities).log())
        self.read = 0

    def initial_state(self, rows: int) -> tuple[torch.Tensor]:
        return (torch.zeros(rows),)

    def forward(
        self, inputs: torch.Tensor, state: tuple[torch.Tensor]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor]]:
        assert not self.training
        read = state[0] + inputs.shape[1]
        self.read = int(read[0])
        return self.logits.expand(*inputs.shape, -1), (read,)


def prompt(rows: int = 2, time: int = 3) -> torch.Tensor:
    return torch.randint(0, 11, (rows, time), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("time", [1, 3, 2 * PROMPT_CHUNK + 1])
def test_greedy_sampling_equals_reading_everything_again(time: int) -> None:
    model = LanguageModel(11, 16, num_layers=2)
    with torch.no_grad():
        model.head.weight.mul_(20)
    text = prompt(time=time)
    for _ in range(6):
        text = torch.cat([text, model(text)[0][:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(sample(model, prompt(time=time), 6, temperature=0.0), text[:, time:])


def test_tokens_are_drawn_from_the_distribution_at_the_temperature() -> None:
    probabilities = torch.tensor([0.7, 0.2, 0.1])
    for temperature in (1.0, 2.0):
        tokens = sample(Unigram(probabilities.tolist()), prompt(rows=1000), 10, temperature=temperature)
        expected = probabilities ** (1 / temperature)
        expected /= expected.sum()
        found = torch.bincount(tokens.flatten(), minlength=3) / 10_000
        standard_error = (expected * (1 - expected) / 10_000).sqrt()
        assert ((found - expected).abs() < 5 * standard_error).all()


def test_the_seed_decides_and_the_global_generator_does_not() -> None:
    model, before = LanguageModel(11, 16), torch.get_rng_state()
    first, same, other = (sample(model, prompt(), 30, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_every_token_is_read_once_in_evaluation_mode() -> None:
    model = Unigram([0.5, 0.5]).train()
    tokens = sample(model, prompt(time=PROMPT_CHUNK + 5), 4)
    assert model.read == PROMPT_CHUNK + 5 + 4 - 1
    assert model.training
    assert not tokens.is_inference()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": torch.zeros(2, 0, dtype=torch.int64)}, r"prompt \(2, 0\) .rows, time. is empty"),
        ({"length": 0}, "length must be a whole number of at least 1, got 0"),
        ({"temperature": -1.0}, "temperature must be a number of at least 0, got -1.0"),
        ({"temperature": float("nan")}, "temperature must be a number of at least 0, got nan"),
        ({"temperature": float("inf")}, "temperature must be a number of at least 0, got inf"),
        ({"model": nn.Linear(2, 2)}, "Linear has no initial_state"),
    ],
)
def test_arguments_are_checked(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sample(**{"model": LanguageModel(11, 16), "prompt": prompt(), "length": 5, **options})


def test_a_diverged_model_is_an_error():
    model = LanguageModel(5, 4)
    torch.nn.init.constant_(model.head.bias, torch.inf)
    with pytest.raises(ConfigError, match="outputs are not finite"):
        sample(model, torch.zeros(1, 1, dtype=torch.int64), 2)
