"""A kernel and its reference twin as one function, which trusts the kernel only where it was seen to agree.

The first time that a kernel is to run on a device in a dtype, it and its twin are given one small case. A
kernel that fails there, or gives something else, is not used on that device any more, and one warning says
so. One that Triton cannot compile or launch for a later size (too little shared memory, say) has not begun to
write: its twin does that call, and all further ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import update_wrapper
from typing import Any

import torch
from torch import Tensor

from zorn.kernels.availability import SWITCH, available, say_once
from zorn.kernels.language import TritonError

Function = Callable[..., Any]

Trial = Callable[[Function, torch.device, torch.dtype], Sequence[Tensor]]
"""Calls one of the twins on a small case, and returns all that came out."""


def twins(kernel: Function, trial: Trial) -> Callable[[Function], Twins]:
    """Make a function in plain PyTorch the reference of a kernel.

    Example:
        >>> @twins(lambda x: x + x, lambda run, device, dtype: [run(torch.ones(3))])
        ... def double(x):
        ...     return 2 * x
        >>> x = torch.ones(2)
        >>> double.serves(x), double(x)
        (False, tensor([2., 2.]))
    """
    return lambda reference: Twins(kernel, reference, trial)


class Twins:
    """A kernel and its reference: the same function, once fast and once in plain PyTorch.

    A call trusts its arguments: a kernel on a GPU reads and writes wherever their shapes say.

    Args:
        kernel: runs on the devices that are `available`, in every dtype but float64.
        reference: the same in plain PyTorch, on any device. Its first argument, a tensor, says where and in
            which dtype a call is.
        trial: of either; its values lie around 1.
    """

    def __init__(self, kernel: Function, reference: Function, trial: Trial) -> None:
        update_wrapper(self, reference)
        self.kernel, self.reference, self._trial = kernel, reference, trial
        self._trusted: dict[tuple[torch.device, torch.dtype], bool] = {}

    def serves(self, like: Tensor) -> bool:
        """True if the kernel runs on a tensor's device, in its dtype."""
        if not available(like.device) or like.dtype == torch.float64:
            return False
        place = like.device, like.dtype
        if place not in self._trusted:
            self._trusted[place] = self._agrees(*place)
        return self._trusted[place]

    def __call__(self, like: Tensor, *arguments: Any, **options: Any) -> Any:
        """The function of all arguments, by the twin that serves the first."""
        if self.serves(like):
            try:
                return self.kernel(like, *arguments, **options)
            except TritonError as error:
                self._trusted[like.device, like.dtype] = False
                self._warn(like.device, like.dtype, f"cannot be compiled or launched: {error}")
        return self.reference(like, *arguments, **options)

    @torch.inference_mode(mode=False)
    @torch.no_grad()
    def _agrees(self, device: torch.device, dtype: torch.dtype) -> bool:
        try:
            found = self._trial(self.kernel, device, dtype)
            differences = [
                _difference(*pair)
                for pair in zip(found, self._trial(self.reference, device, dtype), strict=True)
            ]
        except Exception as error:  # noqa: BLE001  whatever a compiler or a driver raises
            self._warn(device, dtype, f"failed on a small case: {type(error).__name__}: {error}")
            return False
        if max(differences) <= _tolerance(dtype):  # not of NaN
            return True
        self._warn(device, dtype, f"differs from its reference by {max(differences):.2g} on a small case")
        return False

    def _warn(self, device: torch.device, dtype: torch.dtype, what: str) -> None:
        name = getattr(self.kernel, "__name__", "a kernel")
        say_once(
            f"zorn's GPU kernel {name} on {device} in {dtype} {what}; plain PyTorch is used in its place, "
            f"which is slower. Please report it; {SWITCH}=0 turns all kernels off"
        )


def _difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference, over the largest value or 1."""
    expected = expected.double()
    largest = max(1.0, float(expected.abs().max()))
    difference = float((found.double() - expected).abs().max()) / largest
    return float("inf") if difference != difference else difference


def _tolerance(dtype: torch.dtype) -> float:
    """A difference that round-off can explain; a wrong sign or index makes a larger one."""
    exact = dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    return 1e-4 if exact else 2**-5
