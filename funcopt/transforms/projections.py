"""Euclidean projections: the nearest point of a set, for a whole tree taken as one vector.

Every function keeps structure, shapes and dtypes, computes in float32 or better, skips `None` leaves, and shares no
memory with its arguments. `scale` is a number or a 0-d tensor, bounds may be tensors too; all are differentiable.
"""

import math
from typing import Any

import torch
from torch import Tensor

from funcopt import tree
from funcopt.checks import check_real, check_within
from funcopt.numerics import compute_dtype, realise, safe_divide


def projection_non_negative(x: tree.Tree) -> tree.Tree:
    """The nearest tree without negative numbers: `max(x, 0)`.

    Raises:
        TypeError: a leaf is complex.
    """
    return _clamp("projection_non_negative", x, 0.0, math.inf)


def projection_box(x: tree.Tree, lower: tree.Tree, upper: tree.Tree) -> tree.Tree:
    """The nearest tree between two bounds: `min(max(x, lower), upper)`.

    A bound is a number or a tensor for all leaves, or a tree like `x` or a prefix of it; None and ±inf bound nothing.

    >>> projection_box({"a": torch.tensor([-1.0, 3.0]), "b": torch.tensor(3.0)}, 0.0, {"a": 2.0, "b": None})
    {'a': tensor([0., 2.]), 'b': tensor(3.)}

    Raises:
        TypeError: a leaf is complex.
        ValueError: a bound is no prefix of `x`, or a lower number is above an upper one.
    """
    return _clamp("projection_box", x, lower, upper)


def projection_hypercube(x: tree.Tree, scale: float | Tensor = 1.0) -> tree.Tree:
    """The nearest tree of numbers in [0, scale].

    Raises:
        TypeError: a leaf is complex.
    """
    check_within("projection_hypercube", "[0, inf]", scale=scale)
    return _clamp("projection_hypercube", x, 0.0, scale)


def projection_linf_ball(x: tree.Tree, scale: float | Tensor = 1.0) -> tree.Tree:
    """The nearest tree of numbers in [-scale, scale].

    Raises:
        TypeError: a leaf is complex.
    """
    check_within("projection_linf_ball", "[0, inf]", scale=scale)
    return _clamp("projection_linf_ball", x, -scale, scale)


def _clamp(function: str, x: tree.Tree, lower: tree.Tree, upper: tree.Tree) -> tree.Tree:
    def rule(leaf: Tensor, low: Any, high: Any) -> Tensor:
        check_real(function, leaf)
        if not isinstance(low, Tensor) and not isinstance(high, Tensor) and low > high:
            raise ValueError(f"{function}: lower must not be above upper, got lower={low!r} and upper={high!r}.")
        low, high = (torch.as_tensor(bound, dtype=leaf.dtype, device=leaf.device) for bound in (low, high))
        return torch.clamp(leaf, low, high)

    return tree.map_rule(
        rule, x, reads=(_bound_of_each(lower, x, -math.inf), _bound_of_each(upper, x, math.inf)), elementwise=True
    )


def _bound_of_each(prefix: tree.Tree, x: tree.Tree, unbounded: float) -> tree.Tree:
    own, structure = tree.flatten(prefix)
    bounds = [unbounded if bound is None else bound for bound in own]
    parts = tree.leaves_up_to(structure, x)
    return tree.unflatten(
        [tree.map(lambda leaf, bound=bound: bound, part) for bound, part in zip(bounds, parts)], structure
    )


def projection_simplex(x: tree.Tree, scale: float | Tensor = 1.0) -> tree.Tree:
    """The nearest tree of numbers that are not negative and sum to `scale` (Held, Wolfe & Crowder 1974).

        P(x) = max(x - τ, 0)        τ = maxₖ (x₍₁₎ + ... + x₍ₖ₎ - scale) / k, with x sorted downward

    On the support, where P(x) > 0, its derivative takes the mean away: `dx - mean(dx)`; elsewhere it is 0.

    >>> projection_simplex(torch.tensor([0.5, 1.0, -2.0]))
    tensor([0.2500, 0.7500, 0.0000])

    Raises:
        TypeError: a leaf is complex.
    """
    check_within("projection_simplex", "[0, inf)", scale=scale)
    for leaf in tree.leaves(x):
        check_real("projection_simplex", leaf)
    vector = tree.ravel(_wide(x))[0]
    if vector.numel() == 0:
        return tree.clone(x)
    falling = vector.sort(descending=True).values
    ranks = torch.arange(1, vector.numel() + 1, dtype=vector.dtype, device=vector.device)
    threshold = realise(((falling.cumsum(0) - scale) / ranks).amax())
    return tree.map_rule(lambda leaf: (leaf - threshold).clamp(min=0.0), x, elementwise=True)


def projection_l1_sphere(x: tree.Tree, scale: float | Tensor = 1.0) -> tree.Tree:
    """The nearest tree whose absolute values sum to `scale`.

        P(x) = sign(x) * S(|x|)        S the projection on the simplex

    Where x is 0 either sign is nearest, and + is taken (0 in optax, whose result may lie off the sphere then).
    """
    check_within("projection_l1_sphere", "[0, inf)", scale=scale)
    sizes = projection_simplex(tree.map(torch.abs, _wide(x)), scale)
    return tree.map_rule(
        lambda leaf, size: torch.where(leaf == 0, 1, torch.sgn(leaf)) * size, x, reads=(sizes,), elementwise=True
    )


def projection_l1_ball(x: tree.Tree, scale: float | Tensor = 1.0) -> tree.Tree:
    """The nearest tree whose absolute values sum to at most `scale`."""
    check_within("projection_l1_ball", "[0, inf)", scale=scale)
    sums = [leaf.abs().sum() for leaf in tree.leaves(_wide(x))]
    if not sums:
        return tree.clone(x)
    return tree.where(sum(sums[1:], sums[0]) <= scale, x, projection_l1_sphere(x, scale))


def projection_l2_sphere(x: tree.Tree, scale: float | Tensor = 1.0) -> tree.Tree:
    """The nearest tree of the norm `scale`: `scale * x / ‖x‖`.

    At 0 all points of the sphere are nearest, and the one with equal numbers is taken, with derivative 0 (optax: NaN).
    """
    check_within("projection_l2_sphere", "[0, inf)", scale=scale)
    norm = tree.global_norm(x)
    factor = realise(safe_divide(scale * torch.ones_like(norm), norm))
    size = sum(leaf.numel() for leaf in tree.leaves(x))
    middle = scale / math.sqrt(max(size, 1))
    return tree.map_rule(lambda leaf: torch.where(norm == 0, middle, factor * leaf), x, elementwise=True)


def projection_l2_ball(x: tree.Tree, scale: float | Tensor = 1.0) -> tree.Tree:
    """The nearest tree of a norm of at most `scale`: `x * min(1, scale / ‖x‖)`."""
    check_within("projection_l2_ball", "[0, inf)", scale=scale)
    norm = tree.global_norm(x)
    factor = realise(torch.where(norm > scale, safe_divide(scale * torch.ones_like(norm), norm), 1.0))
    return tree.map_rule(lambda leaf: factor * leaf, x, elementwise=True)


def projection_vector(x: tree.Tree, a: tree.Tree) -> tree.Tree:
    """The nearest multiple of the tree `a`: `(⟨x, a⟩ / ⟨a, a⟩) a`, and 0 for `a = 0` (optax: NaN).

    Raises:
        TypeError: a leaf is complex.
    """
    product, square = _products("projection_vector", x, a)
    factor = realise(safe_divide(product, square))
    return tree.map_rule(lambda leaf, normal: factor * normal, x, reads=(a,), elementwise=True)


def projection_hyperplane(x: tree.Tree, a: tree.Tree, b: float | Tensor) -> tree.Tree:
    """The nearest tree with `⟨x, a⟩ = b`: `x + ((b - ⟨x, a⟩) / ⟨a, a⟩) a`, and x for `a = 0` (optax: NaN).

    Raises:
        TypeError: a leaf is complex.
    """
    product, square = _products("projection_hyperplane", x, a)
    factor = realise(safe_divide(b - product, square))
    return tree.map_rule(lambda leaf, normal: leaf + factor * normal, x, reads=(a,), elementwise=True)


def projection_halfspace(x: tree.Tree, a: tree.Tree, b: float | Tensor) -> tree.Tree:
    """The nearest tree with `⟨x, a⟩ <= b`: `x + min((b - ⟨x, a⟩) / ⟨a, a⟩, 0) a`, and x for `a = 0` (optax: NaN).

    Raises:
        TypeError: a leaf is complex.
    """
    product, square = _products("projection_halfspace", x, a)
    factor = realise(safe_divide(b - product, square).clamp(max=0.0))
    return tree.map_rule(lambda leaf, normal: leaf + factor * normal, x, reads=(a,), elementwise=True)


def _products(function: str, x: tree.Tree, a: tree.Tree) -> tuple[Tensor, Tensor]:
    """`⟨x, a⟩` and `⟨a, a⟩`, both over the leaves that neither of the trees lacks."""

    def multiply(leaf: Tensor, normal: Tensor) -> list[Tensor]:
        check_real(function, leaf)
        return [(leaf * normal).sum(), normal.square().sum()]

    products = tree.leaves(tree.map(multiply, _wide(x), _wide(a))) or [torch.zeros(()), torch.ones(())]
    return torch.stack(products[0::2]).sum(), torch.stack(products[1::2]).sum()


def _wide(x: tree.Tree) -> tree.Tree:
    return tree.map(lambda leaf: leaf.to(compute_dtype(leaf.dtype)), x)
