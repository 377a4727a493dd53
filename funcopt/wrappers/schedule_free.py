"""Schedule-free learning: interpolation and averaging in place of momentum and of a decaying learning rate."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcopt import tree
from funcopt.checks import check_within
from funcopt.numerics import increment, realise, safe_divide, scalar_dtype
from funcopt.transform import (
    GradientTransformation,
    Params,
    ScalarOrSchedule,
    State,
    Updates,
    check_transformation,
    factory,
    require_params,
    scalar,
    value_at,
    zero_count,
)
from funcopt.wrappers.views import eval_params


class ScheduleFreeState(NamedTuple):
    b1: Tensor  # β of the last step
    weight_sum: Tensor  # sum of the weights in x
    step_count: Tensor  # steps taken
    max_lr: Tensor  # largest learning rate so far
    base_optimizer_state: State
    z: Params  # what the base optimizer moves

    def eval_params(self, params: Params) -> Params:
        return self._from_z(params, 1 / self.b1)

    def train_params(self, params: Params) -> Params:
        return self._from_z(params, self.b1)

    def _from_z(self, params: Params, factor: Tensor) -> Params:
        """z + factor * (params - z): as the sum of params and a correction, which is exact where both are equal."""
        factor = realise(factor)

        def rule(param: Tensor, z: Tensor) -> Tensor:
            return param + (factor - 1) * (param - z)

        return tree.map_rule(rule, tree.mask_like(params, self.z), reads=(self.z,), elementwise=True)


@factory
def schedule_free(
    base_optimizer: GradientTransformation,
    learning_rate: ScalarOrSchedule,
    b1: float | Tensor = 0.9,
    weight_lr_power: float | Tensor = 2.0,
    state_dtype: torch.dtype | None = None,
) -> GradientTransformation:
    """Make an optimizer schedule-free (Defazio et al. 2024, https://arxiv.org/abs/2405.15682).

        z ← z + u(∇f(y))        u the base optimizer's update, without momentum
        x ← (1 - c) x + c z     c = w / Σw,  w = (largest α so far)^weight_lr_power
        y = β x + (1 - β) z     β is `b1`

    `params` are y, where gradients are taken and weights decay. `eval_params(state, params)` gives x, and
    `train_params(state, x)` y again. Only z is kept, at least in float32 or else in `state_dtype`; x is what y and z
    say, so let params be float32. `learning_rate` is that of the base optimizer, once more; a schedule may warm up, but
    should not decay. Both are evaluated at the same count, 0 at the first step; optax takes w from the next one, which
    matters while the rate rises. While it is 0, c is 0. `update` needs params.

    >>> optimizer = schedule_free(sgd(0.5), learning_rate=0.5)
    """
    check_transformation("schedule_free", base_optimizer=base_optimizer)
    check_within("schedule_free", "[0, inf)", learning_rate=learning_rate, weight_lr_power=weight_lr_power)
    check_within("schedule_free", "(0, 1]", b1=b1)

    def init(params: Params) -> ScheduleFreeState:
        return ScheduleFreeState(
            b1=scalar(params, b1),
            weight_sum=scalar(params),
            step_count=zero_count(params),
            max_lr=scalar(params),
            base_optimizer_state=base_optimizer.init(params),
            z=tree.clone_wide(params, state_dtype),
        )

    def update(
        updates: Updates, state: ScheduleFreeState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScheduleFreeState]:
        params = require_params(params, "schedule_free")
        updates, base_optimizer_state = base_optimizer.update(updates, state.base_optimizer_state, params, **extra)
        dtype, device = scalar_dtype(state.max_lr.device), state.max_lr.device
        rate = torch.as_tensor(value_at(learning_rate, state.step_count), dtype=dtype, device=device)
        max_lr = torch.maximum(state.max_lr.to(dtype), rate)
        weight = max_lr**weight_lr_power
        weight_sum = state.weight_sum + weight
        c = realise(safe_divide(weight, weight_sum))
        ahead = realise(1 - b1 * (1 - c))

        def rule(u: Tensor, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            wide = z + u
            moved = wide if state_dtype is None or wide.is_complex() else wide.to(state_dtype)
            step = u if moved.dtype == wide.dtype else moved.to(wide.dtype) - z  # what z moves by once it is rounded
            return c * (z - y) + ahead * step, moved  # x is eliminated, and nothing divided by β

        updates, z = tree.map_rule(rule, updates, state.z, reads=(params,), elementwise=True)
        return updates, ScheduleFreeState(
            b1=(torch.zeros_like(state.b1) + b1).to(state.b1.dtype),
            weight_sum=weight_sum.to(state.weight_sum.dtype),
            step_count=increment(state.step_count),
            max_lr=max_lr.to(state.max_lr.dtype),
            base_optimizer_state=base_optimizer_state,
            z=z,
        )

    return GradientTransformation(init, update, base_optimizer.coupling)


def schedule_free_eval_params(state: State, params: Params) -> Params:
    """`eval_params(state, params)`, under optax's name; the state may be nested here."""
    return eval_params(state, params)
