"""torch.optim.RMSprop on the pure core."""

from typing import Any

import torch
from torch import Tensor

from funcopt.optim.drop_in import DropIn, drop_in, scalar_state
from funcopt.optim.rule import Definition, Hyper, Rule
from funcopt.optim.unbounded import unbounded
from funcopt.rules.rmsprop import ScaleByRmsState, ScaleByRStdDevState, scale_by_rms, scale_by_stddev
from funcopt.transform import chain
from funcopt.transforms.momentum import TraceState, trace


def _rule(hyper: Hyper) -> Rule:
    scale_by_x = scale_by_stddev if hyper["centered"] else scale_by_rms
    direction = scale_by_x(unbounded(hyper["alpha"], 1.0), hyper["eps"], eps_in_sqrt=False)
    state: Any = ScaleByRmsState._make(["step", "square_avg"])
    if hyper["centered"]:
        state = ScaleByRStdDevState._make(["step", "grad_avg", "square_avg"])
    momentum = hyper["momentum"]
    if isinstance(momentum, Tensor) or momentum > 0:  # the rate stays outside of the buffer
        return Rule(chain(direction, trace(unbounded(momentum, 1.0))), (state, TraceState("momentum_buffer")))
    return Rule(direction, state)


@drop_in
class RMSprop(DropIn, torch.optim.RMSprop):
    """`torch.optim.RMSprop`: the same arguments, groups, state and numbers; `compile=True` besides.

        v ← α v + (1 - α) g²        b ← μ b + g / (√v + ε)        θ ← θ - γ b

    With `centered`, v minus the square of the running mean of g is in the place of v.
    """

    definition = Definition(_rule, switches=("weight_decay", "momentum"))

    def new_state(self, param: Tensor, group: Hyper) -> dict[str, Any]:
        """A zero second moment, and zeros for the momentum and the mean where these are used."""
        keys = ["square_avg"]
        keys += ["momentum_buffer"] if group["momentum"] > 0 else []
        keys += ["grad_avg"] if group["centered"] else []
        return {"step": scalar_state(param, group)} | {key: torch.zeros_like(param) for key in keys}
