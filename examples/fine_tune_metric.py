"""Fine-tuning on the metric that counts: a network trained by cross-entropy, then on its error rate itself.

It transcribes noisy frames, a letter at the first frame of each, else a blank. Cross-entropy makes it right
about each frame, so it stays silent where it is unsure; what counts is the edit distance of the transcript.
CD-RGE lowers that from the checkpoint on, though the cross-entropy rises. Prints both on held-out rows. (The
model of a `zorn train` run comes back with `zorn.training.load_run`.)
"""

import argparse
import tempfile

import torch
from torch import Tensor

import zorn
from zorn.models import row_losses
from zorn.tasks import edit_distance

LETTERS, FRAMES, SPOKEN, NOISE = 4, 12, 4, 0.4
BLANK = LETTERS


def transcription_error(written: list[int], spoken: list[int]) -> float:
    """Edits per letter of what is written without its blanks."""
    return edit_distance([token for token in written if token != BLANK], spoken)


def make_rows(rows: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Frames and the token to write at each, [rows, FRAMES]; the letters spoken, [rows, SPOKEN]."""
    generator = torch.Generator().manual_seed(seed)
    letters = torch.randint(1, LETTERS, (rows, SPOKEN), generator=generator).cumsum(1) % LETTERS
    changes = torch.rand(rows, FRAMES - 1, generator=generator).argsort(1) < SPOKEN - 1
    place = torch.nn.functional.pad(changes, (1, 0)).cumsum(1)
    clean = letters.gather(1, place)
    begins = torch.nn.functional.pad(changes, (1, 0), value=True)
    noise = torch.randint(LETTERS, (rows, FRAMES), generator=generator)
    heard = torch.where(torch.rand(rows, FRAMES, generator=generator) < NOISE, noise, clean)
    return heard, torch.where(begins, clean, BLANK), letters


def main(steps: int, seed: int = 0, pretraining: int = 600) -> tuple[float, float]:
    """Fine-tune for `steps`; edits per letter on held-out rows, before and after."""
    frames, labels, spoken = make_rows(1024, seed=10**6 + seed)
    by_frame, by_metric = zorn.TokenCrossEntropy(), zorn.RowScore(transcription_error)

    @torch.no_grad()
    def report(name: str) -> float:
        nats = float(row_losses(model, zorn.Batch(frames, labels), by_frame).mean())
        edits = float(row_losses(model, zorn.Batch(frames, spoken), by_metric).mean())
        print(f"{name}: {edits:.3f} edits per letter, cross-entropy {nats:.3f}")
        return edits

    model = zorn.LanguageModel(LETTERS + 1, hidden_size=32, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for step in range(pretraining):
        inputs, targets, _ = make_rows(64, seed=seed * 10**4 + step)
        zorn.BPTT().estimate(model, zorn.Batch(inputs, targets), by_frame)
        optimizer.step()
    with tempfile.TemporaryDirectory() as folder:
        torch.save(model.state_dict(), f"{folder}/checkpoint.pt")
        model = zorn.LanguageModel(LETTERS + 1, hidden_size=32)
        model.load_state_dict(torch.load(f"{folder}/checkpoint.pt", weights_only=True))
    before = report(f"checkpoint after {pretraining} steps of BPTT on cross-entropy")

    estimator = zorn.CDRGE(population=256, epsilon=0.02, group_size=1, seed=seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    for step in range(steps):
        inputs, _, targets = make_rows(256, seed=seed * 10**4 + pretraining + step)
        estimator.estimate(model, zorn.Batch(inputs, targets), by_metric)
        optimizer.step()
    after = report(f"fine-tuned for {steps} steps on the edit distance")
    print(f"edits per letter on held-out rows: {before:.3f} before, {after:.3f} after")
    return before, after


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="100 steps instead of 200")
    main(100 if parser.parse_args().quick else 200)
