"""A record of the models that are perturbed now, so that two `with` blocks never work on the same one."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import RLock

from torch import Tensor, nn

from zorn.errors import ConfigError


@dataclass(frozen=True, eq=False)
class _Block:
    """The objects that one open block changes or reads, by `id`; the block itself keeps them alive."""

    written: frozenset[int]
    read: frozenset[int]

    def excludes(self, other: "_Block") -> bool:
        return bool(self.written & (other.written | other.read) or self.read & other.written)


_OPEN: set[_Block] = set()
_LOCK = RLock()  # reentrant: the collector may close a forgotten block while its thread opens another


@contextmanager
def open_block(written: Iterable[nn.Module | Tensor], read: Iterable[nn.Module | Tensor]) -> Iterator[None]:
    """Hold `written` for this block alone, and `read` for it and for others that only read it.

    Args:
        written: modules and parameters that compute something else within the block.
        read: parameters whose values the block relies on.

    Raises:
        ConfigError: another block, of any thread, is open on some of them; nothing has been changed then.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> with open_block([layer], []), open_block([layer], []):  # doctest: +ELLIPSIS
        ...     pass
        Traceback (most recent call last):
        ...
        zorn.errors.ConfigError: the model is already perturbed in another block or thread: leave ...
    """
    block = _Block(frozenset(map(id, written)), frozenset(map(id, read)))
    try:
        with _LOCK:
            if any(block.excludes(other) for other in tuple(_OPEN)):
                raise ConfigError(
                    "the model is already perturbed in another block or thread: leave that `with` block (or "
                    "let that estimate end) before the next, or give each thread a copy.deepcopy of the "
                    "model, made before any block is open"
                )
            _OPEN.add(block)
        yield
    finally:
        with _LOCK:
            _OPEN.discard(block)
