"""Trajectories of torch.optim to compare rules with."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import funcopt as fo
from funcopt import tree


def trajectories(
    transformation: fo.GradientTransformation,
    oracle: Callable[[list[Tensor]], torch.optim.Optimizer],
    params: list[Tensor],
    gradients: list[list[Tensor]],
    state: Any = None,
) -> tuple[list[Any], list[Any], Any]:
    """The parameters after each step, here and in torch, and the last state here."""
    theirs = [p.clone().requires_grad_() for p in params]
    optimizer = oracle(theirs)
    state = transformation.init(params) if state is None else state
    ours_history, theirs_history = [], []
    for grads in gradients:
        updates, state = transformation.update(grads, state, params)
        params = fo.apply_updates(params, updates)
        for p, g in zip(theirs, grads):
            p.grad = None if g is None else g.clone()
        optimizer.step()
        ours_history.append(params)
        theirs_history.append([p.detach().clone() for p in theirs])
    return ours_history, theirs_history, state


def assert_same(ours: list[Any], theirs: list[Any], rtol: float) -> None:
    """Every leaf after every step within `rtol` of its movement since the first step."""
    for step, (mine, other) in enumerate(zip(ours, theirs)):
        for index, (a, b) in enumerate(zip(tree.leaves(mine), tree.leaves(other))):
            moved = max(b.abs().max().item(), 1e-3) if b.numel() else 1.0
            deviation = (a - b).abs().max().item() if b.numel() else 0.0
            assert deviation <= rtol * moved, f"step {step}, leaf {index}: off by {deviation:.3g} of {moved:.3g}"


def gradients(shapes: list[tuple[int, ...]], count: int, dtype: torch.dtype = torch.float64) -> list[list[Tensor]]:
    """Lists of normal leaves, always the same ones."""
    generator = torch.Generator().manual_seed(0)
    return [[torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes] for _ in range(count)]
