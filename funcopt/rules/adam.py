"""Adam: the running mean of the gradient over the root of its running second moment."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcopt import tree
from funcopt.checks import check_within
from funcopt.numerics import abs_square, bias_correction, ema, increment, realise, root, shift, times
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


class ScaleByAdamState(NamedTuple):
    count: Tensor  # type: ignore[assignment]  # steps taken
    mu: tree.Tree  # running mean of g
    nu: tree.Tree  # running mean of |g|²


def moments(g: Tensor, mu: Tensor, nu: Tensor, b1: float | Tensor, b2: float | Tensor) -> tuple[Tensor, Tensor]:
    """The running means of g and of |g|² after one more gradient."""
    return ema(mu, g, b1), ema(nu, abs_square(g), b2)


@factory
def scale_by_adam(
    b1: float | Tensor = 0.9,
    b2: float | Tensor = 0.999,
    eps: float | Tensor = 1e-8,
    eps_root: float | Tensor = 0.0,
    mu_dtype: torch.dtype | None = None,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """Replace gradients by the direction of `adam`, or of `nadam` with `nesterov`."""
    check_within("scale_by_adam", "[0, 1)", b1=b1, b2=b2)
    check_within("scale_by_adam", "[0, inf)", eps=eps, eps_root=eps_root)

    def init(params: Params) -> ScaleByAdamState:
        return ScaleByAdamState(
            zero_count(params), tree.zeros_like(params, mu_dtype), tree.full_like(params, 0.0, real=True)
        )

    def update(
        updates: Updates, state: ScaleByAdamState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByAdamState]:
        count = increment(state.count)
        c1, c2 = bias_correction(b1, count), bias_correction(b2, count)
        # Numerator and denominator times √c₂, which leaves ν as it is: one pass less over the leaves.
        root_c2 = c2.sqrt()
        of_mu, shift_of_nu, floor = realise(root_c2 / c1), times(eps_root, c2), times(eps, root_c2)
        if nesterov:
            of_g, of_mu = realise((1 - b1) * of_mu), realise(b1 * c2.sqrt() / bias_correction(b1, increment(count)))

        def rule(g: Tensor, mu: Tensor, nu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            mu, nu = moments(g, mu, nu, b1, b2)
            mean = of_mu * mu + of_g * g if nesterov else of_mu * mu
            return mean / (root(shift(nu, shift_of_nu)) + floor), mu, nu

        updates, mu, nu = tree.map_rule(rule, updates, state.mu, state.nu, elementwise=True)
        return updates, ScaleByAdamState(count, mu, nu)

    return GradientTransformation(init, update)


def sparse_adam_rule(
    g: Tensor, mu: Tensor, nu: Tensor, count: Tensor, b1: float | Tensor, b2: float | Tensor, eps: float | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Direction and new moments of torch's SparseAdam; g, μ and ν are the numbers at the places that a gradient stores.

        d = √(1 - β₂ᵗ) / (1 - β₁ᵗ) μ / (√ν + ε)        μ, ν as in `adam`, t the steps of the whole parameter

    The bias correction does not reach ε, as it does in `adam`.
    """
    mu, nu = moments(g, mu, nu, b1, b2)
    scale = bias_correction(b2, count).sqrt() / bias_correction(b1, count)
    return scale * mu / (root(nu) + eps), mu, nu


@factory
def adam(
    learning_rate: ScalarOrSchedule,
    b1: float | Tensor = 0.9,
    b2: float | Tensor = 0.999,
    eps: float | Tensor = 1e-8,
    eps_root: float | Tensor = 0.0,
    mu_dtype: torch.dtype | None = None,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """Adam (Kingma & Ba 2014, https://arxiv.org/abs/1412.6980).

        μ ← β₁ μ + (1 - β₁) g        ν ← β₂ ν + (1 - β₂) |g|²
        u = -α (μ / (1 - β₁ᵗ)) / (√(ν / (1 - β₂ᵗ) + ε_root) + ε)

    `mu_dtype` is the dtype in which μ is stored; μ and ν are at least float32 unless told. `eps_root > 0` bounds the
    second derivative at zero gradients; the first is finite without it.

    >>> optimizer = adam(learning_rate=1e-3)
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov), scale_by_learning_rate(learning_rate)
    )


@factory
def nadam(
    learning_rate: ScalarOrSchedule,
    b1: float | Tensor = 0.9,
    b2: float | Tensor = 0.999,
    eps: float | Tensor = 1e-8,
    eps_root: float | Tensor = 0.0,
    mu_dtype: torch.dtype | None = None,
    *,
    nesterov: bool = True,
) -> GradientTransformation:
    """Adam with Nesterov momentum (Dozat 2016, https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ).

        u = -α (β₁ μ / (1 - β₁ᵗ⁺¹) + (1 - β₁) g / (1 - β₁ᵗ)) / (√(ν / (1 - β₂ᵗ) + ε_root) + ε)        μ, ν as in `adam`

    With a constant β₁ and without Dozat's factor β₂ on ν, as optax; torch.optim.NAdam lets β₁ grow.
    """
    return adam(learning_rate, b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov)


@factory
def adamw(
    learning_rate: ScalarOrSchedule,
    b1: float | Tensor = 0.9,
    b2: float | Tensor = 0.999,
    eps: float | Tensor = 1e-8,
    eps_root: float | Tensor = 0.0,
    mu_dtype: torch.dtype | None = None,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: Mask | None = None,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2017, https://arxiv.org/abs/1711.05101).

        u = -α (d + λ p)        d the direction of `adam`; the decay only where the mask is True

    The decay is multiplied by the learning rate, as in torch.optim.AdamW, whose default λ is 1e-2 (here 1e-4, as in
    optax). `update` needs params.

    >>> optimizer = adamw(learning_rate=1e-3, weight_decay=1e-2)
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


@factory
def nadamw(
    learning_rate: ScalarOrSchedule,
    b1: float | Tensor = 0.9,
    b2: float | Tensor = 0.999,
    eps: float | Tensor = 1e-8,
    eps_root: float | Tensor = 0.0,
    mu_dtype: torch.dtype | None = None,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: Mask | None = None,
    *,
    nesterov: bool = True,
) -> GradientTransformation:
    """`nadam` with the decoupled weight decay of `adamw`."""
    return adamw(learning_rate, b1, b2, eps, eps_root, mu_dtype, weight_decay, mask, nesterov=nesterov)
