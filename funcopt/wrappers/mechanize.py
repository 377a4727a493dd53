"""Mechanic: the scale of an optimizer's updates, learned while it runs."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcopt import tree
from funcopt.checks import check_integer, check_within
from funcopt.numerics import compute_dtype, increment, realise, safe_sqrt, scalar_dtype
from funcopt.transform import (
    GradientTransformation,
    Params,
    State,
    Updates,
    check_transformation,
    factory,
    require_params,
    scalar,
    zero_count,
)


class MechanicState(NamedTuple):
    base_optimizer_state: State
    count: Tensor  # type: ignore[assignment]  # steps taken
    r: Tensor  # reward, for each β
    m: Tensor  # decaying maximum of |h|
    v: Tensor  # decaying sum of h²
    s: Tensor  # scale; the sum over all β multiplies the base optimizer's updates
    x0: Params  # where the first step started


@factory
def mechanize(
    base_optimizer: GradientTransformation,
    weight_decay: float | Tensor = 1e-2,
    eps: float | Tensor = 1e-8,
    s_init: float | Tensor = 1e-6,
    num_betas: int = 6,
) -> GradientTransformation:
    """Learn the scale of the updates of an optimizer (Cutkosky et al. 2023, https://arxiv.org/abs/2306.00144).

        h = ⟨g + λ Σs ‖g‖ p / ‖p‖, Δ⟩,    Δ = (x₀ - p) / Σs        then for every β = 1 - 10⁻ⁱ, i = 1 ... n:
        r ← β r + clip(h, -m, m) s,    m ← max(β m, |h|),    v ← β² v + h²,    s ← (s_init m / n + max(r, 0)) / √v
        p ← x₀ - Σs (Δ - w)                                        w the base optimizer's update

    The base optimizer keeps its schedule, with a peak of 1. λ is `weight_decay`, n is `num_betas`; `eps` is added to
    every divisor and to |h|. The inner product, the norms and Σs run over all leaves that have a gradient, which makes
    the optimizer treewise. r, m, v and s have the shape (n,), at least float32 (optax: the lowest dtype among the
    params). For complex leaves the product is the real one. `update` needs params.

    >>> optimizer = mechanize(adam(learning_rate=1.0))
    """
    check_transformation("mechanize", base_optimizer=base_optimizer)
    check_within("mechanize", "[0, inf)", weight_decay=weight_decay)
    check_within("mechanize", "(0, inf)", eps=eps, s_init=s_init)
    check_integer("mechanize", 1, num_betas=num_betas)

    def init(params: Params) -> MechanicState:
        base_optimizer_state = base_optimizer.init(params)
        r, m, v = (scalar(params).repeat(num_betas) for _ in range(3))
        s = scalar(params, s_init).repeat(num_betas)
        return MechanicState(base_optimizer_state, zero_count(params), r, m, v, s, tree.clone_wide(params))

    def update(
        updates: Updates, state: MechanicState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, MechanicState]:
        params = require_params(params, "mechanize")
        steps, base_optimizer_state = base_optimizer.update(updates, state.base_optimizer_state, params, **extra)
        first = state.count == 0
        total = state.s.to(scalar_dtype(state.s.device)).sum()
        inverse = realise(1 / (total + eps))
        present = tree.map(lambda g, p: p, updates, params)
        decay = realise(weight_decay * total * tree.global_norm(updates) / (tree.global_norm(present) + eps))

        def product(g: Tensor, p: Tensor, x0: Tensor) -> Tensor:
            g, p = g.to(compute_dtype(g.dtype)), p.to(compute_dtype(p.dtype))
            return _real_product(g + decay * p, torch.where(first, 0, x0 - p) * inverse).to(total.dtype)

        products = tree.leaves(tree.map(product, updates, params, state.x0))
        h = realise(sum(products, torch.zeros_like(total)))
        r, m, v, s = _rescale(h, state, eps, s_init)
        scale = realise(s.to(total.dtype).sum())
        back = realise(1 - scale * inverse)

        def rule(w: Tensor, x0: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
            x0 = torch.where(first, p, x0)  # not those of init: weights may have been loaded since
            return back * (x0 - p) + scale * w, x0  # x₀ - Σs (Δ - w) - p, without the cancellation

        steps, x0 = tree.map_rule(rule, steps, state.x0, reads=(params,), elementwise=True)
        return steps, MechanicState(base_optimizer_state, increment(state.count), r, m, v, s, x0)

    return GradientTransformation(init, update, "treewise")


def _real_product(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of two tensors, as vectors of real numbers."""
    return (a.conj() * b).real.sum() if a.is_complex() else (a * b).sum()


def _rescale(h: Tensor, state: MechanicState, eps: float | Tensor, s_init: float | Tensor) -> list[Tensor]:
    """r, m, v and s after a step with the inner product h, in the dtype of the state."""
    r, m, v, s = (part.to(h.dtype) for part in (state.r, state.m, state.v, state.s))
    n = s.numel()
    betas = 1 - 0.1 ** torch.arange(1, n + 1, dtype=h.dtype, device=h.device)
    r = betas * r + torch.minimum(torch.maximum(h, -m), m) * s  # the clip, by m from before, is not in the paper
    m = torch.maximum(betas * m, h.abs() + eps)
    v = betas**2 * v + h**2
    s = (s_init / n * m + r.clamp(min=0)) / (safe_sqrt(v) + eps)
    return [part.to(state.s.dtype) for part in (r, m, v, s)]
