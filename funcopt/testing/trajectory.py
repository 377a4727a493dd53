"""What the laws run: a few steps of a transformation, on trees like those given."""

import copy
import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcopt import tree
from funcopt.numerics import real_dtype
from funcopt.transform import GradientTransformation, apply_updates


class Step(NamedTuple):
    """What a step gave: the updates, and state and params after it."""

    updates: tree.Tree
    state: tree.Tree
    params: tree.Tree


def follow(
    tx: GradientTransformation,
    params: tree.Tree,
    gradients: list[tree.Tree],
    extra: Mapping[str, Any],
    state: tree.Tree = None,
) -> list[Step]:
    """The steps of a training run, from `state` if given."""
    state = tx.init(params) if state is None else state
    steps = []
    for grads in gradients:
        updates, state = tx.update(grads, state, params, **extra)
        params = apply_updates(params, updates)
        steps.append(Step(updates, state, params))
    return steps


def updates_along(
    tx: GradientTransformation, path: list[tree.Tree], gradients: list[tree.Tree], extra: Mapping[str, Any]
) -> list[tree.Tree]:
    """The updates of every step, with the params of each step prescribed."""
    state, found = tx.init(path[0]), []
    for params, grads in zip(path, gradients):
        updates, state = tx.update(grads, state, params, **extra)
        found.append(updates)
    return found


def updates_at(
    tx: GradientTransformation, params: tree.Tree, gradients: list[tree.Tree], extra: Mapping[str, Any]
) -> list[tree.Tree]:
    """The updates of every step, with params held fixed."""
    return updates_along(tx, [params] * len(gradients), gradients, extra)


def generic(like: tree.Tree, seed: int, dtype: torch.dtype = torch.float64) -> tree.Tree:
    """Normal numbers in the shapes of a tree: no special values, so that a function is smooth there."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.complex128 if dtype.is_complex else torch.float64

    def draw(leaf: Tensor) -> Tensor:
        return torch.randn(leaf.shape, generator=generator, dtype=wide).to(dtype).to(leaf.device)

    return tree.map(draw, like)


def generic_case(
    params: tree.Tree,
    gradients: list[tree.Tree],
    dtype: torch.dtype = torch.float64,
    steps: int | None = None,
    shift: int = 0,
) -> tuple[tree.Tree, list[tree.Tree]]:
    """The structure of a case with generic numbers in its place; nothing is absent, see `filled`."""
    like, first = filled(params), 1 + shift
    count = len(gradients) if steps is None else steps
    return generic(like, first, dtype), [generic(like, first + 1 + step, dtype) for step in range(count)]


def drawn_case(
    params: tree.Tree, gradients: list[tree.Tree], dtype: torch.dtype = torch.float64, more: int = 0
) -> tuple[tree.Tree, list[tree.Tree]]:
    """The numbers of a case, contiguous in one real dtype, with zeros for absent gradients; then `more` generic steps.

    For laws that need one dtype and the same leaves at every step, and are to fail, and shrink, by their numbers. The
    generic steps are for cases of zeros, on which much holds that does not hold elsewhere.
    """
    params = tree.clone(in_dtype(filled(params), dtype))

    def fill(grads: tree.Tree) -> tree.Tree:
        given, structure = tree.flatten(grads)
        leaves = [torch.zeros_like(p) if g is None else g for p, g in zip(tree.flatten(params)[0], given)]
        return tree.clone(in_dtype(tree.unflatten(leaves, structure), dtype))

    return params, [*map(fill, gradients), *(generic(params, 2 + step, dtype) for step in range(more))]


_LARGEST = 10.0


def smooth_case(
    params: tree.Tree, gradients: list[tree.Tree], margin: float, steps: int
) -> tuple[tree.Tree, list[tree.Tree]]:
    """`drawn_case`, away from where rules have kinks: from zero, from round numbers, from ties, and from infinity.

    Every number is moved away from zero by 1 to 2 times `margin`, each by another part of it. The gradients come in
    turn for as many steps.
    """
    params, gradients = drawn_case(params, list(itertools.islice(itertools.cycle(gradients), steps)))

    def move(leaf: Tensor, noise: Tensor) -> Tensor:
        finite = leaf.nan_to_num(0.0).clamp(-_LARGEST, _LARGEST)
        return finite + torch.copysign(margin * (1.5 + 0.5 * torch.tanh(noise)), finite)

    def moved(values: tree.Tree, seed: int) -> tree.Tree:
        return tree.map(move, values, generic(values, seed))

    return moved(params, 1), [moved(grads, 2 + step) for step, grads in enumerate(gradients)]


def filled(params: tree.Tree) -> tree.Tree:
    """`params` with an empty tensor in place of every leaf that is absent: vmap and grad do not know None."""
    first = next(iter(tree.leaves(params)), torch.zeros(()))
    leaves, structure = tree.flatten(params)
    return tree.unflatten([first.new_zeros((0,)) if leaf is None else leaf for leaf in leaves], structure)


def in_dtype(values: tree.Tree, dtype: torch.dtype) -> tree.Tree:
    """Every floating leaf in the real dtype given; a complex leaf becomes its real part."""

    def cast(leaf: Tensor) -> Tensor:
        return (leaf.real if leaf.is_complex() else leaf).to(dtype)

    return tree.map(cast, values)


def dtype_of(params: tree.Tree) -> torch.dtype:
    """The real dtype of the first leaf, or float32."""
    first = next(iter(tree.leaves(params)), None)
    return torch.float32 if first is None else real_dtype(first.dtype)


def copied(values: tree.Tree) -> tree.Tree:
    """A copy of every tensor; what a wrong state holds besides is kept."""
    return tree.map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, values)


def exact_copy(values: tree.Tree) -> tree.Tree:
    """A copy of every tensor, with its place in its storage; of a view, the whole storage is copied."""

    def copy_leaf(leaf: Tensor) -> Tensor:
        plain = leaf.is_contiguous() and leaf.storage_offset() == 0
        return leaf.clone() if plain else copy.deepcopy(leaf.detach())

    return tree.map(copy_leaf, values)


def zeros(values: tree.Tree) -> tree.Tree:
    """The same tree of zeros."""
    return tree.map(torch.zeros_like, values)


def times(factor: Any, values: tree.Tree) -> tree.Tree:
    """Every leaf times a number."""
    return tree.map(lambda leaf: factor * leaf, values)


def plus(values: tree.Tree, others: tree.Tree, factor: Any = 1.0) -> tree.Tree:
    """`values + factor * others`, leaf by leaf."""
    return tree.map(lambda leaf, other: (leaf + factor * other).to(leaf.dtype), values, others)


def all_finite(values: tree.Tree) -> bool:
    """Whether no number is NaN or infinite."""
    return all(bool(torch.isfinite(leaf).all()) for leaf in tree.leaves(values))
