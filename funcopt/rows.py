"""Rows: the tensors that belong to one leaf, side by side. A rule is applied to one row, or to several at once."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
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


def apply_rule(rule: Rule, columns: Columns, outputs: int, *, elementwise: bool) -> list[list[Any]]:
    """What the rule makes of each row, as `outputs` columns: see `tree.map_rule`."""
    count = len(columns[0])
    results: list[list[Any]] = [[None] * count for _ in range(outputs)]
    alone = set(range(count))
    if elementwise and count > 1 and is_eager():
        for places in _batches(columns):
            made = _apply_to_several(rule, _picked(columns, places), outputs)
            if made is not None:
                _put(results, places, made)
                alone.difference_update(places)
    for place in sorted(alone):
        row = tuple(column[place] for column in columns)
        for column, result in zip(results, _apply(rule, row, outputs)):
            column[place] = result
    return results


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


def _picked(columns: Columns, places: Sequence[int]) -> Columns:
    if len(places) == len(columns[0]):
        return columns
    return [[column[place] for place in places] for column in columns]


def _put(results: list[list[Any]], places: Sequence[int], made: Columns) -> None:
    for column, values in zip(results, made):
        for place, value in zip(places, values):
            column[place] = value


# ---------------------------------------------------------------------------------------------- several rows at once


def _batches(columns: Columns) -> Iterator[list[int]]:
    """Places of rows that are taken together: two at least, of one kind, with at most `BATCH` numbers."""
    for places in _places_by_kind(columns):
        batch: list[int] = []
        size = 0
        for place in places:
            numbers = columns[0][place].numel()
            if size + numbers > BATCH:
                if len(batch) > 1:
                    yield batch
                batch, size = [], 0
            batch.append(place)
            size += numbers
        if len(batch) > 1:
            yield batch


def _places_by_kind(columns: Columns) -> Iterator[list[int]]:
    try:
        kinds = list(zip(*[map(_facts_of_tensor, column) for column in columns]))
    except AttributeError:  # a leaf is None, or something else that the rule reads
        kinds = list(zip(*[map(_facts, column) for column in columns]))
    places: dict[Hashable, list[int]] = {}
    for place, kind in enumerate(kinds):
        places.setdefault(kind, []).append(place)
    tracked = torch.is_grad_enabled()
    for kind, group in places.items():
        if all(_may_join(facts, tracked) for facts in kind):
            yield _with_axes(columns, group)


_facts_of_tensor = attrgetter("__class__", "dtype", "device", "layout", "requires_grad")


def _facts(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return _facts_of_tensor(leaf)
    return (type(leaf), leaf) if type(leaf) in (bool, int, float) else ()


def _may_join(facts: Any, tracked: bool) -> bool:
    """Whether these are facts of a number, or of a plain tensor whose derivatives are not recorded."""
    if len(facts) < 5:
        return len(facts) > 0
    kind, _, _, layout, requires_grad = facts
    return kind in PLAIN and layout is torch.strided and not (tracked and requires_grad)


def _with_axes(columns: Columns, places: list[int]) -> list[int]:
    """The places of rows whose tensors have one number of axes, not 0: for 0, dtypes are promoted in another way."""
    rows = _picked(columns, places)
    axes = [list(map(Tensor.dim, column)) for column in rows if isinstance(column[0], Tensor)]
    if 0 not in axes[0] and all(other == axes[0] for other in axes):
        return places
    return [place for place, row in zip(places, zip(*axes)) if row[0] and len(set(row)) == 1]


def _apply_to_several(rule: Rule, columns: Columns, outputs: int) -> Columns | None:
    """The results as columns; None where the rule is to be applied row by row, as its author did not foresee this."""
    try:
        made = rule(*[_widened(column) if isinstance(column[0], Tensor) else column[0] for column in columns])
        results = [value.tensors for value in ((made,) if outputs == 1 else made)]
    except ZeroDivisionError:  # row by row it succeeds, or tells which leaves do not belong together
        return None
    rounded = [_rounded(result, column) for result, column in zip(results, columns)]
    taken = {id(leaf) for column in columns for leaf in column}
    return None if is_among(None, rounded) else [_owned(result, taken) for result in rounded]


def _widened(column: Sequence[Tensor]) -> Several:
    return Several(column if column[0].dtype in _WIDE else [widen(leaf) for leaf in column])


_shape, _dtype = attrgetter("shape"), attrgetter("dtype")


def _rounded(results: Sequence[Tensor], column: Sequence[Tensor]) -> Sequence[Tensor] | None:
    """The results in the dtype of what they replace; None where shapes do not agree."""
    if list(map(_shape, results)) != list(map(_shape, column)):
        return None
    dtype = column[0].dtype
    return results if set(map(_dtype, results)) == {dtype} else [result.to(dtype) for result in results]


def _owned(results: Any, taken: set[int]) -> Sequence[Tensor]:
    """The results, and copies of those that are `taken`; after that these are."""
    if not taken.isdisjoint(map(id, results)):
        results = [result.clone() if id(result) in taken else result for result in results]
    taken.update(map(id, results))
    return results


# --------------------------------------------------------------------------------------------------------- one row


def _apply(rule: Rule, row: Row, outputs: int) -> Row:
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
