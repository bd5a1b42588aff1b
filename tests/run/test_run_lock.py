"""One process at a time: the lock is seen by others, and gone with its holder."""

import errno
import os
import signal

import pytest

from zorn.errors import ConfigError
from zorn.run.lock import locked


def test_a_second_holder_is_told_the_first_ones_process(tmp_path):
    with locked(tmp_path / "run"):
        with (
            pytest.raises(ConfigError, match=rf"run is in use by process {os.getpid()}: wait until it ends"),
            locked(tmp_path / "run"),
        ):
            pass
        with locked(tmp_path / "other"):
            pass
    with locked(tmp_path / "run"):
        pass


def test_a_holder_that_is_killed_leaves_no_lock(tmp_path):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with locked(tmp_path):
            os.write(writing, b"held")
            signal.pause()
    os.read(reading, 4)
    with pytest.raises(ConfigError, match=f"in use by process {child}:"), locked(tmp_path):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigError, match=r"cannot write to .*file/run \(.*\): change its permissions, or"),
        locked(tmp_path / "file" / "run"),
    ):
        pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EIO])
def test_only_a_file_system_without_locks_goes_without(tmp_path, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refuse)
    if code == errno.ENOLCK:
        with locked(tmp_path):
            pass
    else:
        with pytest.raises(OSError, match="Input/output error"), locked(tmp_path):
            pass


def test_a_system_without_flock_goes_without(tmp_path, monkeypatch):
    monkeypatch.setattr("zorn.run.lock.fcntl", None)
    with locked(tmp_path), locked(tmp_path):
        pass
