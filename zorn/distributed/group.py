"""The processes that train together, and what they say to each other.

Everything that a process may have to wait for is a `message`, which also carries whether its sender failed:
a process that raises says so in the message that the others wait for, and nobody hangs. Only tensors that
follow a message (gradients) come without.
"""

from __future__ import annotations

import hashlib
import pickle
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn, TypeVar, final

import torch
import torch.distributed as dist
from torch import Tensor

from zorn.errors import ConfigError, NonFiniteLossError, PeerFailedError, WorkerError, ZornError

T = TypeVar("T")

WELL, FAILED, LEFT_OUT = 0.0, 1.0, 2.0
"""State of a process in its messages."""

HEADER = 4
"""Numbers before the values of a message: state, digest of the facts, interrupt, values."""

DIGEST_BITS = 52
"""Of a digest in a message: what a float64 holds exactly."""


@dataclass(frozen=True)
class Note:
    """The message of one process.

    Args:
        values: float64, on the CPU.
        left_out: it failed at its values, which do not count.
    """

    values: Tensor
    left_out: bool


@final
class Group:
    """The processes that train together; see `start`. Use it as a context manager, or call `close`.

    Args:
        rank: number of this process, 0 to size − 1.
        size: N, how many processes there are. 1: nothing is exchanged, on the same path.
        device: where this process's model belongs.
        timeout: seconds after which a process that says nothing is given up.

    Attributes:
        bytes_sent: that this process has handed to the others so far, without the protocol's overhead: a
            message or a broadcast goes to N − 1 others, of an all-reduce 2 (N − 1) / N of the tensor.
        seconds: spent in communication, waiting for slower processes counted in.
        collectives: messages, broadcasts and reductions so far.
        interrupted: whether a process asked for the run to end, as of the last message: the same on all.

    Example:
        >>> with Group() as group:
        ...     group.rank, group.size, group.is_main
        (0, 1, True)
    """

    def __init__(
        self, *, rank: int = 0, size: int = 1, device: torch.device | None = None, timeout: int | float = 600
    ) -> None:
        self.rank, self.size, self.timeout = rank, size, timeout
        self.device = device if device is not None else torch.device("cpu")
        self.bytes_sent = self.collectives = 0
        self.seconds = 0.0
        self.interrupted = False
        self._interrupt = False
        self._capacity = 0
        self._told: Exception | None = None

    @property
    def is_main(self) -> bool:
        """True for the process that writes files and logs: rank 0."""
        return self.rank == 0

    def request_interrupt(self) -> None:
        """Ask all processes to end the run: `interrupted` is True on all of them from the next message on."""
        self._interrupt = True

    def close(self) -> None:
        """Leave the group."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def __enter__(self) -> Group:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --------------------------------------------------------------------------------------- messages

    def message(
        self,
        values: Tensor | None = None,
        *,
        facts: Mapping[str, object] | None = None,
        disagreement: type[ZornError] = ConfigError,
        left_out: Exception | None = None,
        failure: Exception | None = None,
    ) -> list[Note]:
        """Say something, and hear what all say, in the order of ranks. One collective of a few numbers, a
        second where more values come than ever before, and others only before an error.

        Args:
            values: float64 [count] on the CPU; None: none. Counts may differ.
            facts: by name, what must be the same on all processes.
            disagreement: the error for facts that are not.
            left_out: why the values do not count; where this is so on all processes, it is raised.
            failure: why this process goes no further; it is raised.

        Raises:
            WorkerError: another process failed (NonFiniteLossError where it met that), or is gone.
            ConfigError: `disagreement`, which names a process and the fact.
        """
        values = values if values is not None else torch.empty(0, dtype=torch.float64)
        state = FAILED if failure is not None else WELL if left_out is None else LEFT_OUT
        numbers = [state, _digest(facts or {}), float(self._interrupt), len(values)]
        header = torch.tensor(numbers, dtype=torch.float64)
        padding = values.new_zeros(max(0, self._capacity - len(values)))
        said = self._all_gather(torch.cat([header, values[: self._capacity], padding]))
        headers, heard = said[:, :HEADER], said[:, HEADER:]
        counts = [int(count) for count in headers[:, 3]]
        if (headers[:, 0] == FAILED).any() or (headers[:, 0] == LEFT_OUT).all():
            self._raise_failure(failure or left_out)
        if (headers[:, 1] != headers[0, 1]).any():
            self._raise_disagreement(facts or {}, disagreement)
        self.interrupted |= bool(headers[:, 2].any())
        if max(counts) > self._capacity:
            rest = values[self._capacity :]
            rest = torch.cat([rest, rest.new_zeros(max(counts) - self._capacity - len(rest))])
            heard = torch.cat([heard, self._all_gather(rest)], dim=1)
            self._capacity = max(counts)
        return [
            Note(row[:count], bool(head[0] == LEFT_OUT))
            for row, count, head in zip(heard, counts, headers, strict=True)
        ]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Within the `with` block, an exception on this process is told to the others, which raise too."""
        try:
            yield
        except Exception as error:
            if error is not self._told:
                with suppress(Exception):  # the error itself, or that the others are gone
                    self.message(failure=error)
            raise

    def collect(self, value: T) -> list[T]:
        """The values of all processes, anything that can be pickled, in the order of ranks."""
        self.message()
        return self._objects(value)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over processes of a few numbers, float64 [count]: the same bits on all."""
        return torch.stack([note.values for note in self.message(values)]).sum(0)

    def _raise_failure(self, own: Exception | None) -> NoReturn:
        report = None if own is None else (type(own).__name__, str(own), isinstance(own, NonFiniteLossError))
        found = [(rank, told) for rank, told in enumerate(self._objects(report)) if told is not None]
        if own is not None:
            raise self._remembered(own)
        rank, (kind, text, _) = found[0]
        loss = all(told[2] for _, told in found)
        raise self._remembered(
            NonFiniteLossError(f"rank {rank}: {text}")
            if loss
            else PeerFailedError(f"rank {rank} failed, and every process stopped with it: {kind}: {text}")
        )

    def _raise_disagreement(self, facts: Mapping[str, object], kind: type[ZornError]) -> NoReturn:
        told = self._objects({name: str(value) for name, value in facts.items()})
        for name in dict.fromkeys(name for each in told for name in each):
            values = [each.get(name, "absent") for each in told]
            usual = Counter(values).most_common(1)[0][0]
            others = [rank for rank, value in enumerate(values) if value != usual]
            if others:
                raise self._remembered(
                    kind(
                        f"rank {others[0]} differs from rank {values.index(usual)} in {name}: "
                        f"{values[others[0]]}, not {usual}: give every process the same weights, settings "
                        "and whole batch (no sampler that gives each its part), or resume all from one "
                        "checkpoint"
                    )
                )
        raise AssertionError("facts with different digests are different")

    def _remembered(self, error: Exception) -> Exception:
        """An error that all processes know of."""
        self._told = error
        return error

    def _objects(self, value: Any) -> list[Any]:
        """The values of all processes; unlike `collect`, without asking first whether all are well."""
        data = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        lengths = [int(each) for each in self._all_gather(torch.tensor([len(data)]))]
        padded = torch.cat([data, data.new_zeros(max(lengths) - len(data))])
        rows = self._all_gather(padded)
        return [
            pickle.loads(row[:length].numpy().tobytes()) for row, length in zip(rows, lengths, strict=True)
        ]

    # ---------------------------------------------------------------------------------------- tensors

    def all_reduce(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over processes: the same bits on all."""
        with self._communication(2 * tensor.nbytes * (self.size - 1) // self.size):
            if self.size > 1:
                dist.all_reduce(tensor)

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Replace a tensor by that of the process `source`."""
        with self._communication(tensor.nbytes * (self.size - 1) if self.rank == source else 0):
            if self.size > 1:
                dist.broadcast(tensor, source)

    def _all_gather(self, tensor: Tensor) -> Tensor:
        """[size, …] of tensors of one shape, on the CPU; in ⌈log₂ N⌉ rounds, where a ring takes N − 1.

        After a round each process holds its own tensor and those of twice as many that follow it. Bruck, Ho,
        Kipnis, Upfal, Weathersby, "Efficient algorithms for all-to-all communications in multiport
        message-passing systems", IEEE TPDS 8 (1997).
        """
        held = tensor.new_empty(self.size, *tensor.shape)  # of this process, the next one, and so on around
        held[0] = tensor
        have = 1
        with self._communication(tensor.nbytes * (self.size - 1)):
            while have < self.size:
                new = held[have : 2 * have]
                exchange = [
                    dist.P2POp(dist.isend, held[: len(new)], (self.rank - have) % self.size),
                    dist.P2POp(dist.irecv, new, (self.rank + have) % self.size),
                ]
                for work in dist.batch_isend_irecv(exchange):
                    work.wait()
                have += len(new)
        return held.roll(self.rank, 0)

    @contextmanager
    def _communication(self, sent: int) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        except RuntimeError as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise self._remembered(
                WorkerError(
                    f"rank {self.rank} lost the other processes: one has ended, or did not answer within "
                    f"{self.timeout:g} s ({reason}): look at what the others printed, and start all again"
                )
            ) from error
        finally:
            self.bytes_sent += sent
            self.collectives += self.size > 1
            self.seconds += time.perf_counter() - started


def _digest(facts: Mapping[str, object]) -> int:
    text = repr(sorted((name, str(value)) for name, value in facts.items()))
    found = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(found, "little") >> (64 - DIGEST_BITS)
