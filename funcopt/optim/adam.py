"""torch.optim.Adam and AdamW on the pure core."""

from typing import Any

import torch
from torch import Tensor

from funcopt.optim.drop_in import DropIn, drop_in, scalar_state
from funcopt.optim.rule import Definition, Hyper, Rule
from funcopt.rules.adam import ScaleByAdamState, scale_by_adam
from funcopt.rules.amsgrad import ScaleByAmsgradState, scale_by_amsgrad


def _rule(hyper: Hyper) -> Rule:
    b1, b2 = hyper["betas"]
    if hyper["amsgrad"]:
        state = ScaleByAmsgradState._make(["step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"])
        return Rule(scale_by_amsgrad(b1, b2, hyper["eps"], max_of="raw"), state)
    return Rule(scale_by_adam(b1, b2, hyper["eps"]), ScaleByAdamState._make(["step", "exp_avg", "exp_avg_sq"]))


@drop_in
class Adam(DropIn, torch.optim.Adam):
    """`torch.optim.Adam`: the same arguments, groups, state and numbers; `compile=True` besides.

        m ← β₁ m + (1 - β₁) g        v ← β₂ v + (1 - β₂) g²
        θ ← θ - γ (m / (1 - β₁ᵗ)) / (√(v / (1 - β₂ᵗ)) + ε)

    With `amsgrad`, the largest v so far is in the place of v.
    """

    definition = Definition(_rule)

    def new_state(self, param: Tensor, group: Hyper) -> dict[str, Any]:
        """Zero moments, and the largest second moment with `amsgrad`."""
        keys = ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if group["amsgrad"] else ()))
        return {"step": scalar_state(param, group)} | {key: torch.zeros_like(param) for key in keys}

    def check_gradient(self, param: Tensor, group: Hyper) -> None:
        """As torch: also a learning rate that became a tensor in a foreach group."""
        if param.grad is not None and param.grad.is_sparse:
            raise RuntimeError("Adam does not support sparse gradients, please consider SparseAdam instead")
        if group["foreach"] and isinstance(group["lr"], Tensor) and not group["capturable"]:
            raise RuntimeError("lr as a Tensor is not supported for capturable=False and foreach=True")
        super().check_gradient(param, group)


@drop_in
class AdamW(Adam, torch.optim.AdamW):
    """`torch.optim.AdamW`: `Adam` with decoupled weight decay, of 1e-2 unless told.

    θ ← (1 - γ λ) θ - γ (m / (1 - β₁ᵗ)) / (√(v / (1 - β₂ᵗ)) + ε)
    """
