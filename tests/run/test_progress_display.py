"""What is shown while training: plain lines where there is no terminal, a live bar where there is one."""

import io

import pytest
from rich.console import Console

from zorn.run import progress_display
from zorn.run.progress_display import ProgressDisplay, clock, shorten


class Clock:
    """A clock that a test sets."""

    now = 100.0


@pytest.fixture
def time_at(monkeypatch):
    monkeypatch.setattr(progress_display.time, "perf_counter", lambda: Clock.now)

    def at(seconds):
        Clock.now = seconds

    at(100.0)
    return at


def train_record(step):
    return {"step": step, "loss": 2.5, "forward_passes": 1000 * step, "dropped": 0}


def test_plain_lines_are_rare_and_hold_all_figures(time_at):
    output = io.StringIO()
    display = ProgressDisplay(Console(file=output, width=60), progress=0.5, step=10, forward_passes=10_000)
    with display:
        for second in range(1, 21):
            time_at(100.0 + second)
            if second == 5:
                display.evaluated({"split": "validation", "loss": 2.0, "bits_per_byte": 2.885})
            display.trained(train_record(10 + 2 * second), 0.5 + second / 50)
    lines = output.getvalue().splitlines()
    assert lines == [
        "step 12  loss 2.500  2.0 steps/s  2k forward passes/s  0:24 left",
        "step 32  loss 2.500  validation 2.885 bits/byte  2.0 steps/s  2k forward passes/s  0:14 left",
    ]


def test_the_last_step_is_always_shown_with_dropped_members(time_at):
    output = io.StringIO()
    start = {"progress": 0.0, "step": 0, "forward_passes": 0}
    display = ProgressDisplay(Console(file=output), **start, objective="token-error")
    with display:
        display.evaluated({"split": "overfit batch", "loss": 2.0, "bits_per_byte": None, "objective": 0.5})
        time_at(101.0)
        display.trained(train_record(1), 0.5)
        time_at(102.0)
        display.trained(train_record(2) | {"dropped": 3}, 1.0)
    assert output.getvalue().splitlines()[-1] == (
        "step 2  loss 2.500  overfit batch 0.500 token-error, 2.000  3 members dropped  1.0 steps/s  "
        "1k forward passes/s  0:00 left"
    )


def test_a_terminal_gets_a_bar_that_goes_away():
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=120)
    with ProgressDisplay(console, progress=0.0, step=0, forward_passes=0) as display:
        display.trained(train_record(1), 0.25)
        display._bar.refresh()
    assert "25%" in output.getvalue()
    assert "loss 2.500" in output.getvalue()


def test_figures_are_short():
    assert [shorten(number) for number in (0, 12.34, 999, 1000, 123_456, 7e6, 2e9)] == [
        *("0", "12.3", "999", "1k", "123k", "7M", "2G"),
    ]
    assert [clock(seconds) for seconds in (0, 59.6, 3599, 3600)] == ["0:00", "1:00", "59:59", "1:00:00"]
