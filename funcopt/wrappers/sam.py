"""Sharpness-aware minimisation: the gradient of the worst point nearby."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcopt import tree
from funcopt.checks import check_integer
from funcopt.transform import (
    GradientTransformation,
    Params,
    State,
    Updates,
    apply_updates,
    check_transformation,
    factory,
    joint_coupling,
    require_params,
    zero_count,
)
from funcopt.wrappers.averaging import restart


class SAMState(NamedTuple):
    steps_since_sync: Tensor  # calls since params were last moved by the optimizer
    opt_state: State
    adv_state: State
    cache: Params  # where the ascent began, and after a step, where it led; in opaque mode an empty tuple

    def eval_params(self, params: Params) -> Params:
        if type(self.cache) is tuple and not self.cache:
            return params
        return tree.where(self.steps_since_sync > 0, self.cache, tree.mask_like(params, self.cache))


@factory
def sam(
    optimizer: GradientTransformation,
    adv_optimizer: GradientTransformation,
    sync_period: int = 2,
    reset_state: bool = True,
    opaque_mode: bool = False,
) -> GradientTransformation:
    """Sharpness-aware minimisation (Foret et al. 2020, https://arxiv.org/abs/2010.01412).

        q ← p;    q ← q - a(∇f(q))  for sync_period - 1 ascents;    p ← p + u(∇f(q))

    a is the update of `adv_optimizer`, whose sign is turned, and u that of `optimizer`. The ascent of the paper, of
    length ρ, is `chain(normalize(), sgd(ρ))`.

    A loop need not change: every call of `update` gets the gradient at the params that it returned last, and
    `sync_period` calls make one step. The params of the loop are q in between; `eval_params(state, params)` gives p.
    With `opaque_mode`, one call makes a whole step, for which it needs the extra argument `grad_fn(params, i)`, the
    gradient at the i-th point of the ascent. With `reset_state`, `adv_optimizer` begins anew at every step.

    >>> optimizer = sam(sgd(0.1, momentum=0.9), chain(normalize(), sgd(0.05)))

    Raises:
        TypeError: an optimizer is none, `sync_period` is no int, or in opaque mode `update` got no `grad_fn`.
        ValueError: `sync_period` is less than 1, or `update` got no params.
    """
    check_transformation("sam", optimizer=optimizer, adv_optimizer=adv_optimizer)
    check_integer("sam", 1, sync_period=sync_period)
    make = _opaque if opaque_mode else _transparent
    return make(optimizer, adv_optimizer, sync_period, reset_state)


def _transparent(
    optimizer: GradientTransformation, adv_optimizer: GradientTransformation, sync_period: int, reset_state: bool
) -> GradientTransformation:
    def init(params: Params) -> SAMState:
        cache = tree.clone_wide(params)
        return SAMState(zero_count(params), optimizer.init(params), adv_optimizer.init(params), cache)

    def update(
        updates: Updates, state: SAMState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, SAMState]:
        params = require_params(params, "sam")
        first, last = state.steps_since_sync == 0, state.steps_since_sync == sync_period - 1
        start = tree.map(lambda p, cache: torch.where(first, p, cache.to(p.dtype)), params, state.cache)
        ascent, adv_state = adv_optimizer.update(updates, state.adv_state, params, **extra)
        step, opt_state = optimizer.update(updates, state.opt_state, start, **extra)

        def rule(u: Tensor, cache: Tensor, up: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
            cache = torch.where(first, p, cache)
            moved = cache + u
            return torch.where(last, moved - p, -up), torch.where(last, moved, cache)

        updates, cache = tree.map_rule(rule, step, state.cache, reads=(ascent, params), elementwise=True)
        adv_state = tree.where(last, state.adv_state, adv_state)
        if reset_state:
            adv_state = restart(last, adv_optimizer, adv_state, params, updates)
        opt_state = tree.where(last, opt_state, state.opt_state)
        return updates, SAMState((state.steps_since_sync + 1) % sync_period, opt_state, adv_state, cache)

    return GradientTransformation(init, update, joint_coupling((optimizer, adv_optimizer)))


def _opaque(
    optimizer: GradientTransformation, adv_optimizer: GradientTransformation, sync_period: int, reset_state: bool
) -> GradientTransformation:
    def init(params: Params) -> SAMState:
        return SAMState(zero_count(params), optimizer.init(params), adv_optimizer.init(params), ())

    def update(
        updates: Updates,
        state: SAMState,
        params: Params | None = None,
        *,
        grad_fn: Callable[[Params, int], Updates],
        **extra: Any,
    ) -> tuple[Updates, SAMState]:
        params = require_params(params, "sam")
        point, adv_state, gradient = params, state.adv_state, updates
        for i in range(sync_period - 1):
            ascent, adv_state = adv_optimizer.update(gradient, adv_state, point, **extra)
            point = apply_updates(point, tree.map(torch.neg, ascent))
            gradient = grad_fn(point, i)
        updates, opt_state = optimizer.update(gradient, state.opt_state, params, **extra)
        if reset_state:
            always = state.steps_since_sync == 0
            adv_state = restart(always, adv_optimizer, state.adv_state, params, updates)
        return updates, SAMState(state.steps_since_sync.clone(), opt_state, adv_state, ())

    return GradientTransformation(init, update, joint_coupling((optimizer, adv_optimizer)))
