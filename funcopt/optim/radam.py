"""torch.optim.RAdam on the pure core."""

import math
from typing import Any

import torch
from torch import Tensor

from funcopt.optim.drop_in import DropIn, drop_in, scalar_state
from funcopt.optim.rule import Definition, Hyper, Rule
from funcopt.rules.radam import ScaleByRadamState, scale_by_radam

ABOVE_5 = math.nextafter(5.0, math.inf)  # the rule rectifies from a threshold on, torch above it


def _rule(hyper: Hyper) -> Rule:
    b1, b2 = hyper["betas"]
    direction = scale_by_radam(b1, b2, hyper["eps"], threshold=ABOVE_5, eps_on="raw")
    return Rule(direction, ScaleByRadamState._make(("step", "exp_avg", "exp_avg_sq")))


@drop_in
class RAdam(DropIn, torch.optim.RAdam):
    """`torch.optim.RAdam`: the same arguments, groups, state and numbers; `compile=True` besides.

    ρ∞ = 2 / (1 - β₂) - 1        ρ = ρ∞ - 2t β₂ᵗ / (1 - β₂ᵗ)        r² = (ρ - 4)(ρ - 2) ρ∞ / ((ρ∞ - 4)(ρ∞ - 2) ρ)
    θ ← θ - γ r (m / (1 - β₁ᵗ)) √(1 - β₂ᵗ) / (√v + ε), and θ - γ m / (1 - β₁ᵗ) while ρ ≤ 5        m, v as in `Adam`
    """

    definition = Definition(_rule)

    def new_state(self, param: Tensor, group: Hyper) -> dict[str, Any]:
        """Zero moments."""
        zeros = {key: torch.zeros_like(param) for key in ("exp_avg", "exp_avg_sq")}
        return {"step": scalar_state(param, group), **zeros}
