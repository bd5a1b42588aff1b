"""The comparison with the paper's scheme: the scheme itself, what is counted, what is made of the runs."""

import doctest
import json
import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import paper_scheme
import versus_paper
import versus_paper_report
from contest import Point, Run, judge_validation
from paper_scheme import DIVERGED, PaperScheme, plain_logits, train_by_paper
from results import Results
from versus_paper_report import (
    COSTS,
    FREE,
    MARKS,
    PAPER,
    SINGLE,
    TIED,
    cost_records,
    run_records,
    speedup_records,
    tuned_settings,
)

import zorn
from zorn.models import row_losses
from zorn.tasks import TokenCrossEntropy

TASK = versus_paper.make_task(4, 0)
BATCH = TASK.training_batch(0)


def small_model(heads=1, seed=0):
    return zorn.LanguageModel(TASK.vocabulary, 12, num_heads=heads, seed=seed)


def scheme_on(model, **settings):
    return PaperScheme(model, **{"population": 3, "epsilon": 0.01, "learning_rate": 0.1, **settings})


def weights_of(model):
    return torch.cat([weight.detach().flatten().clone() for weight in model.parameters()])


def directions(scheme, members):
    """The directions of some members, one a row: what a shift by 1 adds to weights of zero."""
    before = [weight.detach().clone() for weight in scheme.weights]
    found = []
    for member in members:
        for weight in scheme.weights:
            weight.detach().zero_()
        scheme.shift(member, 1.0)
        found.append(weights_of(scheme.model))
    for weight, value in zip(scheme.weights, before, strict=True):
        weight.detach().copy_(value)
    return torch.stack(found)


# --------------------------------------------------------------------------------- the scheme


@pytest.mark.parametrize("heads", [1, 4])
def test_the_plain_loop_computes_what_the_model_does(heads):
    model = small_model(heads)
    torch.testing.assert_close(plain_logits(model, BATCH.inputs), model(BATCH.inputs)[0])


def test_its_loss_is_the_mean_over_the_tokens_that_count():
    model = small_model()
    expected = row_losses(model, BATCH, TokenCrossEntropy()).mean().detach()
    assert scheme_on(model).loss(BATCH) == pytest.approx(float(expected), rel=1e-5)


def test_directions_are_signs_of_a_seed_step_and_member():
    z = directions(scheme_on(small_model()), range(8))
    assert set(z.unique().tolist()) == {-1.0, 1.0}
    size = z.shape[1]
    products = z @ z.t() / size  # of independent signs: standard error size^-1/2
    assert torch.equal(products.diagonal(), torch.ones(8))
    assert (products - torch.eye(8)).abs().max() < 5 * size**-0.5
    assert torch.equal(z[:3], directions(scheme_on(small_model(seed=1)), range(3)))
    assert not torch.equal(z[0], directions(scheme_on(small_model(), seed=1), [0])[0])


def test_a_coefficient_is_the_difference_along_its_direction_and_leaves_the_weights():
    model = small_model().double()
    scheme, before = scheme_on(model), weights_of(model)
    (z,) = directions(scheme, [5])
    found = scheme.coefficient(5, BATCH)
    torch.testing.assert_close(weights_of(model), before, rtol=0, atol=1e-14)
    losses = []
    for sign in (1, -1):
        torch.nn.utils.vector_to_parameters(before + sign * 0.01 * z, list(model.parameters()))
        losses.append(float(row_losses(model, BATCH, TokenCrossEntropy()).mean().detach()))
    assert found == pytest.approx((losses[0] - losses[1]) / 0.02, rel=1e-6)  # the loss is of float64


def test_a_step_moves_the_weights_by_the_mean_of_the_weighted_directions():
    model = small_model().double()
    scheme, before = scheme_on(model), weights_of(model)
    for step in range(2):
        members = range(3 * step, 3 * step + 3)
        z = directions(scheme, members)
        c = torch.tensor([scheme.coefficient(member, BATCH) for member in members], dtype=torch.float64)
        before = weights_of(model)
        assert scheme.step(BATCH) == 2 * 3 * 4
        torch.testing.assert_close(weights_of(model), before - 0.1 * (c @ z) / 3, rtol=0, atol=1e-9)


def test_the_scheme_overfits_a_batch_and_counts_its_passes():
    task = zorn.tasks.CopyTask(batch=2, minimum_length=1, maximum_length=1, seed=0, overfit=True)
    model = zorn.LanguageModel(task.vocabulary, 8)
    scheme = scheme_on(model, population=32, learning_rate=1.0)
    run = train_by_paper(scheme, task, judge_validation, seconds=20, stop_below=1.0)
    last = run.points[-1]
    assert last.loss < 1.0 < run.points[0].loss
    assert [point.passes for point in run.points] == [128 * point.steps for point in run.points]
    assert all(a.seconds < b.seconds for a, b in zip(run.points, run.points[1:], strict=False))


def test_training_ends_with_its_time_and_when_it_diverges():
    run = train_by_paper(scheme_on(small_model()), TASK, judge_validation, seconds=0.03)
    assert run.points[-2].seconds < 0.03 <= run.points[-1].seconds
    wild = scheme_on(small_model(), learning_rate=1e4)
    run = train_by_paper(wild, TASK, judge_validation, seconds=20)
    assert not run.points[-1].loss <= DIVERGED
    assert run.points[-2].loss <= DIVERGED


# --------------------------------------------------------------------------------- what is measured


def test_every_method_of_a_cost_takes_the_same_passes(monkeypatch):
    job, counted = versus_paper.Cost(10_000, 4, 1), {}
    steps = job.steps()
    for name, real in (("estimate", zorn.CDRGE.estimate), ("step", PaperScheme.step)):

        def counting(*arguments, real=real):
            found = real(*arguments)
            counted["passes"] = found if isinstance(found, int) else found.forward_passes
            return found

        monkeypatch.setattr(zorn.CDRGE if name == "estimate" else PaperScheme, name, counting)
    assert tuple(steps) == COSTS
    for step in steps.values():
        step()
        assert counted.pop("passes") == 2 * job.members * job.batch


def test_costs_are_per_member_and_per_pass():
    seconds = {PAPER: 8.0, COSTS[1]: 4.0, SINGLE: 2.0}
    run = Run([Point(number, 64, 1.0, 0.0, seconds) for number in (1, 2)], 0)
    found = {rows[0].settings["method"]: rows for rows in cost_records((100, 16), 2, 99, run)}
    for name, members, sequences in ((PAPER, 2, 16), (COSTS[1], 2, 16), (SINGLE, 32, 1)):
        values = {record.name: record.value for record in found[name]}
        assert values["seconds_per_member"] == seconds[name] / members
        assert values["seconds_per_pass"] == seconds[name] / 64
        assert values["paper_over_this"] == 8.0 / seconds[name]
        assert found[name][0].settings["sequences_of_a_member"] == sequences


@pytest.mark.parametrize("name", list(versus_paper.ZORN))
def test_zorn_is_what_it_chooses_itself(name):
    method = versus_paper.zorn_method(name, 100_000, 16)
    assert method.estimator.name == versus_paper.ZORN[name]
    assert method.estimator.epsilon is not None
    assert method.optimizer.learning_rate is not None
    assert ("perturbation" in method.estimator.given) == (name == "rank-one")


@pytest.mark.parametrize(
    "job",
    [
        versus_paper.Training("activity", 10_000, 4, 0, 0.05),
        versus_paper.Training(FREE, 10_000, 4, 0, 0.05, 0.3, 0.02),
        versus_paper.Cost(10_000, 4, 1),
    ],
    ids=["zorn", "paper", "cost"],
)
def test_a_job_goes_to_its_process_and_comes_back_as_a_run(job, capsys):
    versus_paper._child(versus_paper._words(job))
    found = json.loads(capsys.readouterr().out)
    assert len(found["points"]) >= 1


# --------------------------------------------------------------------------------- what is made of it


def recorded(results, setting, method, reached, seed=0, **values):
    """Add a run that meets each mark at the second given for it (None: never) in a budget of 100 s."""
    points = [Point(0, 0, 0.0, 3.0, {"loss": 3.0})]
    for mark, second in zip(MARKS, reached, strict=True):
        if second is not None:
            points.append(Point(1, 1, second, mark - 0.01, {"loss": mark - 0.01}))
    records = run_records(
        setting,
        (1000, 16),
        method,
        seed=seed,
        seconds=100.0,
        tuned="words",
        trained_parameters=999,
        run=Run(points, 0),
        **values,
    )
    results.add(records, [[1, 1, 1.0, 2.0]])


def speedups(results):
    return {
        (record.settings["method"], record.settings["loss"]): (record.value, record.settings["at_least"])
        for records in speedup_records(results.rows())
        for record in records
    }


def test_speedups_are_over_the_better_scheme_and_bounds_where_neither_arrived(tmp_path):
    results = Results(tmp_path / "r.json")
    recorded(results, "training", TIED, (80.0, None), rate=0.1, epsilon=0.1)
    recorded(results, "training", FREE, (40.0, None), rate=1.0, epsilon=0.02)
    recorded(results, "training", "activity", (2.0, 4.0))
    recorded(results, "training", "rank-one", (20.0, None))
    found = speedups(results)
    assert found["activity", 1.0] == (20.0, False)
    assert found["activity", 0.5] == (25.0, True)
    assert found["rank-one", 1.0] == (2.0, False)
    assert math.isnan(found["rank-one", 0.5][0])


def test_speedups_are_of_medians_over_seeds(tmp_path):
    results = Results(tmp_path / "r.json")
    for seed, (paper, zorns) in enumerate([(10.0, 1.0), (30.0, 2.0), (None, 9.0)]):
        recorded(results, "training", FREE, (paper, None), seed=seed, rate=1.0, epsilon=0.02)
        recorded(results, "training", "activity", (zorns, None), seed=seed)
    assert speedups(results)["activity", 1.0] == (15.0, False)


def test_the_paper_trains_at_the_best_rate_that_was_searched_elsewhere(tmp_path):
    results = Results(tmp_path / "r.json")
    with pytest.raises(LookupError, match="run --part tune"):
        versus_paper.training_jobs([FREE], [(1000, 16)], versus_paper.QUICK, results)
    for rate, second in ((0.3, 50.0), (1.0, 20.0), (3.0, None)):
        recorded(results, "tuning", FREE, (second, None), seed=1000, rate=rate, epsilon=0.02)
    assert tuned_settings(results.rows(), FREE, (1000, 16)) == (1.0, 0.02)
    assert tuned_settings(results.rows(), FREE, (2000, 16)) is None
    (job,) = versus_paper.training_jobs([FREE], [(1000, 16)], versus_paper.QUICK, results)
    assert (job.rate, job.epsilon, job.seed) == (1.0, 0.02, 0)


def test_the_search_adds_each_point_and_goes_on_beyond_an_edge(tmp_path, monkeypatch):
    results = Results(tmp_path / "r.json")

    def trained(jobs, results, at_once, setting):
        for job in jobs:
            assert job.rate == job.epsilon
            recorded(results, setting, TIED, (abs(job.rate - 9), None), rate=job.rate, epsilon=job.epsilon)

    monkeypatch.setattr(versus_paper, "train_all", trained)
    plan = {"tuning_seconds": 1.0, "grids": {TIED: {"rate": (1.0, 3.0)}}, "extensions": 3}
    versus_paper.tune(TIED, (1000, 16), plan, results, 1)
    assert tuned_settings(results.rows(), TIED, (1000, 16)) == (9.0, 9.0)


def test_page_and_picture(tmp_path):
    results = Results(tmp_path / "versus_paper.json")
    versus_paper.show(results, tmp_path / "p.png")
    assert not (tmp_path / "p.png").exists()
    run = Run([Point(1, 2048, 1.0, 0.0, dict.fromkeys(COSTS, 4.0))], 0)
    for records in cost_records((100_000, 64), 8, 93_005, run):
        results.add(records, [])
    recorded(results, "training", TIED, (None, None), rate=0.1, epsilon=0.1)
    recorded(results, "training", "activity", (2.0, 4.0))
    versus_paper.show(results, tmp_path / "p.png")
    versus_paper.show(results, tmp_path / "p.png")  # again: nothing is doubled
    page = (tmp_path / "versus_paper.md").read_text()
    assert page.count("| 1,000 | 16 | activity | ≥ 50 | ≥ 25 |") == 1
    assert page.count("| 100,000 | 64 | paper | 0.5 |") == 1
    assert "0.0202" in page
    assert (tmp_path / "p.png").stat().st_size > 10_000


def test_documented_examples():
    for module in (paper_scheme, versus_paper, versus_paper_report):
        assert doctest.testmod(module).failed == 0
