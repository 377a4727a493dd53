"""Transformations that act on a part of the leaves, while the rest passes through or stays frozen."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcopt import tree
from funcopt.transform import (
    GradientTransformation,
    Mask,
    Params,
    State,
    Updates,
    factory,
)
from funcopt.wrappers.paths import per_leaf


class MaskedState(NamedTuple):
    inner_state: State  # with a MaskedNode where a leaf is masked out


@factory
def masked(inner: GradientTransformation, mask: Mask) -> GradientTransformation:
    """Where the mask is False, pass the incoming update through unchanged; where it is True, apply `inner`.

    So False does not freeze: a gradient that passes through an optimizer moves its leaf uphill. See `freeze`. `inner`
    does not see the leaves that are masked out: it has no state for them, and its norms leave them out.

    `mask` is a tree of bools or a prefix of it, a function of params (of updates, if `update` gets no params), or
    patterns as for `by_path`. Extra arguments that are trees like the updates are masked as they are.

    >>> transformation = masked(clip_by_global_norm(1.0), {"*embedding*": True, "*": False})

    Raises:
        TypeError: `inner` is no transformation, or a leaf of the mask is no bool.
        ValueError: the mask does not fit params; a leaf without a pattern, a pattern without a leaf.
    """
    _check_inner("masked", inner)
    return _on_part("masked", inner, per_leaf("masked", "mask", mask, _check_bool("masked")), torch.clone)


@factory
def freeze(inner: GradientTransformation, mask: Mask) -> GradientTransformation:
    """Where the mask is True, the update is zero; where it is False, apply `inner`.

    A frozen leaf has no state and no share in any norm of `inner`, and a gradient of it that is NaN does no harm. What
    follows in a chain may move it all the same, weight decay for instance: let `freeze` enclose the whole optimizer.
    `mask` is given as for `masked`. optax calls this `selective_transform`; its `freeze(mask)` is
    `masked(set_to_zero(), mask)`.

    >>> optimizer = freeze(adamw(1e-3), {"backbone*": True, "*": False})

    Raises:
        TypeError: `inner` is no transformation, or a leaf of the mask is no bool.
        ValueError: the mask does not fit params; a leaf without a pattern, a pattern without a leaf.
    """
    _check_inner("freeze", inner)
    frozen = per_leaf("freeze", "mask", mask, _check_bool("freeze"))

    def moving(params: Params | None, updates: Updates) -> tree.Tree:
        return tree.map(lambda is_frozen: not is_frozen, frozen(params, updates))

    return _on_part("freeze", inner, moving, torch.zeros_like)


def _check_inner(caller: str, inner: object) -> None:
    if not isinstance(inner, GradientTransformation):
        raise TypeError(f"{caller}: inner must be a GradientTransformation, got inner={inner!r}.")


def _check_bool(caller: str) -> Callable[[str, Any], None]:
    def check(path: str, value: Any) -> None:
        if not isinstance(value, bool):
            raise TypeError(f"{caller}: a mask is a tree of bools, got {value!r} at {path!r}.")

    return check


def _on_part(
    name: str,
    inner: GradientTransformation,
    kept_by: Callable[[Params | None, Updates], tree.Tree],
    elsewhere: Callable[[Tensor], Tensor],
) -> GradientTransformation:
    """`inner` on the leaves that `kept_by(params, updates)` keeps, `elsewhere(update)` on the others."""

    def init(params: Params) -> MaskedState:
        tree.check_params(params)
        return MaskedState(init_part(inner, params, kept_by(params, None)))

    def update(
        updates: Updates, state: MaskedState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, MaskedState]:
        keep = kept_by(params, updates)
        part, inner_state = update_part(inner, updates, state.inner_state, params, extra, keep)
        merged = tree.map(lambda kept, new, old: new if kept else elsewhere(old), keep, part, updates)
        return merged, MaskedState(inner_state)

    return GradientTransformation(init, update, inner.coupling)


def init_part(inner: GradientTransformation, params: Params, keep: tree.Tree) -> State:
    """The state of `inner` for the leaves of `params` that `keep`, a tree of bools, keeps."""
    part = tree.mask(params, keep)
    state = inner.init(part)
    if tree.leaves(part) or not tree.leaves(params):
        return state
    # Without a leaf, inner cannot know the device, and under vmap its counts would be one number for all models.
    zero = tree.leaves(params)[0].new_zeros((), dtype=torch.bool)
    return tree.map(lambda leaf: leaf + zero.to(leaf.dtype), state)


def update_part(
    inner: GradientTransformation,
    updates: Updates,
    state: State,
    params: Params | None,
    extra: dict[str, Any],
    keep: tree.Tree,
) -> tuple[Updates, State]:
    """One step of `inner` on the leaves that `keep` keeps; the updates that come back are masked.

    Extra arguments that are trees like `updates`, a gradient for a line search say, are masked as they are; others are
    passed on. If nothing is kept, `inner` does not run and its state stays.
    """
    if not any(tree.leaves(keep)):
        return tree.mask(updates, keep), tree.clone(state)
    extra = {name: tree.mask(value, keep) if _is_like(value, updates) else value for name, value in extra.items()}
    masked_params = None if params is None else tree.mask(params, keep)
    return inner.update(tree.mask(updates, keep), state, masked_params, **extra)


def _is_like(value: Any, updates: Updates) -> bool:
    """Whether an extra argument is a tree like `updates`."""
    if isinstance(updates, Tensor):  # a bare 0-d tensor could be any scalar, the loss for one
        return isinstance(value, Tensor) and value.shape == updates.shape and value.ndim > 0
    return _same_containers(value, updates)


def _same_containers(a: Any, b: Any) -> bool:
    parts, others = tree.children(a), tree.children(b)
    if parts is None or others is None:
        return parts is others
    return parts.keys() == others.keys() and all(_same_containers(parts[key], others[key]) for key in parts)
