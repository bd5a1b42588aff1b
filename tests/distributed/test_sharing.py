"""Joining a group, sharing an estimator, and what is refused before any work."""

import socket

import pytest
import torch
from processes import free_port
from script import batch_of, small_model, weight_space, weights

from zorn.distributed import Group, share, start
from zorn.distributed.agreement import described, estimator_facts, weight_facts
from zorn.distributed.workers import GroupWorkers
from zorn.errors import ConfigError
from zorn.estimators import BPTT, NRES, PES, ActivityCredit, Bridge
from zorn.estimators.update import FusedSGD
from zorn.estimators.workers import ALONE
from zorn.tasks import TokenCrossEntropy

TWO = {"RANK": 0, "WORLD_SIZE": 2}


@pytest.fixture
def place(monkeypatch):
    """Sets the environment of a launcher; without arguments, none."""

    def of(**variables):
        for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))

    return of


def test_without_a_launcher_a_process_is_alone(place):
    place(MASTER_ADDR="somewhere")
    with start() as group:
        assert (group.rank, group.size, group.is_main) == (0, 1, True)


def test_a_group_of_one_needs_no_port(place):
    place(RANK=0, WORLD_SIZE=1)
    assert start().size == 1


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": 0}, "WORLD_SIZE must be a whole number of at least 1, got ''"),
        ({"RANK": 0, "WORLD_SIZE": 0}, "WORLD_SIZE must be a whole number of at least 1, got '0'"),
        ({"RANK": "x", "WORLD_SIZE": 2}, "RANK must be a whole number from 0 to WORLD_SIZE − 1 = 1, got 'x'"),
        ({"RANK": 2, "WORLD_SIZE": 2}, "RANK must be a whole number from 0 to WORLD_SIZE − 1 = 1, got '2'"),
        ({**TWO, "LOCAL_WORLD_SIZE": "abc"}, "LOCAL_WORLD_SIZE must be .* to WORLD_SIZE = 2, got 'abc'"),
        ({**TWO, "LOCAL_WORLD_SIZE": 3}, "LOCAL_WORLD_SIZE must be .* from 1 to WORLD_SIZE = 2, got '3'"),
        ({**TWO, "LOCAL_RANK": "-1"}, "LOCAL_RANK must be .* 0 to LOCAL_WORLD_SIZE − 1 = 1, got '-1'"),
        (
            {**TWO, "LOCAL_WORLD_SIZE": 1, "LOCAL_RANK": 1},
            "LOCAL_RANK must be .* 0 to LOCAL_WORLD_SIZE − 1 = 0, got '1'",
        ),
        ({**TWO, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 99999}, "MASTER_PORT .* 1 to 65535, got '99999'"),
        ({"RANK": 0, "WORLD_SIZE": 2}, "MASTER_ADDR must be set where RANK and WORLD_SIZE are, .* torchrun"),
        ({"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}, "MASTER_PORT must be set"),
    ],
)
def test_an_environment_that_is_not_whole_is_told(place, variables, message):
    place(**variables)
    with pytest.raises(ConfigError, match=message):
        start()


def test_a_port_in_use_is_told(place):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        place(RANK=0, WORLD_SIZE=2, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 is in use: set MASTER_PORT"):
            start(timeout=5)


def test_processes_that_do_not_come_are_told(place):
    place(RANK=0, WORLD_SIZE=2, MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port())
    told = r"rank 0 of 2 did not meet the others at 127.0.0.1:\d+ and gave up after \d+ s of 1 "
    with pytest.raises(ConfigError, match=told):
        start(timeout=1)


def test_an_interface_that_is_not_there_is_named_at_once(monkeypatch):
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9", "RANK": "0", "WORLD_SIZE": "2"}
    for name, value in {**meeting, "GLOO_SOCKET_IFNAME": "lo,wire77"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        ConfigError, match=r"GLOO_SOCKET_IFNAME must be network .*\(.*lo.*\), got 'lo,wire77'"
    ):
        start(timeout=600)


def test_a_process_group_that_exists_must_send_what_is_on_the_cpu(monkeypatch):
    """Such as init_process_group("nccl") makes."""
    there = {"is_initialized": True, "get_rank": 0, "get_world_size": 2, "get_backend_config": "cuda:nccl"}
    for name, value in there.items():
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    with pytest.raises(
        ConfigError, match=r"exists already must be .* got cuda:nccl: .* backend=.cpu:gloo,cuda:nccl"
    ):
        start()
    monkeypatch.setattr(torch.distributed, "get_backend_config", lambda: "cpu:gloo,cuda:nccl")
    assert start().size == 2


def test_a_timeout_is_positive():
    with pytest.raises(ConfigError, match="timeout must be a number above 0"):
        start(timeout=0)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda: torch.nn.Linear(1, 1), {}, "estimator must be a zorn.Estimator, got a value of type Lin"),
        (lambda: share(weight_space("pes", "dense"), Group()), {}, "not shared yet, got a PES that is"),
        (lambda: weight_space("pes", "dense"), {"partial": True}, "partial must be False for PES"),
        (lambda: weight_space("cd-rge", "dense"), {"check_every": 0}, "check_every must be a whole number"),
    ],
)
def test_what_cannot_be_shared_is_told_before_any_work(make, options, message):
    with pytest.raises(ConfigError, match=message):
        share(make(), Group(), **options)


def test_a_group_is_what_start_gives():
    with pytest.raises(
        ConfigError, match=r"group must be what zorn.distributed.start\(\) returned, got 'gloo"
    ):
        share(BPTT(), "gloo")


@pytest.mark.parametrize("kind", ["cd-rge", "1.5-spsa", "nres"])
def test_a_shared_estimator_of_one_process_is_the_estimator(kind):
    """The same bits, on the same path."""
    plain, model = weight_space(kind, "rank one"), small_model()
    shared, other = share(weight_space(kind, "rank one"), Group()), small_model()
    for estimator, each in ((plain, model), (shared, other)):
        estimator.epsilon = 0.02
        for step in range(3):
            estimator.estimate(each, batch_of(step), TokenCrossEntropy(), FusedSGD(learning_rate=0.3))
    assert all(
        torch.equal(*pair) for pair in zip(weights(model).values(), weights(other).values(), strict=True)
    )
    assert shared.step == 3


def test_sharing_gives_an_estimator_workers():
    estimator, group = weight_space("cd-rge", "rank one"), Group()
    assert estimator.workers is ALONE
    assert share(estimator, group, partial=True, check_every=7) is estimator
    assert isinstance(estimator.workers, GroupWorkers)
    assert (estimator.workers.group, estimator.workers.partial, estimator.workers.check_every) == (
        group,
        True,
        7,
    )


def test_ask_evaluate_and_tell_are_shared_too():
    plain, model = weight_space("cd-rge", "rank one"), small_model()
    shared = share(weight_space("cd-rge", "rank one"), Group())
    batch = batch_of(0)
    losses = [e.evaluate(model, e.ask(model), batch, TokenCrossEntropy()) for e in (plain, shared)]
    assert torch.equal(losses[0][0], losses[1][0])
    assert losses[0][1] == losses[1][1] == 32


@pytest.mark.parametrize(
    ("make", "setting", "text"),
    [
        (lambda: PES(population=8, epsilon=0.1), "population of PES", "8"),
        (lambda: NRES(population=8, epsilon=0.1), "estimator", "NRES"),
        (lambda: ActivityCredit(epsilon=0.1, discount=0.9, draws=1), "discount of ActivityCredit", "0.9"),
        (lambda: Bridge(truncation=3, epsilon=0.1, draws=1, separate=False), "epsilon of Bridge", "0.1"),
        (lambda: weight_space("cd-rge", "dense"), "shaping of CDRGE", "none"),
    ],
)
def test_what_is_compared_of_an_estimator(make, setting, text):
    assert estimator_facts(make())[setting] == text


def test_settings_are_the_same_text_in_every_process():
    assert described(lambda: None) == "test_settings_are_the_same_text_in_every_process.<locals>.<lambda>"
    assert described(object()) is None


def test_the_hash_of_weights_sees_one_bit():
    model = small_model(torch.bfloat16)
    before = weight_facts(model)
    with torch.no_grad():
        model.head.weight.view(torch.int16)[0, 0] ^= 1
    after = weight_facts(model)
    assert [name for name in before if before[name] != after[name]] == ["weights of head.weight"]
