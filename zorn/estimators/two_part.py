"""One optimizer made of two: one for the exact part of a gradient, one for the estimated credit.

The credit part of `Bridge` is noisy where the exact part is not. In one Adam the noise sets the step size of
both, and drowns what is known exactly; with moments of its own, averaged for longer, it adds to it.

Adam: Kingma and Ba (2015); decoupled weight decay: Loshchilov and Hutter (2019), "Decoupled weight decay
regularization".
"""

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, final

import torch
from torch import Tensor

from zorn.errors import ConfigError

GRADIENTS = ("grad", "credit_grad")
"""Attributes of a parameter that may hold a gradient, or a part of one that is kept apart."""


@final
class TwoPartOptimizer(torch.optim.Optimizer):
    """Steps `exact` on `.grad` and `credit` on `.credit_grad`, each with its own moments and step size.

    It serves as any torch optimizer: `param_groups` holds the groups of both, those of `exact` first (a
    schedule may set or scale their "lr"), and `state_dict` the state of both. Clipping `.grad` clips the
    exact part. Give weight decay to `exact` only: two decays add up.

    Args:
        exact: a torch optimizer over the trained parameters.
        credit: another one, over the same parameters or some of them.

    Attributes:
        exact, credit: the two.

    Raises:
        ConfigError: not two different torch optimizers, or a `credit` over parameters that `exact` lacks.

    Example:
        >>> import zorn
        >>> from zorn.estimators.bridge import Bridge
        >>> model = zorn.LanguageModel(29, 16)
        >>> task = zorn.CopyTask(batch=8, minimum_length=2, maximum_length=4, seed=0)
        >>> estimator = Bridge(truncation=2, epsilon=0.1, separate=True)
        >>> optimizer = TwoPartOptimizer.adam(model.parameters(), lr=3e-3)
        >>> for step in range(2):
        ...     estimate = estimator.estimate(model, task.training_batch(step), zorn.TokenCrossEntropy())
        ...     optimizer.step()
    """

    exact: torch.optim.Optimizer
    credit: torch.optim.Optimizer

    def __init__(self, exact: torch.optim.Optimizer, credit: torch.optim.Optimizer) -> None:
        for name, optimizer in (("exact", exact), ("credit", credit)):
            if not isinstance(optimizer, torch.optim.Optimizer):
                raise ConfigError(
                    f"{name} must be a torch.optim.Optimizer, got {type(optimizer).__name__}: for example "
                    "torch.optim.Adam(model.parameters(), lr=1e-3)"
                )
        if exact is credit:
            raise ConfigError("exact and credit must be two optimizers, got one twice: make another")
        missing = {id(p) for p in _parameters(credit)} - {id(p) for p in _parameters(exact)}
        if missing:
            raise ConfigError(
                f"credit must step parameters of exact, got {len(missing)} that exact has not: make both of "
                "the same parameters"
            )
        # As unpickling does, in place of Optimizer.__init__, which refuses groups that share parameters.
        self.__setstate__({"defaults": {}, "state": {}, "exact": exact, "credit": credit})
        self._join_groups()

    @classmethod
    def adam(
        cls,
        parameters: Iterable[Tensor],
        lr: float,
        credit_lr: float | None = None,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        credit_betas: tuple[float, float] = (0.99, 0.999),
        weight_decay: float = 0.0,
    ) -> "TwoPartOptimizer":
        """AdamW for the exact part, Adam with a longer memory for the credit part.

        Args:
            parameters: to train.
            lr: step size of the exact part, above 0.
            credit_lr: of the credit part; None is `lr`.
            betas: decay of the exact part's first and second moments, each from 0 up to, not including, 1.
            credit_betas: of the credit part's.
            weight_decay: decoupled, in the exact part only, at least 0.

        Raises:
            ValueError: of torch, a number outside its range.

        Example:
            >>> weight = torch.nn.Parameter(torch.zeros(3))
            >>> optimizer = TwoPartOptimizer.adam([weight], lr=1e-2, credit_lr=1e-3)
            >>> [group["lr"] for group in optimizer.param_groups]
            [0.01, 0.001]
        """
        trained = list(parameters)
        exact = torch.optim.AdamW(trained, lr=lr, betas=betas, weight_decay=weight_decay)
        return cls(
            exact, torch.optim.Adam(trained, lr=lr if credit_lr is None else credit_lr, betas=credit_betas)
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of each optimizer, `exact` first.

        Args:
            closure: called first, with gradients on, to fill both parts; what it returns is returned.

        Raises:
            ConfigError: a parameter has a `.grad` and no `.credit_grad`; nothing was changed. One that is
                None is there: an estimate without credit, for which `credit` does not step.
        """
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        credited = _parameters(self.credit)
        parts = [(parameter, getattr(parameter, "credit_grad", None)) for parameter in credited]
        missing = [p for p in credited if p.grad is not None and not hasattr(p, "credit_grad")]
        if missing:
            raise ConfigError(
                f"{len(missing)} of {len(parts)} parameters have a .grad but no .credit_grad (the first is "
                f"of shape {tuple(missing[0].shape)}): fill both with Bridge(…, separate=True).estimate, or "
                "step a single optimizer"
            )
        self.exact.step()
        exact_parts = [parameter.grad for parameter in credited]
        try:
            for parameter, part in parts:
                parameter.grad = part
            self.credit.step()
        finally:
            for parameter, part in zip(credited, exact_parts, strict=True):
                parameter.grad = part
        return result

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear both parts of the gradient."""
        self.exact.zero_grad(set_to_none)
        for parameter in _parameters(self.credit):
            part = vars(parameter).get("credit_grad")
            if set_to_none or part is None:
                vars(parameter).pop("credit_grad", None)
            else:
                part.zero_()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add further parameters to both optimizers; the options in the group hold for both."""
        for optimizer in (self.exact, self.credit):
            optimizer.add_param_group(dict(param_group))
        self._join_groups()

    def state_dict(self) -> dict[str, Any]:
        """The state of both: {"exact": …, "credit": …}."""
        return {"exact": self.exact.state_dict(), "credit": self.credit.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.exact.load_state_dict(state_dict["exact"])
        self.credit.load_state_dict(state_dict["credit"])
        self._join_groups()  # torch's optimizers replace theirs when they load

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"exact": self.exact, "credit": self.credit}

    def _join_groups(self) -> None:
        self.param_groups = [*self.exact.param_groups, *self.credit.param_groups]


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return list(chain.from_iterable(group["params"] for group in optimizer.param_groups))
