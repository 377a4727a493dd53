"""Pure functions of tensors, applied in place: to many small tensors at once, and to large ones in parts."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

SMALL = 2**15  # up to this many numbers a tensor is joined with others for a compiled rule, up to PART otherwise
PART = 2**17  # numbers taken at once in eager mode, so that intermediate results stay in the cache

Row = Sequence[Tensor]
"""The tensors of one parameter: itself, its gradient, its states."""
Rule = Callable[[list[Tensor]], list[Tensor]]
"""An elementwise function of a flat row: new values of its tensors but the gradient, made anew or written in place."""


def update_elementwise(rule: Rule, rows: Sequence[Row], *, in_parts: bool) -> None:
    """Write what the elementwise `rule` makes of each row into the row's own tensors.

    Rows of few numbers are gathered into flat tensors, so that the rule is called once for many of them. A long row is
    seen as flat. With `in_parts` no more than `PART` numbers are taken at once.
    """
    small: list[Row] = []
    limit = PART if in_parts else SMALL
    for row in rows:
        if row[0].numel() > limit and _is_contiguous(row):
            _update_flat(rule, row, PART if in_parts else row[0].numel())
        elif row[0].numel():
            small.append(row)
    for batch in _batches(small, PART) if in_parts else [small]:
        if len(batch) == 1 and batch[0][0].numel() == 1:
            _update_gathered(rule, [batch[0], [tensor.clone() for tensor in batch[0]]])  # torch compiles size 1 apart
        elif len(batch) == 1 and _is_contiguous(batch[0]):
            _update_flat(rule, batch[0], batch[0][0].numel())
        elif batch:
            _update_gathered(rule, batch)


def _is_contiguous(row: Row) -> bool:
    return all(tensor.is_contiguous() for tensor in row)


def _batches(rows: Sequence[Row], limit: int) -> list[list[Row]]:
    """The rows in order, in batches of at most `limit` numbers, or of a single row."""
    batches: list[list[Row]] = [[]]
    size = 0
    for row in rows:
        size += row[0].numel()
        if size > limit and batches[-1]:
            batches.append([])
            size = row[0].numel()
        batches[-1].append(row)
    return batches


def _update_gathered(rule: Rule, rows: Sequence[Row]) -> None:
    columns = [list(column) for column in zip(*rows)]
    results = rule([_flatten_dense_tensors(column) for column in columns])  # type: ignore[no-untyped-call]
    for column, result in zip(written(columns), results):
        write(column, _unflatten_dense_tensors(result, column))  # type: ignore[no-untyped-call]


def _update_flat(rule: Rule, row: Row, length: int) -> None:
    flat = [tensor.detach().view(-1) for tensor in row]
    for start in range(0, flat[0].numel(), length):
        part = [tensor[start : start + length] for tensor in flat]
        write(written(part), rule(part))


def written(row: Sequence[Any]) -> list[Any]:
    """What of a row is written: the parameter and its states."""
    return [row[0], *row[2:]]


def write(targets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy the values into the targets, where a rule has not done so itself."""
    pairs = [(target, value) for target, value in zip(targets, values) if target is not value]
    if not all(type(target) in (Tensor, torch.nn.Parameter) for target, _ in pairs):
        for target, value in pairs:  # sharded tensors know no foreach copy
            target.copy_(value)
    elif pairs:
        torch._foreach_copy_([target for target, _ in pairs], [value for _, value in pairs])


def stored_numbers(row: Row) -> list[Tensor]:
    """Of a row whose gradient is sparse, the numbers at the places that the gradient stores, each place once."""
    param, grad, *states = row
    grad = grad.coalesce()
    places = tuple(grad.indices())
    return [param[places], grad.values(), *(state[places] for state in states)]


def write_stored_numbers(row: Row, stored: Sequence[Tensor]) -> None:
    """Write what a rule has made of `stored_numbers` to their places."""
    places = tuple(row[1].coalesce().indices())
    for target, value in zip(written(row), written(stored)):
        target[places] = value
