"""torch.optim.ASGD on the pure core."""

from typing import Any

import torch
from torch import Tensor

from funcopt.optim.drop_in import DropIn, drop_in, scalar_state
from funcopt.optim.rule import Definition, Hyper, Rule
from funcopt.rules.asgd import ASGDState, asgd


def _rule(hyper: Hyper) -> Rule:
    direction = asgd(hyper["lr"], hyper["lambd"], hyper["alpha"], hyper["t0"])
    return Rule(direction, ASGDState._make(["step", "eta", "mu", "ax"]))


@drop_in
class ASGD(DropIn, torch.optim.ASGD):
    """`torch.optim.ASGD`: the same arguments, groups, state and numbers; `compile=True` besides.

        θ ← θ - η (g + λ θ)        a ← a + μ (θ - a)        a is `state[param]["ax"]`, never written into θ
        η ← γ / (1 + λ γ t)^alpha,  μ ← 1 / max(1, t - t0)        for the next step, in float32

    So a change of the learning rate has effect one step later, as in torch.
    """

    definition = Definition(_rule, lambda hyper, count: -1.0, scalars=("step", "eta", "mu"))

    def new_state(self, param: Tensor, group: Hyper) -> dict[str, Any]:
        """The first rate, and no average yet."""
        on_device = {"capturable": True}
        return {
            "step": scalar_state(param, on_device),
            "eta": scalar_state(param, on_device, float(group["lr"])),
            "mu": scalar_state(param, on_device, 1.0),
            "ax": torch.zeros_like(param),
        }
