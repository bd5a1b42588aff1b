"""Checks of the sizes that a user gives to a model: one clear line instead of a shape error inside torch."""

from zorn.errors import ConfigError


def require_positive(**sizes: int) -> None:
    """Raise `ConfigError` naming the first of `sizes` that is not an integer of at least 1.

    >>> require_positive(hidden_size=64, num_layers=2)
    """
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ConfigError(
                f"{name} is {size!r}, but it must be an integer of at least 1: give {name}=1 or more."
            )


def head_size(hidden_size: int, num_heads: int) -> int:
    """Units per head, d = H / heads; `ConfigError` unless the heads divide the hidden size.

    >>> head_size(64, 4)
    16
    """
    require_positive(hidden_size=hidden_size, num_heads=num_heads)
    if hidden_size % num_heads:
        raise ConfigError(
            f"hidden_size {hidden_size} is not a multiple of num_heads {num_heads}: every head needs the "
            "same number "
            f"of units, so take hidden_size {hidden_size - hidden_size % num_heads + num_heads} or another "
            "num_heads."
        )
    return hidden_size // num_heads
