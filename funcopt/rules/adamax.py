"""AdaMax: the running mean of the gradient over the decaying maximum of its magnitudes."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcopt import tree
from funcopt.checks import check_within
from funcopt.numerics import bias_correction, ema, increment
from funcopt.transform import (
    GradientTransformation,
    Mask,
    Params,
    ScalarOrSchedule,
    Updates,
    chain,
    factory,
    zero_count,
)
from funcopt.transforms.scaling import scale_by_learning_rate
from funcopt.transforms.weight_decay import add_decayed_weights


class ScaleByAdamaxState(NamedTuple):
    count: Tensor  # type: ignore[assignment]  # steps taken
    mu: tree.Tree  # running mean of g
    nu: tree.Tree  # largest |g| + ε, decaying


@factory
def scale_by_adamax(
    b1: float | Tensor = 0.9, b2: float | Tensor = 0.999, eps: float | Tensor = 1e-8
) -> GradientTransformation:
    """Replace gradients by the direction of `adamax`."""
    check_within("scale_by_adamax", "[0, 1)", b1=b1, b2=b2)
    check_within("scale_by_adamax", "[0, inf)", eps=eps)

    def init(params: Params) -> ScaleByAdamaxState:
        return ScaleByAdamaxState(zero_count(params), tree.zeros_like(params), tree.full_like(params, 0.0, real=True))

    def update(
        updates: Updates, state: ScaleByAdamaxState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByAdamaxState]:
        count = increment(state.count)
        c1 = bias_correction(b1, count)

        def rule(g: Tensor, mu: Tensor, nu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            mu, nu = ema(mu, g, b1), torch.maximum(b2 * nu, g.abs() + eps)
            positive = nu.clamp(min=torch.finfo(nu.dtype).tiny)  # 0 / 0 is 0 without ε
            return mu / c1 / positive, mu, nu

        updates, mu, nu = tree.map_rule(rule, updates, state.mu, state.nu, elementwise=True)
        return updates, ScaleByAdamaxState(count, mu, nu)

    return GradientTransformation(init, update)


@factory
def adamax(
    learning_rate: ScalarOrSchedule,
    b1: float | Tensor = 0.9,
    b2: float | Tensor = 0.999,
    eps: float | Tensor = 1e-8,
) -> GradientTransformation:
    """AdaMax (Kingma & Ba 2014, section 7.1, https://arxiv.org/abs/1412.6980).

        μ ← β₁ μ + (1 - β₁) g        ν ← max(β₂ ν, |g| + ε)
        u = -α (μ / (1 - β₁ᵗ)) / ν

    As torch.optim.Adamax, whose rate is 2e-3 unless told; of a complex number, torch takes the two parts each for
    itself. The paper has no ε.

    >>> optimizer = adamax(learning_rate=2e-3)
    """
    return chain(scale_by_adamax(b1, b2, eps), scale_by_learning_rate(learning_rate))


@factory
def adamaxw(
    learning_rate: ScalarOrSchedule,
    b1: float | Tensor = 0.9,
    b2: float | Tensor = 0.999,
    eps: float | Tensor = 1e-8,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: Mask | None = None,
) -> GradientTransformation:
    """`adamax` with the decoupled weight decay of `adamw`: `u = -α (d + λ p)`. `update` needs params.

    >>> optimizer = adamaxw(learning_rate=2e-3, weight_decay=1e-2)
    """
    return chain(
        scale_by_adamax(b1, b2, eps), add_decayed_weights(weight_decay, mask), scale_by_learning_rate(learning_rate)
    )
