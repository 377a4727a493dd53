"""Pure functions of tensors, applied in place: to many small tensors at once, and to large ones in parts."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

SMALL = 2**15  # up to this many numbers a tensor is joined with others: the call costs more than the copy
PART = 2**18  # numbers taken at once of a large tensor in eager mode, so that intermediate results stay in the cache

Row = Sequence[Tensor]
"""The tensors of one parameter: itself, its gradient, its states."""
Rule = Callable[[list[Tensor]], list[Tensor]]
"""An elementwise function of one row, flat: new values of all its tensors but the gradient, made or written in place."""


def update_elementwise(rule: Rule, rows: Sequence[Row], *, in_parts: bool) -> None:
    """Write what the elementwise `rule` makes of each row into the row's own tensors.

    Rows of few numbers are gathered into flat tensors, so that the rule is called once for all of them. A long row is
    seen as flat, and taken in parts if `in_parts`: the rule's intermediate results then stay in the cache.
    """
    alone = [row for row in rows if row[0].numel() > SMALL and _is_contiguous(row)]
    apart = {id(row[0]) for row in alone}
    small = [row for row in rows if row[0].numel() and id(row[0]) not in apart]
    if len(small) == 1 and _is_contiguous(small[0]):
        alone, small = [*alone, *small], []
    if small:
        _update_gathered(rule, small)
    for row in alone:
        _update_flat(rule, row, PART if in_parts else row[0].numel())


def _is_contiguous(row: Row) -> bool:
    return all(tensor.is_contiguous() for tensor in row)


def _update_gathered(rule: Rule, rows: Sequence[Row]) -> None:
    sizes = [row[0].numel() for row in rows]
    columns = [list(column) for column in zip(*rows)]
    results = rule([torch.cat([tensor.reshape(-1) for tensor in column]) for column in columns])
    for column, result in zip(written(columns), results):
        write(column, [part.view(tensor.shape) for part, tensor in zip(result.split(sizes), column)])


def _update_flat(rule: Rule, row: Row, length: int) -> None:
    flat = [tensor.view(-1) for tensor in row]
    for start in range(0, flat[0].numel(), length):
        part = [tensor[start : start + length] for tensor in flat]
        write(written(part), rule(part))


def written(row: Sequence[Any]) -> list[Any]:
    """What of a row is written: the parameter and its states."""
    return [row[0], *row[2:]]


def write(targets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy the values into the targets, where a rule has not done so itself."""
    pairs = [(target, value) for target, value in zip(targets, values) if target is not value]
    if pairs:
        torch._foreach_copy_(*map(list, zip(*pairs)))
