"""RAdam: Adam that waits with its denominator until the second moment has seen enough gradients."""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from funcopt import tree
from funcopt.checks import check_choice, check_within
from funcopt.numerics import abs_square, bias_correction, ema, increment, realise, root, shift
from funcopt.transform import GradientTransformation, Params, ScalarOrSchedule, Updates, chain, factory, zero_count
from funcopt.transforms.scaling import scale_by_learning_rate


class ScaleByRadamState(NamedTuple):
    count: Tensor  # type: ignore[assignment]  # steps taken
    mu: tree.Tree  # running mean of g
    nu: tree.Tree  # running mean of |g|²


def _rectification(b2: float | Tensor, c2: Tensor, count: Tensor, threshold: float | Tensor) -> tuple[Tensor, Tensor]:
    """Whether the variance of 1 / √ν is tractable at step `count`, and the factor that rectifies it there, else 1."""
    limit = 2 / (1 - torch.as_tensor(b2, dtype=c2.dtype, device=c2.device)) - 1
    length = limit - 2 * count.to(c2.dtype) * (1 - c2) / c2
    tractable = length >= threshold
    # In place of lengths that are not tractable any number above 4 will do: their factor is not used.
    length, limit = torch.where(tractable, length, 5.0), torch.where(tractable, limit, 5.0)
    factor = ((length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length)).sqrt()
    return tractable, factor


@factory
def scale_by_radam(
    b1: float | Tensor = 0.9,
    b2: float | Tensor = 0.999,
    eps: float | Tensor = 1e-8,
    eps_root: float | Tensor = 0.0,
    threshold: float | Tensor = 5.0,
    *,
    nesterov: bool = False,
    eps_on: Literal["corrected", "raw"] = "corrected",
) -> GradientTransformation:
    """Replace gradients by the direction of `radam`."""
    check_within("scale_by_radam", "[0, 1)", b1=b1, b2=b2)
    check_within("scale_by_radam", "[0, inf)", eps=eps, eps_root=eps_root)
    check_within("scale_by_radam", "(4, inf)", threshold=threshold)
    check_choice("scale_by_radam", ("corrected", "raw"), eps_on=eps_on)

    def init(params: Params) -> ScaleByRadamState:
        return ScaleByRadamState(zero_count(params), tree.zeros_like(params), tree.full_like(params, 0.0, real=True))

    def update(
        updates: Updates, state: ScaleByRadamState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByRadamState]:
        count = increment(state.count)
        c1, c2 = bias_correction(b1, count), bias_correction(b2, count)
        c1_next = bias_correction(b1, increment(count)) if nesterov else c1
        tractable, factor = _rectification(b2, c2, count, threshold)
        raw = eps_on == "raw"
        factor = realise(factor * c2.sqrt() if raw else factor)

        def rule(g: Tensor, mu: Tensor, nu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            mu, nu = ema(mu, g, b1), ema(nu, abs_square(g), b2)
            mean = b1 * mu / c1_next + (1 - b1) * g / c1 if nesterov else mu / c1
            square = nu if raw else nu / c2
            return torch.where(tractable, factor * mean / (root(shift(square, eps_root)) + eps), mean), mu, nu

        updates, mu, nu = tree.map_rule(rule, updates, state.mu, state.nu, elementwise=True)
        return updates, ScaleByRadamState(count, mu, nu)

    return GradientTransformation(init, update)


@factory
def radam(
    learning_rate: ScalarOrSchedule,
    b1: float | Tensor = 0.9,
    b2: float | Tensor = 0.999,
    eps: float | Tensor = 1e-8,
    eps_root: float | Tensor = 0.0,
    threshold: float | Tensor = 5.0,
    *,
    nesterov: bool = False,
    eps_on: Literal["corrected", "raw"] = "corrected",
) -> GradientTransformation:
    """Rectified Adam (Liu et al. 2019, https://arxiv.org/abs/1908.03265).

        ρ∞ = 2 / (1 - β₂) - 1        ρ = ρ∞ - 2t β₂ᵗ / (1 - β₂ᵗ)        r² = (ρ - 4)(ρ - 2) ρ∞ / ((ρ∞ - 4)(ρ∞ - 2) ρ)
        u = -α r μ̂ / (√(ν / (1 - β₂ᵗ) + ε_root) + ε), and -α μ̂ while ρ < threshold        μ̂ = μ / (1 - β₁ᵗ)

    μ, ν as in `adam`; with `nesterov`, μ̂ as in `nadam`. `eps_on="raw"` adds ε before the root is corrected, as in
    torch.optim.RAdam: `√(1 - β₂ᵗ) / (√(ν + ε_root) + ε)`. torch asks for ρ > 5, which is a threshold of
    `math.nextafter(5, 6)` here; the paper for ρ > 4. A threshold must be above 4, where r is 0.

    >>> optimizer = radam(learning_rate=1e-3)
    """
    scale_by_x = scale_by_radam(b1, b2, eps, eps_root, threshold, nesterov=nesterov, eps_on=eps_on)
    return chain(scale_by_x, scale_by_learning_rate(learning_rate))
