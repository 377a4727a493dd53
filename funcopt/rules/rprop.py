"""Rprop: a step size for each number, which grows while its gradient keeps its sign and shrinks when it turns."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcopt import tree
from funcopt.checks import check_real, check_within
from funcopt.transform import GradientTransformation, Params, Updates, chain, factory
from funcopt.transforms.scaling import scale


class ScaleByRpropState(NamedTuple):
    prev: tree.Tree  # the gradient before, with 0 where it had turned
    step_size: tree.Tree  # of each number


@factory
def scale_by_rprop(
    learning_rate: float | Tensor,
    eta_minus: float | Tensor = 0.5,
    eta_plus: float | Tensor = 1.2,
    min_step_size: float | Tensor = 1e-6,
    max_step_size: float | Tensor = 50.0,
) -> GradientTransformation:
    """Replace gradients by the steps of `rprop`, uphill; `learning_rate` is the first step size."""
    check_within("scale_by_rprop", "[0, inf)", learning_rate=learning_rate)
    check_within("scale_by_rprop", "(0, 1)", eta_minus=eta_minus)
    check_within("scale_by_rprop", "(1, inf)", eta_plus=eta_plus)
    check_within("scale_by_rprop", "[0, inf)", min_step_size=min_step_size, max_step_size=max_step_size)

    def init(params: Params) -> ScaleByRpropState:
        return ScaleByRpropState(tree.zeros_like(params), tree.full_like(params, learning_rate))

    def rule(g: Tensor, prev: Tensor, step_size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        check_real("scale_by_rprop", g)
        agreement = g.sign() * prev.sign()  # not the sign of g * prev, which underflows
        grown = torch.where(agreement > 0, eta_plus * step_size, step_size)
        step_size = torch.where(agreement < 0, eta_minus * step_size, grown)
        step_size = step_size.clamp(min=min_step_size).clamp(max=max_step_size)
        g = torch.where(agreement < 0, torch.zeros_like(g), g)
        return g.sign() * step_size, g, step_size

    def update(
        updates: Updates, state: ScaleByRpropState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByRpropState]:
        updates, prev, step_size = tree.map_rule(rule, updates, state.prev, state.step_size, elementwise=True)
        return updates, ScaleByRpropState(prev, step_size)

    return GradientTransformation(init, update)


@factory
def rprop(
    learning_rate: float | Tensor,
    eta_minus: float | Tensor = 0.5,
    eta_plus: float | Tensor = 1.2,
    min_step_size: float | Tensor = 1e-6,
    max_step_size: float | Tensor = 50.0,
) -> GradientTransformation:
    """Rprop (Riedmiller & Braun 1993, https://doi.org/10.1109/ICNN.1993.298623), for gradients without noise.

        s ← clamp(f s, min, max),  f = η₊ where sign(g) is that of the gradient before, η₋ where it is the other, else 1
        u = -s sign(g), and 0 where f = η₋; that g then counts as 0 at the next step

    s starts at `learning_rate`, which has no other use and cannot be scheduled. As torch.optim.Rprop. optax.rprop
    applies at each step the update of the step before, so that its first is 0 (a bug, in 0.2.9 too); and it does not
    bound s before the first change. Real leaves only.

    >>> optimizer = rprop(learning_rate=1e-2)
    """
    return chain(scale_by_rprop(learning_rate, eta_minus, eta_plus, min_step_size, max_step_size), scale(-1.0))
