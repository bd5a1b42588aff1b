"""ActivityCredit against autograd and against closed forms of its mean and variance."""

import pytest
import torch
from torch import nn

import zorn
from zorn.estimators import ActivityCredit
from zorn.models import Batch, row_losses
from zorn.noise.activity import cells as cell_rules

SAMPLES = 60


def flat(model: nn.Module) -> torch.Tensor:
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    return torch.cat([gradient.flatten() for gradient in gradients])


def sampled(model, batch, objective, samples: int = SAMPLES, **options) -> torch.Tensor:
    """Estimates of many steps, [samples, parameters]."""
    estimator = ActivityCredit(**{"epsilon": 1e-4, "seed": 11, "draws": 1, **options})
    found = []
    for _ in range(samples):
        estimator.estimate(model, batch, objective)
        found.append(flat(model).clone())
    return torch.stack(found)


def assert_mean(samples: torch.Tensor, expected: torch.Tensor) -> None:
    """The mean is `expected` within standard errors: their squares average to 1."""
    mean, error = samples.mean(0), samples.std(0) / len(samples) ** 0.5
    noisy = error > 1e-6 * expected.abs().max()
    z = (mean - expected)[noisy] / error[noisy]
    assert noisy.sum() > 10
    # z² of n elements averages to 1 ± √(2 / n), were they independent; they share what n / 10 would
    assert float(z.square().mean()) < 1 + 5 * (2 / (len(z) / 10)) ** 0.5
    torch.testing.assert_close(mean[~noisy], expected[~noisy], rtol=1e-3, atol=1e-6)


def gradient(model, batch, objective) -> torch.Tensor:
    model.zero_grad()
    row_losses(model, batch, objective).mean().backward()
    return flat(model).clone()


def copy_batch() -> Batch:
    return zorn.tasks.CopyTask(batch=8, minimum_length=2, maximum_length=3, seed=0).training_batch(0)


@pytest.mark.parametrize("exact", [True, False], ids=["exact output", "noisy output"])
@pytest.mark.parametrize(
    "options",
    [
        {"cell": "lstm", "norm": "layer", "residual": True},
        {"cell": "lstm", "num_layers": 2, "num_heads": 2},
        {"cell": "gru", "num_heads": 2, "tie_embedding": True},
        {"cell": "min-gru", "norm": "rms"},
        {"cell": "dnc"},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_its_mean_is_the_gradient(options, exact):
    model = zorn.LanguageModel(29, 6, seed=1, **options).double()
    objective = zorn.TokenCrossEntropy()
    batch = copy_batch()
    expected = gradient(model, batch, objective)
    assert_mean(sampled(model, batch, objective, exact_output=exact, draws=4), expected)


class Causal(nn.Module):
    """A transformer block whose attention looks back, and a convolution that does too."""

    def __init__(self, *, causal: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 6)
        self.queries, self.keys, self.values = (nn.Linear(6, 6) for _ in range(3))
        self.convolution = nn.Conv1d(6, 6, 2)
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 5)
        self.causal = causal

    def forward(self, tokens):
        x = self.embedding(tokens)
        scores = self.queries(x) @ self.keys(x).mT
        if self.causal:
            scores = scores.masked_fill(torch.ones_like(scores[0]).triu(1).bool(), -torch.inf)
        x = x + scores.softmax(-1) @ self.values(x)
        padded = nn.functional.pad(x.transpose(1, 2), (1, 0))
        return self.head(self.norm(x + self.convolution(padded).transpose(1, 2)))


@pytest.mark.parametrize("causal", [True, False])
def test_a_model_of_one_call_has_time_in_its_second_dimension(causal):
    torch.manual_seed(3)
    model = Causal(causal=causal).double()
    tokens = torch.randint(0, 5, (6, 5))
    batch, objective = Batch(tokens[:, :-1], tokens[:, 1:]), zorn.TokenCrossEntropy()
    expected = gradient(model, batch, objective)
    assert_mean(sampled(model, batch, objective, causal=causal, draws=4), expected)


def test_one_score_for_the_whole_sequence():
    model = zorn.LanguageModel(29, 5, seed=1).double()
    batch = copy_batch()

    def score(outputs, targets):
        return outputs.logsumexp(-1).square().mean(1)

    expected = gradient(model, batch, score)
    assert_mean(sampled(model, batch, score, draws=4), expected)


class Linear(nn.Module):
    """y_t = W x_t: what comes before does not matter, so that everything has a closed form."""

    def __init__(self, units: int, time: int) -> None:
        super().__init__()
        self.layer = nn.Linear(time, units, bias=False).double()

    def forward(self, x):
        return self.layer(x)


class Slopes:
    """ℓ_t = a_t · y_t, the slopes a_t being the targets."""

    def token_losses(self, outputs, targets):
        return (outputs * targets).sum(-1)

    def counts(self, targets):
        return torch.ones(targets.shape[:2], dtype=torch.bool)


class LooksAhead(Linear):
    """Every output is the sum of all steps."""

    def forward(self, x):
        return self.layer(x).sum(1, keepdim=True).expand(-1, x.shape[1], -1)


def test_a_model_that_looks_ahead_is_biased_unless_said_so():
    model, slopes = LooksAhead(3, 4), torch.randn(1, 4, 3, dtype=torch.float64)
    batch = Batch(torch.eye(4, dtype=torch.float64).unsqueeze(0), slopes)
    expected = gradient(model, batch, Slopes())
    options = {"relative": False, "exact_output": False, "draws": 16}
    assert_mean(sampled(model, batch, Slopes(), causal=False, **options), expected)
    with pytest.raises(AssertionError):
        assert_mean(sampled(model, batch, Slopes(), **options), expected)


@pytest.mark.parametrize(
    ("units", "time", "rows", "discount"),
    [(3, 4, 1, 1.0), (3, 8, 1, 1.0), (6, 8, 1, 1.0), (3, 4, 5, 1.0), (3, 8, 1, 0.6), (3, 8, 1, 0.0)],
)
def test_its_variance_is_that_of_the_law(units, time, rows, discount):
    """x_t = e_t and |a_t| = 1: E|ĝ|² = Σ_t units Σ_{s ≥ t} γ^{2 (s − t)} / (rows time²) for one sequence
    alone, of which the mean makes up |g|²."""
    model = Linear(units, time)
    generator = torch.Generator().manual_seed(0)
    slopes = torch.randn(1, time, units, generator=generator, dtype=torch.float64)
    slopes = (slopes / slopes.norm(dim=-1, keepdim=True)).expand(rows, time, units)
    inputs = torch.eye(time, dtype=torch.float64).expand(rows, time, time)
    found = sampled(
        model, Batch(inputs, slopes), Slopes(), 400, discount=discount, relative=False, exact_output=False
    )
    squares = sum(
        units * discount ** (2 * (s - t)) for t in range(time) for s in range(t, time) if discount or s == t
    )
    mean = slopes[0] / time  # the same for every sequence; the noise of a step answers for its own loss
    expected = (squares / time**2 - float(mean.square().sum())) / rows
    deviations = (found - mean.t().flatten()).square().sum(1)
    error = float(deviations.std() / len(deviations) ** 0.5)
    assert abs(float(deviations.mean()) - expected) < 4 * error
    assert error < 0.15 * expected


def test_an_lstms_unit_lowers_the_variance_of_saturated_units(monkeypatch):
    """Against one unit for all elements, a quarter of it for the memory, on large weights."""
    model = zorn.LanguageModel(29, 8, seed=1).double()
    with torch.no_grad():
        for parameter in model.cells.parameters():
            parameter.mul_(6)
    batch, objective = copy_batch(), zorn.TokenCrossEntropy()
    expected = gradient(model, batch, objective)

    def errors() -> torch.Tensor:
        found = sampled(model, batch, objective, 200, epsilon=1e-3, draws=2)
        assert_mean(found, expected)
        return (found - expected).square().sum(1)

    with_unit, step = errors(), cell_rules._lstm_step

    def one_for_all(*arguments):
        o, found = step(*arguments)
        one = torch.ones_like(found.memory)
        return o, found._replace(output_unit=one, memory_unit=one / 4)

    monkeypatch.setattr(cell_rules, "_lstm_step", one_for_all)
    without = errors()
    error = (with_unit.var() / with_unit.mean() ** 2 + without.var() / without.mean() ** 2).sqrt()
    ratio = with_unit.mean() / without.mean()
    assert ratio * (1 + 5 * float(error) / len(without) ** 0.5) < 0.8


@pytest.mark.parametrize("discount", [1.0, 0.5, 0.0])
def test_a_discount_below_1_leaves_out_what_it_says(discount):
    """The mean is Σ_t Σ_{s ≥ t} γ^{s − t} (∂ ℓ_s / ∂ h_t) · (∂ h_t / ∂ θ), for noise on a GRU's state h."""
    model = zorn.LanguageModel(29, 5, cell="gru", seed=2).double()
    batch, objective = copy_batch(), zorn.TokenCrossEntropy()
    rows, time = batch.inputs.shape
    cell = model.cells[0]
    x = model.embedding(batch.inputs)
    state, at, losses = cell.initial_state(rows), [], []
    for t in range(time):
        _, state = cell(x[:, t], state)
        at.append(state.hidden)
        losses.append(
            objective.token_losses(model.head(state.hidden).unsqueeze(1), batch.targets[:, t : t + 1])
        )
    normaliser = float((batch.targets != -100).sum())
    total = {name: torch.zeros_like(p) for name, p in cell.named_parameters()}
    for t in range(time):
        credit = sum(
            discount ** (s - t) * torch.autograd.grad(losses[s].sum(), at[t], retain_graph=True)[0]
            for s in range(t, time)
        )
        before = at[t - 1].detach() if t else cell.initial_state(rows).hidden
        _, after = cell(x[:, t].detach(), type(state)(before))
        step = torch.autograd.grad(after.hidden, list(cell.parameters()), credit / normaliser)
        for name, value in zip(total, step, strict=True):
            total[name] += value
    expected = torch.cat([value.flatten() for value in total.values()])
    for parameter in (*model.embedding.parameters(), *model.head.parameters()):
        parameter.requires_grad_(False)
    found = sampled(model, batch, objective, discount=discount, draws=8)
    assert_mean(found, expected)
    if discount < 1:
        with pytest.raises(AssertionError):
            assert_mean(found, gradient(model, batch, objective))


class Context(nn.Module):
    """A layer that is called once for the whole sequence, before every step."""

    def __init__(self) -> None:
        super().__init__()
        self.context, self.layer = nn.Linear(3, 4), nn.Linear(3, 4)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        return self.head((self.layer(x) + self.context(x[:, 0]).unsqueeze(1)).tanh())


def test_a_layer_that_is_called_once_answers_for_all_steps():
    torch.manual_seed(1)
    model = Context().double()
    batch = Batch(torch.randn(4, 6, 3, dtype=torch.float64), torch.randint(0, 5, (4, 6)))
    objective = zorn.TokenCrossEntropy()
    expected = gradient(model, batch, objective)
    assert_mean(sampled(model, batch, objective, draws=8), expected)
