"""The run's folder: refused before anything is written, and nothing removed that is not the run's."""

import dataclasses
import json
from pathlib import Path

import pytest

from zorn.config import PRESETS, resolve
from zorn.errors import ConfigError
from zorn.run.folder import RunFolder
from zorn.tasks import AlphabetTokenizer

ASKED = PRESETS["quickstart"]
CONFIG = resolve(ASKED)[0]


def test_a_new_folder_is_made_with_its_parents_and_the_settings(tmp_path):
    folder = RunFolder(tmp_path / "a" / "b")
    folder.check_new(overwrite=False)
    assert not (tmp_path / "a").exists()
    folder.create(ASKED, CONFIG, overwrite=False)
    assert folder.read_config() == CONFIG
    assert folder.read_asked() == ASKED
    assert list(json.loads(folder.config.read_text())) == ["asked", "resolved"]
    assert [entry.name for entry in folder.path.iterdir()] == ["config.json"]


def test_an_empty_folder_is_used(tmp_path):
    RunFolder(tmp_path).create(ASKED, CONFIG, overwrite=False)


def test_a_file_in_the_way_is_named(tmp_path):
    file = tmp_path / "file"
    file.write_text("kept")
    for path in (file, file / "run" / "deeper"):
        with pytest.raises(
            ConfigError, match=r"cannot make the folder .*: .*file is a file: choose another --out"
        ):
            RunFolder(path).check_new(overwrite=True)
    assert file.read_text() == "kept"


def test_a_folder_without_permission_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(
        ConfigError, match=r"cannot write to .*: choose another --out, or change its permissions"
    ):
        RunFolder(tmp_path / "run").check_new(overwrite=False)


def test_a_system_that_refuses_is_one_clear_error(tmp_path, monkeypatch):
    def refuse(self, **options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(
        ConfigError, match=r"cannot write to .* \(Read-only file system\): choose another --out"
    ):
        RunFolder(tmp_path / "run").create(ASKED, CONFIG, overwrite=False)


def test_an_earlier_run_is_replaced_only_when_asked_and_other_files_stay(tmp_path):
    folder = RunFolder(tmp_path)
    folder.create(ASKED, CONFIG, overwrite=False)
    (folder.checkpoints / "step-00000001").mkdir(parents=True)
    folder.tensorboard.mkdir()
    for path in (folder.summary, folder.curve, folder.sample, folder.metrics, folder.tokenizer):
        path.write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(
        ConfigError, match="is not empty: choose another --out, or replace the run with --overwrite"
    ):
        folder.create(ASKED, CONFIG, overwrite=False)
    assert folder.summary.read_text() == "old"
    folder.create(ASKED, CONFIG, overwrite=True)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["config.json", "notes.txt"]


def test_a_folder_of_other_things_is_never_overwritten(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="holds other files than a run's"):
        RunFolder(tmp_path).create(ASKED, CONFIG, overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def contents(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.fixture
def earlier(tmp_path):
    """A folder with an earlier run in it."""
    folder = RunFolder(tmp_path)
    folder.create(ASKED, CONFIG, overwrite=False)
    (folder.checkpoints / "step-00000001").mkdir(parents=True)
    (folder.checkpoints / "step-00000001" / "manifest.json").write_text("old")
    folder.tensorboard.mkdir()
    for path in (folder.summary, folder.curve, folder.sample, folder.metrics):
        path.write_text("old")
    return folder


@pytest.mark.parametrize("content", ['{"name": "a web application"}', "{", "[]", "", b"\xff\xfe"])
def test_a_foreign_config_json_is_no_run(earlier, content):
    """Many a project has a file of this name."""
    earlier.config.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = contents(earlier.path)
    with pytest.raises(
        ConfigError, match=r"--overwrite replaces nothing but a run of this zorn, and .*config"
    ):
        earlier.create(ASKED, CONFIG, overwrite=True)
    assert contents(earlier.path) == before


OTHER = dataclasses.replace(CONFIG, run=dataclasses.replace(CONFIG.run, seed=5))


@pytest.mark.parametrize("operation", ["rename", "mkdir", "replace", "write_text"])
@pytest.mark.parametrize("call", range(9))
def test_a_system_that_refuses_in_the_middle_leaves_the_earlier_run_whole(
    earlier, monkeypatch, operation, call
):
    """Each call of each operation refused once (simulated: the tests may run as root, whom chmod does not
    stop)."""
    before = contents(earlier.path)
    whole = getattr(Path, operation)
    calls = []

    def refuse_one(self, *arguments, **options):
        calls.append(self)
        if len(calls) == call + 1:
            raise OSError(28, "No space left on device")
        return whole(self, *arguments, **options)

    monkeypatch.setattr(Path, operation, refuse_one)
    refused = None
    try:
        earlier.create(ASKED, OTHER, overwrite=True, tokenizer="{}")
    except ConfigError as error:
        refused = str(error)
    assert (refused is not None) == (len(calls) > call), "each refusal is told, and none made up"
    if refused is not None:
        assert "No space left on device" in refused
        assert contents(earlier.path) == before
    else:
        assert earlier.read_config() == OTHER


def test_a_folder_that_cannot_be_written_keeps_its_run(earlier, monkeypatch):
    before = contents(earlier.path)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ConfigError, match="cannot write to"):
        earlier.create(ASKED, OTHER, overwrite=True)
    with pytest.raises(ConfigError, match=r"cannot write to .*: change its permissions, or copy the run"):
        earlier.check_resumable()
    assert contents(earlier.path) == before


def test_what_a_killed_overwrite_left_is_cleared_by_the_next(earlier):
    (earlier.path / ".replaced").mkdir()
    earlier.metrics.rename(earlier.path / ".replaced" / "metrics.jsonl")
    earlier.create(ASKED, OTHER, overwrite=True)
    assert [entry.name for entry in earlier.path.iterdir()] == ["config.json"]


def test_a_lock_alone_is_no_run(tmp_path):
    """As a process leaves it that was killed before it wrote more."""
    (tmp_path / ".lock").write_text("1\n")
    RunFolder(tmp_path).create(ASKED, CONFIG, overwrite=False)


def test_a_tokenizer_that_is_gone_is_an_error(tmp_path):
    folder = RunFolder(tmp_path)
    with pytest.raises(
        ConfigError, match=r"tokenizer\.json is missing.*restore it from a copy or train again"
    ):
        folder.read_tokenizer("alphabet")
    folder.create(ASKED, CONFIG, overwrite=False, tokenizer=AlphabetTokenizer(b"ab").to_json())
    assert folder.read_tokenizer("alphabet").vocabulary == 3


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"is not the folder of a run: it has no config\.json"):
        RunFolder(tmp_path).read_config()
