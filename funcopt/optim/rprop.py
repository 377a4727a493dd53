"""torch.optim.Rprop on the pure core."""

from typing import Any

import torch
from torch import Tensor

from funcopt.optim.drop_in import DropIn, drop_in, scalar_state
from funcopt.optim.rule import Definition, Hyper, Rule
from funcopt.rules.rprop import ScaleByRpropState, scale_by_rprop


def _rule(hyper: Hyper) -> Rule:
    direction = scale_by_rprop(0.0, *hyper["etas"], *hyper["step_sizes"])  # the rate is in the state
    return Rule(direction, ScaleByRpropState("prev", "step_size"))


@drop_in
class Rprop(DropIn, torch.optim.Rprop):
    """`torch.optim.Rprop`: the same arguments, groups, state and numbers; `compile=True` besides.

        s ← clamp(f s), f = η₊ where g has the sign of the gradient before, η₋ where the other, else 1
        θ ← θ - s sign(g), and no step where f = η₋

    s starts at the learning rate, which has no other use: a later change of it has no effect, as in torch.
    """

    definition = Definition(_rule, lambda hyper, count: 1.0)

    def new_state(self, param: Tensor, group: Hyper) -> dict[str, Any]:
        """A gradient of zeros before, and the learning rate as the step size of all numbers."""
        assert param.grad is not None
        start = float(group["lr"])
        return {
            "step": scalar_state(param, group),
            "prev": torch.zeros_like(param),
            "step_size": torch.full_like(param.grad, complex(start, start) if param.is_complex() else start),
        }
