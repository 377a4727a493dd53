"""Updates under a condition: where it does not hold, the state stays as it was, to the bit."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from funcopt import tree
from funcopt.checks import check_integer
from funcopt.numerics import increment
from funcopt.transform import (
    GradientTransformation,
    Params,
    State,
    Updates,
    check_transformation,
    factory,
    zero_count,
)
from funcopt.wrappers.branching import attempt, check_flag, check_function, choose, update_if

Condition: TypeAlias = Callable[..., Tensor | bool]
"""`should_transform_fn(step) -> bool`: of the number of earlier calls; a 0-d tensor, or a bool known beforehand."""


class ConditionallyTransformState(NamedTuple):
    inner_state: State
    step: Tensor  # calls of update so far


class ConditionallyMaskState(NamedTuple):
    step: Tensor  # calls of update so far
    inner_state: State


@factory
def conditionally_transform(
    inner: GradientTransformation, should_transform_fn: Condition, forward_extra_args: bool = False
) -> GradientTransformation:
    """Transform the updates where the condition holds; elsewhere pass them through, and keep the state of `inner`.

    `should_transform_fn(step)` gets the number of earlier calls, a 0-d tensor; with `forward_extra_args` also the extra
    arguments of `update`. It returns a 0-d bool tensor, and `inner` is run in any case; or it returns a bool that is
    known beforehand (an extra argument), and `inner` is run only where it is True, in a compiled graph of its own.

    >>> warm_clipping = conditionally_transform(clip_by_global_norm(1.0), lambda step: step < 1000)

    Raises:
        TypeError: at the call: the condition is no bool of shape ().
    """
    check_transformation("conditionally_transform", inner=inner)
    condition_of = _condition("conditionally_transform", should_transform_fn, forward_extra_args)

    def init(params: Params) -> ConditionallyTransformState:
        return ConditionallyTransformState(inner.init(params), zero_count(params))

    def update(
        updates: Updates, state: ConditionallyTransformState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ConditionallyTransformState]:
        condition = condition_of(state.step, extra)
        updates, inner_state = update_if(condition, inner, updates, state.inner_state, params, extra, otherwise=updates)
        return updates, ConditionallyTransformState(inner_state, increment(state.step))

    return GradientTransformation(init, update, inner.coupling)


@factory
def conditionally_mask(
    inner: GradientTransformation, should_transform_fn: Condition, forward_extra_args: bool = False
) -> GradientTransformation:
    """Transform the updates where the condition holds; elsewhere make them zero, and keep the state of `inner`.

    Arguments as in `conditionally_transform`, which passes the updates through instead.

    >>> every_second = conditionally_mask(sgd(0.1), lambda step: step % 2 == 0)
    """
    check_transformation("conditionally_mask", inner=inner)
    condition_of = _condition("conditionally_mask", should_transform_fn, forward_extra_args)

    def init(params: Params) -> ConditionallyMaskState:
        return ConditionallyMaskState(zero_count(params), inner.init(params))

    def update(
        updates: Updates, state: ConditionallyMaskState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ConditionallyMaskState]:
        condition = condition_of(state.step, extra)
        updates, inner_state = update_if(condition, inner, updates, state.inner_state, params, extra)
        return updates, ConditionallyMaskState(increment(state.step), inner_state)

    return GradientTransformation(init, update, inner.coupling)


def _condition(
    function: str, should_transform_fn: Condition, forward_extra_args: bool
) -> Callable[[Tensor, dict[str, Any]], Tensor | bool]:
    check_function(function, should_transform_fn=should_transform_fn)

    def condition_of(step: Tensor, extra: dict[str, Any]) -> Tensor | bool:
        condition = should_transform_fn(step, **extra) if forward_extra_args else should_transform_fn(step)
        return condition if isinstance(condition, bool) else check_flag(function, "should_transform_fn", condition)

    return condition_of


class ApplyIfFiniteState(NamedTuple):
    notfinite_count: Tensor  # steps refused in a row
    last_finite: Tensor  # whether the last step was sound: 0-d bool
    total_notfinite: Tensor  # unsound steps, refused or not
    inner_state: State


@factory
def apply_if_finite(
    inner: GradientTransformation, max_consecutive_errors: int, *, rehearse: bool = False
) -> GradientTransformation:
    """Refuse steps that are not finite, at most `max_consecutive_errors` in a row.

    A step is unsound if a number of the gradients or updates is infinite or NaN, or one of the state of `inner` becomes
    so: after a gradient of 1e30, Adam in float32 divides by infinity for ever. A refused step gives zero updates, and
    leaves the state of `inner` as it was. After `max_consecutive_errors` refusals the next unsound step is let through
    as it is, and the count of refusals begins anew. (optax looks at the gradients only, and once it has let such a
    step through, it does so with all that follow.)

    The derivative through a step refused for its gradients is that of no step. If `inner` itself spoiled the step, only
    forward mode has that; reverse mode passes through the infinite derivatives within `inner`, and may give NaN.
    `rehearse` avoids it: `inner` is run twice, the first time without a derivative to see how it ends.

    >>> optimizer = apply_if_finite(adam(1e-3), max_consecutive_errors=5)
    """
    check_transformation("apply_if_finite", inner=inner)
    check_integer("apply_if_finite", 0, max_consecutive_errors=max_consecutive_errors)

    def init(params: Params) -> ApplyIfFiniteState:
        count = zero_count(params)
        return ApplyIfFiniteState(count, count == 0, zero_count(params), inner.init(params))

    def update(
        updates: Updates, state: ApplyIfFiniteState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ApplyIfFiniteState]:
        give_up = state.notfinite_count >= max_consecutive_errors
        sound = _all_true(tree.map(torch.isfinite, updates))
        arguments = inner, updates, state.inner_state, params, extra
        if rehearse:
            with torch.no_grad():
                sound = sound & _is_sound(*attempt(sound | give_up, *arguments), state.inner_state)
        results = attempt(sound | give_up, *arguments)
        sound = sound & _is_sound(*results, state.inner_state)
        updates, inner_state = choose(sound | give_up, *results, state.inner_state)
        refused_in_a_row = torch.where(sound | give_up, 0, increment(state.notfinite_count))
        total = torch.where(sound, state.total_notfinite, increment(state.total_notfinite))
        return updates, ApplyIfFiniteState(refused_in_a_row, sound, total, inner_state)

    return GradientTransformation(init, update, "treewise")


def _is_sound(updates: Updates, new_state: State, state: State) -> Tensor:
    """Whether the updates are finite, and the new state is wherever the old one was: some states start at infinity."""
    kept = tree.map(lambda new, old: new.isfinite() | ~old.isfinite(), new_state, state)
    return _all_true(tree.map(torch.isfinite, updates)) & _all_true(kept)


def _all_true(flags: tree.Tree) -> Tensor:
    each = [leaf.all() for leaf in tree.leaves(flags)]
    return torch.stack(each).all() if each else torch.ones((), dtype=torch.bool)
