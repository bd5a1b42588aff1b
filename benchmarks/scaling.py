"""Steps per second on one and two processes of one thread, and what the cost model says of many.

Two processes take turns, round by round: the first works alone, both work for themselves at once, both share
the members of one step (`zorn.distributed`, mode `scalars`). An LSTM of three sizes, rank-one CD-RGE.

- `steps_per_second`: the median, of 1 process alone and of 2 that share.
- `efficiency`: speed of 2 over twice that of 1; `limit`: of two that do not exchange anything, over the same:
  what the machine's cores lose to each other (shared caches, clock, other programs).
- `efficiency_cpu`: processor seconds alone, over twice those of the busier of two that share: what other
  programs do to the clock is not in it, nor is the wait for each other.
- `row_seconds`, `fold_seconds`, `fixed_seconds`, `latency_seconds`, `bandwidth`: the costs that
  `benchmarks/cluster.py` takes, measured while both processes work.
- `predicted_over_measured`: steps per second of 2 processes by the cost model; `within`: the share of sizes
  where it is at most 20 % off.
- `planned_steps_per_second`: of 8 to 1,000 workers, by the cost model, over three kinds of link.

    python benchmarks/scaling.py [--quick] [--json PATH] [--picture PATH]
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from cluster import StepWork, WorkerCosts, fold_bound_workers, predict
from harness import Record, argument_parser, median_ratio_with_spread, report
from matplotlib.axes import Axes
from slow_link import run_pair
from tables import Lines

import zorn
import zorn.distributed

FOLDER = Path(__file__).parents[1] / "docs" / "results"
SIZES = {100_000: 15, 1_000_000: 9, 10_000_000: 5}
QUICK_SIZES = {30_000: 3, 300_000: 3}
MEMBERS, SEQUENCES, TIME, MICRO_BATCH = 64, 1, 32, 16
VOCABULARY, EPSILON = 32, 0.01
FOLDS = 16
"""Times as many members in a fold that is timed beside that of a step: what one more costs is the line
through both."""

ALLOWED = 0.2
SMALL, LARGE = 2, 2**20  # float32 of the messages that measure the link

WORKERS = (8, 16, 32, 64, 125, 250, 500, 1000)
PLANNED_MEMBERS = 8192
NETWORKS = {
    "100 Mbit/s, 10 ms": (0.010, 12.5e6),
    "10 Gbit/s, 50 µs": (50e-6, 1.25e9),
    "400 Gbit/s, 5 µs": (5e-6, 50e9),
}
"""Seconds and bytes per second of a message from one worker to the next."""

Found = dict[str, Any]


def build(parameters: int) -> zorn.LanguageModel:
    """An LSTM of about as many weights: 8 H² of its two maps, and a small embedding and head."""
    torch.manual_seed(0)
    hidden = round(math.sqrt(parameters / 8))
    return zorn.LanguageModel(VOCABULARY, hidden, embedding_size=hidden)


def estimator(members: int = MEMBERS) -> zorn.CDRGE:
    """The estimator of all runs."""
    return zorn.CDRGE(population=members, epsilon=EPSILON, group_size=None, micro_batch=MICRO_BATCH)


def rank(parameters: int, rounds: int) -> None:
    """Be one of the two processes, and print the seconds of every step and part."""
    torch.set_num_threads(1)
    group = zorn.distributed.start(timeout=300)
    model, objective = build(parameters), zorn.TokenCrossEntropy()
    tokens = torch.arange(SEQUENCES * (TIME + 1)).view(SEQUENCES, TIME + 1) % VOCABULARY
    batch = zorn.Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    plain = estimator()
    shared = zorn.distributed.share(estimator(), group)
    many = estimator(FOLDS * MEMBERS)
    parts: dict[str, list[float]] = {"row": [], "few": [], "many": []}

    def apart() -> None:
        start = time.perf_counter()
        population = plain.ask(model)
        losses, passes = plain.evaluate(model, population, batch, objective)
        middle = time.perf_counter()
        plain.tell(model, population, losses)
        parts["row"].append((middle - start) / passes)
        parts["few"].append(time.perf_counter() - middle)

    def fold_many() -> None:
        start = time.perf_counter()
        many.tell(model, many.ask(model), torch.randn(2, FOLDS * MEMBERS, dtype=torch.float64))
        parts["many"].append(time.perf_counter() - start)

    def alone() -> None:
        if dist.get_rank() == 0:
            plain.estimate(model, batch, objective)

    def together() -> None:
        shared.estimate(model, batch, objective)

    ways: dict[str, Callable[[], None]] = {
        "alone": alone,
        "apart": apart,
        "together": together,
        "fold": fold_many,
    }
    found: Found = {"parameters": sum(parameter.numel() for parameter in model.parameters())} | {
        way: {"wall": [], "processor": []} for way in ways
    }
    for number in range(-1, rounds):
        for way, step in ways.items():
            dist.barrier()
            start, processor = time.perf_counter(), time.process_time()
            step()
            if number >= 0:
                found[way]["wall"].append(time.perf_counter() - start)
                found[way]["processor"].append(time.process_time() - processor)
    found |= {name: seconds[1:] for name, seconds in parts.items()}
    found["small"], found["large"] = (message_seconds(size) for size in (SMALL, LARGE))
    print(json.dumps(found))
    group.close()


def message_seconds(size: int, repeats: int = 21) -> float:
    """Median seconds of one message of `size` float32 from each process to the other: half of an
    all-reduce."""
    values, seconds = torch.zeros(2 * size), []
    for _ in range(repeats):
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(values)
        seconds.append((time.perf_counter() - start) / 2)
    return statistics.median(seconds)


def costs_of(first: Found) -> WorkerCosts:
    """The costs of the parts, from what a process found while both worked."""
    per_byte = (first["large"] - first["small"]) / (4 * (LARGE - SMALL))
    few, many = statistics.median(first["few"]), statistics.median(first["many"])
    member = max((many - few) / ((FOLDS - 1) * MEMBERS), 1e-9)
    return WorkerCosts(
        row=statistics.median(first["row"]),
        fold=member / first["parameters"],
        fixed=max(few - MEMBERS * member, 0.0),
        latency=first["small"],
        bandwidth=1 / max(per_byte, 1e-12),
    )


def records_of(parameters: int, found: Sequence[Found]) -> list[Record]:
    """The figures of one size."""
    first = found[0]
    rounds = len(first["alone"]["wall"])
    place = {
        "parameters": parameters,
        "weights": first["parameters"],
        "members": MEMBERS,
        "sequences": SEQUENCES,
        "time": TIME,
        "micro_batch": MICRO_BATCH,
        "dtype": "float32",
        "threads": 1,
        "rounds": rounds,
    }

    def slowest(way: str, clock: str) -> list[float]:
        return [max(pair) for pair in zip(*(one[way][clock] for one in found), strict=True)]

    alone = first["alone"]["wall"]
    together, apart = slowest("together", "wall"), slowest("apart", "wall")
    records = [
        Record("steps_per_second", 1 / statistics.median(alone), "1/s", {**place, "processes": 1}),
        Record("steps_per_second", 1 / statistics.median(together), "1/s", {**place, "processes": 2}),
    ]
    for name, numerator, denominator, steps in (
        ("efficiency", alone, together, 0.5),
        ("limit", alone, apart, 1.0),
        ("efficiency_cpu", first["alone"]["processor"], slowest("together", "processor"), 0.5),
    ):
        ratio = median_ratio_with_spread(numerator, denominator)
        spread = {"lower": round(steps * ratio.lower, 3), "upper": round(steps * ratio.upper, 3)}
        records.append(Record(name, steps * ratio.median, "ratio", {**place, **spread}))
    costs = costs_of(first)
    records += [
        Record("row_seconds", costs.row, "s", place),
        Record("fold_seconds", costs.fold, "s", place),
        Record("fixed_seconds", costs.fixed, "s", place),
        Record("latency_seconds", costs.latency, "s", place),
        Record("bandwidth", costs.bandwidth, "bytes/s", place),
    ]
    work = StepWork(
        population=MEMBERS,
        rows=2 * MEMBERS * SEQUENCES,
        micro_batch=MICRO_BATCH,
        parameters=first["parameters"],
    )
    guess = predict(work, costs, 2).steps_per_second
    records.append(Record("predicted_over_measured", guess * statistics.median(together), "ratio", place))
    return records + planned(place, first["parameters"], costs)


def planned(place: dict[str, object], parameters: int, costs: WorkerCosts) -> list[Record]:
    """Steps per second of many workers, each as fast as a process here, over other links."""
    work = StepWork(
        population=PLANNED_MEMBERS,
        rows=2 * PLANNED_MEMBERS * SEQUENCES,
        micro_batch=MICRO_BATCH,
        parameters=parameters,
    )
    records = []
    for network, (latency, bandwidth) in NETWORKS.items():
        there = replace(costs, latency=latency, bandwidth=bandwidth)
        for workers in WORKERS:
            step = predict(work, there, workers)
            settings = {
                **place,
                "members": PLANNED_MEMBERS,
                "network": network,
                "workers": workers,
                "bottleneck": step.bottleneck,
                "fold_bound_workers": round(fold_bound_workers(work, there), 1),
            }
            records.append(Record("planned_steps_per_second", step.steps_per_second, "1/s", settings))
    return records


HEAD = f"""# One, two and many processes

Made by `python benchmarks/scaling.py` from `scaling.json`: change the runs, not this page. An LSTM in
float32, rank-one CD-RGE with {MEMBERS} members, {SEQUENCES} sequence of {TIME} tokens, processes of one
thread on one machine, taking turns: alone, both for themselves, both on one step. Efficiency: speed of two
over twice that of one, median and quartiles. Limit: what is left of two processes' speed that exchange
nothing. By processor time: the same efficiency in processor seconds, which other programs do not change.
The aim is 0.85 where forward passes take most of a step; two processes share the memory's bandwidth, which
bounds the largest model."""

PLAN = f"""## Planned: 8 to 1,000 workers

By the [cost model](../concepts/scaling.md), from the costs above, each worker as fast as a process here:
{PLANNED_MEMBERS:,} members, micro-batches of {MICRO_BATCH} rows. Steps per second,
and the part that takes longest."""


def show(records: Sequence[Record], arguments: argparse.Namespace) -> None:
    """Print the table, draw the picture, write the JSON and the page beside it."""
    lines, title = lines_of(records), "Steps per second on 1 and 2 processes"
    report(
        title,
        records,
        arguments,
        lambda pairs, plan: draw(pairs, plan, records),
        panels=(1, 2),
        table=lines.rich(),
    )
    picture = os.path.relpath(arguments.picture, arguments.json.parent)
    parts = [HEAD, lines.markdown(), PLAN, plan_of(records).markdown(), f"![{title}]({picture})"]
    arguments.json.with_suffix(".md").write_text("\n\n".join(parts) + "\n")


def lines_of(records: Sequence[Record]) -> Lines:
    """A line a size, from the records of what was measured."""
    titles = ["parameters", "row", "fold, a member and parameter", "steps/s of 1", "steps/s of 2"]
    titles += ["efficiency", "by processor time", "limit", "predicted / measured"]
    lines = []
    for size in sorted(
        {int(str(one.settings["parameters"])) for one in records if "parameters" in one.settings}
    ):
        mine = {
            (one.name, one.settings.get("processes")): one
            for one in records
            if one.settings.get("parameters") == size and "workers" not in one.settings
        }
        ratios = []
        for name in ("efficiency", "efficiency_cpu", "limit"):
            one = mine[name, None]
            ratios.append(f"{one.value:.2f} [{one.settings['lower']:.2f}, {one.settings['upper']:.2f}]")
        lines.append(
            [
                f"{size:,}",
                f"{mine['row_seconds', None].value * 1e3:.3g} ms",
                f"{mine['fold_seconds', None].value * 1e9:.3g} ns",
                f"{mine['steps_per_second', 1].value:.3g}",
                f"{mine['steps_per_second', 2].value:.3g}",
                *ratios,
                f"{mine['predicted_over_measured', None].value:.2f}",
            ]
        )
    return Lines(titles, lines)


def plan_of(records: Sequence[Record]) -> Lines:
    """A line for each size and network, a column for each number of workers."""
    lines: dict[tuple[str, str, str], list[str]] = {}
    for record in records:
        place = record.settings
        if record.name == "planned_steps_per_second":
            key = (f"{place['parameters']:,}", str(place["network"]), f"{place['fold_bound_workers']:,}")
            word = f"{record.value:.3g} ({place['bottleneck']})"
            lines.setdefault(key, []).append(word)
    titles = ["parameters", "link", "fold = evaluation at workers", *map(str, WORKERS)]
    return Lines(titles, [[*key, *words] for key, words in lines.items()])


def draw(pairs: Axes, plan: Axes, records: Sequence[Record]) -> None:
    """Efficiency and limit of each size; planned steps per second of the largest."""
    for name, colour in (("efficiency", "tab:blue"), ("efficiency_cpu", "tab:green"), ("limit", "0.6")):
        points = [(one.settings["parameters"], one.value) for one in records if one.name == name]
        pairs.semilogx(*zip(*points, strict=True), "o-", color=colour, label=name.replace("_", " "))
    pairs.axhline(0.85, color="black", linewidth=0.8, linestyle=":")
    pairs.set_ylim(0, 1.1)
    pairs.set_xlabel("parameters")
    pairs.set_ylabel("of twice the speed of one process")
    pairs.legend(fontsize=7)
    largest = max(int(str(one.settings["parameters"])) for one in records if "parameters" in one.settings)
    for network, colour in zip(NETWORKS, ("C3", "C1", "C0"), strict=True):
        points = [
            (one.settings["workers"], one.value)
            for one in records
            if one.name == "planned_steps_per_second"
            and (one.settings["parameters"], one.settings["network"]) == (largest, network)
        ]
        plan.loglog(*zip(*points, strict=True), colour, label=network)
    plan.set_xlabel("workers")
    plan.set_ylabel(f"planned steps per second, {largest:,} parameters")
    plan.legend(fontsize=7)


def main() -> None:
    if sys.argv[1:2] == ["--rank"]:
        rank(*json.loads(sys.argv[2]))
        return
    parser = argument_parser("scaling", __doc__)
    arguments = parser.parse_args()
    folder = Path(__file__).parent / "out" if arguments.quick else FOLDER
    arguments.json = arguments.json or folder / "scaling.json"
    if arguments.picture == Path(parser.get_default("picture")):
        arguments.picture = arguments.json.with_suffix(".png")
    records: list[Record] = []
    for parameters, rounds in (QUICK_SIZES if arguments.quick else SIZES).items():
        command = [sys.executable, __file__, "--rank", json.dumps([parameters, rounds])]
        records += records_of(parameters, run_pair(command, None))
        print(f"scaling: {parameters:,} parameters done", file=sys.stderr, flush=True)
    ratios = [record.value for record in records if record.name == "predicted_over_measured"]
    close = sum(abs(ratio - 1) <= ALLOWED for ratio in ratios)
    records.append(Record("within", close / len(ratios), "ratio", {"sizes": len(ratios), "allowed": ALLOWED}))
    show(records, arguments)


if __name__ == "__main__":
    main()
