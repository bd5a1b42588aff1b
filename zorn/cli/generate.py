"""`zorn generate`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from zorn.cli.parsing import UsageError, parse
from zorn.models import sample
from zorn.training.load import load_run


@dataclass(frozen=True, slots=True, kw_only=True)
class Generate:
    """Let the newest checkpoint of a run go on with a prompt, and print both."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    prompt: str = "The "
    """Text to go on with, at least one character."""
    length: int = 400
    """Tokens to write, at least 1."""
    temperature: float = 0.8
    """0 takes the likeliest token, 1 is the model's own distribution, more is flatter; at least 0."""
    seed: int = 0
    """Seed of the draws, 0 to 2**64 - 1."""


def command(words: Sequence[str]) -> int:
    """Generate from command-line words; returns the exit code."""
    asked = parse(Generate, words, prog="zorn generate")
    if not asked.prompt:
        raise UsageError(
            'prompt must be at least one character, got an empty text: for example --prompt "The "'
        )
    if not 0 <= asked.seed < 2**64:
        raise UsageError(f"seed must be from 0 to 2**64 - 1, got {asked.seed}: leave it out")
    task, model = load_run(asked.run)
    device = next(model.parameters()).device
    prompt = task.encode(asked.prompt).unsqueeze(0).to(device)
    tokens = sample(model, prompt, asked.length, temperature=asked.temperature, seed=asked.seed)
    sys.stdout.write(asked.prompt + task.decode(tokens[0]) + "\n")
    return 0
