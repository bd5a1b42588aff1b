"""Signals between two steps."""

import signal
import threading

import pytest

from zorn.training.interruption import Interruption


@pytest.fixture
def python_handles_ctrl_c():
    """A shell starts background jobs with SIGINT ignored; the test must not depend on that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.usefixtures("python_handles_ctrl_c")
def test_the_first_signal_only_asks(number):
    before = signal.getsignal(number)
    with Interruption() as interruption:
        assert not interruption.requested
        signal.raise_signal(number)
        assert interruption.requested
        assert signal.getsignal(number) == before, "the second one acts as ever"
    assert signal.getsignal(number) == before


@pytest.mark.usefixtures("python_handles_ctrl_c")
def test_a_second_ctrl_c_stops_at_once():
    with Interruption():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_what_the_process_was_started_to_ignore_stays_ignored():
    """As under nohup, and in a shell's background jobs."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            signal.raise_signal(signal.SIGHUP)
            assert not interruption.requested
            signal.raise_signal(signal.SIGTERM)
            assert interruption.requested
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_are_put_back_without_a_signal():
    before = signal.getsignal(signal.SIGTERM)
    with Interruption():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_other_threads_change_nothing():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work():
        with Interruption():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
