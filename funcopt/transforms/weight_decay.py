"""Weight decay, added to the updates."""

from typing import Any, NamedTuple

from torch import Tensor

from funcopt import tree
from funcopt.checks import check_within
from funcopt.numerics import add_scaled, increment
from funcopt.transform import (
    GradientTransformation,
    Mask,
    Params,
    ScalarOrSchedule,
    Updates,
    factory,
    require_params,
    resolve_mask,
    value_at,
    zero_count,
)


class AddDecayedWeightsState(NamedTuple):
    count: Tensor  # type: ignore[assignment]  # steps taken


@factory
def add_decayed_weights(weight_decay: ScalarOrSchedule = 0.0, mask: Mask | None = None) -> GradientTransformation:
    """Add the decayed parameters: `u = g + λ p`, where the mask is True.

    Before a preconditioner this is an L2 penalty; after it, decoupled weight decay (Loshchilov & Hutter 2017,
    https://arxiv.org/abs/1711.05101). A scheduled λ is evaluated at `count`, 0 at the first step. `update` needs
    params, unless λ is the number 0.

    Raises:
        ValueError: `weight_decay` is negative or not finite, `update` got no params, or the mask does not fit them.
    """
    check_within("add_decayed_weights", "[0, inf)", weight_decay=weight_decay)
    switched_off = isinstance(weight_decay, (int, float)) and weight_decay == 0

    def init(params: Params) -> AddDecayedWeightsState:
        if mask is not None:
            resolve_mask(mask, params, "add_decayed_weights")  # a mask that does not fit is told before the first step
        return AddDecayedWeightsState(zero_count(params))

    def decayed(updates: Updates, params: Params, count: Tensor) -> Updates:
        rate = value_at(weight_decay, count)
        if mask is None:
            return tree.map_rule(lambda g, p: add_scaled(g, rate, p), updates, reads=(params,), elementwise=True)
        chosen = resolve_mask(mask, params, "add_decayed_weights")
        return tree.map_rule(
            lambda g, p, keep: add_scaled(g, rate, p) if keep else g, updates, reads=(params, chosen), elementwise=True
        )

    def update(
        updates: Updates, state: AddDecayedWeightsState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, AddDecayedWeightsState]:
        if switched_off:
            updates = tree.clone(updates)
        else:
            updates = decayed(updates, require_params(params, "add_decayed_weights"), state.count)
        return updates, AddDecayedWeightsState(increment(state.count))

    return GradientTransformation(init, update)
