"""How the paper's public code shares a step among processes (arXiv 2505.17852), written from its description.

Every process holds a replica, and evaluates its members as `PaperScheme` does. It adds the directions of
its own members, each times its coefficient, to a buffer of the size of the weights; the buffers are summed at
the first process (`reduce`), which moves its weights by them and sends all of them to the others
(`broadcast`). So every step moves the weights and a buffer as large, however few numbers the members gave.
"""

import copy
import time
from collections.abc import Sequence

import torch
import torch.distributed as dist
from paper_scheme import PaperScheme
from torch import Tensor

import zorn
from zorn.models import Batch

SOURCE = 0
"""The process that moves the weights."""


class PaperExchange:
    """Steps of the scheme, shared among the processes of the default group of torch.distributed.

    Args:
        model: of one LSTM layer, the same on all processes.
        population: n, members of a step over all processes; a multiple of their number.
        epsilon: ε of the perturbations.
        learning_rate: of plain SGD.
        seed: of the directions.

    Attributes:
        weights, buffer: what is broadcast, and what is reduced.
        communication_seconds: spent in both so far.
        bytes_sent: by this process so far, counted as the tensors that it hands over: its buffer from
            every process but the first, the weights once for each of the others from the first.

    Example:
        >>> store = dist.HashStore()
        >>> dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        >>> task = zorn.tasks.CopyTask(batch=4, minimum_length=2, maximum_length=2, seed=0)
        >>> model = zorn.LanguageModel(task.vocabulary, 8)
        >>> shared = PaperExchange(model, population=4, epsilon=0.01, learning_rate=0.1)
        >>> shared.step(task.training_batch(0))  # sequences through the model of this process
        32
        >>> dist.destroy_process_group()
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
        if population % dist.get_world_size():
            raise ValueError(
                f"population: got {population}, expected a multiple of {dist.get_world_size()} processes"
            )
        settings = {"epsilon": epsilon, "learning_rate": learning_rate, "seed": seed}
        self.population, self.learning_rate, self.steps = population, learning_rate, 0
        self._members = PaperScheme(model, population=population, **settings)
        self._sum = PaperScheme(copy.deepcopy(model), population=population, **settings)
        self.weights, self.buffer = self._members.weights, self._sum.weights
        self.communication_seconds, self.bytes_sent = 0.0, 0

    @torch.inference_mode()
    def step(self, batch: Batch) -> int:
        """Evaluate the members of this process, exchange, and leave the new weights on every process; returns
        the sequences run through this process's model."""
        own = self.population // dist.get_world_size()
        first = self.steps * self.population + dist.get_rank() * own
        for total in self.buffer:
            total.zero_()
        for member in range(first, first + own):
            coefficient = self._members.coefficient(member, batch)
            self._sum.shift(member, -self.learning_rate * coefficient / self.population)
        self.exchange()
        self.steps += 1
        return 2 * own * len(batch.inputs)

    @torch.inference_mode()
    def exchange(self) -> None:
        """Sum the buffers at the first process, add the sum to its weights, and send them to all."""
        start = time.perf_counter()
        for total in self.buffer:
            dist.reduce(total, SOURCE)
        self.communication_seconds += time.perf_counter() - start
        if dist.get_rank() == SOURCE:
            for weight, total in zip(self.weights, self.buffer, strict=True):
                weight.add_(total)
        start = time.perf_counter()
        for weight in self.weights:
            dist.broadcast(weight, SOURCE)
        self.communication_seconds += time.perf_counter() - start
        receivers = dist.get_world_size() - 1 if dist.get_rank() == SOURCE else 1
        self.bytes_sent += receivers * _bytes(self.weights)


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
