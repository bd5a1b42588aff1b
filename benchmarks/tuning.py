"""Bits per byte on text with the settings that tuning began with and with those that it found.

    python benchmarks/tuning.py [--preset quickstart] [--learning-rate 0.003] [--seconds 60] [--seed 0]

Tunes for so many seconds, then trains as long with either settings. Seconds are of the processor, so that
other work on the machine changes little. Evaluated on the first rows of the validation split, as tuning does.
"""

import argparse
import dataclasses
import math
import time

from zorn.config import PRESETS, BudgetConfig, Config
from zorn.search import tune
from zorn.search.space import describe
from zorn.training.build import build_task
from zorn.training.learner import Learner


def trained(config: Config, seconds: float) -> float:
    """Held-out bits per token after so many processor seconds."""
    learner = Learner.build(config, build_task(config))
    began = time.process_time()
    while (share := (time.process_time() - began) / seconds) < 1:
        learner.train_step(share=share)
    return learner.held_out_loss() / math.log(2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="quickstart")
    parser.add_argument("--learning-rate", type=float, help="of the start; the preset's or zorn's without it")
    parser.add_argument("--seconds", type=float, default=60.0, help="to tune, and to train")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    start = PRESETS[asked.preset]
    optimizer, run = start.optimizer, dataclasses.replace(start.run, seed=asked.seed)
    if asked.learning_rate is not None:
        optimizer = optimizer.but(learning_rate=asked.learning_rate)
    budget = BudgetConfig(seconds=asked.seconds)
    start = dataclasses.replace(start, optimizer=optimizer, run=run, budget=budget)
    found = tune(start, seconds=asked.seconds, clock=time.process_time, report=print)
    print(f"found: {describe(found.config, found.start)}")
    for name, config in (("start", found.start), ("found", found.config)):
        print(f"{name}: {trained(config, asked.seconds):.3f} bits", flush=True)


if __name__ == "__main__":
    main()
