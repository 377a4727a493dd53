"""ASGD: gradient descent with a falling rate, and the average of the parameters it passes."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcopt import tree
from funcopt.checks import check_within
from funcopt.numerics import increment, realise, scalar_dtype
from funcopt.transform import (
    GradientTransformation,
    Params,
    ScalarOrSchedule,
    Updates,
    apply_updates,
    factory,
    require_params,
    scalar,
    value_at,
    zero_count,
)


class ASGDState(NamedTuple):
    count: Tensor  # type: ignore[assignment]  # steps taken
    eta: Tensor  # rate of the next step
    mu: Tensor  # weight of the params after the next step in their average
    ax: Params  # average of the params after each step; those after the last one as long as mu is 1

    def eval_params(self, params: Params) -> Params:
        return self.ax


@factory
def asgd(
    learning_rate: ScalarOrSchedule = 1e-2,
    lambd: float | Tensor = 1e-4,
    alpha: float | Tensor = 0.75,
    t0: float | Tensor = 1e6,
) -> GradientTransformation:
    """Averaged gradient descent (Polyak & Juditsky 1992, https://doi.org/10.1137/0330046), with Bottou's falling rate.

        η = γ / (1 + λ γ (t - 1))^alpha        μ = 1 / max(1, t - 1 - t0)
        u = -η (g + λ p)                       a ← a + μ (p + u - a)

    γ is `learning_rate`, λ `lambd`. `eval_params(state, params)` gives a, which is at least in float32. As
    torch.optim.ASGD, whose η and μ are rounded to float32 whatever the parameters, and where a changed γ counts one
    step late (a scheduled one does not here). For its `weight_decay`, precede it by `add_decayed_weights`. `update`
    needs params. Not in optax.

    >>> optimizer = asgd(learning_rate=1e-2, t0=1000)
    >>> params = {"w": torch.zeros(2)}
    >>> averages = eval_params(optimizer.init(params), params)
    """
    check_within("asgd", "[0, inf)", learning_rate=learning_rate)
    check_within("asgd", "(-inf, inf)", lambd=lambd, alpha=alpha)
    check_within("asgd", "(-inf, inf]", t0=t0)

    def init(params: Params) -> ASGDState:
        count = zero_count(params)
        eta, mu = scalar(params, value_at(learning_rate, count)), scalar(params, 1.0)
        return ASGDState(count, eta, mu, tree.clone_wide(params))

    def update(
        updates: Updates, state: ASGDState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ASGDState]:
        params = require_params(params, "asgd")
        updates = tree.map_rule(lambda g, p: -state.eta * (g + lambd * p), updates, reads=(params,), elementwise=True)
        moved = apply_updates(params, updates)

        def average(u: Tensor, ax: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
            return u, torch.lerp(ax, p, state.mu.to(ax.dtype))

        updates, ax = tree.map_rule(average, updates, state.ax, reads=(moved,), elementwise=True)
        count = increment(state.count)
        eta, mu = _next_weights(count, value_at(learning_rate, count))
        return updates, ASGDState(count, eta.to(state.eta.dtype), mu.to(state.mu.dtype), ax)

    def _next_weights(count: Tensor, rate: float | Tensor) -> tuple[Tensor, Tensor]:
        steps = count.to(scalar_dtype(count.device))
        eta = rate / (1 + lambd * rate * steps) ** alpha
        return realise(eta.to(steps.dtype)), realise(1 / (steps - t0).clamp(min=1))

    return GradientTransformation(init, update)
