"""A cell from outside the package: every estimator takes it, the dial of the size counts it."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

import zorn
from zorn.errors import ConfigError
from zorn.models import CELLS, Cell, LanguageModel, parameter_count


class LeakyCell(Cell):
    """h' = a h + (1 - a) tanh(W x + R h); y = h'.

    Args:
        leak: a, from 0 up to 1.
    """

    input_maps = ("input_map",)
    state_maps = ("state_map",)

    def __init__(self, input_size, hidden_size, num_heads=1, *, leak: float = 0.5, generator=None):
        super().__init__()
        if num_heads != 1:
            raise ConfigError(f"num_heads is {num_heads}, but a LeakyCell has one: take num_heads=1.")
        self.input_map = nn.Linear(input_size, hidden_size)
        self.state_map = nn.Linear(hidden_size, hidden_size, bias=False)
        self.leak = leak
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.3, 0.3, generator=generator)

    def initial_state(self, rows):
        return self.state_map.weight.new_zeros(rows, self.state_map.in_features)

    def drive(self, x):
        return (self.input_map(x.transpose(0, 1)).transpose(0, 1),)

    def advance(self, drive_t, state):
        (drive,) = drive_t
        return state * self.leak + (drive + self.state_map(state)).tanh() * (1 - self.leak)

    def read(self, new, state):
        return new, new


ESTIMATORS = {
    "cd-rge": partial(zorn.CDRGE, population=512, epsilon=1e-3),
    "cd-rge, dense": partial(zorn.CDRGE, population=512, epsilon=1e-3, perturbation=zorn.Dense()),
    "pes": partial(zorn.PES, population=512, epsilon=1e-3),
    "activity": partial(zorn.ActivityCredit, epsilon=1e-3, draws=64),
    "bptt": zorn.BPTT,
    "tbptt": partial(zorn.TBPTT, truncation=3),
    "e-prop": zorn.EProp,
    "bridge": partial(zorn.Bridge, truncation=3, epsilon=1e-3, draws=64),
}
BATCH = zorn.Batch(*torch.randint(0, 5, (2, 8, 7), generator=torch.Generator().manual_seed(0)))
OBJECTIVE = zorn.TokenCrossEntropy()


def model_of(**options) -> LanguageModel:
    return LanguageModel(5, 4, cell=LeakyCell, **options)


def gradient(estimator, model: nn.Module) -> Tensor:
    for parameter in model.parameters():
        parameter.grad = None
    estimator.estimate(model, BATCH, OBJECTIVE)
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_takes_it(name):
    """512 perturbations for 81 weights; unrelated directions have a cosine of 0 ± 0.11."""
    model = model_of()
    found, exact = gradient(ESTIMATORS[name](), model), gradient(zorn.BPTT(), model)
    assert torch.nn.functional.cosine_similarity(found, exact, dim=0) > 0.6


def test_activity_noise_is_on_its_state_with_the_derivative_of_a_step():
    cell = LeakyCell(3, 4).double()
    bound = zorn.noise.Activity().bind(cell)
    (site,) = bound.sites
    assert set(site.targets) == {"input_map.weight", "input_map.bias", "state_map.weight"}
    x, h, g = torch.randn(3, 5, 3).double(), torch.randn(5, 4).double(), torch.randn(5, 4).double()
    found = site.rule.pullback(cell, g, x[0], h)
    expected = torch.autograd.grad(cell(x[0], h)[0], list(cell.parameters()), g)
    for value, wanted in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(value, wanted)


def test_e_prop_cuts_the_declared_map():
    model = model_of()
    found = gradient(zorn.EProp(), model)
    assert not torch.allclose(found, gradient(zorn.BPTT(), model))
    for cell in model.cells:
        nn.init.zeros_(cell.state_map.weight)  # nothing left to cut but the matrix's own gradient
    kept = [p for name, p in model.named_parameters() if "state_map" not in name]
    zorn.EProp().estimate(model, BATCH, OBJECTIVE)
    cut = [p.grad.clone() for p in kept]
    zorn.BPTT().estimate(model, BATCH, OBJECTIVE)
    for p, other in zip(kept, cut, strict=True):
        torch.testing.assert_close(p.grad, other)


def test_its_settings_reach_it_and_are_checked():
    assert [cell.leak for cell in model_of(cell_settings={"leak": 0.9}).cells] == [0.9]
    with pytest.raises(ConfigError, match="lek: cell LeakyCell has no such setting, it has leak"):
        model_of(cell_settings={"lek": 0.9})


def test_the_dial_of_the_size_counts_it():
    model = LanguageModel.with_parameters(5000, 5, cell=LeakyCell)
    assert abs(parameter_count(model) - 5000) < 200


def test_one_line_names_it(monkeypatch):
    monkeypatch.setitem(CELLS._entries, "leaky", LeakyCell)
    assert isinstance(LanguageModel(5, 4, cell="leaky").cells[0], LeakyCell)


def test_e_prop_refuses_a_cell_that_does_not_say_what_reads_its_state(monkeypatch):
    monkeypatch.delattr(LeakyCell, "state_maps")
    with pytest.raises(ConfigError, match="got LeakyCell, which does not"):
        zorn.EProp().estimate(model_of(), BATCH, OBJECTIVE)
