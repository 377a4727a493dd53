"""torch.optim.NAdam on the pure core."""

from typing import Any

import torch
from torch import Tensor

from funcopt.optim.drop_in import DropIn, drop_in, scalar_state
from funcopt.optim.rule import Definition, Hyper, Rule
from funcopt.rules.nadam import ScaleByNadamState, scale_by_nadam


def _rule(hyper: Hyper) -> Rule:
    b1, b2 = hyper["betas"]
    direction = scale_by_nadam(b1, b2, hyper["eps"], hyper["momentum_decay"])
    return Rule(direction, ScaleByNadamState._make(("step", "mu_product", "exp_avg", "exp_avg_sq")))


@drop_in
class NAdam(DropIn, torch.optim.NAdam):
    """`torch.optim.NAdam`: the same arguments, groups, state and numbers; `compile=True` besides.

        μ = β₁ (1 - 0.96^(t ψ) / 2), ψ the `momentum_decay`        P ← P μ        m, v as in `Adam`
        θ ← θ - γ ((1 - μ) g / (1 - P) + μ⁺ m / (1 - P μ⁺)) / (√(v / (1 - β₂ᵗ)) + ε)        μ⁺ that of step t + 1

    P, the state `mu_product`, is in float32, and stays so when a checkpoint of bfloat16 parameters is loaded.
    """

    definition = Definition(_rule, scalars=("step", "mu_product"))

    def new_state(self, param: Tensor, group: Hyper) -> dict[str, Any]:
        """A product of 1 and zero moments."""
        scalars = {"step": scalar_state(param, group), "mu_product": scalar_state(param, group, 1.0)}
        return scalars | {key: torch.zeros_like(param) for key in ("exp_avg", "exp_avg_sq")}
