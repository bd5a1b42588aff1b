"""The run's folder: refused before anything is written, and nothing removed that is not the run's."""

import pytest

from zorn.errors import ConfigError
from zorn.training.presets import PRESETS
from zorn.training.run_folder import RunFolder

CONFIG = PRESETS["quickstart"]


def test_a_new_folder_is_made_with_its_parents_and_the_settings(tmp_path):
    folder = RunFolder(tmp_path / "a" / "b")
    folder.check_new(overwrite=False)
    assert not (tmp_path / "a").exists()
    folder.create(CONFIG, overwrite=False)
    assert folder.read_config() == CONFIG
    assert [entry.name for entry in folder.path.iterdir()] == ["config.json"]


def test_an_empty_folder_is_used(tmp_path):
    RunFolder(tmp_path).create(CONFIG, overwrite=False)


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
        RunFolder(tmp_path / "run").create(CONFIG, overwrite=False)


def test_an_earlier_run_is_replaced_only_when_asked_and_other_files_stay(tmp_path):
    folder = RunFolder(tmp_path)
    folder.create(CONFIG, overwrite=False)
    (folder.checkpoints / "step-00000001").mkdir(parents=True)
    folder.tensorboard.mkdir()
    for path in (folder.summary, folder.curve, folder.sample, folder.metrics, folder.tokenizer):
        path.write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(
        ConfigError, match="is not empty: choose another --out, or replace the run with --overwrite"
    ):
        folder.create(CONFIG, overwrite=False)
    assert folder.summary.read_text() == "old"
    folder.create(CONFIG, overwrite=True)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["config.json", "notes.txt"]


def test_a_folder_of_other_things_is_never_overwritten(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="holds other files than a run's"):
        RunFolder(tmp_path).create(CONFIG, overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"is not the folder of a run: it has no config\.json"):
        RunFolder(tmp_path).read_config()
