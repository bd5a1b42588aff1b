"""Nanoseconds a random sign: zorn.random.signs in float32 and bfloat16 beside torch.randint in int8."""

from collections.abc import Callable

import torch
from harness import (
    Record,
    interleaved_seconds,
    median_ratio_with_spread,
    nanoseconds_per_item,
    parse_arguments,
    report,
    thread_counts,
    torch_threads,
)
from matplotlib.axes import Axes

from zorn.random import signs

SIZES = [
    (128, 500),
    (64, 16_384),
    (1, 2**22),
]  # members × signs of each: a small step, a wide one, one large matrix
RANDINT = "torch.randint int8"


def generators(members: int, count: int) -> dict[str, Callable[[], object]]:
    return {
        "zorn float32": lambda: signs(1, 2, range(members), 3, count),
        "zorn bfloat16": lambda: signs(1, 2, range(members), 3, count, dtype=torch.bfloat16),
        RANDINT: lambda: torch.randint(0, 2, (members, count), dtype=torch.int8),
    }


def measure(members: int, count: int, threads: int, repeats: int) -> list[Record]:
    settings = {"members": members, "signs_each": count, "threads": threads, "repeats": repeats}
    with torch_threads(threads):
        seconds = interleaved_seconds(generators(members, count), repeats, warm_up=3)
    records = [
        Record(
            "nanoseconds_per_sign",
            nanoseconds_per_item(rounds, members * count),
            "ns",
            {"generator": name, **settings},
        )
        for name, rounds in seconds.items()
    ]
    for name in (name for name in seconds if name != RANDINT):
        ratio = median_ratio_with_spread(seconds[RANDINT], seconds[name])
        spread = {
            "generator": name,
            **settings,
            "lower": round(ratio.lower, 2),
            "upper": round(ratio.upper, 2),
        }
        records.append(Record("speedup_over_randint", ratio.median, "ratio", spread))
    return records


def draw(axes: Axes, records: list[Record]) -> None:
    bars = [record for record in records if record.name == "nanoseconds_per_sign"]
    places = range(len(bars))
    colours = {"zorn float32": "tab:blue", "zorn bfloat16": "tab:cyan", RANDINT: "tab:gray"}
    axes.barh(
        places, [bar.value for bar in bars], color=[colours[str(bar.settings["generator"])] for bar in bars]
    )
    labels = [
        "{generator}, {members} × {signs_each}, {threads} thread(s)".format(**bar.settings) for bar in bars
    ]
    axes.set_yticks(places, labels, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("nanoseconds a sign")


def main() -> None:
    arguments = parse_arguments("random_bits", __doc__)
    repeats = 31 if arguments.quick else 201
    records = [
        record
        for threads in thread_counts()
        for members, count in SIZES
        for record in measure(members, count, threads, repeats)
    ]
    report("Random signs", records, arguments, lambda axes: draw(axes, records))


if __name__ == "__main__":
    main()
