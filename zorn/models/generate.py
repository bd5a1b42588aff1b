"""Sampling of tokens from a recurrent model: one token at a time, with the state carried along."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from zorn.checks import check_number, check_whole_number
from zorn.errors import ConfigError
from zorn.models.rollout import RecurrentModel, evaluation_mode

PROMPT_CHUNK = 256


@torch.no_grad()
def sample(
    model: nn.Module,
    prompt: Int[Tensor, "rows time"],
    length: int,
    *,
    temperature: float = 1.0,
    seed: int = 0,
) -> Int[Tensor, "rows {length}"]:
    """Continue each prompt by `length` tokens drawn from softmax(logits / temperature).

    Args:
        model: a `RecurrentModel` over tokens; run in evaluation mode, its training flags restored.
        prompt: at least one token a row.
        length: tokens to draw, at least 1.
        temperature: 0 takes the likeliest token, 1 is the model's own distribution, more is flatter.
        seed: of the draws, made on the CPU: the same logits give the same tokens on every device.

    Raises:
        ConfigError: a model without state, an empty prompt, a length below 1, or a temperature that is
            negative or not finite.

    >>> from zorn.models import LanguageModel
    >>> prompt = torch.zeros(2, 3, dtype=torch.int64)
    >>> sample(LanguageModel(vocabulary=50, hidden_size=16), prompt, length=5).shape
    torch.Size([2, 5])
    """
    if not isinstance(model, RecurrentModel):
        raise ConfigError(
            f"{type(model).__name__} has no initial_state, but sampling needs a recurrent model."
        )
    if 0 in prompt.shape:
        raise ConfigError(
            f"the prompt {tuple(prompt.shape)} [rows, time] is empty: start from at least one token."
        )
    check_whole_number("length", length, minimum=1)
    check_number("temperature", temperature, hint="1 is the model's own distribution")
    generator = torch.Generator().manual_seed(seed)
    before, token = prompt[:, :-1], prompt[:, -1:]
    tokens = []
    with evaluation_mode(model):
        state = model.initial_state(prompt.shape[0])
        for chunk in before.split(PROMPT_CHUNK, dim=1) if before.shape[1] else ():
            _, state = model(chunk, state)
        for _ in range(length):
            logits, state = model(token, state)
            token = _draw(logits[:, -1], temperature, generator).to(prompt)
            tokens.append(token)
    return torch.cat(tokens, dim=1)


def _draw(
    logits: Float[Tensor, "rows vocabulary"], temperature: float, generator: torch.Generator
) -> Int[Tensor, "rows 1"]:
    """One token a row."""
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    probabilities = (logits.float().cpu() / temperature).softmax(dim=-1)
    if not probabilities.isfinite().all():
        raise ConfigError(
            "the model's outputs are not finite, so nothing can be sampled from them: it has diverged; "
            "train again with a lower learning rate"
        )
    return torch.multinomial(probabilities, 1, generator=generator)
