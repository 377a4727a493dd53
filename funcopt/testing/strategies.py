"""Hypothesis strategies for what optimizers eat: parameters, gradients, hyperparameters, transformations, states."""

import functools
import itertools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor

from funcopt import tree
from funcopt.testing.arguments import (
    STANDARD as STANDARD,
    Range as Range,
    hyperparameters as hyperparameters,
    schedules as schedules,
)
from funcopt.testing.compositions import transformations as transformations
from funcopt.testing.printing import source as source
from funcopt.testing.scripts import reproducer as reproducer
from funcopt.testing.trees import (
    ANY as ANY,
    CODES,
    COMPLEX as COMPLEX,
    FINITE as FINITE,
    FLOATING as FLOATING,
    LAYOUTS as LAYOUTS,
    ORDINARY as ORDINARY,
    SHAPES as SHAPES,
    Choice as Choice,
    choice as choice,
    decode,
    draw_tensor as draw_tensor,
    lay_out,
    pytrees as pytrees,
    tensors as tensors,
)
from funcopt.transform import GradientTransformation, Params, State, Updates, apply_updates


def params(
    dtypes: Choice[torch.dtype] = FLOATING,
    shapes: Choice[tuple[int, ...]] = SHAPES,
    layouts: Choice[str] = LAYOUTS,
    values: Collection[str] = ORDINARY,
    *,
    min_leaves: int = 1,
    max_leaves: int = 4,
    absent: bool = True,
) -> SearchStrategy[Params]:
    """Parameters: trees of finite tensors, each leaf with its own dtype, shape and layout; with `absent`, some `None`s.

    `dtypes=(*FLOATING, *COMPLEX)` draws complex leaves too, `min_leaves=0` trees without any. Shrinks to a bare tensor
    of shape (), `torch.tensor(0.0)`.
    """
    leaves = tensors(dtypes, shapes, layouts, values)
    return pytrees(leaves, min_leaves=min_leaves, max_leaves=max_leaves, absent=absent)


@st.composite
def gradients_for(
    draw: DrawFn,
    params: Params,
    *,
    values: Collection[str] = ORDINARY,
    layouts: Choice[str] = LAYOUTS,
    absent: bool = False,
) -> Updates:
    """Gradients for `params`: leaf by leaf of the same dtype and shape; `None` where the parameter is.

    With `absent`, any leaf may be `None`. Shrinks to zeros.
    """
    layout = draw(choice(layouts))
    missing = draw(st.sets(st.integers(0, max(len(tree.leaves(params)) - 1, 0)))) if absent else ()
    return _draw_gradient(draw, params, tuple(values), layout, missing)


def _draw_gradient(
    draw: DrawFn, params: Params, values: tuple[str, ...], layout: str, absent: Collection[int] = ()
) -> Updates:
    """One code for all leaves, each going on where the last one ended: a leaf can then be taken out of `params`."""
    code, start = draw(CODES), 0

    def decode_leaf(leaf: Tensor) -> Tensor:
        nonlocal start
        gradient = decode(code, leaf.dtype, tuple(leaf.shape), values, start)
        start += leaf.numel() * (2 if leaf.is_complex() else 1)
        return lay_out(gradient, layout)

    return _without(tree.map(decode_leaf, params), absent)


def _without(gradient: Updates, absent: Collection[int]) -> Updates:
    """`gradient` with `None` in place of the leaves of these numbers."""
    numbers = itertools.count()
    return tree.map(lambda leaf: None if next(numbers) in absent else leaf, gradient)


SEQUENCES = ("zero", "constant", "alternating", "vanishing", "exploding", "sparse", "absent", "normal")
"""Kinds of sequences: all zero; one gradient again and again, or with alternating sign, or a tenth or ten times the
last one (cut off at the largest number of the dtype); gradients of which each step has every third number; of which one
leaf is `None` in some of the steps; and gradients without relation."""


@st.composite
def gradient_sequences_for(
    draw: DrawFn,
    params: Params,
    steps: Choice[int] | int = range(1, 6),
    *,
    kinds: Collection[str] = SEQUENCES,
    values: Collection[str] = ORDINARY,
    layouts: Choice[str] = LAYOUTS,
) -> list[Updates]:
    """Gradients of some steps in a row, a list of trees like `params`: all of one of the kinds of `SEQUENCES`.

    Shrinks to one step of zeros: first to fewer steps, then to a kind further to the front of `kinds`.

    Raises:
        ValueError: a kind is unknown.
    """
    unknown = [kind for kind in kinds if kind not in SEQUENCES]
    if unknown or not kinds:
        raise ValueError(f"gradient_sequences_for: kinds must hold some of {SEQUENCES}, got kinds={tuple(kinds)!r}.")
    count = steps if isinstance(steps, int) else draw(choice(steps))
    kind = draw(choice(tuple(kinds)))
    layout = draw(choice(layouts))
    if kind in _FOLLOWING:
        first = _draw_gradient(draw, params, tuple(values), layout)
        return [tree.map(functools.partial(_FOLLOWING[kind], step), first) for step in range(count)]
    gradients = [_draw_gradient(draw, params, tuple(values), layout) for _ in range(count)]
    if kind == "sparse":
        return [tree.map(functools.partial(_thin_out, step), gradient) for step, gradient in enumerate(gradients)]
    leaves = len(tree.leaves(params))
    if kind == "absent" and leaves:
        missing = {draw(choice(range(leaves)))}
        return [_without(gradient, missing if draw(_USUALLY) else ()) for gradient in gradients]
    return gradients


_USUALLY = st.sampled_from((True, True, False))
_FOLLOWING: Mapping[str, Callable[[int, Tensor], Tensor]] = {
    "zero": lambda step, g: torch.zeros_like(g),
    "constant": lambda step, g: g.clone(),
    "alternating": lambda step, g: g * (-1) ** step,
    "vanishing": lambda step, g: _scaled(g, 0.1**step),
    "exploding": lambda step, g: _scaled(g, 10.0**step),
}
"""The gradient of a step from that of step 0, for the kinds of sequence that one gradient determines."""


def _scaled(g: Tensor, factor: float) -> Tensor:
    if g.is_complex():
        return torch.complex(_scaled(g.real, factor), _scaled(g.imag, factor))
    largest = torch.finfo(g.dtype).max
    wide = g.to(torch.float64) * factor
    return torch.where(wide.isfinite(), wide.clamp(-largest, largest), wide).to(g.dtype)


def _thin_out(step: int, g: Tensor) -> Tensor:
    kept = (torch.arange(g.numel()) + step) % 3 == 0
    return torch.where(kept.reshape(g.shape), g, torch.zeros_like(g))


@st.composite
def states(
    draw: DrawFn,
    tx: GradientTransformation,
    params: Params,
    steps: Choice[int] | int = range(4),
    *,
    extra: Mapping[str, Any] | None = None,
) -> State:
    """A state of `tx` after some random steps from `params`, which move along. Shrinks to `tx.init(params)`.

    `extra` are keyword arguments for each update, where it needs some.
    """
    state = tx.init(params)
    for gradient in draw(gradient_sequences_for(params, steps)):
        updates, state = tx.update(gradient, state, params, **(extra or {}))
        params = apply_updates(params, updates)
    return state
