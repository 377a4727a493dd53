"""Rows: the tensors that belong to one leaf, side by side. A rule is applied to one row, or to several at once."""

from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import accumulate
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from funcopt import numerics
from funcopt.several import Several

Rule = Callable[..., Any]
Row = tuple[Any, ...]
"""The update of a leaf, its states, and what else the rule reads."""
Columns = Sequence[Sequence[Any]]
"""The same by trees: all updates, all leaves of the first state, and so on."""
PLAIN = (Tensor, torch.nn.Parameter)
BATCH = 2**17  # numbers of the leaves that are taken together: intermediate results are small, and stay in the cache
_WIDE = (torch.float32, torch.float64)


def apply_rule(rule: Rule, columns: Columns, outputs: int, *, elementwise: bool) -> Columns:
    """What the rule makes of each row, as `outputs` columns: see `tree.map_rule`."""
    count = len(columns[0])
    if not (elementwise and count > 1 and is_eager()):
        return _apply_to_each(rule, columns, outputs)
    results: list[list[Any]] = [[None] * count for _ in range(outputs)]
    for places in _batches(columns):
        part = [_picked(column, places) for column in columns]
        made = _apply_to_several(rule, part, outputs) if len(places) > 1 and _may_join(part) else None
        for column, values in zip(results, _apply_to_each(rule, part, outputs) if made is None else made):
            _put(column, places, values)
    return results


def _picked(column: Sequence[Any], places: Sequence[int]) -> Sequence[Any]:
    if isinstance(places, range):
        return column[places.start : places.stop]
    return [column[place] for place in places]


def _put(column: list[Any], places: Sequence[int], values: Sequence[Any]) -> None:
    if isinstance(places, range):
        column[places.start : places.stop] = values
        return
    for place, value in zip(places, values):
        column[place] = value


def is_eager() -> bool:
    """Whether operations are carried out on the tensors at hand: nothing is traced, vmapped, watched or differentiated.

    Modes that see every operation, such as those of fake tensors, count as tracing.
    """
    return not (
        torch.compiler.is_compiling()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or forward_ad._current_level >= 0
    )


# ---------------------------------------------------------------------------------------------- several rows at once


def _batches(columns: Columns) -> Iterator[Sequence[int]]:
    """The places of rows that are taken together: of one kind, and of at most `BATCH` numbers, or a single row."""
    for places in _by_kind(columns):
        sizes = [leaf.numel() if isinstance(leaf, Tensor) else 0 for leaf in _picked(columns[0], places)]
        ends = list(accumulate(sizes))
        start = 0
        while start < len(ends):
            reached = ends[start] - sizes[start]
            end = max(start + 1, bisect_right(ends, reached + BATCH))
            yield places[start:end]
            start = end


_dtype = attrgetter("dtype")


def _by_kind(columns: Columns) -> Iterable[Sequence[int]]:
    """The places of rows that agree in dtypes, and in the numbers that the rule reads."""
    count = len(columns[0])
    if all(_TENSORS.issuperset({*map(type, column)}) and len({*map(_dtype, column)}) == 1 for column in columns):
        return [range(count)]
    kinds: dict[Hashable, list[int]] = {}
    for place, row in enumerate(zip(*columns)):
        kinds.setdefault(tuple(map(_kind, row)), []).append(place)
    return kinds.values()


_TENSORS, _NUMBERS = frozenset(PLAIN), (bool, int, float)


def _kind(leaf: Any) -> Hashable:
    if isinstance(leaf, Tensor):
        return type(leaf), leaf.dtype
    return type(leaf), leaf if type(leaf) in _NUMBERS else None


def _may_join(columns: Columns) -> bool:
    """Whether rows of one kind hold nothing but numbers, and plain tensors whose derivatives are not recorded."""
    if not all(type(column[0]) in PLAIN or type(column[0]) in _NUMBERS for column in columns):
        return False
    tensors = [column for column in columns if isinstance(column[0], Tensor)]
    return not (torch.is_grad_enabled() and any(leaf.requires_grad for column in tensors for leaf in column))


def _apply_to_several(rule: Rule, columns: Columns, outputs: int) -> list[Any] | None:
    """The results as columns; None where the rule is to be applied row by row, as its author did not foresee this."""
    given = [_widened(column) if isinstance(column[0], Tensor) else column[0] for column in columns]
    try:
        made = rule(*given)
        made = (made,) if outputs == 1 else made
        results = [_rounded(value.tensors, column) for value, column in zip(made, columns)]
    except Exception:  # row by row it succeeds, or tells which leaves do not belong together
        return None
    for i, value in enumerate(made):  # what operations make is new
        if is_among(value, given) or is_among(value, made[:i]):
            results[i] = torch._foreach_clone(results[i])
    return results


def _widened(column: Sequence[Tensor]) -> Several:
    return Several(column if column[0].dtype in _WIDE else [widen(leaf) for leaf in column])


def _rounded(results: Any, column: Sequence[Tensor]) -> Any:
    if not all(map(Tensor.is_same_size, results, column)):
        raise ValueError("tree: a result must have the shape of the leaf that it replaces.")
    dtype = column[0].dtype
    return results if {*map(_dtype, results)} == {dtype} else [result.to(dtype) for result in results]


# --------------------------------------------------------------------------------------------------------- one row


def _apply_to_each(rule: Rule, columns: Columns, outputs: int) -> Columns:
    results = [apply_to_row(rule, row, outputs) for row in zip(*columns)]
    return list(zip(*results)) if results else [()] * outputs


def apply_to_row(rule: Rule, row: Row, outputs: int) -> Row:
    """What the rule makes of one row: see `tree.map_rule`."""
    if is_among(None, row):
        return (None, *(leaf if leaf is None else leaf.clone() for leaf in row[1:outputs]))
    results = rule(*[widen(leaf) for leaf in row])
    results = (results,) if outputs == 1 else results
    owned: list[Tensor] = []
    for result, replaced in zip(results, row):
        if result.shape != replaced.shape:
            shapes = [tuple(leaf.shape) for leaf in row if isinstance(leaf, Tensor)]
            raise ValueError(f"tree: the leaves that belong together have the shapes {shapes}.")
        result = result if result.dtype == replaced.dtype else result.to(replaced.dtype)
        owned.append(result.clone() if is_among(result, row) or is_among(result, owned) else result)
    return tuple(owned)


def is_among(value: Any, others: Iterable[Any]) -> bool:
    """Whether it is one of the others, by identity."""
    for other in others:  # noqa: SIM110 (`in` compares by value, and `any` takes twice the time)
        if value is other:
            return True
    return False


def widen(leaf: Any) -> Any:
    """A tensor in the dtype in which rules compute; anything else as it is."""
    if not isinstance(leaf, Tensor) or leaf.dtype in _WIDE:
        return leaf
    return leaf.to(numerics.compute_dtype(leaf.dtype))
