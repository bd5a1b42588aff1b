"""Two blocks never work on one model at once; a block in which nothing runs does nothing."""

import contextlib
import gc
import threading

import pytest
import torch
from torch import nn

from zorn.errors import ConfigError, UncoveredParameterError
from zorn.estimators import CDRGE
from zorn.models import Batch
from zorn.noise import Dense, Draw, MemberwiseRule, RankOne, open_blocks, register_rule
from zorn.noise.rules import rule as rules

DRAW = Draw(seed=4, step=9, epsilon=0.25)
STRUCTURES = {"rank one": RankOne(), "dense": Dense()}
PAIRS = [(one, other) for one in STRUCTURES for other in STRUCTURES]
each_structure = pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)
each_pair = pytest.mark.parametrize(("first", "second"), PAIRS)
ALREADY = "already perturbed in another block or thread: leave that `with` block"


def block(model, structure, member=0):
    return structure.bind(model).members(DRAW, range(member, member + 1), (1,))


def snapshot(model):
    parameters = [(p, p.data_ptr(), p.detach().clone()) for p in model.parameters()]
    return parameters, [sorted(module.__dict__) for module in model.modules()], list(model._forward_pre_hooks)


def assert_unchanged(model, before):
    parameters, attributes, hooks = snapshot(model)
    assert (attributes, hooks) == before[1:]
    for (p, place, value), (old, old_place, old_value) in zip(parameters, before[0], strict=True):
        assert p is old
        assert place == old_place
        assert torch.equal(value, old_value)


@pytest.fixture(autouse=True)
def _nothing_stays_open():
    yield
    assert not open_blocks._OPEN


@each_pair
def test_a_block_inside_another_is_refused_and_changes_nothing(first, second):
    model, x = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)), torch.ones(1, 3)
    before = snapshot(model)
    with torch.no_grad():
        with block(model, STRUCTURES[first]):
            inside, outputs = snapshot(model), model(x)
            with pytest.raises(ConfigError, match=ALREADY), block(model, STRUCTURES[second], 1):
                pytest.fail("the block was entered")
            assert_unchanged(model, inside)
            assert torch.equal(model(x), outputs)
        assert_unchanged(model, before)
        with block(model, STRUCTURES[second], 1):
            model(x)
        assert_unchanged(model, before)


@each_pair
def test_a_block_in_another_thread_is_refused(first, second):
    model, entered, leave, errors = nn.Linear(3, 3), threading.Event(), threading.Event(), []
    before = snapshot(model)

    def hold():
        with block(model, STRUCTURES[first]), torch.no_grad():
            model(torch.ones(1, 3))
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    assert entered.wait(10)
    with contextlib.suppress(StopIteration):
        try:
            with block(model, STRUCTURES[second], 1):
                errors.append("entered")
        except ConfigError as error:
            errors.append(str(error))
    leave.set()
    thread.join()
    assert len(errors) == 1
    assert "already perturbed" in errors[0]
    assert_unchanged(model, before)


@each_structure
def test_of_many_threads_each_block_is_whole_or_refused(structure):
    """Whatever the threads do, the weights come back: overlapping scratch copies would be put back in the
    wrong order."""
    model, barrier, entered, refused = nn.Linear(20, 20), threading.Barrier(4), [], []
    before = snapshot(model)

    def work(member):
        barrier.wait(10)
        for _ in range(30):
            try:
                with block(model, structure, member), torch.no_grad():
                    model(torch.ones(1, 20))
                entered.append(member)
            except ConfigError:
                refused.append(member)

    threads = [threading.Thread(target=work, args=(member,)) for member in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(entered) + len(refused) == 120
    assert entered
    assert_unchanged(model, before)


@each_structure
def test_two_models_are_perturbed_at_once(structure):
    one, other = nn.Linear(3, 3), nn.Linear(3, 3)
    with torch.no_grad(), block(one, structure), block(other, structure, 1):
        one(torch.ones(1, 3)), other(torch.ones(1, 3))


def replicas():
    one, other = nn.Linear(3, 3), nn.Linear(3, 3)
    other.weight, other.bias = one.weight, one.bias
    return one, other


def test_replicas_that_share_weights_run_side_by_side_where_weights_are_only_read():
    one, other = replicas()
    with torch.no_grad(), block(one, RankOne()), block(other, RankOne(), 1):
        first, second = one(torch.ones(1, 3)), other(torch.ones(1, 3))
    assert not torch.allclose(first, second)


@pytest.mark.parametrize(
    ("first", "second"), [("dense", "dense"), ("dense", "rank one"), ("rank one", "dense")]
)
def test_replicas_that_share_weights_are_refused_where_weights_are_moved(first, second):
    one, other = replicas()
    with block(one, STRUCTURES[first]), pytest.raises(ConfigError, match=ALREADY):
        block(other, STRUCTURES[second]).__enter__()


def test_a_memberwise_layer_moves_its_weights(monkeypatch):
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))
    register_rule(nn.PReLU, MemberwiseRule())
    one, other = nn.PReLU(), nn.PReLU()
    other.weight = one.weight
    with block(one, RankOne()), pytest.raises(ConfigError, match=ALREADY):
        block(other, RankOne()).__enter__()


def test_a_part_of_a_model_is_perturbed_within_it():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with block(model, RankOne()), pytest.raises(ConfigError, match=ALREADY):
        block(model[1], RankOne()).__enter__()


@each_structure
def test_an_estimate_within_an_objective_is_refused(structure):
    """The inner one would run on a model that is already moved."""
    model, batch = nn.Linear(3, 2), Batch(torch.ones(2, 3), torch.ones(2))
    options = {"population": 2, "epsilon": 0.1, "perturbation": structure}
    before = snapshot(model)

    def objective(outputs, targets):
        CDRGE(**options).estimate(model, batch, lambda outputs, targets: outputs.sum(1))
        return outputs.sum(1)

    with pytest.raises(ConfigError, match=ALREADY):
        CDRGE(**options).estimate(model, batch, objective)
    assert_unchanged(model, before)


@each_structure
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_stays_open_after_an_exception(structure, error):
    model = nn.Linear(3, 2)
    before = snapshot(model)
    with pytest.raises(error), block(model, structure):
        raise error
    assert_unchanged(model, before)
    with block(model, structure):
        pass


@each_structure
def test_nothing_stays_open_after_a_failure_to_open(structure, monkeypatch):
    model, bound = nn.Linear(3, 2), None
    before = snapshot(model)

    def fail(*arguments, **options):
        raise MemoryError

    kind = type(structure.bind(model))
    monkeypatch.setattr(kind, "_moved" if kind.__name__ == "_BoundDense" else "_factors", fail)
    bound = structure.bind(model)
    with pytest.raises(MemoryError), bound.members(DRAW, range(1), (1,)):
        pass
    assert_unchanged(model, before)


def test_a_block_that_was_forgotten_is_closed_and_nothing_keeps_the_model_alive():
    model = nn.Linear(3, 2)
    forgotten = block(model, Dense())
    forgotten.__enter__()
    assert open_blocks._OPEN
    del forgotten
    gc.collect()
    assert not open_blocks._OPEN
    with block(model, Dense()):
        pass


# ----------------------------------------------------------------------------------- what was never called


@each_structure
def test_a_block_in_which_the_model_never_runs_does_nothing(structure):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    before = snapshot(model)
    population = CDRGE(population=2, epsilon=0.1, perturbation=structure, group_size=None).ask(model)
    with population.perturbed(model, 1, -1):
        pass
    assert_unchanged(model, before)


class Skips(nn.Module):
    def __init__(self, used):
        super().__init__()
        self.used, self.unused = nn.Linear(3, 3) if used else nn.Tanh(), nn.Linear(3, 3)

    def forward(self, x):
        return self.used(x)


@pytest.mark.parametrize("used", [True, False])
def test_a_module_that_the_model_never_calls_is_still_reported(used):
    model = Skips(used)
    with (
        pytest.raises(UncoveredParameterError, match=r"unused\.weight.*never called"),
        block(model, RankOne()),
    ):
        model(torch.ones(1, 3))
    with (
        pytest.raises(UncoveredParameterError, match=r"unused\.weight.*never called")
        if used
        else contextlib.nullcontext(),
        block(model, RankOne()),
    ):
        model.used(torch.ones(1, 3))
