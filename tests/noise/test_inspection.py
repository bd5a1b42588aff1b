"""What is perturbed and how, told without running the model."""

import pytest
import torch
from torch import nn

import zorn
from zorn.errors import ConfigError
from zorn.models import BlockLinear, LanguageModel
from zorn.noise import Dense, Draw, MemberwiseRule, Perturbation, RankOne, inspect_model, register_rule
from zorn.noise.rules import rule as rules
from zorn.noise.weights import rank_one


class Mixed(nn.Module):
    """One of everything that a report tells apart."""

    def __init__(self):
        super().__init__()
        self.start = nn.Parameter(torch.zeros(2, 3))
        self.embedding, self.head = nn.Embedding(11, 6, max_norm=1.0), nn.Linear(6, 9)
        self.again, self.tied = self.head, nn.Linear(6, 9, bias=False)
        self.tied.weight = self.head.weight
        self.heads, self.norm, self.slope = BlockLinear(6, 8, num_heads=2), nn.LayerNorm(8), nn.PReLU(8)
        self.norm.bias.requires_grad_(False)


@pytest.fixture(autouse=True)
def _registry(monkeypatch):
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))
    register_rule(nn.PReLU, MemberwiseRule())


def how_of(report):
    """Its first words; every parameter of the model runs by operation."""
    return report.how.split(":")[0].removesuffix(", by operation")


def by_name(reports):
    return {report.name: report for report in reports}


def test_status_structure_ties_and_counts():
    found = inspect_model(Mixed())
    rows = [
        (
            r.name,
            r.module_type,
            r.status,
            r.how.split(":")[0].removesuffix(", by operation"),
            r.tied_to,
            r.noise_numbers,
        )
        for r in found
    ]
    assert rows == [
        ("start", "Mixed", "perturbed", "rank-one, 2 × 3", None, 5),
        ("embedding.weight", "Embedding", "refused", rows[1][3], None, 0),
        ("head.weight", "Linear", "perturbed", "rank-one, 9 × 6", None, 15),
        ("head.bias", "Linear", "perturbed", "column of head.weight", None, 1),
        ("again.weight", "Linear", "perturbed", "rank-one, 9 × 6", "head.weight", 0),
        ("again.bias", "Linear", "perturbed", "column of head.weight", "head.bias", 0),
        ("tied.weight", "Linear", "perturbed", "rank-one, 9 × 6", "head.weight", 0),
        ("heads.weight", "BlockLinear", "perturbed", "rank-one, 2 blocks of 4 × 3", None, 14),
        ("heads.bias", "BlockLinear", "perturbed", "column of heads.weight", None, 2),
        ("norm.weight", "LayerNorm", "perturbed", "dense vector", None, 8),
        ("norm.bias", "LayerNorm", "frozen", "", None, 0),
        ("slope.weight", "PReLU", "perturbed", "member by member", None, 8),
    ]
    assert "max_norm" in found[1].how
    assert (found[0].shape, found[0].count, found[0].dtype) == ((2, 3), 6, torch.float32)
    model = Mixed()
    assert sum(r.count for r in inspect_model(model) if r.tied_to is None) == sum(
        p.numel() for p in model.parameters()
    )


def test_dense():
    found = inspect_model(Mixed().bfloat16(), Dense())
    assert {r.status for r in found} == {"perturbed", "frozen"}
    assert all(r.how == "dense" for r in found if r.status == "perturbed")
    assert all(r.noise_numbers == r.count for r in found if r.status == "perturbed" and r.tied_to is None)
    assert {r.dtype for r in found} == {torch.bfloat16}


def test_the_order_and_the_names_are_the_models():
    model = LanguageModel(11, 8, num_layers=2, tie_embedding=True)
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    assert [r.name for r in inspect_model(model)] == names


def test_a_bias_whose_weight_is_frozen_draws_the_row_factor_itself():
    model = nn.Linear(6, 9)
    model.weight.requires_grad_(False)
    assert by_name(inspect_model(model))["bias"].noise_numbers == 10


@pytest.mark.parametrize("frozen", [[], ["weight_state"], ["bias"], ["weight_input", "weight_state"]])
def test_the_noise_numbers_are_those_that_a_pass_draws(frozen, monkeypatch):
    model = LanguageModel(11, 8, num_heads=2)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.rpartition(".")[2] not in frozen)
    drawn, table = [], rank_one.noise_table

    def spy(kind, draw, members, streams, **options):
        drawn.append(sum(streams.values()))
        return table(kind, draw, members, streams, **options)

    monkeypatch.setattr(rank_one, "noise_table", spy)
    structure = RankOne()
    with structure.bind(model).members(Draw(seed=0, step=0, epsilon=0.1), range(2), (1, -1)):
        pass
    assert sum(r.noise_numbers for r in inspect_model(model, structure)) == sum(drawn) > 0


def test_nothing_to_train_is_told_and_not_raised():
    assert {r.status for r in inspect_model(nn.Linear(2, 2).requires_grad_(False))} == {"frozen"}
    assert inspect_model(nn.Tanh()) == []


def test_a_weight_whose_owners_disagree_runs_by_operation():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].bias = model[0].bias
    found = by_name(inspect_model(model))
    assert found["0.bias"].how == found["1.bias"].how == "dense vector, by operation"
    assert found["0.weight"].how == "rank-one, 3 × 3, by operation"


def test_what_is_reported_as_perturbed_is_what_is_bound():
    model = LanguageModel(11, 8, cell="gru")
    model.head.weight.requires_grad_(False)
    for structure in (RankOne(), Dense()):
        told = [r.name for r in inspect_model(model, structure) if r.status == "perturbed"]
        assert told == [t.name for t in structure.bind(model).targets]


def test_another_perturbation():
    class Other(Perturbation):
        def bind(self, model):
            raise NotImplementedError

    with pytest.raises(ConfigError, match="got Other as the perturbation"):
        inspect_model(nn.Linear(2, 2), Other())


def test_it_is_public():
    assert zorn.inspect_model is inspect_model


def test_what_is_no_model_or_not_one_yet():
    for given in (None, nn.Linear):
        with pytest.raises(ConfigError, match=r"inspect_model: got a value of type \w+, expected a torch"):
            inspect_model(given)
    with pytest.raises(ConfigError, match="weight has no shape yet"):
        inspect_model(nn.LazyLinear(3))
