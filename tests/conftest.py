"""What all tests share."""

import importlib
import importlib.util
import os
import signal

os.environ["OMP_NUM_THREADS"] = "1"  # also for what tests start: each core has a worker, and models are tiny

import hypothesis
import pytest
import torch


def pytest_sessionstart() -> None:
    """Without a GPU the kernels are tested in Triton's interpreter. That is decided when they are imported,
    so they are imported here, before any test module can do so."""
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("triton") is not None and not torch.cuda.is_available():
            patch.setenv("TRITON_INTERPRET", "1")
        importlib.import_module("zorn.kernels.language")


hypothesis.settings.register_profile("untimed", deadline=None)  # a machine may be slow, or busy
hypothesis.settings.load_profile("untimed")


def pytest_configure() -> None:
    """One thread, whatever imported torch before; and signals as a terminal gives them: a process started in
    the background or by nohup ignores some, and so would every run that the tests start and stop."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
