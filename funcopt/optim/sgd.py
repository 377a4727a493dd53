"""torch.optim.SGD on the pure core."""

from typing import Any

import torch
from torch import Tensor

from funcopt.optim.drop_in import DropIn, drop_in
from funcopt.optim.rule import Definition, Hyper, Rule
from funcopt.transform import EmptyState, identity
from funcopt.transforms.momentum import TraceState, trace


def _rule(hyper: Hyper) -> Rule:
    momentum = hyper["momentum"]
    if not isinstance(momentum, Tensor) and momentum == 0:
        return Rule(identity(), EmptyState())
    dampening = 0.0 if hyper.get("fresh") else hyper["dampening"]  # the buffer starts as the whole first gradient
    return Rule(trace(momentum, hyper["nesterov"], dampening=dampening), TraceState("momentum_buffer"))


@drop_in
class SGD(DropIn, torch.optim.SGD):
    """`torch.optim.SGD`: the same arguments, groups, state and numbers; `compile=True` besides.

    b ← g at the first step, else μ b + (1 - τ) g        θ ← θ - γ b, or θ - γ (g + μ b) with `nesterov`
    """

    definition = Definition(_rule, scalars=(), switches=("weight_decay", "momentum", "dampening"), fresh=True)

    def new_state(self, param: Tensor, group: Hyper) -> dict[str, Any]:
        """A momentum buffer, if there is momentum."""
        assert param.grad is not None
        return {"momentum_buffer": torch.zeros_like(param.grad)} if group["momentum"] != 0 else {}

    def check_gradient(self, param: Tensor, group: Hyper) -> None:
        """Sparse gradients are welcome."""
        if param.grad is not None and not param.grad.is_sparse:
            super().check_gradient(param, group)
