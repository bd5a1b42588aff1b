"""What the comparison with the paper's scheme records, and the tables, picture and page made of it."""

import argparse
import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from contest import Run
from harness import FILE_WIDTH, Record, median_ratio_with_spread, report
from matplotlib.axes import Axes
from results import Curve, Results, Row, key_of, name_of
from rich.console import Console
from tables import Column, Lines, table_of

MARKS = (1.0, 0.5)
"""Losses, nats a token, to which the time is taken; a run ends at the last."""

PAPER, WHOLE, SINGLE = "paper", "rank-one, whole batch", "rank-one, a member a sequence"
COSTS = (PAPER, WHOLE, SINGLE)
"""What a step's cost is measured of: the paper's scheme, and zorn's members in two groupings."""

TIED, FREE = "paper, ε = rate", "paper, ε free"
SCHEMES = (TIED, FREE)

PUBLIC_CODE = {
    (100_000, 64): 0.0202,
    (100_000, 1024): 0.307,
    (1_000_000, 64): 0.087,
    (1_000_000, 1024): 1.32,
    (10_000_000, 64): 0.82,
    (10_000_000, 1024): 9.2,
}
"""Seconds per member of the code that was published with the paper, by (parameters, sequences): measured
beforehand on one core of such a machine, at its own hidden sizes of these numbers of parameters."""

Place = tuple[int, int]
"""Where runs are compared: parameters (the size asked for) and sequences of the batch."""


# --------------------------------------------------------------------------------- records


def cost_records(place: Place, members: int, trained_parameters: int, run: Run) -> Iterator[list[Record]]:
    """The records of each method's step, from a run with a point a round.

    Args:
        members: of a step whose members see the whole batch.
        run: the figures of its points are seconds a step, by method.
    """
    sequences = place[1]
    passes = run.points[0].passes
    rounds = {name: [point.measured[name] for point in run.points] for name in COSTS}
    for name in COSTS:
        each = members * sequences if name == SINGLE else members
        ratio = median_ratio_with_spread(rounds[PAPER], rounds[name])
        settings = {
            **_place_settings("cost", place, trained_parameters),
            "method": name,
            "seed": 0,
            "seconds": None,
            "members": each,
            "sequences_of_a_member": passes // (2 * each),
            "passes": passes,
            "rounds": len(run.points),
        }
        step = statistics.median(rounds[name])
        spread = {"lower": round(ratio.lower, 3), "upper": round(ratio.upper, 3)}
        yield [
            Record("seconds_per_member", step / each, "s", settings),
            Record("seconds_per_pass", step / passes, "s", settings),
            Record("paper_over_this", ratio.median, "ratio", {**settings, **spread}),
        ]


def run_records(
    setting: str,
    place: Place,
    method: str,
    *,
    seed: int,
    seconds: float,
    tuned: str,
    trained_parameters: int,
    run: Run,
    **values: float | None,
) -> list[Record]:
    """The records of a run of training: when each mark was met (NaN: never), and where it ended.

    Args:
        values: learning rate and ε of the paper's scheme; in "tuning" they are part of the method's name.
    """
    last = run.points[-1]
    point = [f"{value:g}" for value in values.values() if value is not None]
    settings = {
        **_place_settings(setting, place, trained_parameters),
        "method": " ".join([method, *point]) if setting == "tuning" else method,
        "seed": seed,
        "seconds": seconds,
        "scheme": method,
        "tuned": tuned,
        **values,
        "steps": last.steps,
        "passes": last.passes,
        "trained_seconds": round(last.seconds, 3),
    }
    records = []
    for mark in MARKS:
        found = run.first_below(mark)
        for name, unit in (("seconds", "s"), ("steps", "steps"), ("passes", "passes")):
            value = math.nan if found is None else round(float(getattr(found, name)), 3)
            records.append(Record(f"{name}_to_loss", value, unit, {**settings, "loss": mark}))
    records.append(Record("last_loss", last.loss, "nats", settings))
    step = last.seconds / max(last.steps, 1)
    records.append(Record("milliseconds_per_step", step * 1e3, "ms", settings))
    return records


def _place_settings(setting: str, place: Place, trained_parameters: int) -> dict[str, Any]:
    parameters, sequences = place
    return {
        "setting": setting,
        "task": f"copy, {sequences} sequences, {parameters:,} parameters",
        "cell": "lstm",
        "parameters": parameters,
        "trained_parameters": trained_parameters,
        "sequences": sequences,
        "threads": 1,
    }


def _rows_of(rows: Sequence[Row], setting: str, **place: object) -> list[Row]:
    wanted = {"setting": setting, **place}
    return [row for row in rows if all(row["settings"].get(name) == value for name, value in wanted.items())]


def tuning_scores(
    rows: Sequence[Row], scheme: str, place: Place
) -> dict[tuple[float, float], tuple[float, float]]:
    """What each tried (rate, ε) of the paper's scheme reached: seconds to the first mark (infinite: never),
    and the last loss. Lower is better."""
    mine: dict[tuple[float, float], list[Row]] = defaultdict(list)
    for row in _rows_of(rows, "tuning", scheme=scheme, parameters=place[0], sequences=place[1]):
        mine[row["settings"]["rate"], row["settings"]["epsilon"]].append(row)
    columns = Column("", "seconds_to_loss", {"loss": MARKS[0]}), Column("", "last_loss")

    def score(found: list[Row]) -> tuple[float, float]:
        reached, last = (column.value(found) for column in columns)
        return math.inf if math.isnan(reached) else reached, math.inf if math.isnan(last) else last

    return {point: score(found) for point, found in mine.items()}


def tuned_settings(rows: Sequence[Row], scheme: str, place: Place) -> tuple[float, float] | None:
    """The best (rate, ε) that was tried; None where none was."""
    scores = tuning_scores(rows, scheme, place)
    return min(scores, key=scores.__getitem__) if scores else None


def speedup_records(rows: Sequence[Row]) -> Iterator[list[Record]]:
    """How much sooner each of zorn's methods reaches each mark than the better of the paper's schemes, from
    medians over seeds (NaN: zorn's does not)."""
    training = _rows_of(rows, "training")
    places = sorted({(row["settings"]["parameters"], row["settings"]["sequences"]) for row in training})
    for place in places:
        mine = _rows_of(training, "training", parameters=place[0], sequences=place[1])
        schemes = {row["settings"]["scheme"]: row["settings"]["trained_parameters"] for row in mine}
        papers = [name for name in SCHEMES if name in schemes]
        budget = min(
            (row["settings"]["seconds"] for row in mine if row["settings"]["scheme"] in papers), default=0
        )
        for name in schemes.keys() - set(SCHEMES) if papers else ():
            records = []
            for mark in MARKS:
                seconds = {one: _median_seconds(mine, one, mark) for one in (name, *papers)}
                best = min(papers, key=seconds.__getitem__)
                at_least = math.isinf(seconds[best])
                value = (budget if at_least else seconds[best]) / seconds[name]
                settings = {
                    **_place_settings("speedup", place, schemes[name]),
                    "method": name,
                    "seed": None,
                    "seconds": None,
                    "loss": mark,
                    "at_least": at_least,
                    "over": " and ".join(papers) if at_least else best,
                }
                reached = math.isfinite(seconds[name])
                records.append(Record("speedup_to_loss", value if reached else math.nan, "ratio", settings))
            yield records


def _median_seconds(rows: Sequence[Row], scheme: str, mark: float) -> float:
    """Median over seeds of the seconds to a mark; infinite for what was not reached."""
    found = [
        math.inf if row["value"] is None else row["value"]
        for row in _rows_of(rows, "training", scheme=scheme, loss=mark)
        if row["name"] == "seconds_to_loss"
    ]
    return statistics.median_high(found)


# --------------------------------------------------------------------------------- tables, picture, page

HEAD = """# zorn against the paper's scheme

Made by `python benchmarks/versus_paper.py` from `versus_paper.json`: change the runs, not this page. The
paper's scheme ([arXiv 2505.17852](https://arxiv.org/abs/2505.17852)) is written from its description in
`benchmarks/paper_scheme.py`: dense ±1 directions, one member at a time over the whole batch, each direction
drawn from its seed three times to evaluate and once to update, weights moved in place. Model (one LSTM
layer), task (copy, 10 letters) and objective are the same for all. One thread, CPU seconds.

**Cost.** A step with its update, over its members: a member is two evaluations of its sequences (the whole
batch, or one sequence) and all draws of its direction. A pass is one sequence through the model, once. All
methods of a line's model and batch take the same number of passes a step; ratios are medians over rounds
taken in turn. "public code": the code published with the paper, measured beforehand on such a machine.

**Training.** Seconds of training until the loss of one batch, learned by heart, falls below a mark. The
paper's scheme (96 members, SGD) has the best of a grid of learning rates, with ε tied to it as in the paper
and with ε of its own, searched for each size on another seed; zorn's methods have the settings that
`zorn train` chooses, the same for all sizes. Medians over seeds [least, largest]; a dash was not reached in
the time. **Speed-up**: over the better of the paper's two; "≥" where neither reached the mark in its time,
which then stands in for it."""


def cost_lines(rows: Sequence[Row]) -> Lines:
    """A line for each model, batch and method."""
    found: dict[tuple[int, int, int], dict[str, float]] = defaultdict(dict)
    for row in rows:
        place = row["settings"]
        order = COSTS.index(place["method"])
        found[place["parameters"], place["sequences"], order][row["name"]] = row["value"]
    lines = []
    for (parameters, sequences, order), values in sorted(found.items()):
        public = PUBLIC_CODE.get((parameters, sequences)) if order == 0 else None
        lines.append(
            [
                f"{parameters:,}",
                f"{sequences:,}",
                COSTS[order],
                f"{values['seconds_per_member']:.3g}",
                f"{values['seconds_per_pass'] * 1e6:.3g}",
                f"{values['paper_over_this']:.2f}",
                "–" if public is None else f"{public:g}",
            ]
        )
    titles = [
        "parameters",
        "sequences",
        "method",
        "s a member",
        "µs a pass",
        "paper / this",
        "public code, s",
    ]
    return Lines(titles, lines)


def speedup_lines(rows: Sequence[Row]) -> Lines:
    """A line for each model, batch and method of zorn's."""
    found: dict[tuple[int, int, str], dict[float, str]] = defaultdict(dict)
    for row in rows:
        place, value = row["settings"], row["value"]
        words = "–" if value is None else ("≥ " if place["at_least"] else "") + f"{value:.3g}"
        found[place["parameters"], place["sequences"], place["method"]][place["loss"]] = words
    lines = [
        [f"{parameters:,}", f"{sequences:,}", method, *(words[mark] for mark in MARKS)]
        for (parameters, sequences, method), words in sorted(found.items())
    ]
    return Lines(["parameters", "sequences", "method", *(f"to {mark:g} nats" for mark in MARKS)], lines)


COLUMNS = [
    *(Column(f"s to {mark:g} nats", "seconds_to_loss", {"loss": mark}) for mark in MARKS),
    Column(f"passes to {MARKS[0]:g}", "passes_to_loss", {"loss": MARKS[0]}),
    Column("last loss", "last_loss"),
    Column("ms a step", "milliseconds_per_step"),
]


def training_lines(rows: Sequence[Row]) -> Lines:
    """A line for each model, batch and method."""
    sizes = {row["settings"]["task"]: row["settings"]["parameters"] for row in rows}
    return table_of(rows, COLUMNS, lambda task, method: (sizes[task], task, method in SCHEMES, method))


def show(results: Results, picture: Path) -> None:
    """Take the speed-ups from what has been measured, print the tables, draw the picture, write the page."""
    for records in speedup_records(results.rows()):
        results.add(records, [])
    rows, curves = results.rows(), results.curves()
    costs, training = _rows_of(rows, "cost"), _rows_of(rows, "training")
    tables = {
        "Cost of a step": cost_lines(costs),
        "Training": training_lines(training),
        "Speed-up to a training loss": speedup_lines(_rows_of(rows, "speedup")),
    }
    tables = {title: lines for title, lines in tables.items() if lines.lines}
    if not tables:
        return
    tasks = list(dict.fromkeys(row["settings"]["task"] for row in training))

    def draw(*panels: Axes) -> None:
        draw_costs(panels[0], costs)
        for axes, task in zip(panels[1:], tasks, strict=True):
            draw_losses(axes, _rows_of(training, "training", task=task), curves)

    *others, (title, last) = tables.items()
    for name, lines in others:
        table = lines.rich()
        table.title = name
        Console(width=FILE_WIDTH).print(table)
    quiet = argparse.Namespace(picture=picture, json=None)
    report(
        f"zorn against the paper's scheme: {title.lower()}",
        [],
        quiet,
        draw,
        panels=(1, 1 + len(tasks)),
        table=last.rich(),
    )
    parts = [HEAD, f"![cost of a pass, and loss against seconds]({picture.name})"]
    for title, lines in tables.items():
        parts += [f"## {title}", lines.markdown()]
    results.path.with_suffix(".md").write_text("\n\n".join(parts) + "\n")


_STYLES = {PAPER: ("tab:red", "o"), WHOLE: ("tab:blue", "s"), SINGLE: ("tab:green", "^")}
_COLOURS = {TIED: "tab:red", FREE: "tab:orange", "activity": "tab:blue", "rank-one": "tab:green"}


def draw_costs(axes: Axes, rows: Sequence[Row]) -> None:
    """Microseconds a pass against parameters: a colour a method, the larger batches dashed."""
    batches = sorted({row["settings"]["sequences"] for row in rows})
    for name, (colour, marker) in _STYLES.items():
        for number, batch in enumerate(batches):
            found = sorted(
                (row["settings"]["trained_parameters"], row["value"] * 1e6)
                for row in _rows_of(rows, "cost", method=name, sequences=batch)
                if row["name"] == "seconds_per_pass"
            )
            sizes, costs = [size for size, _ in found], [cost for _, cost in found]
            line = f"{marker}{'--' if number else '-'}"
            axes.plot(sizes, costs, line, color=colour, label=f"{name}, {batch}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("parameters")
    axes.set_ylabel("µs a pass of one sequence")
    if batches:
        axes.legend(fontsize=6)


def draw_losses(axes: Axes, rows: Sequence[Row], curves: dict[str, Curve]) -> None:
    """The loss of the batch against seconds of training: a colour a method, a line a seed."""
    labelled: set[str] = set()
    for key, place in {key_of(row): row["settings"] for row in rows}.items():
        curve, name = curves.get(name_of(key), []), place["scheme"]
        axes.plot(
            [point[2] for point in curve],
            [point[3] for point in curve],
            color=_COLOURS[name],
            label="_" if name in labelled else name,
            lw=1.2,
        )
        labelled.add(name)
    for mark in MARKS:
        axes.axhline(mark, color="0.8", lw=1)
    axes.set_xscale("log")
    axes.set_ylim(0, 4)
    axes.set_title(rows[0]["settings"]["task"], fontsize=8)
    axes.set_xlabel("CPU seconds of training")
    axes.set_ylabel("loss of the batch (nats per token)")
    axes.legend(fontsize=7, loc="lower left")
