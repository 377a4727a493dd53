"""Transformations that keep updates or parameters inside a set."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcopt import tree
from funcopt.checks import check_real
from funcopt.numerics import compute_dtype
from funcopt.transform import (
    GradientTransformation,
    Params,
    Updates,
    factory,
    require_params,
    stateless,
)


@factory
def keep_params_nonnegative() -> GradientTransformation:
    """Cut the updates so that no parameter becomes negative: `u = max(g, -p)`; it belongs at the end of a chain.

    A parameter that is negative already is moved to zero. `update` needs params.

    Raises:
        TypeError: a leaf is complex.
        ValueError: `update` got no params.
    """

    def rule(g: Tensor, p: Tensor) -> Tensor:
        check_real("keep_params_nonnegative", p)
        return torch.where(p + g < 0, -p, g)

    def project(updates: Updates, params: Params | None) -> Updates:
        return tree.map_rule(
            rule, updates, reads=(require_params(params, "keep_params_nonnegative"),), elementwise=True
        )

    return stateless(project, "elementwise")


@factory
def keep_params_in(projection: Callable[[Params], Params]) -> GradientTransformation:
    """Keep the parameters in a set, given by the projection on it; it belongs at the end of a chain.

        u = P(p + g) - p        so that p + u is P(p + g), to rounding

    After a gradient step this is the projected gradient method (Goldstein 1964; Levitin & Polyak 1966). Leaves without
    a gradient stay as they are, and the projection does not see them. `update` needs params.

    >>> optimizer = chain(sgd(0.1), keep_params_in(lambda params: projection_l2_ball(params, 2.0)))
    >>> params = torch.tensor([2.0, 0.0])
    >>> updates, _ = optimizer.update(torch.tensor([-5.0, 0.0]), optimizer.init(params), params)
    >>> apply_updates(params, updates)
    tensor([2., 0.])

    Raises:
        TypeError: `projection` is no function.
        ValueError: `update` got no params.
    """
    if not callable(projection):
        raise TypeError(f"keep_params_in: projection must be a function of the params, got projection={projection!r}.")

    def project(updates: Updates, params: Params | None) -> Updates:
        params = require_params(params, "keep_params_in")
        # In the precision of the rule: rounded to bfloat16, p + g would be p for all small steps.
        target = tree.map(lambda g, p: _widened(p) + _widened(g), updates, params)
        return tree.map_rule(lambda g, q, p: q - p, updates, reads=(projection(target), params), elementwise=True)

    return stateless(project, "treewise")


def _widened(leaf: Tensor) -> Tensor:
    return leaf.to(compute_dtype(leaf.dtype))


class ZeroNansState(NamedTuple):
    found_nan: tree.Tree  # per leaf, whether the last update held a NaN: 0-d bools


@factory
def zero_nans() -> GradientTransformation:
    """Replace every NaN of the updates by 0. The state tells, per leaf, whether the last update held one."""

    def init(params: Params) -> ZeroNansState:
        tree.check_params(params)
        return ZeroNansState(tree.map_leafwise(lambda p: p.new_zeros((), dtype=torch.bool), params))

    def update(
        updates: Updates, state: ZeroNansState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ZeroNansState]:
        updates, found = tree.map_rule(_zero_nans, updates, state.found_nan)
        return updates, ZeroNansState(found)

    return GradientTransformation(init, update, "leafwise")


def _zero_nans(g: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    nan = g.isnan()
    return torch.where(nan, torch.zeros_like(g), g), nan.any()
