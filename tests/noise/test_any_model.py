"""Models of others, unmodified: the members are what moved weights give, whichever way they run."""

import warnings

import foreign_models as foreign
import pytest
import torch
from torch import nn

import zorn
from zorn.errors import ConfigError, SlowerWayWarning
from zorn.noise import Draw
from zorn.noise.weights import proof

EPSILON, MEMBERS, SIGNS, TIME = 0.05, 3, (1, -1), 5
DRAW = Draw(seed=3, step=1, epsilon=EPSILON)

BY_OPERATION = {
    "tied": foreign.Tied,
    "tied, padded": lambda: foreign.Tied(padding=0),
    "time first": foreign.TimeFirst,
    "latents": foreign.Latents,
    "list of weights": foreign.ListOfWeights,
    "transformer": foreign.Transformer,
    "weight norm": foreign.Normed,
    "tensor kept": foreign.Keeps,
}
ONE_AT_A_TIME = {"own function": foreign.OwnFunction, "branches": foreign.Branches}
RECURRENT = {
    f"{kind.__name__} {options}": (kind, options)
    for kind, options in [
        (nn.LSTM, {}),
        (nn.LSTM, {"batch_first": True, "num_layers": 2, "bidirectional": True}),
        (nn.LSTM, {"packed": True}),
        (nn.LSTM, {"proj_size": 5, "num_layers": 2, "bidirectional": True}),
        (nn.GRU, {"batch_first": True}),
        (nn.GRU, {"packed": True, "batch_first": True, "bidirectional": True, "num_layers": 2}),
        (nn.RNN, {"bias": False}),
        (nn.RNN, {"nonlinearity": "relu", "packed": True, "bidirectional": True}),
        (nn.LSTMCell, {}),
        (nn.GRUCell, {"bias": False}),
        (nn.RNNCell, {"nonlinearity": "relu"}),
    ]
}


def made(make, dtype=torch.float64):
    torch.manual_seed(0)
    return make().to(dtype).eval()


def tokens(rows):
    return torch.randint(0, foreign.VOCABULARY, (rows, TIME), generator=torch.Generator().manual_seed(1))


def directions(bound):
    """z of every member, by the parameter's id, from the fold of each member alone."""
    found = []
    for member in range(MEMBERS):
        chosen = torch.zeros(MEMBERS, dtype=torch.float64)
        chosen[member] = 1
        z = {id(t.parameter): torch.zeros(t.parameter.numel(), dtype=torch.float64) for t in bound.targets}
        for block in bound.fold(DRAW, chosen):
            z[id(block.target.parameter)][block.start : block.start + len(block.values)] = (
                block.values.double()
            )
        found.append(z)
    return found


def on_moved_weights(model, bound, inputs, group):
    """The outputs of each member and sign with its weights moved by hand."""
    outputs, z = [], directions(bound)
    originals = [(p, p.data) for p in model.parameters()]
    for sign in SIGNS:
        for member in range(MEMBERS):
            for parameter, data in originals:
                step = z[member][id(parameter)].view(data.shape).to(data.dtype)
                parameter.data = data + sign * EPSILON * step
            first = len(outputs) * group
            outputs.append(model(inputs[first : first + group]))
            for parameter, data in originals:
                parameter.data = data
    return torch.cat(outputs)


def difference(model, group=2):
    """Members side by side against moved weights, relative to the noise's effect."""
    bound, inputs = zorn.RankOne().bind(model), tokens(len(SIGNS) * MEMBERS * group)
    bound.prove(inputs)
    with torch.inference_mode():
        with bound.members(DRAW, range(MEMBERS), SIGNS, group):
            found = model(inputs)
        expected, plain = on_moved_weights(model, bound, inputs, group), model(inputs)
    effect = (expected - plain).norm()
    assert effect > 1e-3 * plain.norm()
    return float((found - expected).norm() / effect)


@pytest.mark.parametrize("name", BY_OPERATION)
@pytest.mark.filterwarnings("ignore::zorn.errors.SlowerWayWarning")
def test_members_by_operation_are_those_on_moved_weights(name):
    model = made(BY_OPERATION[name])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    attributes = set(model.__dict__)
    assert difference(model) < 1e-12
    assert zorn.RankOne().bind(model).way == "by operation"
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert set(model.__dict__) - attributes <= {"last"}  # of the plain calls of this test alone


@pytest.mark.parametrize("name", ONE_AT_A_TIME)
def test_where_operations_cannot_run_members_take_turns(name):
    model = made(ONE_AT_A_TIME[name])
    with pytest.warns(SlowerWayWarning, match="run one at a time: by layer, .*; by operation, "):
        assert difference(model) < 1e-12
    assert zorn.RankOne().bind(model).way == "one at a time"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")
def test_torchs_recurrent_layers_run_by_their_rule(name, dtype):
    kind, options = RECURRENT[name]
    model = made(lambda: foreign.Recurrent(kind, **options), dtype)
    assert difference(model) < (1e-12 if dtype == torch.float64 else 1e-4)
    assert zorn.RankOne().bind(model).way == "by layer"


@pytest.mark.parametrize("frozen", ["weight_hh", "weight_ih", "bias", "body"])
def test_frozen_parts_of_a_recurrent_layer_get_no_noise(frozen):
    model = made(lambda: foreign.Recurrent(nn.GRU))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(frozen not in name)
    bound, inputs = zorn.RankOne().bind(model), tokens(len(SIGNS) * MEMBERS)
    assert all(frozen not in target.name for target in bound.targets)
    with torch.inference_mode(), bound.members(DRAW, range(MEMBERS), SIGNS, 1):
        model(inputs)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_torchs_recurrent_layers_run_by_operation_too(kind):
    """Beside a weight that no rule covers: their equations run under vmap."""

    class Scaled(foreign.Recurrent):
        def __init__(self):
            super().__init__(kind)
            self.gain = nn.Parameter(torch.ones(foreign.VOCABULARY))

        def forward(self, tokens):
            return super().forward(tokens) * self.gain

    model = made(Scaled)
    assert difference(model) < 1e-12
    assert zorn.RankOne().bind(model).way == "by operation"


def test_outputs_without_rows_in_front_do_not_hinder_the_others():
    class States(foreign.Tied):
        def __init__(self):
            super().__init__()
            self.body = nn.LSTM(foreign.UNITS, foreign.UNITS, num_layers=2, batch_first=True)

        def forward(self, tokens):
            return self.body(self.embedding(tokens))

    batch = zorn.Batch(tokens(4), tokens(4))
    with pytest.warns(SlowerWayWarning, match="mixes the rows"):
        found = zorn.CDRGE(population=4, epsilon=1e-3).estimate(
            made(States), batch, lambda outputs, _: outputs[0].square().mean((1, 2))
        )
    expected = made(States)(batch.inputs)[0].square().mean().item()
    assert found.loss == pytest.approx(expected, rel=1e-3)


def test_a_number_that_stands_for_rows_is_compared_as_well():
    one, other = torch.ones(1), torch.tensor(1.0)
    assert proof._same(one, other, torch.tensor(0.0))
    assert not proof._same(2 * one, other, torch.tensor(0.0))


def test_the_mean_is_autograds_gradient():
    """Over 300 estimates, within 4 standard errors."""
    model, batch = made(foreign.Tied), zorn.Batch(tokens(8), tokens(8).roll(1, 1))
    objective = zorn.TokenCrossEntropy()
    objective.token_losses(model(batch.inputs), batch.targets).mean().backward()
    exact = model.embedding.weight.grad.clone()
    estimator, ratios = zorn.CDRGE(population=8, epsilon=1e-3), []
    with pytest.warns(SlowerWayWarning):
        estimator.estimate(model, batch, objective)
    for _ in range(300):
        estimator.estimate(model, batch, objective)
        ratios.append(float((model.embedding.weight.grad * exact).sum() / exact.square().sum()))
    ratios = torch.tensor(ratios)
    assert abs(ratios.mean() - 1) < 4 * ratios.std() / len(ratios) ** 0.5


def test_without_the_proof_a_weight_read_twice_is_wrong_without_a_word(monkeypatch):
    """So that the proof is what finds it."""
    monkeypatch.setattr("zorn.noise.weights.rank_one.prove", lambda model, key, first, *_: first)
    assert difference(made(foreign.Tied)) > 0.1


def test_random_numbers_in_a_forward_are_an_error():
    class Dropped(foreign.Tied):
        def forward(self, tokens):
            return nn.functional.dropout(super().forward(tokens), 0.5, training=True)

    with pytest.raises(ConfigError, match="other outputs for the same inputs"):
        zorn.CDRGE(population=8, epsilon=0.1).estimate(
            made(Dropped), zorn.Batch(tokens(8), tokens(8)), zorn.TokenCrossEntropy()
        )


def test_a_complex_parameter_is_an_error():
    model = nn.Linear(3, 2, dtype=torch.cfloat)
    for structure in (zorn.RankOne(), zorn.Dense()):
        with pytest.raises(ConfigError, match="weight is complex"):
            structure.bind(model)


def test_what_was_proved_is_remembered_until_the_model_changes():
    model = made(foreign.Tied)
    with pytest.warns(SlowerWayWarning):
        zorn.RankOne().bind(model).prove(tokens(4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        zorn.RankOne().bind(model).prove(tokens(4))
    model.embedding.weight = nn.Parameter(model.embedding.weight.detach().clone())
    with pytest.warns(SlowerWayWarning):
        zorn.RankOne().bind(model).prove(tokens(4))
    assert proof.WAYS[0] == "by layer"


def test_a_loss_that_a_model_gives_itself_is_that_of_each_of_its_rows():
    class Own(foreign.Tied):
        def forward(self, tokens):
            return super().forward(tokens).square().mean()

    batch = zorn.Batch(tokens(4), tokens(4))
    with pytest.warns(SlowerWayWarning):
        found = zorn.CDRGE(population=4, epsilon=1e-3).estimate(made(Own), batch, lambda loss, _: loss)
    assert found.loss == pytest.approx(made(Own)(batch.inputs).item(), rel=1e-3)


def test_a_cell_of_ones_own_in_zorns_model_is_proved_too():
    class Doubled(zorn.LanguageModel):
        pass

    assert zorn.RankOne().bind(zorn.LanguageModel(7, 4))._proved()
    assert not zorn.RankOne().bind(Doubled(7, 4))._proved()
    model = zorn.LanguageModel(7, 4)
    model.extra = foreign.Tied()
    assert not zorn.RankOne().bind(model)._proved()
