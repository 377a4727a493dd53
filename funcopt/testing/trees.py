"""Hypothesis strategies for tensors and for trees of them.

A tensor is a few choices: dtype, shape, layout, and a string of bytes, each of which stands for a number in a table.
The numbers repeat the string, and where this is long, each is multiplied by a factor of its own. So a draw costs tens
of microseconds whatever the size, and what a test found shrinks to shape (), few distinct numbers, and simple ones.
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
    if isinstance(options, SearchStrategy):
        return options
    return _sampled(tuple(options), tuple(map(type, options)))


@functools.lru_cache(maxsize=1024)
def _sampled(options: tuple[Any, ...], kinds: tuple[type, ...]) -> SearchStrategy[Any]:
    """By the types too: (False, True) equals (0, 1), and would be taken for it."""
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
    # The code is drawn for no numbers too, and in a length that does not depend on them: a shape can shrink by itself.
    return lay_out(decode(draw(CODES), dtype, shape, values), layout)


CODES = st.binary(max_size=16)
_LONGEST_PATTERN = 7


def decode(code: bytes, dtype: torch.dtype, shape: tuple[int, ...], values: tuple[str, ...], start: int = 0) -> Tensor:
    """The tensor of the numbers that `code` stands for, from place `start` on; a complex one takes two for each."""
    count = math.prod(shape)
    if dtype.is_complex:
        parts = (_numbers(code, real_dtype(dtype), count, values, start + i * count) for i in range(2))
        return torch.complex(*parts).reshape(shape)
    return _numbers(code, dtype, count, values, start).reshape(shape)


def _numbers(code: bytes, dtype: torch.dtype, count: int, values: tuple[str, ...], start: int) -> Tensor:
    pattern = code or b"\0"
    repetitions = (start + count) // len(pattern) + 1
    places = torch.tensor(list((pattern * repetitions)[start : start + count]), dtype=torch.int64)
    numbers = _table(dtype, values)[places]
    if len(code) <= _LONGEST_PATTERN or "ordinary" not in values:
        return numbers
    # No two numbers alike, and none that is short; but zeros stay zeros, so that this shrinks as a pattern does.
    factors = _FACTORS[(torch.arange(count) + start) % len(_FACTORS)]
    return (numbers.to(torch.float64) * torch.where(places < _ORDINARY_PLACES, factors, 1.0)).to(dtype)


_FACTORS = 0.5 + 0.5 * random.uniform(random.key(1), (256,), torch.float64)
_NOISE = random.normal(random.key(0), (256,), torch.float64).abs()
# The signs alternate, here and in the table: hypothesis takes steps of 2 from a byte to a smaller one.
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


_ORDINARY_PLACES = 192


@functools.lru_cache(maxsize=256)
def _table(dtype: torch.dtype, values: tuple[str, ...]) -> Tensor:
    """256 numbers, the simplest first: with "ordinary" these fill three quarters of it, and the others the rest."""
    kinds = _kinds(dtype)
    unknown = [kind for kind in values if kind not in kinds]
    if unknown or not values:
        raise ValueError(f"tensors: values must hold some of {', '.join(map(repr, kinds))}, got values={values!r}.")
    special = [number for kind in values if kind != "ordinary" for number in kinds[kind]]
    signed = [size if place % 2 else -size for place, size in enumerate(_NOISE.tolist(), len(_SIMPLE))]
    ordinary = [*_SIMPLE, *signed] if "ordinary" in values else []
    common = ordinary[: _ORDINARY_PLACES if special else 256]
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
    bare = len(parts) == 1 and parts[0] is not None  # None alone would be no params at all
    return parts[0] if bare else _contain(draw(_CONTAINERS), draw(_STARTS), parts)
