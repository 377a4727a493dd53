"""Laws of leaves: which numbers depend on which, and that names, order and nesting mean nothing."""

from typing import Any

import torch

from funcopt import tree
from funcopt.pack import pack, pack_like, unpack
from funcopt.testing.comparison import require_close, require_identical, storage_factor
from funcopt.testing.law import coupling_of, law
from funcopt.testing.trajectory import follow, generic_case


def _is_uncoupled(tx: Any, declared: Any) -> bool:
    return coupling_of(tx, declared) != "treewise"


def _is_elementwise(tx: Any, declared: Any) -> bool:
    return coupling_of(tx, declared) == "elementwise"


@law(_is_uncoupled, remedy='Declared(coupling="treewise") if a leaf may influence others')
def leaves_are_independent(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """What happens to one leaf changes nothing at the others."""
    params, gradients = generic_case(params, gradients, steps=3)
    before = follow(tx, params, gradients, extra)
    paths = [path for path, leaf in tree.leaves_with_path(params) if leaf.numel()]
    for path in dict.fromkeys((*paths[:1], *paths[-1:])):
        changed = _changed(params, path, slice(None)), [_changed(g, path, slice(None)) for g in gradients]
        for step, (old, new) in enumerate(zip(before, follow(tx, *changed, extra))):
            found, expected = _removed(new.updates, path), _removed(old.updates, path)
            require_identical(found, expected, f"step {step}: after a change of {path!r}, the update")


@law(_is_elementwise, remedy='Declared(coupling="leafwise") if a number may influence others of its leaf')
def numbers_are_independent(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """What happens to one number changes nothing at the others of its leaf."""
    params, gradients = generic_case(params, gradients, steps=3)
    before = follow(tx, params, gradients, extra)
    for path in [path for path, leaf in tree.leaves_with_path(params) if leaf.numel() > 1][:2]:
        changed = _changed(params, path, 0), [_changed(grads, path, 0) for grads in gradients]
        for step, (old, new) in enumerate(zip(before, follow(tx, *changed, extra))):
            found, expected = (dict(tree.leaves_with_path(s.updates))[path].flatten()[1:] for s in (new, old))
            require_identical(found, expected, f"step {step}: after a change of {path}[0], the rest of {path!r}")


def _changed(values: tree.Tree, path: str, where: Any) -> tree.Tree:
    """A copy with one leaf moved far away, all of it or at one place."""
    changed = tree.clone(values)
    dict(tree.leaves_with_path(changed))[path].view(-1)[where] += 1000.0
    return changed


def _removed(values: tree.Tree, path: str) -> dict[str, Any]:
    return {place: leaf for place, leaf in tree.leaves_with_path(values) if place != path}


@law(lambda tx, declared: not declared.fixed_structure, remedy="Declared(fixed_structure=True) or (order_matters=True)")
def names_mean_nothing(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """Renaming, reordering and nesting the leaves does the same to the updates, and nothing else."""
    params, gradients = generic_case(params, gradients)
    count = len(tree.flatten(params)[0])
    orders = [list(range(count))] if declared.order_matters else [list(range(count)), list(range(count))[::-1]]
    expected = [tree.flatten(step.updates)[0] for step in follow(tx, params, gradients, extra)]
    for order in orders:
        for step, (found, wanted) in enumerate(zip(_rearranged_run(tx, params, gradients, extra, order), expected)):
            require_close(dict(enumerate(found)), dict(enumerate(wanted)), f"rearranged, step {step}: leaf", factor=1)


def _rearranged_run(tx: Any, params: Any, gradients: Any, extra: Any, order: list[int]) -> list[list[torch.Tensor]]:
    steps = follow(tx, _nested(params, order), [_nested(grads, order) for grads in gradients], extra)
    places = {index: place for place, index in enumerate(order)}
    return [[tree.flatten(step.updates)[0][places[i]] for i in range(len(order))] for step in steps]


def _nested(values: tree.Tree, order: list[int]) -> tree.Tree:
    """The leaves in another order, by turns in a tuple and deeper: another tree of the same numbers."""
    leaves = tree.flatten(values)[0]
    arranged = [(leaves[index],) if place % 2 else {"inner": [leaves[index]]} for place, index in enumerate(order)]
    return {"all": arranged}


@law(lambda tx, declared: not declared.order_matters and not declared.fixed_structure)
def order_of_keys(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """Gradients whose dictionaries have another order of keys than params' are matched by key."""
    params, gradients = generic_case(params, gradients)
    expected = follow(tx, params, gradients, extra)
    state = tx.init(params)
    for step, grads in enumerate(gradients):
        at = params if step == 0 else expected[step - 1].params
        updates, state = tx.update(_reversed_keys(grads), state, at, **extra)
        require_close(_reversed_keys(updates), _reversed_keys(expected[step].updates), f"step {step}: updates")


def _reversed_keys(values: tree.Tree) -> tree.Tree:
    if isinstance(values, dict):
        return {key: _reversed_keys(values[key]) for key in sorted(values, key=str, reverse=True)}
    if isinstance(values, (list, tuple)) and not hasattr(values, "_fields"):
        return type(values)(_reversed_keys(part) for part in values)
    return values


def _is_packable(tx: Any, declared: Any) -> bool:
    return _is_elementwise(tx, declared) and not declared.order_matters and not declared.fixed_structure


@law(_is_packable, remedy='Declared(coupling="leafwise") if leaves are no mere collections of numbers')
def packed(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """Packed into few buffers, an elementwise transformation does the same to every number."""
    params, gradients = generic_case(params, gradients)
    expected = follow(tx, params, gradients, extra)
    buffers = pack(params, tree.map(lambda leaf: leaf.ndim, params))  # a mask may look at the number of axes
    found = follow(tx, buffers, [pack_like(grads, buffers) for grads in gradients], extra)
    factor = storage_factor(declared, torch.float64)
    for step, (one, other) in enumerate(zip(found, expected)):
        require_close(unpack(one.updates), other.updates, f"packed, step {step}: updates", factor=factor)
