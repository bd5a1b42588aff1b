"""The scheme of the paper (Chaubard and Kochenderfer 2025, arXiv 2505.17852), written from its description.

CD-RGE with dense ±1 directions, one member at a time over the whole batch. Nothing is stored but a seed for
each member: its direction z is drawn four times, and the weights are moved in place,

    θ ← θ + ε z, evaluate;  θ ← θ − 2ε z, evaluate;  θ ← θ + ε z;  after the last member θ ← θ − (η / n) c z

of every member, with c = (L⁺ − L⁻) / 2ε and the learning rate η. The model is an LSTM in a plain loop over
time in inference mode, with one product for all inputs and one for all outputs, and a loss over all tokens at
once: nothing here is slow on purpose.
"""

import math
import time

import torch
from contest import Judge, Point, Run
from torch import Tensor
from torch.nn import functional as F

import zorn
from zorn.models import Batch
from zorn.tasks import Task

DIVERGED = 7.0
"""The loss, nats a token, beyond which the paper calls a run diverged."""


def plain_logits(model: zorn.LanguageModel, tokens: Tensor) -> Tensor:
    """Logits `[rows, time, vocabulary]` of a model of one LSTM layer, from its weights alone; heads side by
    side."""
    map = model.cells[0].map
    heads, _, size = map.weight_state.shape
    rows, steps = tokens.shape
    inputs = F.linear(model.embedding.weight[tokens.t()], map.weight_input, map.bias)
    inputs = inputs.view(steps, rows, heads, 4 * size).transpose(1, 2)
    hidden = cell = inputs.new_zeros(heads, rows, size)
    outputs = []
    for drive in inputs:
        gates = torch.baddbmm(drive, hidden, map.weight_state.mT)
        i, f, o, u = gates.view(heads, rows, 4, size).unbind(2)
        cell = f.sigmoid() * cell + i.sigmoid() * u.tanh()
        hidden = o.sigmoid() * cell.tanh()
        outputs.append(hidden)
    states = torch.stack(outputs).permute(2, 0, 1, 3).reshape(rows, steps, heads * size)
    return F.linear(states, model.head.weight, model.head.bias)


class PaperScheme:
    """Steps of the scheme on a model of one LSTM layer.

    Args:
        population: n, members of a step.
        epsilon: ε of the perturbations; the paper ties it to the learning rate.
        learning_rate: of plain SGD.
        seed: of the directions, below 4096; a run has at most a million members.

    Example:
        >>> task = zorn.tasks.CopyTask(batch=4, minimum_length=2, maximum_length=2, seed=0)
        >>> scheme = PaperScheme(zorn.LanguageModel(29, 8), population=3, epsilon=0.01, learning_rate=0.1)
        >>> scheme.step(task.training_batch(0))  # sequences through the model
        24
    """

    def __init__(
        self,
        model: zorn.LanguageModel,
        *,
        population: int,
        epsilon: float,
        learning_rate: float,
        seed: int = 0,
    ) -> None:
        self.model, self.weights = model, list(model.parameters())
        self.population, self.epsilon, self.learning_rate = population, epsilon, learning_rate
        self.seed, self.steps = seed, 0
        self._generator = torch.Generator(self.weights[0].device)

    @torch.inference_mode()
    def step(self, batch: Batch) -> int:
        """Evaluate all members and move the weights; returns the sequences run through the model."""
        members = range(self.steps * self.population, (self.steps + 1) * self.population)
        coefficients = [self.coefficient(member, batch) for member in members]
        for member, coefficient in zip(members, coefficients, strict=True):
            self.shift(member, -self.learning_rate * coefficient / self.population)
        self.steps += 1
        return 2 * self.population * len(batch.inputs)

    @torch.inference_mode()
    def coefficient(self, member: int, batch: Batch) -> float:
        """c of one member: two evaluations of the whole batch, and three draws of its direction."""
        self.shift(member, self.epsilon)
        above = self.loss(batch)
        self.shift(member, -2 * self.epsilon)
        below = self.loss(batch)
        self.shift(member, self.epsilon)
        return (above - below) / (2 * self.epsilon)

    @torch.inference_mode()
    def shift(self, member: int, scale: float) -> None:
        """Add `scale` times the member's direction to the weights."""
        self._generator.manual_seed((self.seed << 20) + member)  # torch takes its lowest 32 bits
        for weight in self.weights:
            signs = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)  # faster than floats
            signs.random_(0, 2, generator=self._generator).mul_(2).sub_(1)
            weight.add_(signs, alpha=scale)

    @torch.inference_mode()
    def loss(self, batch: Batch) -> float:
        """Mean cross-entropy of the tokens that count, in nats."""
        logits = plain_logits(self.model, batch.inputs)
        return float(F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten()))


def train_by_paper(
    scheme: PaperScheme, task: Task, judge: Judge, *, seconds: float, stop_below: float = -math.inf
) -> Run:
    """Train until the loss falls below `stop_below`, diverges, or the time is over: CPU seconds of the steps
    alone, as in `contest.train`. Peak memory is not measured."""
    points: list[Point] = []
    passes, clock = 0, 0.0
    while True:
        figures = judge(scheme.model, task, False)
        loss = figures["loss"]
        points.append(Point(scheme.steps, passes, clock, loss, figures))
        if not stop_below <= loss <= DIVERGED or clock >= seconds:
            return Run(points, 0)
        start = time.process_time()
        passes += scheme.step(task.training_batch(scheme.steps))
        clock += time.process_time() - start
