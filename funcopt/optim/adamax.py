"""torch.optim.Adamax on the pure core."""

from typing import Any

import torch
from torch import Tensor

from funcopt.optim.drop_in import DropIn, drop_in, scalar_state
from funcopt.optim.rule import Definition, Hyper, Rule
from funcopt.rules.adamax import ScaleByAdamaxState, scale_by_adamax


def _rule(hyper: Hyper) -> Rule:
    b1, b2 = hyper["betas"]
    return Rule(scale_by_adamax(b1, b2, hyper["eps"]), ScaleByAdamaxState._make(("step", "exp_avg", "exp_inf")))


@drop_in
class Adamax(DropIn, torch.optim.Adamax):
    """`torch.optim.Adamax`: the same arguments, groups, state and numbers; `compile=True` besides.

    m ← β₁ m + (1 - β₁) g        u ← max(β₂ u, |g| + ε)        θ ← θ - γ (m / (1 - β₁ᵗ)) / u
    """

    definition = Definition(_rule)

    def new_state(self, param: Tensor, group: Hyper) -> dict[str, Any]:
        """A zero moment and a zero maximum."""
        zeros = {key: torch.zeros_like(param) for key in ("exp_avg", "exp_inf")}
        return {"step": scalar_state(param, group), **zeros}
