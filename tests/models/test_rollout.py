import inspect
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from zorn.errors import ConfigError, ZornError
from zorn.models import Batch, LanguageModel, evaluation_mode, mean_tokens, row_losses

VOCABULARY, ROWS, TIME = 13, 4, 20
IGNORED = -100


class CrossEntropy:
    """Token cross-entropy; negative targets do not count."""

    def counts(self, targets: Tensor) -> Tensor:
        return targets >= 0

    def token_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.mT, targets, ignore_index=IGNORED, reduction="none")


def row_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.mT, targets, ignore_index=IGNORED, reduction="none").mean(1)


def unequal_batch() -> Batch:
    """Rows of 20, 13, 6 and 1 tokens that count."""
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randint(0, VOCABULARY, (2, ROWS, TIME), generator=generator)
    for row, length in enumerate((20, 13, 6, 1)):
        targets[row, length:] = IGNORED
    return Batch(inputs, targets)


def language_model(**options) -> LanguageModel:
    model = LanguageModel(VOCABULARY, 16, **options)
    with torch.no_grad():
        model.head.weight.mul_(5)
    return model


@pytest.mark.parametrize("time_chunk", [None, 1, 7, 20, 100])
@pytest.mark.parametrize("options", [{"num_layers": 2}, {"cell": "gru", "num_heads": 4}], ids=str)
def test_mean_row_loss_is_the_mean_over_counted_tokens(options: dict, time_chunk: int | None) -> None:
    model, batch = language_model(**options), unequal_batch()
    losses = row_losses(model, batch, CrossEntropy(), time_chunk=time_chunk)
    logits, _ = model(batch.inputs)
    expected = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED)
    assert losses.shape == (ROWS,)
    assert losses.dtype == torch.float64
    assert_close(losses.mean(), expected.double(), rtol=1e-6, atol=0)
    sums = CrossEntropy().token_losses(logits, batch.targets).double().sum(1)
    assert_close(losses, sums / (40 / ROWS), rtol=1e-5, atol=0)


@pytest.mark.parametrize("time_chunk", [1, 7])
@pytest.mark.parametrize("objective", [CrossEntropy(), row_cross_entropy], ids=["token", "row"])
def test_chunks_change_nothing(objective, time_chunk: int) -> None:
    model, batch = language_model(), unequal_batch()
    with torch.inference_mode():
        whole = row_losses(model, batch, objective)
        assert_close(row_losses(model, batch, objective, time_chunk=time_chunk), whole, rtol=1e-5, atol=0)


def test_parts_of_a_batch_with_its_normaliser_equal_the_whole() -> None:
    model, batch, objective = language_model(), unequal_batch(), CrossEntropy()
    normaliser = mean_tokens(objective, batch.targets)
    assert normaliser == 10
    parts = [
        row_losses(model, Batch(batch.inputs[rows], batch.targets[rows]), objective, normaliser=normaliser)
        for rows in (slice(0, 1), slice(1, 4))
    ]
    assert_close(torch.cat(parts), row_losses(model, batch, objective), rtol=1e-5, atol=0)


@pytest.mark.parametrize("objective", [CrossEntropy(), row_cross_entropy], ids=["token", "row"])
def test_gradients_flow_through_chunks(objective) -> None:
    batch, gradients = unequal_batch(), []
    for time_chunk in (None, 3):
        model = language_model().double()
        row_losses(model, batch, objective, time_chunk=time_chunk).mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for whole, chunked in zip(*gradients, strict=True):
        assert whole is not None
        assert whole.abs().sum() > 0
        assert_close(chunked, whole)


def test_inference_mode_needs_no_graph() -> None:
    with torch.inference_mode():
        losses = row_losses(language_model(), unequal_batch(), CrossEntropy(), time_chunk=3)
    assert not losses.requires_grad


def test_outputs_of_a_chunk_die_before_the_next_one_runs() -> None:
    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.alive, self.calls = language_model(), [], 0

        def initial_state(self, rows: int):
            return self.model.initial_state(rows)

        def forward(self, inputs: Tensor, state):
            assert not any(reference() is not None for reference in self.alive)
            outputs, state = self.model(inputs, state)
            self.alive.append(weakref.ref(outputs))
            self.calls += 1
            return outputs, state

    watched = Watched()
    with torch.inference_mode():
        row_losses(watched, unequal_batch(), CrossEntropy(), time_chunk=4)
    assert watched.calls == 5


def test_a_model_without_state_is_called_once() -> None:
    model = nn.Linear(3, VOCABULARY).double()
    x, labels = torch.randn(ROWS, 3).double(), torch.tensor([0, 1, 2, 3])
    losses = row_losses(model, Batch(x, labels), lambda y, t: F.cross_entropy(y, t, reduction="none"))
    assert_close(losses.mean(), F.cross_entropy(model(x), labels))
    over_time = nn.Embedding(VOCABULARY, VOCABULARY).double()
    batch = unequal_batch()
    expected = F.cross_entropy(over_time(batch.inputs).mT, batch.targets, ignore_index=IGNORED)
    assert_close(row_losses(over_time, batch, CrossEntropy()).mean(), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_a_row_objective_may_return_any_real_dtype(dtype: torch.dtype) -> None:
    score = torch.tensor([0, 1, 1, 0]).to(dtype)
    losses = row_losses(language_model(), unequal_batch(), lambda outputs, targets: score)
    assert losses.tolist() == [0.0, 1.0, 1.0, 0.0]
    assert losses.dtype == torch.float64


def test_a_row_objective_sees_all_outputs_and_targets() -> None:
    model, batch, seen = language_model(), unequal_batch(), []

    def objective(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append((outputs, targets))
        return outputs.mean((1, 2))

    row_losses(model, batch, objective, time_chunk=6)
    [(outputs, targets)] = seen
    assert targets is batch.targets
    assert_close(outputs, model(batch.inputs)[0])


def test_any_model_with_an_initial_state_is_streamed() -> None:
    class Sums:
        """Outputs the running sum of its inputs."""

        def initial_state(self, rows: int) -> tuple[Tensor]:
            return (torch.zeros(rows, dtype=torch.float64),)

        def __call__(self, inputs: Tensor, state: tuple[Tensor]) -> tuple[Tensor, tuple[Tensor]]:
            outputs = state[0].unsqueeze(1) + inputs.cumsum(1)
            return outputs, (outputs[:, -1],)

    inputs = torch.rand(ROWS, TIME, dtype=torch.float64)
    losses = row_losses(Sums(), Batch(inputs, inputs), lambda y, _: y[:, -1], time_chunk=3)
    assert_close(losses, inputs.sum(1))


@pytest.mark.parametrize(
    ("result", "got"),
    [
        (torch.tensor(1.0), r"torch.float32 \(\)"),
        (torch.zeros(ROWS, 1), r"torch.float32 \(4, 1\)"),
        (torch.zeros(ROWS, dtype=torch.complex64), "torch.complex64"),
        (1.5, "float"),
    ],
)
def test_the_result_of_a_row_objective_is_checked(result: object, got: str) -> None:
    with pytest.raises(ZornError, match=rf"returned {got}.*shape \(4,\): one loss per row"):
        row_losses(language_model(), unequal_batch(), lambda outputs, targets: result)


def test_token_losses_must_be_one_per_token() -> None:
    class Averaged(CrossEntropy):
        def token_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return super().token_losses(outputs, targets).mean(1)

    with pytest.raises(
        ZornError, match=r"Averaged.token_losses returned the shape \(4,\).*\(4, 20\) .rows, time."
    ):
        row_losses(language_model(), unequal_batch(), Averaged())


def test_outputs_must_cover_the_targets() -> None:
    class Last(nn.Embedding):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input)[:, -1:]

    with pytest.raises(ZornError, match=r"outputs for 1 time steps, but the targets have 20"):
        row_losses(Last(VOCABULARY, VOCABULARY), unequal_batch(), CrossEntropy())


def test_a_batch_in_which_no_token_counts_is_refused() -> None:
    inputs = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ZornError, match=r"no token of the targets .2, 3. counts for CrossEntropy"):
        row_losses(language_model(), Batch(inputs, inputs - 1), CrossEntropy())


TOKENS = torch.zeros(ROWS, TIME, dtype=torch.int64)


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (TOKENS, TOKENS[:2], "4 rows of inputs and 2 of targets"),
        (TOKENS[:0], TOKENS[:0], "0 rows of inputs"),
        (TOKENS, TOKENS[:, :5], r"targets have the shape \(4, 5\) for inputs \(4, 20\)"),
        (TOKENS, TOKENS[:, 0], r"targets have the shape \(4,\)"),
        (TOKENS[:, :0], TOKENS[:, :0], r"inputs have the shape \(4, 0\)"),
        (TOKENS[:, 0], TOKENS, r"inputs have the shape \(4,\)"),
    ],
)
def test_the_shapes_of_a_batch_are_checked(inputs: Tensor, targets: Tensor, message: str) -> None:
    with pytest.raises(ZornError, match=message):
        row_losses(language_model(), Batch(inputs, targets), CrossEntropy())


@pytest.mark.parametrize(
    ("model", "objective", "options", "message"),
    [
        (None, CrossEntropy(), {"time_chunk": 0}, "time_chunk must be a whole number of at least 1, got 0"),
        (None, CrossEntropy(), {"normaliser": 0.0}, "normaliser must be a number above 0, got 0.0"),
        (None, CrossEntropy(), {"normaliser": float("nan")}, "normaliser must be a number above 0, got nan"),
        (None, row_cross_entropy, {"normaliser": 2.0}, "only an objective with token_losses and counts"),
        (
            nn.Embedding(VOCABULARY, VOCABULARY),
            CrossEntropy(),
            {"time_chunk": 4},
            "Embedding has no initial_state",
        ),
        (None, "accuracy", {}, "objective str is neither a function"),
    ],
)
def test_settings_are_checked(model: nn.Module | None, objective, options: dict, message: str) -> None:
    unchecked = inspect.unwrap(row_losses)  # as a user runs it: without the type checks of the tests
    with pytest.raises(ConfigError, match=message):
        unchecked(model or language_model(), unequal_batch(), objective, **options)


def test_evaluation_mode_restores_every_flag_even_after_an_error() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Linear(2, 2)))
    model[1].eval()
    before = [module.training for module in model.modules()]
    assert len(set(before)) == 2
    inside = []

    def fail() -> None:
        with evaluation_mode(model):
            inside.extend(module.training for module in model.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert inside == [False] * len(before)
    assert [module.training for module in model.modules()] == before
