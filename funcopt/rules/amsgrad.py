"""AMSGrad: Adam whose denominator never shrinks."""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from funcopt import tree
from funcopt.checks import check_choice, check_within
from funcopt.numerics import abs_square, bias_correction, ema, increment, realise, root, shift
from funcopt.transform import GradientTransformation, Params, ScalarOrSchedule, Updates, chain, factory, zero_count
from funcopt.transforms.scaling import scale_by_learning_rate


class ScaleByAmsgradState(NamedTuple):
    count: Tensor  # type: ignore[assignment]  # steps taken
    mu: tree.Tree  # running mean of g
    nu: tree.Tree  # running mean of |g|²
    nu_max: tree.Tree  # largest second moment so far, corrected or raw


@factory
def scale_by_amsgrad(
    b1: float | Tensor = 0.9,
    b2: float | Tensor = 0.999,
    eps: float | Tensor = 1e-8,
    eps_root: float | Tensor = 0.0,
    mu_dtype: torch.dtype | None = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    *,
    max_of: Literal["corrected", "raw"] = "corrected",
) -> GradientTransformation:
    """Replace gradients by the direction of `amsgrad`."""
    check_within("scale_by_amsgrad", "[0, 1)", b1=b1, b2=b2)
    check_within("scale_by_amsgrad", "[0, inf)", eps=eps, eps_root=eps_root)
    check_choice("scale_by_amsgrad", ("corrected", "raw"), max_of=max_of)

    def init(params: Params) -> ScaleByAmsgradState:
        def zeros() -> tree.Tree:
            return tree.full_like(params, 0.0, real=True)

        return ScaleByAmsgradState(zero_count(params), tree.zeros_like(params, mu_dtype), zeros(), zeros())

    def update(
        updates: Updates, state: ScaleByAmsgradState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByAmsgradState]:
        count = increment(state.count)
        inverse_c1 = realise(1 / bias_correction(b1, count)) if bias_correction_mu else 1.0
        inverse_c2 = realise(1 / bias_correction(b2, count)) if bias_correction_nu else 1.0
        raw = max_of == "raw"

        def rule(g: Tensor, mu: Tensor, nu: Tensor, nu_max: Tensor) -> tuple[Tensor, ...]:
            mu, nu = ema(mu, g, b1), ema(nu, abs_square(g), b2)
            nu_max = torch.maximum(nu_max, nu if raw else (inverse_c2 * nu).to(nu_max.dtype))
            largest = inverse_c2 * nu_max if raw else nu_max
            return inverse_c1 * mu / (root(shift(largest, eps_root)) + eps), mu, nu, nu_max

        updates, mu, nu, nu_max = tree.map_rule(rule, updates, state.mu, state.nu, state.nu_max, elementwise=True)
        return updates, ScaleByAmsgradState(count, mu, nu, nu_max)

    return GradientTransformation(init, update)


@factory
def amsgrad(
    learning_rate: ScalarOrSchedule,
    b1: float | Tensor = 0.9,
    b2: float | Tensor = 0.999,
    eps: float | Tensor = 1e-8,
    eps_root: float | Tensor = 0.0,
    mu_dtype: torch.dtype | None = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    *,
    max_of: Literal["corrected", "raw"] = "corrected",
) -> GradientTransformation:
    """AMSGrad (Reddi et al. 2018, https://openreview.net/forum?id=ryQu7f-RZ).

        μ, ν as in `adam`        v ← max(v, ν / (1 - β₂ᵗ))
        u = -α (μ / (1 - β₁ᵗ)) / (√(v + ε_root) + ε)

    The maximum is over corrected moments, as in optax. `max_of="raw"` takes it over ν and corrects afterwards,
    `v ← max(v, ν)` and `v / (1 - β₂ᵗ)` below the root, as torch.optim.Adam(amsgrad=True). The two flags leave out the
    division by `1 - β₁ᵗ` and by `1 - β₂ᵗ`.

    >>> optimizer = amsgrad(learning_rate=1e-3)
    """
    return chain(
        scale_by_amsgrad(b1, b2, eps, eps_root, mu_dtype, bias_correction_mu, bias_correction_nu, max_of=max_of),
        scale_by_learning_rate(learning_rate),
    )
