"""Accumulation: one step from the gradients of several micro-batches."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcopt import tree
from funcopt.checks import check_integer
from funcopt.numerics import increment, realise
from funcopt.transform import (
    GradientTransformation,
    Params,
    State,
    Updates,
    check_transformation,
    factory,
    scalar,
    zero_count,
)
from funcopt.wrappers.branching import check_function, on_host, update_if
from funcopt.wrappers.skipping import ShouldSkip, ask_whether_to_skip


class MultiStepsState(NamedTuple):
    mini_step: Tensor  # micro-batches collected since the last step
    gradient_step: Tensor  # steps taken
    inner_state: State
    acc_grads: tree.Tree  # Σ w g since the last step
    weight_sum: Tensor  # Σ w since the last step
    emitted: Tensor  # whether the last call took a step: 0-d bool
    skip_state: tree.Tree  # the info of the last call of the skip function


@factory
def accumulate_gradients(
    inner: GradientTransformation,
    every_k_schedule: int | Callable[[Tensor], Any],
    use_grad_mean: bool = True,
    should_skip_update_fn: ShouldSkip | None = None,
    accumulator_dtype: torch.dtype | None = None,
) -> GradientTransformation:
    """Take one step of `inner` with the mean gradient of every k calls; the calls between give zero updates.

        g = Σᵢ wᵢ gᵢ / Σᵢ wᵢ        over the micro-batches since the last step; the sum alone without `use_grad_mean`

    `every_k_schedule` is k, or a function of the number of steps taken, which is also what schedules of `inner` count.
    `should_skip_update_fn` leaves out micro-batches, which are then not counted: see `skip_if`. `update` takes two
    extra arguments that `inner` does not see:

    - `weight`: w, the size of the micro-batch, as a 0-d tensor; 1 unless given. One of weight 0 may have NaN gradients.
    - `emit`: a bool in place of k: whether to take the step with this micro-batch (or without it, if it is skipped).

    When is `inner` run? With `emit`, when that is True: a compiled step has two graphs, and the one for False is
    nothing but sums. Without, eagerly at every k-th call, for which the count is read from the device. In a compiled
    graph and under vmap at every call, and its result is selected.

    The sum is kept in float32 or better unless `accumulator_dtype` tells otherwise (in optax in float32); `inner` sees
    gradients in their own dtype. A gradient of `None` adds nothing to the sum, and counts in the weight. Where the call
    that takes the step has `None`, that leaf is skipped, and what it has collected goes into the next step.

    >>> optimizer = accumulate_gradients(adam(1e-3), every_k_schedule=4)
    """
    name = "accumulate_gradients"
    check_transformation(name, inner=inner)
    if not callable(every_k_schedule):
        check_integer(name, 1, every_k_schedule=every_k_schedule)
    if should_skip_update_fn is not None:
        check_function(name, should_skip_update_fn=should_skip_update_fn)

    def init(params: Params) -> MultiStepsState:
        mini_step, gradient_step = zero_count(params), zero_count(params)
        zeros = tree.map(torch.zeros_like, params)
        _, info = _ask(name, should_skip_update_fn, zeros, gradient_step, params)
        sums = tree.zeros_like(params, accumulator_dtype)
        return MultiStepsState(
            mini_step, gradient_step, inner.init(params), sums, scalar(params), gradient_step > 0, info
        )

    def update(
        updates: Updates,
        state: MultiStepsState,
        params: Params | None = None,
        *,
        weight: float | Tensor | None = None,
        emit: bool | None = None,
        **extra: Any,
    ) -> tuple[Updates, MultiStepsState]:
        skip, info = _ask(name, should_skip_update_fn, updates, state.gradient_step, params)
        weight = _effective_weight(name, weight, skip, state.weight_sum)
        counted = _count(state, weight, skip)
        take = _is_due(name, emit, every_k_schedule, counted, skip)
        divisor = realise(torch.where(counted.weight_sum == 0, 1, counted.weight_sum)) if use_grad_mean else None
        updates, sums = _add(updates, state.acc_grads, weight, take, divisor)
        if take is False:
            inner_state = tree.clone(state.inner_state)
        else:
            updates, inner_state = update_if(take, inner, updates, state.inner_state, params, extra)
        skip_state = tree.map(lambda new, old: new.to(old.dtype), info, state.skip_state)
        counted = counted._replace(inner_state=inner_state, acc_grads=sums, skip_state=skip_state)
        return updates, _restart_where_taken(counted, take)

    coupling = inner.coupling if should_skip_update_fn is None else "treewise"
    return GradientTransformation(init, update, coupling)


MultiSteps = accumulate_gradients
"""`accumulate_gradients` under its name in optax, where it is a class: `has_updated` is a function here."""


def _ask(
    name: str, should_skip: ShouldSkip | None, updates: Updates, gradient_step: Tensor, params: Params | None
) -> tuple[Tensor | None, tree.Tree]:
    return (None, ()) if should_skip is None else ask_whether_to_skip(name, should_skip, updates, gradient_step, params)


def _effective_weight(
    name: str, weight: float | Tensor | None, skip: Tensor | None, weight_sum: Tensor
) -> Tensor | None:
    """The weight of a micro-batch, 0 if it is skipped; None where it is 1 without a doubt."""
    if weight is None and skip is None:
        return None
    weight = torch.as_tensor(1.0 if weight is None else weight, dtype=weight_sum.dtype, device=weight_sum.device)
    if weight.ndim != 0:
        raise ValueError(f"{name}: weight must be a number or a 0-d tensor, got the shape {tuple(weight.shape)}.")
    return weight if skip is None else torch.where(skip, 0, weight)


def _count(state: MultiStepsState, weight: Tensor | None, skip: Tensor | None) -> MultiStepsState:
    mini_step = increment(state.mini_step)
    return state._replace(
        mini_step=mini_step if skip is None else torch.where(skip, state.mini_step, mini_step),
        weight_sum=state.weight_sum + (1 if weight is None else weight),
    )


def _is_due(
    name: str,
    emit: bool | None,
    every_k_schedule: int | Callable[[Tensor], Any],
    counted: MultiStepsState,
    skip: Tensor | None,
) -> Tensor | bool:
    """Whether this call takes the step; a bool where it is known while the call is made."""
    if emit is not None and not isinstance(emit, bool):
        raise TypeError(f"{name}: emit must be a bool, known before the call, got emit={emit!r}.")
    if emit is not None:
        return on_host(counted.mini_step > 0) if emit and skip is not None else emit
    k = every_k_schedule(counted.gradient_step) if callable(every_k_schedule) else every_k_schedule
    return on_host(counted.mini_step >= k)


def _add(
    updates: Updates, sums: tree.Tree, weight: Tensor | None, take: Tensor | bool, divisor: Tensor | None
) -> tuple[Updates, tree.Tree]:
    """What `inner` gets where the step is taken, zeros where it surely is not; and the sums, 0 after a step."""

    def rule(g: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        if weight is None:
            total = total + g
        else:  # a gradient of weight 0 may be NaN, and must not reach the sum, nor the derivative in the weight
            counts = weight != 0
            total = torch.where(counts, total + weight * torch.where(counts, g, 0), total)
        if take is False:
            return torch.zeros_like(g), total
        mean = total if divisor is None else total / divisor
        return mean, torch.zeros_like(total) if take is True else torch.where(take, 0, total)

    collected: tuple[Updates, tree.Tree] = tree.map_rule(rule, updates, sums, elementwise=True)
    return collected


def _restart_where_taken(counted: MultiStepsState, take: Tensor | bool) -> MultiStepsState:
    taken = take if isinstance(take, Tensor) else torch.full_like(counted.emitted, take)
    return counted._replace(
        mini_step=torch.where(taken, 0, counted.mini_step),
        gradient_step=torch.where(taken, increment(counted.gradient_step), counted.gradient_step),
        weight_sum=torch.where(taken, 0, counted.weight_sum),
        emitted=taken,
    )


def has_updated(state: MultiStepsState) -> Tensor:
    """Whether the last call of `accumulate_gradients` took a step: a 0-d bool. False after `init`.

    False too after a call that was skipped, where `optax.MultiSteps.has_updated` stays True if a step preceded it.
    """
    return state.emitted.clone()


class ApplyEveryState(NamedTuple):
    count: Tensor  # type: ignore[assignment]  # calls since updates were last given out
    grad_acc: tree.Tree  # their sum


@factory
def apply_every(k: int = 1) -> GradientTransformation:
    """Collect the updates of k calls, and give out their sum at every k-th; zeros between.

    A link of a chain: the links before it make a step at every call. To run an optimizer once for k gradients, see
    `accumulate_gradients`. Where the k-th update of a leaf is `None`, its sum goes into the next k. A NaN does not
    reach the zeros (in optax it does).

    >>> optimizer = chain(adam(1e-3), apply_every(k=4))
    """
    check_integer("apply_every", 1, k=k)

    def init(params: Params) -> ApplyEveryState:
        return ApplyEveryState(zero_count(params), tree.zeros_like(params))

    def update(
        updates: Updates, state: ApplyEveryState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ApplyEveryState]:
        count = state.count + 1
        emit = count >= k

        def rule(g: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
            total = total + g
            return torch.where(emit, total, 0), torch.where(emit, 0, total)

        updates, sums = tree.map_rule(rule, updates, state.grad_acc, elementwise=True)
        return updates, ApplyEveryState(torch.where(emit, 0, count), sums)

    return GradientTransformation(init, update)
