"""Clipping: by value, by a leaf's size, by the norm of the whole tree, by unit, and per example."""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from funcopt import numerics, tree
from funcopt.checks import check_choice, check_real, check_within
from funcopt.numerics import realise, safe_divide
from funcopt.transform import (
    GradientTransformation,
    Params,
    Updates,
    factory,
    require_params,
    scalar,
    stateless,
    stateless_with_tree_map,
)


@factory
def clip(max_delta: float | Tensor) -> GradientTransformation:
    """Clip every number into an interval: `u = min(max(g, -δ), δ)`.

    Raises:
        TypeError: a leaf is complex.
    """
    check_within("clip", "[0, inf]", max_delta=max_delta)

    def rule(update: Tensor, param: Tensor | None) -> Tensor:
        check_real("clip", update)
        return torch.where(update.abs() > max_delta, max_delta * torch.sgn(update), update)

    return stateless_with_tree_map(rule, "elementwise")


@factory
def clip_by_block_rms(threshold: float | Tensor) -> GradientTransformation:
    """Scale each leaf down to a root mean square of at most `threshold`: `u = g / max(1, RMS(g) / threshold)`.

    As in Adafactor (Shazeer & Stern 2018, https://arxiv.org/abs/1804.04235).
    """
    check_within("clip_by_block_rms", "(0, inf]", threshold=threshold)

    def rule(update: Tensor, param: Tensor | None) -> Tensor:
        return update / realise((numerics.root_mean_square(update) / threshold).clamp(min=1.0))

    return stateless_with_tree_map(rule, "leafwise")


class ClipByGlobalNormState(NamedTuple):
    norm: Tensor  # of the last updates before they were clipped
    clipped: Tensor  # whether they were: 0 or 1


@factory
def clip_by_global_norm(max_norm: float | Tensor) -> GradientTransformation:
    """Scale all updates down together to a norm of at most `max_norm`.

        u = g  if ‖g‖ < max_norm  else  g * max_norm / ‖g‖        ‖g‖ over the whole tree

    Pascanu et al. 2012, https://arxiv.org/abs/1211.5063. Zero updates stay zero, also for `max_norm = 0` (where optax
    gives NaN). A norm that is NaN or infinite makes the updates NaN, as in optax; precede it by `zero_nans`.
    """
    check_within("clip_by_global_norm", "[0, inf]", max_norm=max_norm)

    def init(params: Params) -> ClipByGlobalNormState:
        return ClipByGlobalNormState(scalar(params), scalar(params))

    def update(
        updates: Updates, state: ClipByGlobalNormState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ClipByGlobalNormState]:
        norm = tree.global_norm(updates)
        small = norm < max_norm
        factor = realise(torch.where(small, 1.0, safe_divide(max_norm * torch.ones_like(norm), norm)))
        updates = tree.map_rule(lambda g: factor * g, updates, elementwise=True)
        return updates, ClipByGlobalNormState(norm.to(state.norm.dtype), (~small).to(state.clipped.dtype))

    return GradientTransformation(init, update, "treewise")


def unitwise_norm(x: Tensor, axis: int | tuple[int, ...] | None = None, layout: str = "torch") -> Tensor:
    """The 2-norm of the weights into each unit, repeated to the shape of `x`.

    The norm runs over `axis`; unless given, over the axes that `layout` implies. "torch" has the units first, as
    torch.nn stores weights (out, in, ...): all axes but the first. "jax" has them last: axis 0 of a leaf with two or
    three axes, else all axes but the last. Scalars and vectors are one unit, also with axes of size one around them.
    """
    if axis is None:
        axis = _unit_axes(x, layout)
    squares = numerics.abs_square(x)
    return numerics.safe_sqrt(squares if axis == () else squares.sum(dim=axis, keepdim=True)).expand_as(squares)


def _unit_axes(x: Tensor, layout: str) -> tuple[int, ...]:
    if sum(size != 1 for size in x.shape) <= 1:
        return tuple(range(x.ndim))
    if layout == "torch":
        return tuple(range(1, x.ndim))
    return (0,) if x.ndim in (2, 3) else tuple(range(x.ndim - 1))


def unitwise_clip(g_norm: Tensor, max_norm: Tensor, grad: Tensor, div_eps: float = 1e-6) -> Tensor:
    """`grad` where `g_norm < max_norm`, else scaled to `max_norm`; `div_eps` bounds the norm divided by from below."""
    return torch.where(g_norm < max_norm, grad, grad * (max_norm / g_norm.clamp(min=div_eps)))


@factory
def adaptive_grad_clip(
    clipping: float | Tensor,
    eps: float | Tensor = 1e-3,
    axis: int | tuple[int, ...] | None = None,
    *,
    layout: Literal["torch", "jax"] = "torch",
) -> GradientTransformation:
    """Bound each unit's gradient norm by a share of its weight norm (Brock et al. 2021, https://arxiv.org/abs/2102.06171).

        u = g * min(1, clipping * max(‖p‖, ε) / ‖g‖)        norms per unit, see `unitwise_norm`

    A unit is a row of a torch.nn weight. optax takes columns, for weights stored (in, out): `layout="jax"` has its
    numbers. `update` needs params.
    """
    check_within("adaptive_grad_clip", "[0, inf)", clipping=clipping, eps=eps)
    check_choice("adaptive_grad_clip", ("torch", "jax"), layout=layout)

    def rule(g: Tensor, p: Tensor) -> Tensor:
        max_norm = clipping * torch.clamp(unitwise_norm(p, axis, layout), min=eps)
        return unitwise_clip(unitwise_norm(g, axis, layout), max_norm, g)

    def clip_tree(updates: Updates, params: Params | None) -> Updates:
        return tree.map_rule(rule, updates, reads=(require_params(params, "adaptive_grad_clip"),))

    return stateless(clip_tree, "leafwise")


def per_example_global_norm_clip(grads: Updates, l2_norm_clip: float | Tensor) -> tuple[Updates, Tensor]:
    """Clip the gradient of each example by its norm over the tree, and sum (Abadi et al. 2016, arXiv:1607.00133).

    Args:
        grads: gradients with the examples along axis 0 of every leaf, as `vmap(grad(loss), (None, 0))` gives them.
        l2_norm_clip: the largest norm of one example's gradient.

    Returns:
        The sum over examples of the clipped gradients, without axis 0, and how many were clipped (a 0-d tensor).

    Raises:
        ValueError: the leaves do not have one batch size.
    """
    check_within("per_example_global_norm_clip", "[0, inf)", l2_norm_clip=l2_norm_clip)
    _check_batch("per_example_global_norm_clip", grads)
    squares = [_example_squares(leaf) for leaf in tree.leaves(grads)]
    factors = _clip_factors(sum(squares[1:], squares[0]), l2_norm_clip)
    return tree.map(lambda leaf: _weighted_sum(leaf, factors), grads), (factors < 1).sum()


def per_example_layer_norm_clip(
    grads: Updates, global_l2_norm_clip: float | Tensor, uniform: bool = True
) -> tuple[Updates, tree.Tree]:
    """Clip the gradient of each example leaf by leaf, and sum (McMahan et al. 2018, https://arxiv.org/abs/1710.06963).

    Leaf l is clipped to `global_l2_norm_clip * √(1 / L)` of L leaves (`uniform`), else to
    `global_l2_norm_clip * √(size_l / total size)`: either way the whole tree's norm is at most `global_l2_norm_clip`.

    Args and Raises as `per_example_global_norm_clip`.

    Returns:
        The sum over examples of the clipped gradients, and the tree of how many were clipped in each leaf.
    """
    check_within("per_example_layer_norm_clip", "[0, inf)", global_l2_norm_clip=global_l2_norm_clip)
    _check_batch("per_example_layer_norm_clip", grads)
    layers = tree.leaves(grads)
    total = max(sum(leaf[0].numel() for leaf in layers), 1)

    def factors(leaf: Tensor) -> Tensor:
        share = 1 / len(layers) if uniform else leaf[0].numel() / total
        return _clip_factors(_example_squares(leaf), global_l2_norm_clip * share**0.5)

    per_leaf = tree.map(factors, grads)
    return tree.map(_weighted_sum, grads, per_leaf), tree.map(lambda factor: (factor < 1).sum(), per_leaf)


def _check_batch(function: str, grads: Updates) -> None:
    sizes = {leaf.shape[0] if leaf.ndim else None for leaf in tree.leaves(grads)}
    if len(sizes) != 1 or None in sizes or 0 in sizes:
        raise ValueError(
            f"{function}: every leaf must have the same number (at least 1) of examples along axis 0, got {sizes}."
        )


def _example_squares(leaf: Tensor) -> Tensor:
    return numerics.abs_square(leaf.to(numerics.compute_dtype(leaf.dtype)).reshape(len(leaf), -1)).sum(1)


def _clip_factors(squares: Tensor, max_norm: float | Tensor) -> Tensor:
    norms = numerics.safe_sqrt(squares)
    ratio = safe_divide(max_norm * torch.ones_like(norms), norms)
    return torch.where(norms == 0, 1.0, ratio.clamp(max=1.0)).nan_to_num(nan=1.0)


def _weighted_sum(leaf: Tensor, factors: Tensor) -> Tensor:
    """`Σᵢ factorsᵢ leafᵢ` over the examples along axis 0."""
    wide = leaf.to(numerics.compute_dtype(leaf.dtype))
    total: Tensor = torch.tensordot(factors.to(wide.dtype), wide, 1)
    return total.to(leaf.dtype)
