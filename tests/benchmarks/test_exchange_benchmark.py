"""The benchmarks of many processes: the paper's exchange, the slow link, and what is recorded of both."""

import doctest
import json
import math
import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import exchange
import paper_exchange
import scaling
import slow_link
from paper_exchange import PaperExchange
from paper_scheme import PaperScheme
from slow_link import Speed, can_link, run_linked, run_on_loopback

import zorn

needs_namespaces = pytest.mark.skipif(not can_link(), reason="this machine makes no network namespaces")
ENDS = """
import socket, time
{connect}
start = time.perf_counter()
for _ in range(3):
    {trip}
print((time.perf_counter() - start) / 3)
"""


@pytest.fixture
def alone() -> Iterator[None]:
    """A group of one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_one_process_of_the_papers_exchange_does_the_papers_step():
    torch.manual_seed(0)
    task = zorn.tasks.CopyTask(batch=4, minimum_length=2, maximum_length=2, seed=0)
    model = zorn.LanguageModel(task.vocabulary, 8)
    before, other = deepcopy(model), deepcopy(model)
    settings = {"population": 3, "epsilon": 0.05, "learning_rate": 0.1}
    shared, scheme = PaperExchange(model, **settings), PaperScheme(other, **settings)
    for step in range(2):
        assert shared.step(task.training_batch(step)) == scheme.step(task.training_batch(step)) == 24
    for weight, reference, first in zip(
        model.parameters(), other.parameters(), before.parameters(), strict=True
    ):
        torch.testing.assert_close(weight, reference, rtol=1e-4, atol=1e-5)
        assert (weight - first).abs().max() > 1e-3
    assert shared.communication_seconds > 0


@pytest.mark.parametrize("module", [paper_exchange, slow_link], ids=lambda module: module.__name__)
def test_documented_examples(module):
    found = doctest.testmod(module)
    assert (found.attempted > 0, found.failed) == (True, 0)


def test_members_that_cannot_be_shared_evenly_are_refused(monkeypatch):
    monkeypatch.setattr(paper_exchange.dist, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="population: got 3, expected a multiple of 2 processes"):
        PaperExchange(zorn.LanguageModel(5, 4), population=3, epsilon=0.1, learning_rate=0.1)


def test_a_wire_is_as_fast_as_it_says_and_makes_the_sender_wait():
    wire = slow_link.Wire(Speed(bits_per_second=8e6, round_trip=0.02))
    for _ in range(20):
        wire.take(bytes(1000), now=0.0)  # a millisecond each
    assert wire.full(0.0)
    assert wire.next_event(0.0) == pytest.approx(0.011)
    assert len(wire.arrived(0.0205)) == 10
    assert not wire.full(0.016)
    assert [due for due, _ in wire.flying][-1] == pytest.approx(0.03)


@needs_namespaces
def test_a_round_trip_over_a_slow_link_takes_what_it_says():
    echo = 'server = socket.create_server(("10.77.0.1", 5000)); peer, _ = server.accept()'
    call = (
        'peer = None\nwhile peer is None:\n    try: peer = socket.create_connection(("10.77.0.1", 5000))\n'
        "    except OSError: time.sleep(0.05)"
    )
    programs = [
        ENDS.format(connect=echo, trip="peer.sendall(peer.recv(1))"),
        ENDS.format(connect=call, trip='peer.sendall(b"x"); peer.recv(1)'),
    ]
    commands = [[sys.executable, "-c", program] for program in programs]
    found = run_linked(commands, Speed(bits_per_second=1e8, round_trip=0.1), os.environ, timeout=30)
    assert 0.1 <= float(found[1]) < 0.5


@needs_namespaces
def test_a_process_that_fails_on_a_link_is_an_error():
    commands = [[sys.executable, "-c", f"raise SystemExit({code})"] for code in (0, 3)]
    with pytest.raises(RuntimeError, match="process 1 ended with 3"):
        run_linked(commands, slow_link.SLOW, os.environ, timeout=30)


def test_processes_on_loopback_print_and_fail():
    commands = [[sys.executable, "-c", f"print({number})"] for number in range(2)]
    assert run_on_loopback(commands, os.environ, timeout=30) == ["0\n", "1\n"]
    commands[1][-1] = "raise SystemExit(3)"
    with pytest.raises(RuntimeError, match="process 0 ended with 3"):
        run_on_loopback(commands, os.environ, timeout=30)


def made_up(link: str) -> list[dict]:
    """What two processes could find in two steps of each way."""
    wires = {"paper": 8000, "scalars": 8}
    steps = [
        {"way": way, "wire": wire, "payload": wire // 2, "communication": 0.1, "seconds": 0.5}
        for way, wire in wires.items()
        for _ in range(2)
    ]
    slower = [step | {"communication": 0.3, "seconds": 1.0} for step in steps]
    return [{"parameters": 1000, "steps": steps}, {"parameters": 1000, "steps": slower}]


@pytest.mark.parametrize(("link", "counted"), [("loopback", 8), ("slow", 16)])
def test_bytes_of_a_step_are_those_of_both_processes(link, counted):
    chosen = exchange.case(link, 1000, 64, 2, paper_members=2)
    records = exchange.records_of(chosen, made_up(link), own_network=True)
    found = {(one.name, one.settings.get("mode")): one for one in records}
    assert found["wire_bytes", "scalars"].value == counted  # both read one device on loopback
    assert found["payload_bytes", "scalars"].value == 8
    assert found["communication_seconds", "scalars"].value == pytest.approx(0.1)
    assert found["steps_per_second", "scalars"].value == 1
    assert math.isnan(found["steps_per_second", "paper"].value)  # it had fewer members
    ratio = found["bytes_paper_over_scalars", None]
    assert ratio.value == 1000
    assert (ratio.settings["parameters"], ratio.settings["members"]) == (1000, 64)


def test_without_a_network_of_its_own_the_payload_is_compared():
    chosen = exchange.case("loopback", 1000, 64, 2)
    records = exchange.records_of(chosen, made_up("loopback"), own_network=False)
    assert all(math.isnan(one.value) for one in records if one.name == "wire_bytes")
    assert [one.value for one in records if one.name == "bytes_paper_over_scalars"] == [1000]


def test_the_page_of_the_exchange_shows_every_way(tmp_path):
    records = exchange.records_of(exchange.case("slow", 1000, 64, 2), made_up("slow"), own_network=True)
    places = Namespace(json=tmp_path / "exchange.json", picture=tmp_path / "exchange.png")
    exchange.show(records, places)
    page = (tmp_path / "exchange.md").read_text()
    for word in (
        "| slow | paper | 1,000 | 64 | 16,000 |",
        "bytes_paper_over_scalars: **1,000**",
        "(exchange.png)",
    ):
        assert word in page
    assert len(json.loads((tmp_path / "exchange.json").read_text())) == len(records)


def measured(together: float) -> list[dict]:
    """What two processes could find whose steps cost what the model says."""
    member, fixed, row = 1e-4, 0.01, 2e-3
    rows = 2 * scaling.MEMBERS * scaling.SEQUENCES
    few = fixed + scaling.MEMBERS * member
    clock = {"alone": rows * row + few, "apart": rows * row + few, "together": together}
    ways = {way: {"wall": [seconds] * 3, "processor": [seconds] * 3} for way, seconds in clock.items()}
    many = fixed + scaling.FOLDS * scaling.MEMBERS * member
    parts = {"row": [row] * 3, "few": [few] * 3, "many": [many] * 3, "small": 1e-4, "large": 4e-3}
    return [{"parameters": 30_000, **ways, **parts}] * 2


def test_costs_come_from_the_parts_that_were_timed():
    costs = scaling.costs_of(measured(0.1)[0])
    assert costs.row == 2e-3
    assert costs.fold == pytest.approx(1e-4 / 30_000)
    assert costs.fixed == pytest.approx(0.01)
    assert costs.bandwidth == pytest.approx(4 * (scaling.LARGE - scaling.SMALL) / (4e-3 - 1e-4))


def test_scaling_records_efficiency_and_what_the_model_says(tmp_path):
    rows = 2 * scaling.MEMBERS * scaling.SEQUENCES
    together = rows / 2 * 2e-3 + 0.01 + scaling.MEMBERS * 1e-4 + 1e-4  # and a message
    found = measured(together)
    records = scaling.records_of(30_000, found)
    value = {one.name: one.value for one in records if one.name != "steps_per_second"}
    assert value["predicted_over_measured"] == pytest.approx(1, rel=1e-3)
    assert value["efficiency"] == pytest.approx(found[0]["alone"]["wall"][0] / together / 2)
    assert value["limit"] == 1
    places = Namespace(json=tmp_path / "scaling.json", picture=tmp_path / "scaling.png")
    scaling.show(records, places)
    page = (tmp_path / "scaling.md").read_text()
    assert page.count("| 30,000 |") == 1 + len(scaling.NETWORKS)
    assert "| 1000 |" in page
