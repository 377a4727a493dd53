"""Comparison of trees: the first number that differs, told by its path, its two values, and their distance in ulp."""

import struct
from typing import Any

import torch
from torch import Tensor

from funcopt import tree
from funcopt.testing.violation import LawViolation

_TOLERANCES = {torch.float64: 1e-12, torch.complex128: 1e-12, torch.float32: 2e-6, torch.complex64: 2e-6}
_FORMATS = {torch.float64: ("<d", "<q"), torch.float32: ("<f", "<i"), torch.float16: ("<e", "<h")}


def tolerance(dtype: torch.dtype) -> float:
    """What two ways to compute the same thing in `dtype` may differ by, relative to the largest number of the leaf."""
    if not (dtype.is_floating_point or dtype.is_complex):
        return 0.0
    return _TOLERANCES.get(dtype) or 2 * torch.finfo(dtype).eps


def storage_factor(declared: Any, dtype: torch.dtype) -> float:
    """More is granted where a state is stored in low precision: a rounding that falls otherwise."""
    return max(1.0, 2 * tolerance(declared.stored_in or dtype) / tolerance(dtype))


def ulp_distance(a: float, b: float, dtype: torch.dtype) -> int | None:
    """How many numbers of `dtype` lie between `a` and `b`: 0 for the same, also for 0.0 and -0.0; None with a NaN."""
    if a != a or b != b:
        return None
    return abs(_rank(a, dtype) - _rank(b, dtype))


def _rank(value: float, dtype: torch.dtype) -> int:
    """The place of `value` among all numbers of `dtype` in ascending order; zero has 0."""
    shift = 16 if dtype == torch.bfloat16 else 0  # bfloat16 is the upper half of a float32
    number_format, word_format = _FORMATS[torch.float32 if shift else dtype]
    (word,) = struct.unpack(word_format, struct.pack(number_format, value))
    magnitude = word & (2 ** (8 * struct.calcsize(word_format) - 1) - 1)
    return int(-(magnitude >> shift) if word < 0 else magnitude >> shift)


def require(holds: bool | Tensor, problem: str) -> None:
    """Raise LawViolation with this problem unless `holds`."""
    if not bool(holds):
        raise LawViolation(problem)


def at(what: str, path: str) -> str:
    """`what`, and where in its tree; a bare tensor has no path."""
    return f"{what} at {path!r}" if path else what


def require_tensors(values: tree.Tree, what: str) -> None:
    """Raise LawViolation, with the remedy, unless every leaf is a tensor or None."""
    for path, leaf in tree.leaves_with_path(values):
        _require_tensor(leaf, what, path)


def _require_tensor(leaf: Any, what: str, path: str) -> None:
    if leaf is None or isinstance(leaf, Tensor):
        return
    remedy = ""
    if isinstance(leaf, (bool, int, float)):
        remedy = " Use a 0-d tensor: zero_count(params) for a counter, scalar(params, value) for another number."
    raise LawViolation(f"{at(what, path)}: {leaf!r} is no tensor, but of type {type(leaf).__name__}.{remedy}")


def require_identical(actual: tree.Tree, expected: tree.Tree, what: str) -> None:
    """Raise LawViolation unless both have the same structure, dtypes and bits; a NaN equals a NaN."""
    for path, a, b in _paired(actual, expected, what):
        require(a.dtype == b.dtype, f"{at(what, path)}: {a.dtype}, expected {b.dtype}.")
        same = (a == b) | (a.isnan() & b.isnan())
        if not bool(same.all()):
            raise LawViolation(_difference(what, path, a, b, ~same))


def require_close(
    actual: tree.Tree,
    expected: tree.Tree,
    what: str,
    *,
    factor: float = 1.0,
    rtol: float | None = None,
    scales: tree.Tree | None = None,
) -> None:
    """Raise LawViolation unless all numbers are close.

    The deviation granted is `rtol`, or `factor` times the `tolerance` of the coarser of the two dtypes, relative to the
    largest number of the expected leaf (or to the number that `scales` has in its place). NaN equals NaN, and infinity
    itself.
    """
    floors = [None] * len(tree.flatten(expected)[0]) if scales is None else tree.flatten(scales)[0]
    for (path, a, b), floor in zip(_paired(actual, expected, what, skip=False), floors):
        if b is None or b.numel() == 0:
            continue
        granted = rtol if rtol is not None else factor * max(tolerance(a.dtype), tolerance(b.dtype))
        wide = torch.complex128 if b.is_complex() or a.is_complex() else torch.float64
        x, y = a.to(wide), b.to(wide)
        same = (x == y) | (x.isnan() & y.isnan())
        finite = y.abs().nan_to_num(0.0, 0.0, 0.0)
        bound = granted * (finite.max() if floor is None else torch.maximum(finite.max(), floor))
        off = ~same & ~((x - y).abs() <= bound)
        if bool(off.any()):
            raise LawViolation(_difference(what, path, a, b, off, f"{float(bound):.2g}"))


def require_close_run(found: Any, expected: Any, what: str, *, start: Any = None, **granted: float) -> None:
    """`require_close` for what the steps of two runs gave, relative to the largest number so far.

    A sum that cancels has no more digits than its terms had. `start` is what was there before the first step.
    """
    scales = None if start is None else largest_so_far(start)
    for step, (one, other) in enumerate(zip(found, expected)):
        scales = largest_so_far(other, scales)
        require_close(one, other, f"{what}, step {step}", scales=scales, **granted)


def largest_so_far(values: tree.Tree, scales: tree.Tree = None) -> tree.Tree:
    """The largest finite magnitude that each leaf has had, as the scales of `require_close`."""
    if scales is None:
        scales = tree.map(lambda leaf: torch.zeros((), dtype=torch.float64), values)
    return tree.map(_larger, values, scales)


def _larger(leaf: Tensor, scale: Tensor) -> Tensor:
    if leaf.numel() == 0:
        return scale
    wide = torch.complex128 if leaf.is_complex() else torch.float64
    return torch.maximum(leaf.to(wide).abs().nan_to_num(0.0, 0.0, 0.0).max(), scale)


def _paired(actual: tree.Tree, expected: tree.Tree, what: str, skip: bool = True) -> list[tuple[str, Any, Any]]:
    """Path and the two leaves, where both are there; raises where the structures, the absence or the shapes differ."""
    pairs = dict(tree.leaves_with_path(actual)), dict(tree.leaves_with_path(expected))
    missing, unknown = pairs[1].keys() - pairs[0].keys(), pairs[0].keys() - pairs[1].keys()
    require(not missing, f"{what}: {sorted(missing)} missing.")
    require(not unknown, f"{what}: {sorted(unknown)} not expected.")
    found = []
    for path, b in pairs[1].items():
        a = pairs[0][path]
        _require_tensor(a, what, path)
        _require_tensor(b, what, path)
        require((a is None) == (b is None), f"{at(what, path)}: {_kind(a)}, expected {_kind(b)}.")
        if b is None and skip:
            continue
        if b is not None:
            require(a.shape == b.shape, f"{at(what, path)}: shape {tuple(a.shape)}, expected {tuple(b.shape)}.")
        found.append((path, a, b))
    return found


def _kind(leaf: Any) -> str:
    return f"a {type(leaf).__name__}" if leaf is not None else "None"


def _difference(what: str, path: str, a: Tensor, b: Tensor, where: Tensor, granted: str | None = None) -> str:
    wide = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
    gaps = torch.where(where, (a.to(wide) - b.to(wide)).abs().nan_to_num(float("inf")), -1.0)
    index = tuple(int(i) for i in torch.unravel_index(gaps.argmax(), gaps.shape))
    x, y = a[index].item(), b[index].item()
    place = f"{path}[{', '.join(map(str, index))}]" if index else path
    told = f"{at(what, place)}: {x!r}, expected {y!r}"
    return f"{told}{_distance(x, y, a.dtype)}{f', {granted} granted' if granted else ''}."


def _distance(x: Any, y: Any, dtype: torch.dtype) -> str:
    if not dtype.is_floating_point:
        return f", {abs(x - y):.3g} apart" if dtype.is_complex else ""
    try:
        ulps = ulp_distance(x, y, dtype)
    except OverflowError:  # y is of a wider dtype
        ulps = None
    return "" if ulps is None else f", {ulps} ulp of {str(dtype).removeprefix('torch.')} apart"
