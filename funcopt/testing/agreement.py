"""Laws of agreement: with float64, with a reference, behind torch.optim, of an accumulation with the whole batch."""

from typing import Any

import torch

from funcopt import tree
from funcopt.optim import TransformationOptimizer
from funcopt.testing.comparison import require_close, require_close_run, require_identical, storage_factor, tolerance
from funcopt.testing.law import law
from funcopt.testing.runs import dict_by_path, set_gradients
from funcopt.testing.trajectory import (
    copied,
    follow,
    generic,
    generic_case,
    in_dtype,
    plus,
    times,
    updates_along,
    updates_at,
    zeros,
)
from funcopt.transform import GradientTransformation

_STEPS = 8


def _uneven(params: Any, gradients: Any) -> tuple[Any, list[Any]]:
    """Gradients that differ in size, are equal for some steps, vanish, and come back; numbers that float32 holds."""
    params, ones = generic_case(params, gradients, torch.float32, steps=_STEPS)
    chosen = [*ones[:3], ones[2], zeros(ones[0]), times(0.0078125, ones[5]), ones[6], times(8.0, ones[7])]
    return in_dtype(params, torch.float64), [in_dtype(grads, torch.float64) for grads in chosen]


@law(lambda tx, declared: declared.float32_tolerance is not None, remedy="Declared(float32_tolerance=...)")
def float32_accuracy(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """In float32 the updates are those of float64, but for a few roundings."""
    params, gradients = _uneven(params, gradients)
    path = [params, *(step.params for step in follow(tx, params, gradients, extra))][: len(gradients)]
    path = [in_dtype(in_dtype(each, torch.float32), torch.float64) for each in path]  # or roundings would add up
    expected = updates_along(tx, path, gradients, extra)
    narrow = [in_dtype(each, torch.float32) for each in path], [in_dtype(each, torch.float32) for each in gradients]
    found = updates_along(tx, *narrow, extra)
    granted = max(declared.float32_tolerance, tolerance(declared.stored_in or torch.float32))
    _require_close_updates(found, expected, "float32", granted)


def _require_close_updates(found: list[Any], expected: list[Any], what: str, granted: float) -> None:
    one, other = ([{"updates": updates} for updates in run] for run in (found, expected))
    require_close_run(one, other, what, rtol=granted)


@law(lambda tx, declared: declared.reference is not None)
def reference(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """Its updates are those of the reference: to rounding in float64, and to a few roundings in float32."""
    params, gradients = _uneven(params, gradients)
    granted = max(1e-12, tolerance(declared.stored_in or torch.float64))
    expected = _reference_updates(declared.reference, params, gradients, extra)
    _require_close_updates(updates_at(tx, params, gradients, extra), expected, "float64", granted)
    narrow = in_dtype(params, torch.float32), [in_dtype(grads, torch.float32) for grads in gradients]
    granted = max(declared.float32_tolerance or 0.0, granted)
    _require_close_updates(updates_at(tx, *narrow, extra), expected, "float32", granted)


def _reference_updates(reference: Any, params: Any, gradients: Any, extra: Any) -> list[Any]:
    if isinstance(reference, GradientTransformation):
        return updates_at(reference, params, gradients, extra)
    found: list[Any] = reference(params, gradients)
    return found


@law(lambda tx, declared: declared.accumulates is not None)
def accumulation(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """k gradients in turn give what their mean gives at once, and nothing in between."""
    every, whole = declared.accumulates
    params, gradients = generic_case(params, gradients, steps=3 * every)
    groups = [gradients[start : start + every] for start in range(0, len(gradients), every)]
    means = [times(1 / every, _sum(group)) for group in groups]
    expected = follow(whole, params, means, extra)
    for number, step in enumerate(follow(tx, params, gradients, extra)):
        if (number + 1) % every:
            require_identical(step.updates, zeros(step.updates), f"step {number}, within a batch: updates")
        else:
            wanted = expected[number // every]
            require_close(step.updates, wanted.updates, f"step {number}, the end of a batch: updates")
            require_close(step.params, wanted.params, f"step {number}, the end of a batch: params")


def _sum(trees: list[Any]) -> Any:
    total = trees[0]
    for each in trees[1:]:
        total = plus(total, each)
    return total


@law(lambda tx, declared: not declared.fixed_structure, remedy="Declared(fixed_structure=True)")
def adapter(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """Behind the interface of torch.optim, where everything is written in place, steps and states are the same."""
    start = {name: tree.clone(leaf) for name, leaf in dict_by_path(params).items() if leaf is not None}
    if not start:  # torch.optim takes no empty list
        return
    generic_step = tree.map(lambda leaf, g: g.to(leaf.dtype), start, generic(start, 5))  # gradients may all be zeros
    named = [{name: dict_by_path(grads)[name] for name in start} for grads in gradients] + [generic_step]
    expected = [step[1:] for step in follow(tx, start, named, extra)]
    moved = {name: torch.nn.Parameter(leaf.clone()) for name, leaf in start.items()}
    optimizer, found = TransformationOptimizer(list(moved.items()), tx), []
    for grads in named:
        set_gradients(moved, grads)
        optimizer.step(**extra)
        values = {name: param.detach() for name, param in moved.items()}
        found.append(copied((optimizer.functional_state(), values)))
    factor = storage_factor(declared, torch.float64)
    require_close_run(found, expected, "adapter", start=(tx.init(start), start), factor=factor)
