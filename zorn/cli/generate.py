"""`zorn generate`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from zorn.checks import check_seed
from zorn.cli.parsing import UsageError, parse
from zorn.models import sample
from zorn.tasks import TransductionTask
from zorn.training.load import TextCodec, load_writer

SEPARATOR = "|"
"""Text between a source and its answer in every task but text."""

END = "."
"""Text at the end of an answer in every task but text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generate:
    """Continue a prompt with the newest checkpoint of a run, and print both."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    prompt: str = ""
    """Text to continue: for text any text, for the other tasks a question and the separator, such as
    'hello|' (copy, reverse, sort), '3cab|' (repeat-copy), '907+153|' (add). Empty: 'The ', or an example."""
    length: int = 400
    """Tokens to write, at least 1; but for text the answer's end comes first."""
    temperature: float = 0.8
    """0 takes the likeliest token, 1 is the model's own distribution, more is flatter; at least 0."""
    seed: int = 0
    """Seed of the draws, 0 to 2**64 - 1."""


def command(words: Sequence[str]) -> int:
    """Generate from command-line words; returns the exit code."""
    asked = parse(Generate, words, prog="zorn generate")
    check_seed(asked.seed)
    writer, model = load_writer(asked.run)
    device = next(model.parameters()).device
    prompt = asked.prompt or writer.prompt
    tokens = writer.encode(prompt).unsqueeze(0).to(device)
    if isinstance(writer, TextCodec) and (unknown := writer.unknown(prompt)):
        _note(f"the text of the run has no {unknown!r}: the model reads an escape in place of each")
    if isinstance(writer, TransductionTask) and SEPARATOR not in prompt:
        raise UsageError(
            f"prompt must end its source with the separator {SEPARATOR!r}, got {prompt!r}: for example "
            f"--prompt '{prompt}{SEPARATOR}'"
        )
    written = sample(model, tokens, asked.length, temperature=asked.temperature, seed=asked.seed)
    text = prompt + writer.decode(written[0])
    if isinstance(writer, TransductionTask) and (end := text.find(END, len(prompt))) >= 0:
        text = text[: end + 1]
    sys.stdout.write(text + "\n")
    encoding = sys.stdout.encoding or "utf-8"
    if text.encode(encoding, errors="ignore").decode(encoding) != text:
        _note(f"some characters are not in {encoding} and came out as ?: set PYTHONIOENCODING=utf-8")
    return 0


def _note(line: str) -> None:
    print(f"zorn: {line}", file=sys.stderr)
