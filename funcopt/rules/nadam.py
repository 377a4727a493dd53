"""NAdam as Dozat wrote it: Nesterov momentum within Adam, whose weight grows with the steps."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcopt import tree
from funcopt.checks import check_within
from funcopt.numerics import abs_square, bias_correction, ema, increment, realise, root, scalar_dtype
from funcopt.transform import (
    GradientTransformation,
    Params,
    ScalarOrSchedule,
    Updates,
    chain,
    factory,
    scalar,
    zero_count,
)
from funcopt.transforms.scaling import scale_by_learning_rate


class ScaleByNadamState(NamedTuple):
    count: Tensor  # type: ignore[assignment]  # steps taken
    mu_product: Tensor  # β₁(1) β₁(2) ... β₁(count): what the first moment has left of its start
    mu: tree.Tree  # running mean of g
    nu: tree.Tree  # running mean of |g|²


def _warmed_up(b1: float | Tensor, momentum_decay: float | Tensor, count: Tensor) -> Tensor:
    """β₁ at step `count`: half of it before the first step, all of it in the end."""
    steps = count.to(scalar_dtype(count.device))
    return b1 * (1 - 0.5 * torch.exp(steps * momentum_decay * math.log(0.96)))


@factory
def scale_by_nadam(
    b1: float | Tensor = 0.9,
    b2: float | Tensor = 0.999,
    eps: float | Tensor = 1e-8,
    momentum_decay: float | Tensor = 4e-3,
) -> GradientTransformation:
    """Replace gradients by the direction of `dozat_nadam`."""
    check_within("scale_by_nadam", "[0, 1)", b1=b1, b2=b2)
    check_within("scale_by_nadam", "[0, inf)", eps=eps, momentum_decay=momentum_decay)

    def init(params: Params) -> ScaleByNadamState:
        zeros = tree.full_like(params, 0.0, real=True)
        return ScaleByNadamState(zero_count(params), scalar(params, 1.0), tree.zeros_like(params), zeros)

    def update(
        updates: Updates, state: ScaleByNadamState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByNadamState]:
        count = increment(state.count)
        now, ahead = _warmed_up(b1, momentum_decay, count), _warmed_up(b1, momentum_decay, increment(count))
        product = state.mu_product * now.to(state.mu_product.dtype)
        left = product.to(now.dtype)
        of_gradient, of_mean = realise((1 - now) / (1 - left)), realise(ahead / (1 - left * ahead))
        c2 = bias_correction(b2, count)

        def rule(g: Tensor, mu: Tensor, nu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            mu, nu = ema(mu, g, b1), ema(nu, abs_square(g), b2)
            return (of_gradient * g + of_mean * mu) / (root(nu / c2) + eps), mu, nu

        updates, mu, nu = tree.map_rule(rule, updates, state.mu, state.nu, elementwise=True)
        return updates, ScaleByNadamState(count, product, mu, nu)

    return GradientTransformation(init, update)


@factory
def dozat_nadam(
    learning_rate: ScalarOrSchedule,
    b1: float | Tensor = 0.9,
    b2: float | Tensor = 0.999,
    eps: float | Tensor = 1e-8,
    momentum_decay: float | Tensor = 4e-3,
) -> GradientTransformation:
    """Adam with Nesterov momentum and a momentum schedule (Dozat 2016, https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ).

        m_t = β₁ (1 - 0.96^(t · momentum_decay) / 2)        M ← M m_t, from 1        μ, ν as in `adam`
        u = -α ((1 - m_t) g / (1 - M) + m_t₊₁ μ / (1 - M m_t₊₁)) / (√(ν / (1 - β₂ᵗ)) + ε)

    As torch.optim.NAdam, which keeps M in float32, and has a rate of 2e-3 unless told. `nadam` has a constant m, as in
    optax. M is a state and no function of t, so that β₁ may change between steps.

    >>> optimizer = dozat_nadam(learning_rate=2e-3)
    """
    return chain(scale_by_nadam(b1, b2, eps, momentum_decay), scale_by_learning_rate(learning_rate))
