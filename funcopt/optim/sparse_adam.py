"""torch.optim.SparseAdam on the pure core."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from funcopt.numerics import compute_dtype
from funcopt.optim.optimizer import Optimizer
from funcopt.rules.adam import sparse_adam_rule


class SparseAdam(Optimizer, torch.optim.SparseAdam):
    """`torch.optim.SparseAdam`: Adam on the numbers that sparse gradients store, all others staying as they are.

        m ← β₁ m + (1 - β₁) g        v ← β₂ v + (1 - β₂) g²        θ ← θ - γ √(1 - β₂ᵗ) / (1 - β₁ᵗ) m / (√v + ε)

    The same arguments, groups, state (dense moments, `step` a Python int) and numbers. A dense gradient is refused
    before any parameter has moved or counted, the values of a group as those of the constructor.

    >>> embedding = torch.nn.Embedding(1000, 16, sparse=True)
    >>> optimizer = SparseAdam(embedding.parameters(), lr=0.1)
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Perform one step. A `closure` is evaluated before, with gradients enabled, and its value returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moving = [(param, group) for group in self.param_groups for param in group["params"] if param.grad is not None]
        if not all(param.grad.is_sparse for param, _ in moving):
            raise RuntimeError("SparseAdam does not support dense gradients, please consider Adam instead")
        for param, group in moving:
            self._step_parameter(param, group)
        return loss

    def _step_parameter(self, param: Tensor, group: dict[str, Any]) -> None:
        state = self.state[param]
        if len(state) == 0:
            state.update(step=0, exp_avg=torch.zeros_like(param), exp_avg_sq=torch.zeros_like(param))
        state["step"] += 1
        assert param.grad is not None
        grad = param.grad.coalesce()
        if grad.values().numel() > 0:
            _move(param, grad, state, group)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        own = {key: group.get(key, value) for key, value in self.defaults.items()}
        torch.optim.SparseAdam([torch.zeros(1)], **own)


def _move(param: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    """One step of the numbers that `grad` stores, in place; a gather and a scatter around the rule."""
    stored = tuple(grad.indices())
    wide = compute_dtype(param.dtype)
    values = -grad.values() if group.get("maximize", False) else grad.values()
    b1, b2 = group["betas"]
    rate = group["lr"].squeeze() if isinstance(group["lr"], Tensor) else group["lr"]
    mu, nu = (state[key][stored].view_as(values).to(wide) for key in ("exp_avg", "exp_avg_sq"))
    count = torch.tensor(state["step"])
    direction, mu, nu = sparse_adam_rule(values.to(wide), mu, nu, count, b1, b2, group["eps"])
    for target, new in (("exp_avg", mu), ("exp_avg_sq", nu)):
        state[target][stored] = new.to(state[target].dtype)
    param[stored] = (param[stored].view_as(values).to(wide) - rate * direction).to(param.dtype)
