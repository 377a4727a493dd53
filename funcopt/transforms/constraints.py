"""Transformations that keep updates or parameters inside a set."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcopt import tree
from funcopt.checks import check_real
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
        return tree.map_rule(rule, updates, reads=(require_params(params, "keep_params_nonnegative"),))

    return stateless(project, "elementwise")


class ZeroNansState(NamedTuple):
    found_nan: tree.Tree  # per leaf, whether the last update held a NaN: 0-d bools


@factory
def zero_nans() -> GradientTransformation:
    """Replace every NaN of the updates by 0. The state tells, per leaf, whether the last update held one."""

    def init(params: Params) -> ZeroNansState:
        tree.check_params(params)
        return ZeroNansState(tree.map(lambda p: p.new_zeros((), dtype=torch.bool), params))

    def update(
        updates: Updates, state: ZeroNansState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ZeroNansState]:
        updates, found = tree.map_rule(_zero_nans, updates, state.found_nan)
        return updates, ZeroNansState(found)

    return GradientTransformation(init, update, "leafwise")


def _zero_nans(g: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    nan = g.isnan()
    return torch.where(nan, torch.zeros_like(g), g), nan.any()
