"""Running a transformation where a condition holds, so that nothing of it shows where it does not."""

from typing import Any

import torch
from torch import Tensor

from funcopt import tree
from funcopt.transform import GradientTransformation, Params, State, Updates


def update_if(
    condition: Tensor | bool,
    inner: GradientTransformation,
    updates: Updates,
    state: State,
    params: Params | None,
    extra: dict[str, Any],
    *,
    otherwise: Updates | None = None,
) -> tuple[Updates, State]:
    """`inner.update` where `condition` holds; elsewhere the updates `otherwise`, or zeros, and the state as it was.

    A bool decides for good, and nothing is run that it does not ask for. A 0-d tensor selects: `inner` runs anyway.
    """
    if condition is True:
        return inner.update(updates, state, params, **extra)
    if condition is False:
        kept = tree.map(torch.zeros_like, updates) if otherwise is None else tree.clone(otherwise)
        return kept, tree.clone(state)
    results = attempt(condition, inner, updates, state, params, extra)
    return choose(condition, *results, state, otherwise)


def attempt(
    condition: Tensor,
    inner: GradientTransformation,
    updates: Updates,
    state: State,
    params: Params | None,
    extra: dict[str, Any],
) -> tuple[Updates, State]:
    """What `inner.update` gives, to be used only where `condition` holds.

    Where it does not, ones stand in for gradients and extra tensors, which may be NaN, and derivatives in state and
    params end here. Selecting among the results is not enough: the zero that comes back from a result that was not
    taken becomes NaN when it meets an infinite derivative within `inner`.
    """

    def stand_in(leaf: Any) -> Any:
        is_number = isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())
        return torch.where(condition, leaf, leaf.new_ones(())) if is_number else leaf

    def gate(leaf: Tensor) -> Tensor:
        return torch.where(condition, leaf, leaf.detach()) if torch.is_grad_enabled() else leaf

    return inner.update(
        tree.map(stand_in, updates), tree.map(gate, state), tree.map(gate, params), **tree.map(stand_in, extra)
    )


def choose(
    condition: Tensor, updates: Updates, new_state: State, state: State, otherwise: Updates | None = None
) -> tuple[Updates, State]:
    """`updates` and `new_state` where the condition holds; elsewhere `otherwise`, or zeros, and `state`."""
    if otherwise is None:
        otherwise = tree.map(torch.zeros_like, updates)
    chosen = tree.map(lambda new, old: torch.where(condition, new, old), updates, otherwise)
    return chosen, tree.where(condition, new_state, state)


def on_host(condition: Tensor) -> Tensor | bool:
    """The condition as a bool where its value can be read; itself in a graph, under vmap, and on a device without data.

    Reading waits for the device.
    """
    if torch.compiler.is_compiling():
        return condition
    try:
        return bool(condition)
    except RuntimeError:  # there is no public way to ask a tensor whether it is batched
        return condition


def check_function(function: str, **arguments: object) -> None:
    """Raise TypeError unless every argument is callable."""
    for name, value in arguments.items():
        if not callable(value):
            raise TypeError(f"{function}: {name} must be a function, got {name}={value!r}.")


def check_flag(function: str, argument: str, flag: Any) -> Tensor:
    """`flag`, or TypeError where it, returned by the function `argument`, is no bool tensor of shape ()."""
    if isinstance(flag, Tensor) and flag.dtype == torch.bool and flag.ndim == 0:
        return flag
    given = f"one of {flag.dtype} and shape {tuple(flag.shape)}" if isinstance(flag, Tensor) else repr(flag)
    raise TypeError(f"{function}: {argument} must return a bool tensor of shape (), got {given}.")
