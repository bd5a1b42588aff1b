"""The folder of a run that is given no name."""

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

from zorn.cli import main
from zorn.run.folder import claimed, free_path


def test_runs_that_start_in_the_same_second_get_folders_of_their_own(tmp_path):
    first, second = free_path(tmp_path / "runs"), tmp_path / "runs" / "same"
    assert not first.exists()
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: claimed(second), range(24)))
    assert len(set(made)) == 24
    assert all(path.is_dir() for path in made)
    assert {path.name for path in made} == {"same", *(f"same-{number}" for number in range(2, 25))}


def test_a_name_that_is_taken_is_not_free(tmp_path, monkeypatch):
    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2030, 1, 2, 3, 4, 5)

    monkeypatch.setattr("zorn.run.folder.datetime", Clock)
    assert free_path(tmp_path).name == "2030-01-02-030405"
    claimed(free_path(tmp_path))
    assert free_path(tmp_path).name == "2030-01-02-030405-2"


def test_two_runs_without_a_name_in_one_second(tmp_path, monkeypatch):
    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 1, 1)

    monkeypatch.setattr("zorn.run.folder.datetime", Clock)
    monkeypatch.chdir(tmp_path)
    words = ["train", "--task", "copy", "--batch", "2", "--hidden-size", "4", "--steps", "1"]
    assert main(words) == main(words) == 0
    folders = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert folders == ["2031-01-01-000000", "2031-01-01-000000-2"]
    assert all((tmp_path / "runs" / name / "summary.json").exists() for name in folders)
