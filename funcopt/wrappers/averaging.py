"""Averages of the parameters, kept beside them: lookahead, the exponential moving average, stochastic weight averaging.

All are drop-in: the params of the training loop are those of the optimizer within (the fast ones); the averages are in
the state, and `eval_params` gives them.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcopt import tree
from funcopt.checks import check_integer, check_within
from funcopt.numerics import increment, realise, safe_divide, scalar_dtype
from funcopt.transform import (
    GradientTransformation,
    Params,
    ScalarOrSchedule,
    State,
    Updates,
    apply_updates,
    check_transformation,
    factory,
    require_params,
    scalar,
    value_at,
    zero_count,
)


class LookaheadState(NamedTuple):
    fast_state: State  # of the fast optimizer
    steps_since_sync: Tensor
    slow_params: Params  # where the fast ones started from at the last sync

    def eval_params(self, params: Params) -> Params:
        return self.slow_params


@factory
def lookahead(
    fast_optimizer: GradientTransformation,
    sync_period: int,
    slow_step_size: float | Tensor,
    reset_state: bool = False,
) -> GradientTransformation:
    """Lookahead: k steps forward, 1 step back (Zhang et al. 2019, https://arxiv.org/abs/1907.08610).

        fast ← fast + u(g)                              u the fast optimizer's update
        slow ← slow + α (fast - slow),  fast ← slow     at every `sync_period`-th step; α is `slow_step_size`

    `params` are the fast ones. The slow ones are in the state, at least in float32; `eval_params(state, params)` gives
    them. With `reset_state` the fast optimizer starts anew after each sync, from the synced params.

    The numbers are those of optax.lookahead, where `params` is the pair of both; here no loop changes. `reset_state`
    selects, and so works for keys and with infinite numbers in the state; a leaf without gradient keeps its state.
    Extra arguments are passed on. `update` needs params.

    >>> optimizer = lookahead(adam(1e-3), sync_period=5, slow_step_size=0.5)
    """
    check_transformation("lookahead", fast_optimizer=fast_optimizer)
    check_integer("lookahead", 1, sync_period=sync_period)
    check_within("lookahead", "[0, inf)", slow_step_size=slow_step_size)

    def init(params: Params) -> LookaheadState:
        return LookaheadState(fast_optimizer.init(params), zero_count(params), tree.clone_wide(params))

    def update(
        updates: Updates, state: LookaheadState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, LookaheadState]:
        params = require_params(params, "lookahead")
        updates, fast_state = fast_optimizer.update(updates, state.fast_state, params, **extra)
        sync = state.steps_since_sync == sync_period - 1

        def rule(u: Tensor, slow: Tensor, fast: Tensor) -> tuple[Tensor, Tensor]:
            ahead = fast + u - slow
            return (
                torch.where(sync, u - (1 - slow_step_size) * ahead, u),
                torch.where(sync, slow + slow_step_size * ahead, slow),
            )

        updates, slow_params = tree.map_rule(rule, updates, state.slow_params, reads=(params,), elementwise=True)
        if reset_state:
            fast_state = restart(sync, fast_optimizer, fast_state, apply_updates(params, updates), updates)
        return updates, LookaheadState(fast_state, (state.steps_since_sync + 1) % sync_period, slow_params)

    return GradientTransformation(init, update, fast_optimizer.coupling)


def restart(due: Tensor, optimizer: GradientTransformation, state: State, params: Params, updates: Updates) -> State:
    """`state` as after `init(params)` where `due` holds, except of leaves without an update."""
    fresh, structure = tree.flatten(optimizer.init(tree.map(lambda update, param: param, updates, params)))
    current = tree.leaves_up_to(structure, state)

    def select(new: Tensor | None, old: Any) -> Any:
        return old if new is None else torch.where(due, new.to(old.dtype), old)

    return tree.unflatten([select(*row) for row in zip(fresh, current)], structure)


class EmaParamsState(NamedTuple):
    count: Tensor  # type: ignore[assignment]  # steps taken
    collected: Tensor  # 1 - Π decay: the weight of all steps so far
    average: Params  # running mean of the params after each step
    inner_state: State

    def eval_params(self, params: Params) -> Params:
        return tree.where(self.count > 0, self.average, tree.mask_like(params, self.average))


@factory
def ema_params(inner: GradientTransformation, decay: ScalarOrSchedule, debias: bool = True) -> GradientTransformation:
    """Keep an exponential moving average of the parameters, as they are after each step of `inner`.

        p ← p + u,    a ← a + w (p - a),    w = (1 - decay) / (1 - decayᵗ), or 1 - decay without `debias`

    With `debias`, a is the weighted mean of the params after each of the t steps. Without, it starts at the initial
    params, which keep the weight decayᵗ: as `incremental_update` after each step with `step_size = 1 - decay`, and as
    torch.optim.swa_utils.AveragedModel with `get_ema_multi_avg_fn` that is updated once before training too. A
    scheduled decay is evaluated at the count, 0 at the first step; 1 - decayᵗ is then 1 minus the product of all.

    The updates are those of `inner`; wrap the whole optimizer, so that they are what is applied. The average is in the
    state, at least in float32; `eval_params(state, params)` gives it. That of a leaf without gradient is kept. `update`
    needs params.

    >>> optimizer = ema_params(adamw(1e-3), decay=0.999)
    """
    check_transformation("ema_params", inner=inner)
    check_within("ema_params", "[0, 1)", decay=decay)

    def init(params: Params) -> EmaParamsState:
        return EmaParamsState(zero_count(params), scalar(params), tree.clone_wide(params), inner.init(params))

    def update(
        updates: Updates, state: EmaParamsState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, EmaParamsState]:
        params = require_params(params, "ema_params")
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra)
        before = state.collected.to(scalar_dtype(state.collected.device))
        share = torch.as_tensor(1 - value_at(decay, state.count), dtype=before.dtype, device=before.device)
        collected = before + share * (1 - before)
        weight = realise(safe_divide(share, collected) if debias else share)

        def rule(u: Tensor, average: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
            return u, torch.lerp(average, moved, weight.to(average.dtype))

        updates, average = tree.map_rule(
            rule, updates, state.average, reads=(apply_updates(params, updates),), elementwise=True
        )
        collected = collected.to(state.collected.dtype)
        return updates, EmaParamsState(increment(state.count), collected, average, inner_state)

    return GradientTransformation(init, update, inner.coupling)


class SwaState(NamedTuple):
    count: Tensor  # type: ignore[assignment]  # steps taken
    n_averaged: Tensor  # params in the average
    average: Params  # their mean; before the first, the latest params
    inner_state: State

    def eval_params(self, params: Params) -> Params:
        return tree.where(self.n_averaged > 0, self.average, tree.mask_like(params, self.average))


@factory
def swa(inner: GradientTransformation, start_step: int, every: int = 1) -> GradientTransformation:
    """Stochastic weight averaging: the mean of the params (Izmailov et al. 2018, https://arxiv.org/abs/1803.05407).

        p ← p + u,    n ← n + 1,    a ← a + (p - a) / n        after the steps start_step + k every,  k = 0, 1, ...

    Steps are counted from 0: with `start_step=0` the params after the first step are in the mean. The numbers are those
    of torch.optim.swa_utils.AveragedModel, updated after these steps. The high or cyclic learning rate that the paper
    averages under is the schedule of `inner`; statistics of batch norms are to be computed anew with the averages.

    The updates are those of `inner`; wrap the whole optimizer, so that they are what is applied. The mean is in the
    state, at least in float32; `eval_params(state, params)` gives it, and before the first of these steps the params.
    `update` needs params.

    >>> optimizer = swa(sgd(0.05, momentum=0.9), start_step=1000, every=100)
    """
    check_transformation("swa", inner=inner)
    check_integer("swa", 0, start_step=start_step)
    check_integer("swa", 1, every=every)

    def init(params: Params) -> SwaState:
        return SwaState(zero_count(params), zero_count(params), tree.clone_wide(params), inner.init(params))

    def update(
        updates: Updates, state: SwaState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, SwaState]:
        params = require_params(params, "swa")
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra)
        begun = state.count >= start_step
        due = begun & ((state.count - start_step) % every == 0)
        weight = realise(1 / (state.n_averaged.to(scalar_dtype(state.count.device)) + 1))

        def rule(u: Tensor, average: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
            # Before the start n is 0, and the average follows the params: a leaf may have no gradient just then.
            mean = torch.lerp(average, moved, weight.to(average.dtype))
            return u, torch.where(due | ~begun, mean, average)

        updates, average = tree.map_rule(
            rule, updates, state.average, reads=(apply_updates(params, updates),), elementwise=True
        )
        n_averaged = torch.where(due, increment(state.n_averaged), state.n_averaged)
        return updates, SwaState(increment(state.count), n_averaged, average, inner_state)

    return GradientTransformation(init, update, inner.coupling)
