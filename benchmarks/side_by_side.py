"""Two checkouts of zorn side by side: steps of CD-RGE and of activity noise, an LSTM of 128 and 512 units.

    python benchmarks/side_by_side.py OLD NEW [--rounds 9]

Each checkout has a process of its own; they take turns, one thread, and tell the processor time of a step.
Printed is the ratio old / new, the median of the rounds and their quartiles: above 1 the new one is faster.
The compiled steps of both must be built.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

WORKER = """
import sys, time, torch, zorn
torch.set_num_threads(1)
steps = {}
for hidden in (128, 512):
    torch.manual_seed(0)
    model = zorn.LanguageModel(256, hidden, seed=0)
    tokens = torch.randint(0, 256, (64, 33), generator=torch.Generator().manual_seed(0))
    batch = zorn.Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    for name, estimator in {
        "cd-rge": zorn.CDRGE(population=256, epsilon=0.02, group_size=1),
        "activity": zorn.ActivityCredit(epsilon=0.1, draws=4),
    }.items():
        steps[f"{name}, {hidden} units"] = (estimator, model, batch, zorn.TokenCrossEntropy())
print(" | ".join(steps), flush=True)
for line in sys.stdin:
    estimator, *work = steps[line.strip()]
    started = time.process_time()
    estimator.estimate(*work)
    print(time.process_time() - started, flush=True)
"""


def main() -> None:
    """Start both, let them take turns, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("trees", type=Path, nargs=2, metavar="CHECKOUT")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER],
            env=os.environ | {"PYTHONPATH": str(tree.resolve()), "OMP_NUM_THREADS": "1"},
            cwd=tree,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for tree in options.trees
    ]

    def told(process: subprocess.Popen[str], words: str | None = None) -> str:
        assert process.stdin is not None
        assert process.stdout is not None
        if words is not None:
            process.stdin.write(words + "\n")
            process.stdin.flush()
        return process.stdout.readline().strip()

    names, _ = (told(process).split(" | ") for process in pair)
    for name in names:
        ratios = []
        for number in range(options.rounds + 1):
            order = pair if number % 2 else pair[::-1]
            seconds = {id(process): float(told(process, name)) for process in order}
            if number:  # the first warms up
                ratios.append(seconds[id(pair[0])] / seconds[id(pair[1])])
        lower, median, upper = statistics.quantiles(ratios, n=4)
        print(f"{name}: old / new {median:.3f} ({lower:.3f} to {upper:.3f})", flush=True)
    for process in pair:
        process.terminate()


if __name__ == "__main__":
    main()
