"""Any Python function of a row as the objective: a network learns to transcribe from edit distances alone.

It reads frames in which each letter lasts for a while ("aabbbbccab") and writes a letter or a blank at each.
The score is the edit distance of what it has written to the letters that were said ("abcab"), as speech
recognisers are judged. Nobody tells it when to write a letter, and nothing here has a derivative. Prints the
edits per letter on held-out rows, 1 for silence: with 400 steps 0.26 to 0.60, as seeds 0 to 2 have it.
Run it: python examples/black_box.py [--quick]
"""

import argparse

import torch
from torch import Tensor

import zorn
from zorn.tasks import edit_distance

LETTERS, FRAMES, SPOKEN = 4, 10, 4
BLANK = LETTERS


def transcription_error(written: list[int], spoken: list[int]) -> float:
    """Edits per letter. Any function of a row's prediction and target will do; lower is better."""
    return edit_distance([token for token in written if token != BLANK], spoken)


def make_batch(rows: int, seed: int) -> zorn.Batch:
    """Frames [rows, FRAMES], and the letters that were spoken, [rows, SPOKEN], no two alike in a row."""
    generator = torch.Generator().manual_seed(seed)
    letters = torch.randint(1, LETTERS, (rows, SPOKEN), generator=generator).cumsum(1) % LETTERS
    changes = torch.rand(rows, FRAMES - 1, generator=generator).argsort(1) < SPOKEN - 1
    place = torch.nn.functional.pad(changes, (1, 0)).cumsum(1)
    return zorn.Batch(letters.gather(1, place), letters)


@torch.no_grad()
def evaluate(model: zorn.LanguageModel, objective: zorn.RowScore, batch: zorn.Batch) -> float:
    """Mean score of the model as it is."""
    outputs: Tensor = model(batch.inputs, model.initial_state(len(batch.inputs)))[0]
    return float(objective(outputs, batch.targets).mean())


def main(steps: int, seed: int = 0, processes: int = 0) -> tuple[float, float]:
    """Train for `steps`; edits per letter on held-out rows, before and after."""
    model = zorn.LanguageModel(LETTERS + 1, hidden_size=32, seed=seed)
    estimator = zorn.CDRGE(
        population=512, epsilon=0.05, group_size=1, seed=seed
    )  # 512 directions for 256 rows
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    held_out = make_batch(512, seed=10**6 + seed)
    with zorn.RowScore(transcription_error, processes=processes) as objective:
        before = evaluate(model, objective, held_out)
        for step in range(steps):
            estimate = estimator.estimate(model, make_batch(256, seed=seed * 10**4 + step), objective)
            optimizer.step()
            if step % 50 == 0:
                print(f"step {step:4d}  edits per letter {estimate.loss:.3f}")
        after = evaluate(model, objective, held_out)
    print(f"edits per letter on held-out rows: {before:.3f} before, {after:.3f} after {steps} steps")
    return before, after


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="80 steps instead of 400")
    parser.add_argument(
        "--processes", type=int, default=0, help="that score rows: for functions that are slow"
    )
    arguments = parser.parse_args()
    main(80 if arguments.quick else 400, processes=arguments.processes)
