"""Bytes that two processes send each other in a step: zorn's losses beside the paper's weights.

`scalars` gathers the losses, and every process folds all members, as `zorn.distributed.share` does. `paper`
broadcasts all weights and reduces a buffer of their size, see `paper_exchange.py`. Both train the same LSTM
with the same members on the same sequences, step by step in turn, in processes of one thread.

- `wire_bytes`: bytes of a step that the network devices sent, of both processes together, with the headers
  and acknowledgements of TCP. A network that no other process uses; null where the machine makes none.
- `payload_bytes`: the same, as the processes count what they hand to torch.distributed.
- `communication_seconds`: of a step, in the collectives, of the process that comes to them last.
- `steps_per_second`: the median; on one machine, whose cores the processes share with the relay of the link.
- `bytes_paper_over_scalars`: the ratio of wire bytes, of payload bytes where those are null.

    python benchmarks/exchange.py [--quick] [--json PATH] [--picture PATH]
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from harness import Record, argument_parser, report
from matplotlib.axes import Axes
from paper_exchange import PaperExchange
from slow_link import SLOW, can_link, run_pair, sent_bytes
from tables import Lines

import zorn
import zorn.distributed
from zorn.models import parameter_count

FOLDER = Path(__file__).parents[1] / "docs" / "results"
MODES = {"paper": "tab:red", "scalars": "tab:blue"}
LINKS = {"loopback": "o-", "slow": "s--"}
PROCESSES = 2
VOCABULARY, SEQUENCES, TIME = 32, 1, 2
EPSILON, LEARNING_RATE = 0.01, 1e-3

Case = dict[str, Any]


def case(link: str, parameters: int, members: int, steps: int, paper_members: int | None = None) -> Case:
    """A measurement. The paper's scheme draws four directions a member, so that it gets few members where
    the model is large: what it sends does not depend on them."""
    return {
        "link": link,
        "parameters": parameters,
        "members": members,
        "paper_members": paper_members or members,
        "steps": steps,
    }


QUICK = [case("loopback", 100_000, 64, 3), case("slow", 100_000, 64, 3)]
FULL = [
    case("loopback", 1_000_000, 64, 9),
    case("loopback", 1_000_000, 512, 9, 64),
    case("loopback", 10_000_000, 64, 5, 8),
    case("loopback", 10_000_000, 512, 5, 8),
    case("loopback", 100_000_000, 64, 3, 2),
    case("loopback", 100_000_000, 512, 3, 2),
    case("slow", 1_000_000, 64, 9),
    case("slow", 10_000_000, 64, 3),
]


def build(parameters: int) -> zorn.LanguageModel:
    """An LSTM of about as many weights: 8 H² of its two maps, and a small embedding and head."""
    torch.manual_seed(0)
    hidden = round(math.sqrt(parameters / 8))
    return zorn.LanguageModel(VOCABULARY, hidden, embedding_size=hidden)


def steppers(
    model: zorn.LanguageModel, chosen: Case, group: zorn.distributed.Group
) -> dict[str, Callable[[], tuple[int, float]]]:
    """For each way, what does a step on `model` and returns the bytes that this process sent in it and its
    seconds in communication."""
    tokens = torch.arange(SEQUENCES * (TIME + 1)).view(SEQUENCES, TIME + 1) % VOCABULARY
    batch = zorn.Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    paper = PaperExchange(
        model, population=chosen["paper_members"], epsilon=EPSILON, learning_rate=LEARNING_RATE
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)

    def by_paper() -> tuple[int, float]:
        sent, seconds = paper.bytes_sent, paper.communication_seconds
        paper.step(batch)
        return paper.bytes_sent - sent, paper.communication_seconds - seconds

    rows = 2 * chosen["members"] * SEQUENCES
    estimator = zorn.distributed.share(
        zorn.CDRGE(
            population=chosen["members"],
            epsilon=EPSILON,
            group_size=None,
            micro_batch=min(64, rows // PROCESSES),
        ),
        group,
    )

    def by_zorn() -> tuple[int, float]:
        sent, seconds = group.bytes_sent, group.seconds
        estimator.estimate(model, batch, zorn.TokenCrossEntropy())
        optimizer.step()
        return group.bytes_sent - sent, group.seconds - seconds

    return {"paper": by_paper, "scalars": by_zorn}


def rank(chosen: Case) -> None:
    """Be one of the processes, and print what each step of each way took."""
    torch.set_num_threads(1)
    group = zorn.distributed.start(timeout=300)
    model = build(chosen["parameters"])
    ways = steppers(model, chosen, group)
    device = os.environ["GLOO_SOCKET_IFNAME"]
    found: Case = {"parameters": parameter_count(model), "steps": []}
    for number in range(-1, chosen["steps"]):
        for way, step in ways.items():
            dist.barrier()
            between = sent_bytes(device)
            dist.barrier()
            before = sent_bytes(device)
            start = time.perf_counter()
            payload, communication = step()
            seconds = time.perf_counter() - start
            dist.barrier()
            wire = sent_bytes(device) - before - (before - between)  # without those of a barrier
            if number >= 0:
                found["steps"].append(
                    {
                        "way": way,
                        "wire": wire,
                        "payload": payload,
                        "communication": communication,
                        "seconds": seconds,
                    }
                )
    print(json.dumps(found))
    group.close()


def measured(chosen: Case) -> list[Case]:
    """What the two processes found, on the link of the case."""
    command = [sys.executable, __file__, "--rank", json.dumps(chosen)]
    return run_pair(command, SLOW if chosen["link"] == "slow" else None)


def records_of(chosen: Case, found: Sequence[Case], *, own_network: bool) -> list[Record]:
    """The medians over the steps of a case, and the ratios of the ways."""
    place = {
        "parameters": chosen["parameters"],
        "members": chosen["members"],
        "link": chosen["link"],
        "processes": PROCESSES,
        "weights": found[0]["parameters"],
        "steps": chosen["steps"],
        "sequences": SEQUENCES,
        "time": TIME,
        "dtype": "float32",
        "threads": 1,
    }
    if chosen["link"] == "slow":
        place |= {"bits_per_second": SLOW.bits_per_second, "round_trip": SLOW.round_trip}
    records: list[Record] = []
    bytes_of: dict[str, float] = {}
    for way in MODES:
        pairs = [
            [step for step in one["steps"] if step["way"] == way] for one in found
        ]  # a list of steps for each process
        steps = list(zip(*pairs, strict=True))
        # On loopback both processes read the same device.
        wire = statistics.median(
            step[0]["wire"] if chosen["link"] == "loopback" else sum(one["wire"] for one in step)
            for step in steps
        )
        payload = statistics.median(sum(one["payload"] for one in step) for step in steps)
        apart = [min(one["communication"] for one in step) for step in steps]
        speeds = [1 / max(one["seconds"] for one in step) for step in steps]
        members = chosen["paper_members"] if way == "paper" else chosen["members"]
        mine = {**place, "mode": way, "members": members}
        bytes_of[way] = wire if own_network else payload
        records += [
            Record("wire_bytes", wire if own_network else math.nan, "bytes", mine),
            Record("payload_bytes", payload, "bytes", mine),
            Record("communication_seconds", statistics.median(apart), "s", mine | _ends(apart)),
        ]
        if members == chosen["members"]:
            mine |= _ends(speeds)
        else:
            speeds = [math.nan]
        records.append(Record("steps_per_second", statistics.median(speeds), "1/s", mine))
    ratio = bytes_of["paper"] / bytes_of["scalars"]
    records.append(Record("bytes_paper_over_scalars", ratio, "ratio", place))
    return records


def _ends(values: Sequence[float]) -> dict[str, object]:
    """The least and the largest."""
    return {"least": min(values), "largest": max(values)}


HEAD = f"""# What two processes send each other

Made by `python benchmarks/exchange.py` from `exchange.json`: change the runs, not this page. An LSTM in
float32, {SEQUENCES} sequence of {TIME} tokens, {PROCESSES} processes of one thread on one machine.

- Wire bytes: of a step, that the network devices sent, both processes together, headers and acknowledgements
  counted. Payload bytes: what the processes hand to torch.distributed; gloo's reduce sends more than its
  buffer.
- In communication: seconds of a step in the collectives, of the process that comes to them last.
- Slow link: {SLOW.bits_per_second / 1e6:g} Mbit/s and {SLOW.round_trip * 1e3:g} ms there and back, network
  namespaces joined by a relay.
- `paper`: all weights broadcast and a buffer of their size reduced, with dense directions. No steps per
  second are given where it had fewer members than the others, which changes nothing in what it sends.
- `scalars`: the losses, as zorn sends them; each process folds all members."""


def show(records: Sequence[Record], arguments: argparse.Namespace) -> None:
    """Print the table, draw the picture, write the JSON and the page beside it."""
    lines = lines_of(records)
    title = "Bytes of a step, and steps per second"
    report(
        title,
        records,
        arguments,
        lambda sizes, speeds: draw(sizes, speeds, records),
        panels=(1, 2),
        table=lines.rich(),
    )
    ratios = "\n".join(
        f"- {record.name}: **{record.value:,.0f}** at {record.settings['parameters']:,} parameters, "
        f"{record.settings['members']} members ({record.settings['link']})"
        for record in records
        if record.unit == "ratio"
    )
    picture = os.path.relpath(arguments.picture, arguments.json.parent)
    page = "\n\n".join([HEAD, lines.markdown(), ratios, f"![{title}]({picture})"])
    arguments.json.with_suffix(".md").write_text(page + "\n")


def lines_of(records: Sequence[Record]) -> Lines:
    """A line for each case and way."""
    found: dict[tuple[str, str, str, str], dict[str, float]] = {}
    for record in records:
        if record.unit != "ratio":
            place = record.settings
            key = (
                str(place["link"]),
                str(place["mode"]),
                f"{place['parameters']:,}",
                str(place["members"]),
            )
            found.setdefault(key, {})[record.name] = record.value
    titles = ["link", "mode", "parameters", "members", "wire bytes", "payload bytes"]
    titles += ["seconds in communication", "steps per second"]
    return Lines(
        titles,
        [
            [
                *key,
                _word(values["wire_bytes"], ",.0f"),
                _word(values["payload_bytes"], ",.0f"),
                _word(values["communication_seconds"], ".2g"),
                _word(values["steps_per_second"], ".3g"),
            ]
            for key, values in found.items()
        ],
    )


def _word(value: float, form: str) -> str:
    return "–" if math.isnan(value) else f"{value:{form}}"


def draw(sizes: Axes, speeds: Axes, records: Sequence[Record]) -> None:
    """Bytes and steps per second against the parameters, a line a way and link, with the fewest members."""
    counted = "wire_bytes" if own_bytes(records) else "payload_bytes"
    for axes, name, label in (
        (sizes, counted, f"{counted.replace('_', ' ')} of a step"),
        (speeds, "steps_per_second", "steps per second"),
    ):
        for way, colour in MODES.items():
            for link, style in LINKS.items():
                points: dict[int, list[float]] = {}
                for record in records:
                    place = record.settings
                    if (record.name, place.get("mode"), place["link"]) == (name, way, link):
                        points.setdefault(int(str(place["parameters"])), []).append(record.value)
                if points:
                    sizes_of = sorted(points)
                    axes.loglog(
                        sizes_of,
                        [points[size][0] for size in sizes_of],
                        style,
                        color=colour,
                        label=f"{way}, {link}",
                    )
        axes.set_xlabel("parameters")
        axes.set_ylabel(label)
        axes.legend(fontsize=7)


def own_bytes(records: Sequence[Record]) -> bool:
    """Whether the network devices' bytes could be counted."""
    return any(record.name == "wire_bytes" and not math.isnan(record.value) for record in records)


def main() -> None:
    if sys.argv[1:2] == ["--rank"]:
        rank(json.loads(sys.argv[2]))
        return
    parser = argument_parser("exchange", __doc__)
    parser.add_argument("--largest", type=float, default=1e8, help="parameters of the largest model")
    arguments = parser.parse_args()
    folder = Path(__file__).parent / "out" if arguments.quick else FOLDER
    arguments.json = arguments.json or folder / "exchange.json"
    if arguments.picture == Path(parser.get_default("picture")):
        arguments.picture = arguments.json.with_suffix(".png")
    own_network = can_link()
    records: list[Record] = []
    for chosen in QUICK if arguments.quick else FULL:
        if chosen["parameters"] > arguments.largest:
            continue
        if chosen["link"] == "slow" and not own_network:
            print("exchange: no slow link, this machine makes no network namespaces", file=sys.stderr)
            continue
        records += records_of(chosen, measured(chosen), own_network=own_network)
        print(f"exchange: {chosen} done", file=sys.stderr, flush=True)
    show(records, arguments)


if __name__ == "__main__":
    main()
