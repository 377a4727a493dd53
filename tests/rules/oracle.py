"""The same gradients through a rule and through a class of torch.optim."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import funcopt as fo

STEPS = 20
SHAPES = ((), (3,), (4, 3), (0, 2))


def gradients(scale: float = 1.0, steps: int = STEPS) -> list[list[Tensor]]:
    """Normal numbers, but zeros at the third step and large ones at the sixth."""
    generator = torch.Generator().manual_seed(0)
    drawn = [[torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES] for _ in range(steps)]
    factors = [{2: 0.0, 5: 10.0}.get(step, 1.0) * scale for step in range(steps)]
    return [[factor * leaf for leaf in grads] for factor, grads in zip(factors, drawn)]


def check_against_torch(
    transformation: fo.GradientTransformation,
    make: Callable[[list[Tensor]], torch.optim.Optimizer],
    rtol: float = 1e-9,
    scale: float = 1.0,
) -> Any:
    """Parameters that start at 1: every step within `rtol` of the way from there. Returns the last state."""
    params = [torch.ones(shape, dtype=torch.float64) for shape in SHAPES]
    theirs = [param.clone().requires_grad_() for param in params]
    optimizer, state = make(theirs), transformation.init(params)
    for step, grads in enumerate(gradients(scale)):
        updates, state = transformation.update(grads, state, params)
        params = fo.apply_updates(params, updates)
        for param, grad in zip(theirs, grads):
            param.grad = grad.clone()
        optimizer.step()
        for ours, other in zip(params, theirs):
            moved, deviation = (other - 1).abs().sum(), (ours - other).abs().sum()  # sums, for the empty leaf
            assert deviation <= rtol * moved, f"step {step}: {ours}, torch has {other.detach()}"
            assert moved > 0 or ours.numel() == 0
    return state
