"""A factor for every leaf: learning rates by layer, by depth, by kind of parameter."""

from typing import Any

from torch import Tensor

from funcopt import tree
from funcopt.checks import check_within
from funcopt.transform import EmptyState, GradientTransformation, Params, Updates, factory
from funcopt.wrappers.patterns import PerLeaf, per_leaf


@factory
def scale_by_path(multipliers: PerLeaf) -> GradientTransformation:
    """Multiply the update of every leaf by a factor of its own: `u = m g`.

    `multipliers` is a tree of factors or a prefix of it, a function of params (of updates, if `update` gets no params),
    or patterns as for `by_path`. A factor is a number or a 0-d tensor. At the end of an optimizer it multiplies the
    learning rate of the leaf, and with it the weight decay.

    >>> optimizer = chain(adamw(1e-3), scale_by_path({"encoder*": 0.1, "*": 1.0}))

    Raises:
        TypeError: a factor is no number and no tensor.
        ValueError: a factor is not finite, or a tensor of more axes; the multipliers do not fit params; a leaf without
            a pattern, a pattern without a leaf.
    """
    factors_of = per_leaf("scale_by_path", "multipliers", multipliers, _check_factor)

    def init(params: Params) -> EmptyState:
        tree.check_params(params)
        factors_of(params, None)
        return EmptyState()

    def update(
        updates: Updates, state: EmptyState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, EmptyState]:
        structure = tree.flatten(updates if params is None else params)[1]
        factors = tree.unflatten(factors_of(params, updates), structure)
        return tree.map_rule(lambda g, factor: factor * g, updates, reads=(factors,), elementwise=True), state

    return GradientTransformation(init, update)


def _check_factor(name: str, factor: Any) -> None:
    if callable(factor):
        raise TypeError(f"scale_by_path: {name} must be a number or a 0-d tensor, got {factor!r}.")
    if isinstance(factor, Tensor) and factor.ndim > 0:
        raise ValueError(f"scale_by_path: {name} must be a number or a 0-d tensor, got shape {tuple(factor.shape)}.")
    check_within("scale_by_path", "(-inf, inf)", **{name: factor})
