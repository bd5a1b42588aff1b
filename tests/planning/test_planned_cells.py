"""What the planner says of a cell, against what torch allocates for it."""

import pytest
import torch

import zorn
from zorn.planning import ModelSizes
from zorn.planning.cells import DRIVE_STEPS, cell_bytes, drive_block, waiting_steps
from zorn.planning.differentiating import kept_bytes
from zorn.planning.sizes import bytes_of
from zorn.training import ModelConfig
from zorn.training.build import build_model, model_of

ROWS, STEPS, VOCABULARY = 16, 24, 40

MODELS = {
    "lstm": ModelConfig(hidden_size=96, embedding_size=32),
    "gru": ModelConfig(cell="gru", hidden_size=96, embedding_size=32),
    "min-gru": ModelConfig(cell="min-gru", hidden_size=96, embedding_size=32),
    "dnc": ModelConfig(cell="dnc", hidden_size=96, embedding_size=32),
    "dnc of two heads": ModelConfig(
        cell="dnc", hidden_size=32, memory_slots=24, memory_width=20, read_heads=2
    ),
    "two layers": ModelConfig(hidden_size=96, num_layers=2),
    "layer norm": ModelConfig(cell="gru", hidden_size=96, norm="layer"),
    "rms norm": ModelConfig(hidden_size=96, norm="rms", num_layers=2),
}


def kept_by_autograd(model):
    """Bytes of all storages that autograd keeps of a forward pass, parameters left out."""
    storages, own = {}, {parameter.data_ptr() for parameter in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage
        return tensor

    tokens = torch.zeros(ROWS, STEPS, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits, _ = model(tokens)
        zorn.TokenCrossEntropy().token_losses(logits, tokens).sum()
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_what_autograd_keeps_is_what_is_planned(name, dtype):
    settings = MODELS[name]
    sizes = ModelSizes.of(settings, VOCABULARY, dtype)
    model = zorn.LanguageModel(
        VOCABULARY,
        sizes.hidden,
        embedding_size=sizes.embedding,
        cell=sizes.cell,
        memory=sizes.memory,
        num_layers=sizes.layers,
        norm=sizes.norm,
    ).to(dtype)
    planned = ROWS * STEPS * (kept_bytes(sizes) + 4 * VOCABULARY)
    assert planned == pytest.approx(kept_by_autograd(model), rel=0.04)


@pytest.mark.parametrize("cell", ["lstm", "gru", "min-gru", "dnc"])
def test_sizes_are_those_of_the_model_that_is_built(cell):
    settings = ModelConfig(cell=cell, hidden_size=24, num_layers=2)
    sizes, built = ModelSizes.of(settings, 11), model_of(settings, 11, device="meta")
    assert sizes.total == sum(parameter.numel() for parameter in built.parameters())
    assert {parameter.device.type for parameter in built.parameters()} == {"meta"}
    real = zorn.LanguageModel(11, 24, cell=cell, num_layers=2)
    assert {name: value.numel() for name, value in real.named_parameters()} == sizes.parameters
    assert sum(sizes.by_part().values()) == sizes.total
    rows = 3
    state = torch.utils._pytree.tree_leaves(real.initial_state(rows))
    assert sum(map(bytes_of, state)) == rows * sizes.state_bytes


def test_a_parameter_dial_is_followed():
    sizes = ModelSizes.of(ModelConfig(parameters=100_000), vocabulary=256)
    assert sizes.total == 92_736


@pytest.mark.parametrize("rank", [1, 3])
def test_factors_take_what_their_table_takes(rank, monkeypatch):
    made = []

    def table(*arguments, **options):
        made.append(zorn.random.sign_table(*arguments, **options))
        return made[-1]

    monkeypatch.setattr("zorn.perturbations.draw.sign_table", table)
    sizes = ModelSizes.of(ModelConfig(hidden_size=200), vocabulary=50)
    model, members = zorn.LanguageModel(50, 200), 6
    tokens = torch.zeros(members, 4, dtype=torch.int64)
    estimator = zorn.CDRGE(
        population=members, epsilon=0.1, group_size=1, perturbation=zorn.RankOne(rank=rank)
    )
    estimator.estimate(model, zorn.Batch(tokens, tokens), zorn.TokenCrossEntropy())
    values = made[0][0].untyped_storage().nbytes()
    words = values // 32  # a bit a number
    assert values + words == members * sizes.factor_bytes(rank, signs=True)


def test_blocks_of_time():
    cell = cell_bytes("gru", k=4, hidden=8, heads=1, e=4, memory=None)
    assert drive_block(cell, 3) == 3 * (cell.drive + cell.making)
    assert drive_block(cell, 3 * DRIVE_STEPS) == DRIVE_STEPS * (2 * cell.drive + cell.making)
    assert (waiting_steps(2), waiting_steps(200)) == (2, 16)


def test_a_built_model_has_the_planned_weights(tmp_path):
    from zorn.training import BudgetConfig, Config, RunConfig

    config = Config(
        model=ModelConfig(hidden_size=40), budget=BudgetConfig(steps=1), run=RunConfig(dtype="bfloat16")
    )
    model = build_model(config, 30)
    sizes = ModelSizes.of(config.model, 30, torch.bfloat16)
    assert sum(map(bytes_of, model.parameters())) == sizes.weight_bytes
