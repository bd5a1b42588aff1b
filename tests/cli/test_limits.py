"""Out of memory is one line that names the command that proposes settings; other errors stay as they are."""

import pytest
import torch

from zorn.cli import entry
from zorn.config import BudgetConfig, Config
from zorn.errors import ConfigError
from zorn.training import build as building

REFUSED = "DefaultCPUAllocator: can't allocate memory: you tried 4 TiB\nat 0x1"


def failing(error):
    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize("error", [RuntimeError(REFUSED), torch.OutOfMemoryError(REFUSED), MemoryError()])
def test_any_command_without_memory_ends_in_one_line_with_flags_that_exist(error, monkeypatch, capsys):
    monkeypatch.setattr(entry, "_run", failing(error))
    assert entry.main(["train"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "zorn: this does not fit into the memory (" in line
    assert "zorn plan with these settings and --fit 8GiB" in line
    monkeypatch.undo()
    assert entry.main(["train", "--help-all"]) == 0
    known = capsys.readouterr().out
    assert all(flag in known for flag in ("--batch", "--population", "--micro-batch") if flag in line)
    assert "--members" not in line


@pytest.mark.parametrize("error", [RuntimeError(REFUSED), MemoryError()])
def test_a_model_without_memory_names_the_planner(error, monkeypatch):
    monkeypatch.setattr(building, "model_of", failing(error))
    with pytest.raises(ConfigError, match=r"does not fit into the memory of cpu .*zorn plan .* --fit 8GiB"):
        building.build_model(Config(budget=BudgetConfig(steps=1)), 7)


def test_another_error_of_a_model_is_not_put_down_to_memory(monkeypatch):
    monkeypatch.setattr(building, "model_of", failing(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match=r"^shapes differ$"):
        building.build_model(Config(budget=BudgetConfig(steps=1)), 7)
