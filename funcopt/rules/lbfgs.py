"""L-BFGS: the inverse Hessian as the last steps and the changes of the gradient over them describe it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

LEAST_CURVATURE = 1e-10


class Curvature(NamedTuple):
    """What one step tells of the Hessian."""

    accepted: Tensor  # whether the function curves upwards along the step
    inverse: Tensor  # 1 / yᵀs; 0 if it is not accepted, which keeps the pair without effect in `apply_inverse_hessian`
    scale: Tensor  # yᵀs / yᵀy, the inverse curvature along y


def curvature(step: Tensor, change: Tensor) -> Curvature:
    """The curvature along the step s, over which the gradient has changed by y; both are vectors."""
    inner = change.dot(step)
    accepted = inner > LEAST_CURVATURE
    return Curvature(accepted, torch.where(accepted, 1 / inner, 0), inner / change.dot(change))


def apply_inverse_hessian(
    vector: Tensor,
    steps: Sequence[Tensor],
    changes: Sequence[Tensor],
    inverses: Sequence[Tensor],
    scale: Tensor | float,
) -> tuple[Tensor, list[Tensor]]:
    """The two-loop recursion (Nocedal 1980, https://doi.org/10.1090/S0025-5718-1980-0572855-7): H q for a vector q.

        αᵢ = sᵢᵀq / yᵢᵀsᵢ,  q ← q - αᵢ yᵢ  from the last pair to the first;  r = H₀ q
        r ← r + (αᵢ - yᵢᵀr / yᵢᵀsᵢ) sᵢ  from the first to the last

    `steps` and `changes` are sequences of vectors, or the rows of matrices; H₀ is `scale` times the identity. Returns
    r, and the αᵢ in the order of the pairs.
    """
    alphas: list[Tensor] = []
    for step, change, inverse in reversed(list(zip(steps, changes, inverses))):
        alpha = step.dot(vector) * inverse
        vector = torch.sub(vector, alpha * change)
        alphas.insert(0, alpha)
    vector = scale * vector
    for step, change, inverse, alpha in zip(steps, changes, inverses, alphas):
        vector = vector + (alpha - change.dot(vector) * inverse) * step
    return vector, alphas
