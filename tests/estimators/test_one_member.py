"""One member, and a shaping that makes nothing of it: refused before any work."""

import pytest

from zorn.cli import main
from zorn.errors import ConfigError
from zorn.estimators import CDRGE, FDRGE, NRES, PES, SPSA15
from zorn.estimators.shaping import sign, std, zscore


@pytest.mark.parametrize("kind", [CDRGE, FDRGE, SPSA15, PES, NRES])
@pytest.mark.parametrize("shaping", ["zscore", "std", zscore, std])
def test_one_member_with_a_shaping_of_several_is_refused(kind, shaping):
    with pytest.raises(ConfigError, match=r"population must be at least 2 with shaping (zscore|std)"):
        kind(population=1, epsilon=0.1, shaping=shaping)
    estimator = kind(population=2, epsilon=0.1, shaping=shaping)
    with pytest.raises(ConfigError, match="population must be at least 2"):
        estimator.population = 1  # as a schedule would
    assert estimator.population == 2


@pytest.mark.parametrize("shaping", ["none", "sign", sign])
def test_one_member_is_enough_for_the_other_shapings(shaping):
    assert CDRGE(population=1, epsilon=0.1, shaping=shaping).population == 1


@pytest.mark.parametrize("members", [["--population", "1"], ["--population", "8", "--final-population", "1"]])
def test_the_command_refuses_before_it_makes_a_folder(members, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--task", "copy", "--batch", "2", "--hidden-size", "4", "--group-size", "2", "--steps", "2"]
    assert main(["train", "--estimator", "cd-rge", *words, *members, "--shaping", "std", "--out", "run"]) == 2
    assert "population must be at least 2 with shaping std" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
