"""Pure functions of tensors, applied in place: to many small tensors at once, and to large ones in parts."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from funcopt.optim.tape import Tape

SMALL = 2**14  # up to this many numbers a tensor is taken together with others
GATHERED = 2**15  # numbers gathered in eager mode
PART = 2**20  # numbers taken at once in eager mode, so that intermediate results stay in the cache

Row = Sequence[Tensor]
"""The tensors of one parameter: itself, its gradient, its states."""
Rule = Callable[[Row], list[Tensor]]
"""An elementwise function of a flat row: new values of its tensors but the gradient, made anew or written in place."""

Room = dict[tuple[int, torch.dtype, tuple[int, ...] | None], Tensor]
"""Buffers by their number, dtype and shape; that of the shape None has the memory of the others."""


def run_tape(tape: Tape, numbers: Sequence[Any], rows: Sequence[Row], room: Room) -> None:
    """Run a tape on every row, in place. `room` keeps the buffers for the next step.

    Short rows are given to torch's operations on lists, where the tape knows them, and else gathered into one; long
    ones are taken in parts that stay in the cache.
    """
    short = []

    def run(row: Row) -> list[Tensor]:
        tape.of_row(*row, *_buffers(tape, row[0], room), *numbers)
        return written(row)

    for row in rows:
        length = row[0].numel()
        if length <= SMALL:
            short.append(row)
        elif length <= PART or not _is_contiguous(row):
            run(row)
        else:
            flat = [tensor.view(-1) for tensor in row]
            for start in range(0, length, PART):
                run([tensor[start : start + PART] for tensor in flat])
    if tape.of_rows is None:
        for batch in _batches(short, GATHERED):
            _update_gathered(run, batch) if len(batch) > 1 else [run(row) for row in batch]
    elif short:
        for batch in _batches(short, PART):
            tape.of_rows(*map(list, zip(*batch)), *numbers)


def _buffers(tape: Tape, like: Tensor, room: Room) -> list[Tensor]:
    """The buffers of a tape in the shape of a tensor, cut out of those in the room."""
    if like.numel() > PART:  # whose numbers lie scattered
        return [torch.empty_like(like, dtype=dtype) for dtype in tape.buffers]
    shape = tuple(like.shape)
    buffers = []
    for number, dtype in enumerate(tape.buffers):
        key = number, dtype, shape
        if key not in room:
            room[key] = _cut_out(number, dtype, shape, room)
        buffers.append(room[key])
    return buffers


def _cut_out(number: int, dtype: torch.dtype, shape: tuple[int, ...], room: Room) -> Tensor:
    """A buffer of this shape, in memory that those of all shapes share."""
    length = math.prod(shape)
    whole = number, dtype, None
    if whole not in room or room[whole].numel() < length:
        for key in [key for key in room if key[:2] == whole[:2]]:  # which lie in memory that is too short
            del room[key]
        room[whole] = torch.empty(length, dtype=dtype)
    return room[whole][:length].view(shape)


def update_elementwise(rule: Rule, rows: Sequence[Row], *, part: int | None = None) -> None:
    """Write what the elementwise `rule` makes of each row into the row's own tensors.

    Rows of up to `SMALL` numbers are gathered into flat tensors, so that the rule is called once for many of them. A
    long row is seen as flat. No more than `part` numbers are taken at once.
    """
    few: list[Row] = []
    for row in rows:
        if row[0].numel() > SMALL and _is_contiguous(row):
            _update_flat(rule, row, part or row[0].numel())
        elif row[0].numel():
            few.append(row)
    for batch in _batches(few, part) if part else [few]:
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
        torch._foreach_copy_(column, _unflatten_dense_tensors(result, column))  # type: ignore[no-untyped-call]


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
    if not {type(target) for target, _ in pairs} <= {Tensor, torch.nn.Parameter}:
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
