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
from funcopt.wrappers.patterns import per_leaf


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
    return _on_part("masked", inner, mask, kept=True, elsewhere=torch.clone)


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
    return _on_part("freeze", inner, mask, kept=False, elsewhere=torch.zeros_like)


def _check_inner(caller: str, inner: object) -> None:
    if not isinstance(inner, GradientTransformation):
        raise TypeError(f"{caller}: inner must be a GradientTransformation, got inner={inner!r}.")


def _on_part(
    caller: str, inner: GradientTransformation, mask: Mask, *, kept: bool, elsewhere: Callable[[Tensor], Tensor]
) -> GradientTransformation:
    """`inner` where the mask says `kept`, and `elsewhere(update)` where it does not."""

    def check(name: str, value: Any) -> None:
        if not isinstance(value, bool):
            raise TypeError(f"{caller}: a mask is a tree of bools, got {value!r} for {name}.")

    mask_of = per_leaf(caller, "mask", mask, check)

    def init(params: Params) -> MaskedState:
        tree.check_params(params)
        leaves, structure = tree.flatten(params)
        return MaskedState(Part(structure, mask_of(params, None), kept).init(inner, leaves))

    def update(
        updates: Updates, state: MaskedState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, MaskedState]:
        old, values, structure = rows(updates, params)
        part = Part(structure, mask_of(params, updates), kept)
        new, inner_state = part.update(inner, old, state.inner_state, values, extra)
        merged = [
            own if keep or update is None else elsewhere(update) for keep, own, update in zip(part.keep, new, old)
        ]
        return tree.unflatten(merged, structure), MaskedState(inner_state)

    return GradientTransformation(init, update, inner.coupling)


def rows(updates: Updates, params: Params | None) -> tuple[list[Any], list[Any] | None, Any]:
    """The leaves of updates and of params (or None) side by side, and their structure."""
    if params is None:
        return tree.flatten(updates)[0], None, tree.flatten(updates)[1]
    values, structure = tree.flatten(params)
    return tree.leaves_up_to(structure, updates), values, structure


class Part:
    """The leaves of a model that one transformation sees: those whose value is the label given.

    It takes trees like the model as lists of their leaves.
    """

    def __init__(self, structure: Any, values: list[Any], label: Any) -> None:
        self.structure = structure
        self.keep = [bool(value == label) for value in values]

    def of(self, leaves: list[Any]) -> tree.Tree:
        """The tree with a MaskedNode in place of every leaf that is not seen, also if that is None."""
        seen = [leaf if keep else tree.MaskedNode() for keep, leaf in zip(self.keep, leaves)]
        return tree.unflatten(seen, self.structure)

    def init(self, inner: GradientTransformation, params: list[Any]) -> State:
        """The state of `inner` for the leaves that it sees."""
        state = inner.init(self.of(params))
        present = [(keep, leaf) for keep, leaf in zip(self.keep, params) if leaf is not None]
        if not present or any(keep for keep, _ in present):
            return state
        # Without a leaf, inner cannot know the device, and under vmap its counts would be one number for all models.
        zero = present[0][1].new_zeros((), dtype=torch.bool)
        return tree.map(lambda leaf: leaf + zero.to(leaf.dtype), state)

    def update(
        self,
        inner: GradientTransformation,
        updates: list[Any],
        state: State,
        params: list[Any] | None,
        extra: dict[str, Any],
    ) -> tuple[list[Any], State]:
        """The updates that `inner` makes of the leaves that it sees, in the list of all, and its new state.

        Extra arguments that are trees like the updates, a gradient for a line search say, are masked as they are. If
        `inner` sees no leaf, it does not run, and its state stays.
        """
        if not any(self.keep):
            return updates, tree.clone(state)
        seen = None if params is None else self.of(params)
        extra = {name: self._seen_of(value, updates) for name, value in extra.items()}
        result, state = inner.update(self.of(updates), state, seen, **extra)
        made = tree.leaves_up_to(self.structure, result)
        return [new if keep else old for keep, new, old in zip(self.keep, made, updates)], state

    def _seen_of(self, value: Any, updates: list[Any]) -> Any:
        given = tree.flatten(value)[1]
        alike = given == self.structure
        if not alike and given.num_leaves == len(updates):  # perhaps the same in another order
            alike = _paths(value) == _paths(tree.unflatten(updates, self.structure))
        return self.of(tree.leaves_up_to(self.structure, value)) if alike else value


def _paths(values: tree.Tree) -> list[str]:
    return sorted(path for path, _ in tree.leaves_with_path(values))
