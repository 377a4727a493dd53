"""Wrappers that show the inner transformation another tree: all numbers in one vector, or only real leaves."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcopt import tree
from funcopt.transform import GradientTransformation, Params, State, Updates, check_transformation, factory


@factory
def flatten(inner: GradientTransformation) -> GradientTransformation:
    """Show `inner` all numbers of the tree as one vector: norms of a leaf become norms of the tree.

    The vector holds the leaves one after the other in the order of their paths, in their promoted dtype; real leaves
    among complex ones are complex in it. What comes back has each leaf's own dtype (where optax leaves the promoted
    one). Params, and extra arguments with the leaves of the params, are flattened alike; functions are passed as they
    are. A leaf without a gradient takes part as zeros, and its part of the vectors in the state is kept.

    An elementwise `inner` gives what it gives without. The state is that of `inner`.

    >>> optimizer = flatten(adam(0.1))
    >>> optimizer.init({"w": torch.ones(2, 3), "b": torch.ones(2)})[0].mu.shape
    torch.Size([8])

    Raises:
        TypeError: `inner` is no `GradientTransformation`.
    """
    check_transformation("flatten", inner=inner)

    def init(params: Params) -> State:
        tree.check_params(params)
        return inner.init(tree.ravel(params)[0])

    def update(updates: Updates, state: State, params: Params | None = None, **extra: Any) -> tuple[Updates, State]:
        dense = updates if params is None else _with_zeros(updates, params)
        vector, unravel = tree.ravel(dense)
        flat_params = None if params is None else tree.ravel(params)[0]
        flat_extra = _map_alike(lambda arg: tree.ravel(_with_zeros(arg, dense))[0], extra, dense)
        vector, new_state = inner.update(vector, state, flat_params, **flat_extra)
        kept = tree.map(lambda update, made: made, updates, unravel(vector))
        return kept, _keep_absent(updates, dense, state, new_state)

    return GradientTransformation(init, update, "elementwise" if inner.coupling == "elementwise" else "treewise")


def _with_zeros(updates: Updates, params: Params) -> Updates:
    """`updates` with zeros where only they are None."""
    own, structure = tree.flatten(params)
    rows = zip(own, tree.leaves_up_to(structure, updates))
    return tree.unflatten([p if p is None else torch.zeros_like(p) if g is None else g for p, g in rows], structure)


def _keep_absent(updates: Updates, dense: Updates, state: State, new_state: State) -> State:
    """`new_state`, with the old numbers where its vectors belong to a leaf of `dense` that `updates` lack."""
    own, structure = tree.flatten(dense)
    given = tree.leaves_up_to(structure, updates)
    if not any(g is None and full is not None for g, full in zip(given, own)):
        return new_state
    marks = [
        None if full is None else torch.full_like(full, g is not None, dtype=torch.bool) for g, full in zip(given, own)
    ]
    # A vector of the state is known by its length; one that has it by chance would be kept there as well.
    present = tree.ravel(tree.unflatten(marks, structure))[0]
    return tree.map(
        lambda new, old: torch.where(present, new, old) if new.shape == present.shape else new, new_state, state
    )


class RealAndImaginary(NamedTuple):
    """What a complex leaf is to the transformation within `split_real_and_imaginary`: two real leaves."""

    real: Tensor | None
    imaginary: Tensor | None


class SplitRealAndImaginaryState(NamedTuple):
    inner_state: State  # with a RealAndImaginary in place of every complex leaf


@factory
def split_real_and_imaginary(inner: GradientTransformation) -> GradientTransformation:
    """Show `inner` every complex leaf as two real ones: for rules that need an order, and for torch.optim's numbers.

    Params, and extra arguments with the leaves of the params, are split alike; functions are passed as they are.

    >>> optimizer = split_real_and_imaginary(clip(1.0))
    >>> params = torch.tensor([3.0 - 0.5j])
    >>> optimizer.update(params, optimizer.init(params))[0]
    tensor([1.-0.5000j])

    Raises:
        TypeError: `inner` is no `GradientTransformation`.
    """
    check_transformation("split_real_and_imaginary", inner=inner)

    def init(params: Params) -> SplitRealAndImaginaryState:
        tree.check_params(params)
        return SplitRealAndImaginaryState(inner.init(_split(params, params)))

    def update(
        updates: Updates, state: SplitRealAndImaginaryState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, SplitRealAndImaginaryState]:
        like = updates if params is None else params
        split_params = None if params is None else _split(params, params)
        split_extra = _map_alike(lambda arg: _split(arg, like), extra, like)
        made, inner_state = inner.update(_split(updates, like), state.inner_state, split_params, **split_extra)
        return _join(made, updates), SplitRealAndImaginaryState(inner_state)

    return GradientTransformation(init, update, inner.coupling)


def _split(values: tree.Tree, like: tree.Tree) -> tree.Tree:
    """`values` with a `RealAndImaginary` where a leaf of `like` is complex, also where the value itself is None."""
    own, structure = tree.flatten(like)

    def split(leaf: Tensor | None, value: Tensor | None) -> Any:
        if leaf is None or not leaf.is_complex():
            return value
        return RealAndImaginary(None, None) if value is None else RealAndImaginary(value.real, value.imag)

    return tree.unflatten([split(*row) for row in zip(own, tree.leaves_up_to(structure, values))], structure)


def _join(parts: tree.Tree, like: tree.Tree) -> tree.Tree:
    structure = tree.flatten(like)[1]

    def join(part: Any) -> Any:
        if not isinstance(part, RealAndImaginary):
            return part
        return None if part.real is None or part.imaginary is None else torch.complex(part.real, part.imaginary)

    return tree.unflatten([join(part) for part in tree.leaves_up_to(structure, parts)], structure)


def _map_alike(change: Callable[[tree.Tree], tree.Tree], extra: dict[str, Any], params: Params) -> dict[str, Any]:
    """`extra` with `change` applied to those arguments whose leaves have the paths and shapes of `params`.

    A bare 0-d tensor is never taken for params: it may as well be a loss.
    """
    shapes = _shapes(params) if extra else None

    def is_like(arg: Any) -> bool:
        own = _shapes(arg)
        if own is None or shapes is None or own.keys() != shapes.keys() or set(own.items()) == {("", ())}:
            return False
        return all(None in (shape, shapes[path]) or shape == shapes[path] for path, shape in own.items())

    return {name: change(arg) if is_like(arg) else arg for name, arg in extra.items()}


def _shapes(params: Params) -> dict[str, Any] | None:
    """The shape of each leaf by its path, and None for None; None where there are other leaves, or no tensor."""
    pairs = tree.leaves_with_path(params)
    if all(leaf is None for _, leaf in pairs) or any(not isinstance(leaf, Tensor | None) for _, leaf in pairs):
        return None
    return {path: None if leaf is None else tuple(leaf.shape) for path, leaf in pairs}
