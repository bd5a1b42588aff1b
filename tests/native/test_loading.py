"""Compiled libraries that are damaged or poor: a warning with what to do, never the end of the process."""

import ctypes
import logging
import shutil
import sys
from pathlib import Path

import pytest
import torch

from zorn.native import available, has_rollout, loading
from zorn.native import rollout as rollouts


@pytest.fixture
def library(monkeypatch, tmp_path):
    """A copy of the compiled library, which `loading.compiled` finds."""
    if available() is None:
        pytest.skip("the compiled kernels were not built")
    monkeypatch.delenv(loading.LIMITED_BY, raising=False)
    suffixes = loading.EXTENSION_SUFFIXES
    built = next(p for s in suffixes for p in Path(loading.__file__).parent.glob(f"_recurrent{s}"))
    monkeypatch.setattr(loading, "__file__", str(tmp_path / "loading.py"))
    return Path(shutil.copy(built, tmp_path))


@pytest.mark.skipif(sys.platform != "linux", reason="of ELF files")
@pytest.mark.parametrize("left", [0, 63, 64, 2000, 0.1, 0.5, 0.9, -1])
def test_a_library_that_is_cut_short_is_not_mapped(library, left, caplog, monkeypatch):
    """Mapped, it would end the process with a bus error."""
    data = library.read_bytes()
    library.write_bytes(data[: int(left * len(data)) if isinstance(left, float) else left])
    if left >= 64 or left < 0 or isinstance(left, float):  # of fewer bytes the loader sees that itself
        monkeypatch.setattr(ctypes, "CDLL", None)
    with caplog.at_level(logging.WARNING, logger="zorn"):
        assert loading.compiled.__wrapped__() is None
    assert "the compiled CPU kernels do not load" in caplog.text
    assert "pip install ." in caplog.text


def test_a_whole_library_loads_without_a_word(library, caplog):
    with caplog.at_level(logging.WARNING, logger="zorn"):
        assert loading.compiled.__wrapped__() is not None
    assert not caplog.records


class Poor:
    """A library of a compiler that built the instruction sets up to `widest`."""

    def __init__(self, widest, *, packed=False):
        self.zorn_interface = lambda: loading.INTERFACE
        self.zorn_instruction_set = lambda: loading.INSTRUCTION_SETS.index(widest)
        self.zorn_has_rollout = lambda is_bfloat16: 0
        if packed:
            self.zorn_rollout = lambda *_: None


@pytest.mark.parametrize(
    ("poor", "processor", "warned"),
    [
        (Poor("baseline"), "AVX512", True),
        (Poor("baseline"), "AVX2", True),
        (Poor("baseline"), "DEFAULT", False),
        (Poor("baseline"), "SVE256", False),
        (Poor("avx2"), "AVX2", False),
        (Poor("avx512"), "AVX512", sys.platform == "linux"),
        (Poor("avx512", packed=True), "AVX512", False),
    ],
)
def test_a_library_poorer_than_the_processor_is_told(poor, processor, warned, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: processor)
    instruction_set, packed = poor.zorn_instruction_set(), hasattr(poor, "zorn_rollout")
    assert loading._uses_the_processor(instruction_set, has_rollout=packed) is not warned


def test_the_advice_for_a_poor_library_is_another_compiler(library, caplog, monkeypatch):
    monkeypatch.setattr(loading, "_uses_the_processor", lambda *_, **__: False)
    with caplog.at_level(logging.INFO, logger="zorn"):
        assert loading.compiled.__wrapped__() is not None
    assert caplog.text.count("CC=gcc pip install") == 1


def test_what_was_not_compiled_is_not_put_down_to_the_processor(monkeypatch, caplog):
    monkeypatch.setattr(rollouts, "compiled", lambda: Poor("baseline"))
    with caplog.at_level(logging.INFO, logger="zorn"):
        assert not has_rollout.__wrapped__(torch.float32)
    assert not caplog.records
