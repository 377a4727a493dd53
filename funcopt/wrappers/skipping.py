"""Skipping a step because of its gradients."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from funcopt import tree
from funcopt.checks import check_within
from funcopt.numerics import abs_square, compute_dtype, increment
from funcopt.transform import (
    GradientTransformation,
    Params,
    State,
    Updates,
    check_transformation,
    factory,
    zero_count,
)
from funcopt.wrappers.branching import check_flag, check_function, update_if

ShouldSkip: TypeAlias = Callable[[Updates, Tensor, Params | None], tuple[Tensor, tree.Tree]]
"""`should_skip(updates, gradient_step, params) -> (skip, info)`: a 0-d bool, and a tree of tensors to look at."""


def skip_not_finite(updates: Updates, gradient_step: Tensor, params: Params | None) -> tuple[Tensor, tree.Tree]:
    """A skip function, of `skip_if` and `accumulate_gradients`: whether a number of `updates` is infinite or NaN.

    Returns:
        The 0-d bool, and `{"should_skip": that bool, "num_not_finite": how many, int32}`.
    """
    counts = [(~leaf.isfinite()).sum(dtype=torch.int32) for leaf in tree.leaves(updates)]
    count = torch.stack(counts).sum(dtype=torch.int32) if counts else torch.zeros_like(gradient_step)
    return count > 0, {"should_skip": count > 0, "num_not_finite": count}


def skip_large_updates(
    updates: Updates, gradient_step: Tensor, params: Params | None, max_squared_norm: float | Tensor
) -> tuple[Tensor, tree.Tree]:
    """Whether the squared norm of `updates`, over the whole tree, is not below `max_squared_norm`, or is NaN.

    A skip function once the bound is given: `functools.partial(skip_large_updates, max_squared_norm=100.0)`.

    Returns:
        The 0-d bool, and `{"should_skip": that bool, "norm_squared": at least float32}`.
    """
    check_within("skip_large_updates", "[0, inf]", max_squared_norm=max_squared_norm)
    squares = [abs_square(leaf.to(compute_dtype(leaf.dtype))).sum() for leaf in tree.leaves(updates)]
    norm_squared = sum(squares[1:], squares[0]) if squares else gradient_step.new_zeros((), dtype=torch.float32)
    skip = ~(norm_squared < max_squared_norm)
    return skip, {"should_skip": skip, "norm_squared": norm_squared}


def ask_whether_to_skip(
    function: str, should_skip: ShouldSkip, updates: Updates, gradient_step: Tensor, params: Params | None
) -> tuple[Tensor, tree.Tree]:
    """What a skip function says, checked, with the info in memory of its own."""
    skip, info = should_skip(updates, gradient_step, params)
    return check_flag(function, getattr(should_skip, "__name__", "the skip function"), skip), tree.clone(info)


class SkipIfState(NamedTuple):
    gradient_step: Tensor  # steps taken
    total_skipped: Tensor  # steps skipped
    inner_state: State
    skip_state: tree.Tree  # the info of the last call of the skip function


@factory
def skip_if(inner: GradientTransformation, should_skip_update_fn: ShouldSkip) -> GradientTransformation:
    """Skip the step where the gradients say so: zero updates, and nothing of `inner` changes.

    `should_skip_update_fn(updates, gradient_step, params)` returns a 0-d bool tensor and a tree of tensors, which is
    kept in `state.skip_state` to be looked at: `skip_not_finite`, `skip_large_updates` with its bound, or another one.

    A derivative through a skipped step is that of no step. `inner` is run in any case. optax has this only as
    `MultiSteps` with k = 1; unlike `apply_if_finite`, it never gives up.

    >>> optimizer = skip_if(adam(1e-3), skip_not_finite)

    Raises:
        TypeError: at the call: the function returns no bool of shape ().
    """
    check_transformation("skip_if", inner=inner)
    check_function("skip_if", should_skip_update_fn=should_skip_update_fn)

    def init(params: Params) -> SkipIfState:
        count, zeros = zero_count(params), tree.map(torch.zeros_like, params)
        _, info = ask_whether_to_skip("skip_if", should_skip_update_fn, zeros, count, params)
        return SkipIfState(count, zero_count(params), inner.init(params), info)

    def update(
        updates: Updates, state: SkipIfState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, SkipIfState]:
        skip, info = ask_whether_to_skip("skip_if", should_skip_update_fn, updates, state.gradient_step, params)
        updates, inner_state = update_if(~skip, inner, updates, state.inner_state, params, extra)
        gradient_step = torch.where(skip, state.gradient_step, increment(state.gradient_step))
        total_skipped = torch.where(skip, increment(state.total_skipped), state.total_skipped)
        skip_state = tree.map(lambda new, old: new.to(old.dtype), info, state.skip_state)
        return updates, SkipIfState(gradient_step, total_skipped, inner_state, skip_state)

    return GradientTransformation(init, update, "treewise")
