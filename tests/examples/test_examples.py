"""Every example runs, and shows what it says."""

import contextlib
import copy
import functools
import importlib
import io
import re
from pathlib import Path

import pytest
import torch

import zorn
from zorn.noise.draw import Draw, noise, stream_of

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))

QUICK = {
    "ask_tell_processes": {"steps": 3},
    "black_box": {"steps": 40},
    "distributed": {"steps": 40},
    "fine_tune_metric": {"steps": 40, "pretraining": 300},
    "foreign_module": {"steps": 40},
    "zero_order_in_100_lines": {"steps": 30, "members": 16},
}
"""What the tests run of each example that prints a figure before and after."""

ERRORS = {"black_box", "fine_tune_metric", "zero_order_in_100_lines"}
"""Those whose figure falls as the model gets better."""

LINES = {"zero_order_in_100_lines": 100}
"""The most lines of an example that may have more than 79."""


@pytest.fixture(scope="module")
def load():
    """Imports an example by its name, as its worker processes do."""
    with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "examples"))
        yield importlib.import_module


@pytest.fixture(scope="module")
def ran(load):
    """The figures before and after, and what was printed, of the quick run of an example."""

    @functools.cache
    def run(name):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            before, after = load(name).main(**QUICK[name])
        return before, after, printed.getvalue()

    return run


def test_the_own_loop_learns_through_a_step_that_has_no_derivative(load):
    assert load("own_loop").main(steps=120) == 1.0


def test_the_own_loop_learns_nothing_without_training(load):
    assert load("own_loop").main(steps=0) < 1.0


@pytest.mark.parametrize("name", QUICK)
def test_the_figure_that_an_example_ends_with_gets_better(name, ran):
    before, after, printed = ran(name)
    shown = re.search(r"([\d.]+) before, ([\d.]+) after", printed.splitlines()[-1])
    assert shown is not None, printed
    assert [float(figure) for figure in shown.groups()] == pytest.approx([before, after], abs=5e-4)
    assert (before - after if name in ERRORS else after - before) > 0.1


@pytest.mark.parametrize("name", ["black_box", "foreign_module", "zero_order_in_100_lines"])
def test_without_training_the_figure_stays_the_same(name, load):
    before, after = load(name).main(steps=0)
    assert before == after


def test_fine_tuning_lowers_what_more_cross_entropy_does_not(load, ran):
    before, after, printed = ran("fine_tune_metric")
    longer, _ = load("fine_tune_metric").main(steps=0, pretraining=360)
    assert abs(longer - before) < 0.1 < longer - after
    first, last = (float(nats) for nats in re.findall(r"cross-entropy ([\d.]+)$", printed, re.MULTILINE))
    assert last > first  # told, not hidden


def test_the_replicas_end_at_the_weights_of_one_process(ran):
    assert "the same weights: True" in ran("ask_tell_processes")[-1]


def test_the_score_can_be_called_in_worker_processes(load):
    module = load("black_box")
    assert module.main(steps=2, processes=1) == module.main(steps=2)


def test_the_rule_of_the_foreign_layer_is_right(load):
    """It gives the gradient that the layer gives member by member, of the same noise."""
    module = load("foreign_module")
    model, letters = module.Transformer().double(), torch.randint(4, (6, 9))
    batch = zorn.Batch(letters, letters[:, 0])
    gradients = []
    for rule in (module.DyTRule(), zorn.noise.MemberwiseRule()):
        zorn.register_rule(module.DyT, rule)
        estimator = zorn.CDRGE(population=6, epsilon=0.1, group_size=1)
        estimator.estimate(model, batch, torch.nn.CrossEntropyLoss(reduction="none"))
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)


def test_the_method_on_one_page_is_cd_rge_with_dense_directions(load):
    """The same directions give the same weights as zorn's, step after step, to rounding in float64."""
    page = load("zero_order_in_100_lines")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, (inputs, targets) = page.Network(hidden=6).double(), page.copy_batch()
    twin = copy.deepcopy(model)
    parameters, steps = list(model.parameters()), 3
    dense = zorn.Dense()
    estimator = zorn.CDRGE(population=5, group_size=None, epsilon=0.02, perturbation=dense, seed=7)
    optimizers = [torch.optim.Adam(each.parameters(), lr=0.02) for each in (model, twin)]

    def directions(step, member):
        draw, members = Draw(seed=7, step=step, epsilon=0.02), range(member, member + 1)
        return [
            noise("rademacher", draw, members, stream_of(i, 0), p.numel(), dtype=p.dtype, device=p.device)
            .view(p.shape)
            .clone()
            for i, p in enumerate(parameters)
        ]

    for step in range(steps):
        loss = functools.partial(page.loss_of, model, inputs, targets)
        mean = page.estimate(parameters, loss, functools.partial(directions, step), 5, 0.02)
        estimate = estimator.estimate(twin, zorn.Batch(inputs, targets), zorn.TokenCrossEntropy())
        assert mean == pytest.approx(estimate.loss, rel=1e-12)
        for mine, theirs in zip(parameters, twin.parameters(), strict=True):
            assert mine.grad.abs().max() > 0
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-11)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(parameters, list(twin.parameters()), rtol=1e-9, atol=1e-11)


def test_the_directions_of_the_page_are_signs_that_can_be_drawn_again(load):
    page = load("zero_order_in_100_lines")
    parameters = [torch.zeros(40, 30), torch.zeros(50)]
    signs = page.random_signs(parameters, 3, 4)
    torch.testing.assert_close(signs, page.random_signs(parameters, 3, 4), rtol=0, atol=0)
    for other in (page.random_signs(parameters, 3, 5), page.random_signs(parameters, 4, 4)):
        flat, again = (torch.cat([z.flatten() for z in both]) for both in (signs, other))
        assert bool((flat.abs() == 1).all())
        assert float(flat.mean().abs()) < 5 / len(flat) ** 0.5  # five standard errors
        assert float((flat * again).mean().abs()) < 5 / len(flat) ** 0.5


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_stays_short_and_says_what_it_shows(name, load):
    text = (ROOT / "examples" / f"{name}.py").read_text()
    assert len(text.splitlines()) <= LINES.get(name, 79)
    assert len(load(name).__doc__.split()) > 40


def test_every_example_has_a_test():
    assert set(EXAMPLES) == {"own_loop", "own_estimator", *QUICK}  # the latter: tests/estimators


def test_the_code_of_the_readme_learns_parity():
    _, _, rest = (ROOT / "README.md").read_text().partition("```python\n")
    names: dict = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(rest.partition("```")[0], names)
    right = names["model"](names["inputs"]).argmax(1) == names["batch"].targets
    assert bool(right.all())
