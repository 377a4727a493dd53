"""Hypothesis strategies for tensors and for trees of them.

A tensor is a few choices: dtype, shape, layout, and a short string of bytes, each of which picks a number from a table
of 256. Its numbers repeat that string, or else are a stretch of a fixed table of normal numbers. So a draw costs
microseconds whatever the size, and what a test found shrinks to shape (), few distinct numbers, and simple ones.
"""

import functools
import math
from collections.abc import Collection
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor

from funcopt import random, tree
from funcopt.numerics import real_dtype
from funcopt.testing.printing import print_as_source

T = TypeVar("T")
Choice: TypeAlias = Collection[T] | SearchStrategy[T]
"""What is drawn from: a strategy, or a collection with the simplest first."""

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
COMPLEX = (torch.complex64, torch.complex128)

SHAPES = ((), (1,), (2,), (3,), (0,), (2, 2), (3, 2), (1, 4), (2, 0), (4, 1), (4, 3), (2, 3, 2), (1, 2, 1, 3))
"""Scalars, vectors, matrices and more; sizes of one and of zero."""

LAYOUTS = ("contiguous", "transposed", "strided", "expanded", "offset")
"""How a tensor lies in memory: as one piece; with its last two axes swapped; as every other number of a buffer; as one
slice repeated along the first axis by a stride of 0, which makes its numbers equal there; after the first number of a
buffer. A tensor of too few axes for its layout is contiguous."""

ORDINARY = ("ordinary", "zeros")
"""Kinds of numbers that are finite together with their squares: up to 10 in magnitude, and both zeros."""
FINITE = (*ORDINARY, "tiny", "subnormal", "huge")
"""Also both ends of the dtype's range, whose squares leave it."""
ANY = (*FINITE, "infinite", "nan")


def choice(options: Choice[T]) -> SearchStrategy[T]:
    """The strategy for `options`: itself, or one that draws from a collection."""
    return options if isinstance(options, SearchStrategy) else _sampled(tuple(options))


@functools.lru_cache(maxsize=1024)
def _sampled(options: tuple[Any, ...]) -> SearchStrategy[Any]:
    return st.sampled_from(options)


@st.composite
def tensors(
    draw: DrawFn,
    dtypes: Choice[torch.dtype] = (*FLOATING, *COMPLEX),
    shapes: Choice[tuple[int, ...]] = SHAPES,
    layouts: Choice[str] = LAYOUTS,
    values: Collection[str] = ANY,
) -> Tensor:
    """Tensors of any dtype, shape and layout, with the kinds of numbers in `values`: see `ANY`.

    Shrinks to `torch.tensor(0.0)` in the first dtype: first the shape, then to fewer numbers, then to simpler ones.

    Raises:
        ValueError: a kind in `values`, or a layout, is unknown.
    """
    dtype, shape, layout = draw(choice(dtypes)), draw(choice(shapes)), draw(choice(layouts))
    return draw_tensor(draw, dtype, shape, layout, tuple(values))


def draw_tensor(
    draw: DrawFn, dtype: torch.dtype, shape: tuple[int, ...], layout: str, values: tuple[str, ...]
) -> Tensor:
    """One tensor, within a strategy of your own."""
    count = math.prod(shape)
    if dtype.is_complex:
        real, imaginary = (_draw_numbers(draw, real_dtype(dtype), count, values) for _ in range(2))
        numbers = torch.complex(real, imaginary)
    else:
        numbers = _draw_numbers(draw, dtype, count, values)
    return lay_out(numbers.reshape(shape), layout)


_PATTERNS = st.binary(max_size=16)
_NOISE_LENGTH = 4096
_PATTERNS_OR_NOISE = st.one_of(_PATTERNS, st.integers(0, _NOISE_LENGTH - 1))


def _draw_numbers(draw: DrawFn, dtype: torch.dtype, count: int, values: tuple[str, ...]) -> Tensor:
    # Drawn for no numbers too, and in a length that does not depend on the count: a shape can then shrink by itself.
    code = draw(_PATTERNS_OR_NOISE if "ordinary" in values else _PATTERNS)
    if isinstance(code, int):
        return _noise()[(torch.arange(count) + code) % _NOISE_LENGTH].to(dtype)
    places = ((code or b"\0") * count)[:count]
    return _table(dtype, values)[torch.tensor(list(places), dtype=torch.int64)]


@functools.cache
def _noise() -> Tensor:
    return random.normal(random.key(0), (_NOISE_LENGTH,), torch.float64)


_SIMPLE = (0, 1, -1, 2, -2, 0.5, -0.5, 3, -3, 0.25, -0.25, 4, -4, 1.5, -1.5, 0.1, -0.1, 10, -10, 0.01, -0.01)


def _kinds(dtype: torch.dtype) -> dict[str, tuple[float, ...]]:
    """The kinds of numbers in `values`, and those of each kind in `dtype`."""
    smallest, largest = torch.finfo(dtype).smallest_normal, torch.finfo(dtype).max
    return {
        "ordinary": _SIMPLE,
        "zeros": (0.0, -0.0),
        "tiny": (smallest, -smallest, 3 * smallest, -3 * smallest),
        "subnormal": (smallest / 2, -smallest / 2, smallest * torch.finfo(dtype).eps),
        "huge": (largest, -largest, largest / 2, -largest / 4),
        "infinite": (math.inf, -math.inf),
        "nan": (math.nan,),
    }


@functools.lru_cache(maxsize=256)
def _table(dtype: torch.dtype, values: tuple[str, ...]) -> Tensor:
    """256 numbers, the simplest first: with "ordinary" these fill three quarters of it, and the others the rest."""
    kinds = _kinds(dtype)
    unknown = [kind for kind in values if kind not in kinds]
    if unknown or not values:
        raise ValueError(f"tensors: values must hold some of {', '.join(map(repr, kinds))}, got values={values!r}.")
    special = [number for kind in values if kind != "ordinary" for number in kinds[kind]]
    ordinary = [*_SIMPLE, *_noise()[: 256 - len(_SIMPLE)].tolist()] if "ordinary" in values else []
    common = ordinary[:192] if special else ordinary
    rest = [special[i % len(special)] for i in range(256 - len(common))]
    return torch.tensor([*common, *rest], dtype=torch.float64).to(dtype)


def lay_out(x: Tensor, layout: str) -> Tensor:
    """The contiguous tensor `x` in another layout of `LAYOUTS`."""
    if layout == "transposed":
        return x.mT.contiguous().mT if x.ndim >= 2 else x
    if layout == "strided":
        return torch.stack((x, x), -1)[..., 0]
    if layout == "expanded":
        return x[:1].clone().expand(x.shape) if x.ndim and len(x) else x
    if layout == "offset":
        return torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape)
    if layout != "contiguous":
        raise ValueError(f"tensors: a layout is one of {', '.join(map(repr, LAYOUTS))}, got {layout!r}.")
    return x


@print_as_source
class Empty(NamedTuple):
    """A container without leaves."""


@print_as_source
class Single(NamedTuple):
    value: tree.Tree


@print_as_source
class Layer(NamedTuple):
    weight: tree.Tree
    bias: tree.Tree


@print_as_source
class Triple(NamedTuple):
    first: tree.Tree
    second: tree.Tree
    third: tree.Tree


NAMES = ("a", "b", "c", "weight", "bias", "layer.1", "layer.0", "β", "0", "conv/kernel", "two words", "", "名前")
"""Names of leaves and of branches: in order and out of order, dotted, numeric, empty, not in ASCII."""

_NAMED_TUPLES = {0: Empty, 1: Single, 2: Layer, 3: Triple}


def _contain(kind: str, start: int, parts: list[tree.Tree]) -> tree.Tree:
    """`parts` in a container; a dict takes its names from `NAMES`, beginning at `start`."""
    if kind == "dict":
        return {NAMES[(start + i) % len(NAMES)]: part for i, part in enumerate(parts)}
    if kind == "named tuple" and len(parts) in _NAMED_TUPLES:
        return _NAMED_TUPLES[len(parts)](*parts)
    return parts if kind == "list" else tuple(parts)


_CONTAINERS = st.sampled_from(("dict", "list", "tuple", "named tuple"))
_STARTS = st.integers(0, len(NAMES) - 1)
_NESTINGS = st.sampled_from(("dict", "list", "tuple", "named tuple", "absent"))


@st.composite
def pytrees(
    draw: DrawFn, leaves: SearchStrategy[Any], *, min_leaves: int = 0, max_leaves: int = 4, absent: bool = True
) -> tree.Tree:
    """Nested dicts, lists, tuples and NamedTuples of what `leaves` draws; also a bare leaf, and trees without leaves.

    With `absent`, some leaves are `None`, besides `min_leaves` to `max_leaves` others. At most `len(NAMES)` leaves, as
    names are not used twice. Shrinks to a bare leaf, or to `{}`: first to fewer leaves, then to fewer containers.
    """
    parts = draw(st.lists(leaves, min_size=min_leaves, max_size=max_leaves))
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(_NESTINGS if absent else _CONTAINERS)
        begin, end = sorted((draw(st.integers(0, len(parts))), draw(st.integers(0, len(parts)))))
        if kind == "absent":
            parts.insert(begin, None)
        else:
            parts[begin:end] = [_contain(kind, draw(_STARTS), parts[begin:end])]
    return parts[0] if len(parts) == 1 else _contain(draw(_CONTAINERS), draw(_STARTS), parts)
