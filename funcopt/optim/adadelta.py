"""torch.optim.Adadelta on the pure core."""

from typing import Any

import torch
from torch import Tensor

from funcopt.optim.drop_in import DropIn, drop_in, scalar_state
from funcopt.optim.rule import Definition, Hyper, Rule
from funcopt.rules.adadelta import ScaleByAdaDeltaState, scale_by_adadelta


def _rule(hyper: Hyper) -> Rule:
    return Rule(scale_by_adadelta(hyper["rho"], hyper["eps"]), ScaleByAdaDeltaState._make(("square_avg", "acc_delta")))


@drop_in
class Adadelta(DropIn, torch.optim.Adadelta):
    """`torch.optim.Adadelta`: the same arguments, groups, state and numbers; `compile=True` besides.

    v ← ρ v + (1 - ρ) g²        δ = √(u + ε) / √(v + ε) · g        u ← ρ u + (1 - ρ) δ²        θ ← θ - γ δ
    """

    definition = Definition(_rule)

    def new_state(self, param: Tensor, group: Hyper) -> dict[str, Any]:
        """Zero means of the squares of gradients and of updates."""
        zeros = {key: torch.zeros_like(param) for key in ("square_avg", "acc_delta")}
        return {"step": scalar_state(param, group), **zeros}
