"""An estimator of your own, in one file: its arguments are flags, and every command of zorn knows it.

    zorn train --task copy --estimator examples/own_estimator.py:Sphere --draws 64 --steps 200
    zorn diagnose --task copy --estimator examples/own_estimator.py:Sphere

It keeps to what any model gives, `torch.func.functional_call`, so it needs no rule for a layer.
"""

import torch
from torch import nn
from torch.func import functional_call

import zorn


class Sphere(zorn.Estimator):
    """Central differences along directions of one length, drawn from the sphere (Nesterov and Spokoiny 2017).

    Args:
        draws: directions a step, at least 1.
        epsilon: size of the step along each weight, above 0.
    """

    scheduled = ("epsilon",)
    sizes = ("draws",)

    def __init__(self, *, draws: int = 32, epsilon: float = 0.02, seed: int = 0) -> None:
        self.draws, self.epsilon, self.seed = draws, epsilon, seed

    @torch.no_grad()
    def estimate(self, model, batch, objective, update=None) -> zorn.Estimate:
        names, weights = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
        flat = nn.utils.parameters_to_vector(weights)
        gradient, losses = torch.zeros_like(flat), []
        generator = torch.Generator().manual_seed(hash((self.seed, self.step)) % 2**63)
        for _ in range(self.draws):
            z = torch.randn(flat.numel(), generator=generator).to(flat)
            z *= flat.numel() ** 0.5 / z.norm()
            pair = []
            for sign in (1, -1):
                moved = (flat + sign * self.epsilon * z).split([p.numel() for p in weights])
                state = {n: m.view_as(p) for n, m, p in zip(names, moved, weights, strict=True)}
                outputs = functional_call(model, state, (batch.inputs,))
                logits = outputs[0] if isinstance(outputs, tuple) else outputs
                per_row = objective.token_losses(logits, batch.targets).sum(1)
                pair.append(float(per_row.sum() / objective.counts(batch.targets).sum()))
            gradient += (pair[0] - pair[1]) / (2 * self.epsilon * self.draws) * z
            losses += pair
        for parameter, part in zip(weights, gradient.split([p.numel() for p in weights]), strict=True):
            parameter.grad = part.view_as(parameter).clone()
        self.step += 1
        none = torch.zeros(0, dtype=torch.float64)
        passes, norm = round(self.passes(len(batch.inputs), 0)), float(gradient.norm())
        return zorn.Estimate(sum(losses) / len(losses), none, norm, passes)

    def passes(self, batch: int, steps: int) -> float:
        return 2 * self.draws * batch
