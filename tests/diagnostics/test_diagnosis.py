"""All diagnostics together: as JSON, table and picture."""

import json
import math

import pytest
import torch
from noisy import BATCH, Noisy, Plane, value
from rich.console import Console

import zorn
from zorn.diagnostics import diagnose
from zorn.models import Batch
from zorn.tasks import TokenCrossEntropy


def text(diagnosis):
    console = Console(width=160)
    with console.capture() as captured:
        console.print(diagnosis.table())
    return captured.get()


@pytest.fixture(scope="module", params=[True, False], ids=["exact", "forward only"])
def diagnosis(request):
    tokens = torch.randint(0, 7, (4, 6), generator=torch.Generator().manual_seed(0))
    batch = Batch(tokens[:, :-1], tokens[:, 1:])
    estimator = zorn.CDRGE(population=16, epsilon=0.02, group_size=1)
    model = zorn.LanguageModel(7, 6)
    return diagnose(model, batch, TokenCrossEntropy(), estimator, estimates=8, exact=request.param)


def test_json_holds_all_of_it(diagnosis):
    read = json.loads(diagnosis.to_json(), parse_constant=pytest.fail)
    whole = diagnosis.signal.whole
    assert read["signal"]["whole"]["snr"]["mean"] == whole.snr.mean
    assert (read["signal"]["whole"]["cosine"] is None) == (whole.cosine is None)
    assert len(read["signal"]["layers"]) == len(diagnosis.signal.layers)
    assert [point["epsilon"] for point in read["epsilon"]["points"]] == [
        point.epsilon for point in diagnosis.epsilon.points
    ]
    assert read["signal"]["ladder"][-1]["snr"]["standard_error"] is None
    assert read["step"]["best"]["learning_rate"] == diagnosis.step.best.learning_rate


def test_the_table_tells_it(diagnosis):
    shown = text(diagnosis)
    exact = diagnosis.signal.whole.cosine is not None
    for layer in diagnosis.signal.layers:
        assert layer.name in shown
    assert f"recommended epsilon {diagnosis.epsilon.epsilon:.3g}" in shown
    assert ("cosine to the gradient" in shown) == exact
    assert ("a bias is not seen" in shown) == (not exact)
    assert f"{diagnosis.step.best.learning_rate:.3g} of plain SGD" in shown


def test_the_picture_is_drawn(diagnosis, tmp_path):
    diagnosis.draw(tmp_path / "diagnosis.png")
    assert (tmp_path / "diagnosis.png").read_bytes().startswith(b"\x89PNG")


def test_an_estimator_without_epsilon_or_signal(tmp_path):
    found = diagnose(Plane(), BATCH, value, Noisy(1e9, angle=math.pi), estimates=4)
    assert found.epsilon is None
    assert found.signal.fit is None or found.signal.fit.ceiling <= 1
    found.draw(tmp_path / "diagnosis.png")
    shown = text(found)
    assert "epsilon" not in shown


def test_an_objective_without_derivative_needs_forward_passes_only():
    model, tokens = zorn.LanguageModel(7, 6), torch.zeros(2, 3, dtype=torch.int64)
    objective = zorn.tasks.OBJECTIVES["token-error"]()
    estimator = zorn.CDRGE(population=16, epsilon=0.2, group_size=None)
    with pytest.raises(zorn.errors.ConfigError, match="differentiate"):
        diagnose(model, Batch(tokens, tokens), objective, estimator, estimates=4)
    found = diagnose(model, Batch(tokens, tokens), objective, estimator, estimates=4, exact=False)
    assert found.signal.whole.cosine is None
