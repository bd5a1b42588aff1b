"""An estimator of your own, in one file: its fields are flags, and every command of zorn knows it.

    zorn train --task copy --estimator examples/own_estimator.py:Sphere --draws 64 --steps 200
    zorn diagnose --task copy --estimator examples/own_estimator.py:Sphere

It moves all weights of any model along a direction and back, so it needs no rule for a layer.
"""

import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import zorn
from zorn.checks import Count, Positive, Seed
from zorn.models import row_losses
from zorn.random import normals


class Sphere(zorn.Estimator):
    """Central differences along directions of one length, drawn from the sphere (Nesterov and Spokoiny 2017).

    Args:
        draws: directions a step, at least 1.
        epsilon: size of the step along each weight, above 0.
    """

    scheduled = ("epsilon",)
    sizes = ("draws",)

    draws: Count = 32
    epsilon: Positive = 0.02
    seed: Seed = 0

    @torch.no_grad()
    def _estimate(self, model, batch, objective, update) -> zorn.estimators.Estimate:
        weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        start, losses = parameters_to_vector(weights), []
        gradient, size = torch.zeros_like(start), len(start)
        try:
            for draw in range(self.draws):
                [z] = normals(self.seed, self.step, range(draw, draw + 1), 0, size, device=start.device)
                z = (z * (size**0.5 / z.norm())).to(start)
                for sign in (1, -1):
                    vector_to_parameters(start + sign * self.epsilon * z, weights)
                    losses.append(float(row_losses(model, batch, objective).mean()))
                gradient += (losses[-2] - losses[-1]) / (2 * self.epsilon * self.draws) * z
        finally:
            vector_to_parameters(start, weights)
        norm = self._fill(model, gradient, update)
        self.step += 1
        loss, passes = sum(losses) / len(losses), len(losses) * len(batch.inputs)
        return zorn.estimators.Estimate(loss=loss, gradient_norm=norm, forward_passes=passes)

    def passes(self, batch: int, steps: int) -> int | float:
        """Both signs of each direction, on every sequence."""
        return 2 * self.draws * batch
