"""Stacks: leaves of one shape as one tensor with a new first axis, and what is done to each leaf of one at once."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

STACKED: dict[type, Callable[[Any], Sequence[bool]]] = {}
"""The classes of nodes that hold stacks, and what tells from their static context which children are stacks."""


def are_stacks(structure: Any) -> list[bool]:
    """For every leaf of `structure`, whether it is a stack."""
    if not _holds_stacks(structure):
        return [False] * structure.num_leaves
    if structure.type not in STACKED:
        return [mark for child in structure.children() for mark in are_stacks(child)]
    marks = STACKED[structure.type](structure.context)
    return [mark for mark, child in zip(marks, structure.children()) for _ in range(child.num_leaves)]


def _holds_stacks(structure: Any) -> bool:
    if structure.type in STACKED:
        return True
    return any(_holds_stacks(child) for child in structure.children() if child.num_nodes > 1)


def batched(fn: Callable[..., Any], row: Sequence[Any]) -> Any:
    """`fn(*row)` for one leaf each of the stacks in `row`, for all of them at once: a tensor, or a tuple of them.

    A number or a 0-d tensor in `row` is the same for all.
    """
    stacks = [i for i, part in enumerate(row) if isinstance(part, Tensor) and part.ndim > 0]

    def on_slices(*slices: Tensor) -> Any:
        parts = list(row)
        for i, part in zip(stacks, slices):
            parts[i] = part
        return fn(*parts)

    results = torch.vmap(on_slices)(*[row[i] for i in stacks])
    return tuple(map(_apart, results)) if isinstance(results, tuple) else _apart(results)


def _apart(result: Tensor) -> Tensor:
    """A result that is the same for all leaves comes back expanded, in memory that they share."""
    return result.contiguous() if result.stride(0) == 0 else result
