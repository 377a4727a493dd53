"""Laws of structure: what leaves may be, and that they stay what they are."""

from typing import Any

import torch
from torch import Tensor

from funcopt import tree
from funcopt.numerics import compute_dtype
from funcopt.testing.comparison import (
    at,
    largest_so_far,
    require,
    require_close,
    require_identical,
    require_tensors,
    tolerance,
)
from funcopt.testing.law import coupling_of, law
from funcopt.testing.trajectory import all_finite, filled, generic, generic_case, in_dtype, times, zeros
from funcopt.transform import apply_updates

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@law()
def state_of_tensors(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """The state holds tensors and None, and nothing else: nothing else would be carried along in all modes."""
    state = tx.init(params)
    require_tensors(state, "init: the state")
    for step, grads in enumerate(gradients):
        _, state = tx.update(grads, state, params, **extra)
        require_tensors(state, f"step {step}: the state")


@law()
def structure_is_kept(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """Structure, shapes, dtypes and devices of updates and state are those of params and of init's state."""
    like = filled(params)
    shaped = {"u": torch.zeros(()), "v": torch.zeros((0, 3)), "w": torch.zeros((2, 3))}
    given = [(params, gradients)] + [generic_case(like, gradients, dtype) for dtype in _DTYPES]
    if not declared.fixed_structure:
        given += [generic_case(shaped, gradients, dtype) for dtype in _DTYPES]
    for some_params, some_gradients in given:
        _follow_structure(tx, some_params, some_gradients, extra)


def _follow_structure(tx: Any, params: Any, gradients: Any, extra: Any) -> None:
    state = start = tx.init(params)
    _require_alike(start, start, "init's state")
    for step, grads in enumerate(gradients):
        updates, state = tx.update(grads, state, params, **extra)
        _require_alike(updates, grads, f"step {step}: updates")
        _require_alike(state, start, f"step {step}: state")
        params = apply_updates(params, updates)


def _require_alike(values: tree.Tree, expected: tree.Tree, what: str) -> None:
    require_tensors(values, what)
    same = tree.flatten(values)[1] == tree.flatten(expected)[1]
    require(same, f"{what}: the structure is {tree.flatten(values)[1]}, expected {tree.flatten(expected)[1]}.")
    for (path, leaf), (_, other) in zip(tree.leaves_with_path(values), tree.leaves_with_path(expected)):
        if leaf is None and other is None:
            continue
        require(
            leaf is not None and other is not None, f"{at(what, path)}: {_presence(leaf)}, expected {_presence(other)}."
        )
        found, wanted = ((tuple(t.shape), t.dtype, t.device) for t in (leaf, other))
        require(found == wanted, f"{at(what, path)}: {found}, expected {wanted}.")


@law(remedy="Declared(stored_in=torch.bfloat16) if a state is stored in low precision on purpose")
def half_precision(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """In bfloat16 and float16 the updates are those of float32 but for roundings, with states of at least float32."""
    like, ones = generic_case(params, gradients, torch.float32, steps=6)
    for dtype in (torch.bfloat16, torch.float16):
        start = in_dtype(in_dtype(like, dtype), torch.float32)
        sizes = (1.0, 0.0, 300.0, 1e-3, 1.0, 0.0)  # a square of 300 is beyond float16, one of 1e-4 below it
        for factors in (sizes, (0.0, 1e-4, 0.0)):
            some = [in_dtype(times(factor, g), dtype) for factor, g in zip(factors, ones)]
            _compare_precisions(tx, start, some, dtype, extra, declared)


def _compare_precisions(tx: Any, start: Any, gradients: Any, dtype: torch.dtype, extra: Any, declared: Any) -> None:
    params = in_dtype(start, dtype)
    state, wide_state = tx.init(params), tx.init(start)
    for path, leaf in tree.leaves_with_path(state):
        stored = leaf is None or leaf.dtype in (declared.stored_in, compute_dtype(leaf.dtype))
        require(stored, f"{at(f'{dtype}: the state', path)} is {leaf.dtype}.")
    if declared.float32_tolerance is None:
        return
    scales = tree.map(lambda leaf: torch.tensor(torch.finfo(dtype).tiny, dtype=torch.float64), start)
    rounding = 2 * max(tolerance(dtype), tolerance(declared.stored_in or dtype))
    for step, grads in enumerate(gradients):
        wide = in_dtype(grads, torch.float32)
        updates, state = tx.update(grads, state, params, **extra)
        expected, wide_state = tx.update(wide, wide_state, start, **extra)
        scales = largest_so_far(expected, scales)
        what = f"{dtype}, step {step}: updates"
        if all_finite(expected):
            require(not any(bool(u.isnan().any()) for u in tree.leaves(updates)), f"{what} are NaN.")
        require_close(updates, in_dtype(expected, dtype), what, rtol=rounding, scales=scales)


@law()
def absent_gradient(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """A gradient of None skips its leaf: the update is None, and the state of the leaf stays as it is, bit by bit."""
    full = [tree.map(lambda leaf: torch.full_like(leaf, 0.5), params), gradients[-1]]
    for path in [path for path, leaf in tree.leaves_with_path(params) if leaf is not None and leaf.numel()]:
        state = tx.update(full[0], tx.init(params), params, **extra)[1]
        grads = _without(full[1], path)
        updates, new_state = tx.update(grads, state, params, **extra)
        for other, update in tree.leaves_with_path(updates):
            gone = dict(tree.leaves_with_path(grads))[other] is None
            told = f"{at('the update', other)} is {_presence(update)}, with {at('the gradient None', path)}."
            require((update is None) == gone, told)
        old_leaves, new_leaves = (dict(tree.leaves_with_path(each)) for each in (state, new_state))
        for place in [place for place, owner in _accumulators(state, params).items() if owner == path]:
            what = f"with {at('the gradient None', path)}, {at('the state', place)}"
            require_identical(new_leaves.get(place), old_leaves[place], what)


def _accumulators(state: tree.Tree, params: tree.Tree) -> dict[str, str]:
    """The leaves of a state that belong to one of params, both by path: those in its subtrees that are like params.

    Of subtrees within each other the outer one counts: `mu.2.0` is the leaf `2.0` of `mu`, and not `0` of `mu.2`.
    """
    places = {place: leaf for place, leaf in tree.leaves_with_path(state) if leaf is not None}
    leaves = {path: leaf for path, leaf in tree.leaves_with_path(params) if leaf is not None}
    ends = [(place, path) for place in places for path in leaves if place == path or place.endswith(f".{path}")]
    found: dict[str, str] = {}
    for start in sorted({place.removesuffix(path) for place, path in ends}, key=lambda start: (len(start), start)):
        inside = {place: place.removeprefix(start) for place in places if place.startswith(start)}
        if all(path in leaves and _alike(places[place], leaves[path]) for place, path in inside.items()):
            found |= {place: path for place, path in inside.items() if place not in found}
    return found


def _alike(leaf: Tensor, param: Tensor) -> bool:
    return leaf.shape == param.shape and (leaf.is_floating_point() or leaf.is_complex())


def _without(values: tree.Tree, path: str) -> tree.Tree:
    pairs, structure = tree.leaves_with_path(values), tree.flatten(values)[1]
    return tree.unflatten([None if place == path else leaf for place, leaf in pairs], structure)


def _presence(leaf: Any) -> str:
    return "None" if leaf is None else "not None"


@law(remedy='Declared(coupling="treewise") or (order_matters=True) if an absent leaf may change what others get')
def absent_parameter(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """A parameter of None is as if it were not there: its update is None, and the others' are the same."""
    params, gradients = generic_case(params, gradients)
    paths = [path for path, _ in tree.leaves_with_path(params)]
    if len(paths) < 2:
        return
    path = paths[-1]
    kept = _without(params, path)
    updates, state = tx.update(_without(gradients[0], path), tx.init(kept), kept, **extra)
    require(
        dict(tree.leaves_with_path(updates))[path] is None,
        f"the update of the absent leaf {path!r} is not None; `tree.map_rule` keeps None.",
    )
    own = [place for place, owner in _accumulators(tx.init(params), params).items() if owner == path]
    for place, leaf in tree.leaves_with_path(state):
        require(
            leaf is None or place not in own,
            f"the state at {place!r} is kept for an absent leaf; `tree.zeros_like` makes none.",
        )
    if coupling_of(tx, declared) != "treewise" and not declared.order_matters:
        full = tx.update(gradients[0], tx.init(params), params, **extra)[0]
        require_identical(updates, _without(full, path), f"without {path!r}, updates")


@law(lambda tx, declared: not declared.fixed_structure, remedy="Declared(fixed_structure=True)")
def empty_trees(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """A tree without leaves is updated to itself, and a leaf without numbers too."""
    trees: tuple[tree.Tree, ...] = ({}, [], (), {"a": {}}, {"a": None}, {"a": torch.zeros(0)}, [torch.zeros((2, 0))])
    for empty in trees:
        state = tx.init(empty)
        for step in range(2):
            updates, state = tx.update(empty, state, empty, **extra)
            require_identical(updates, empty, f"{empty!r}, step {step}: updates")
            require(all_finite(state), f"{empty!r}, step {step}: the state is not finite.")


@law()
def params_or_none(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """An update without params gives what it gives with them, or says that it needs them."""
    state = tx.init(params)
    expected = tx.update(gradients[0], state, params, **extra)
    try:
        found = tx.update(gradients[0], state, None, **extra)
    except (TypeError, ValueError) as error:
        require("param" in str(error), f"without params: {type(error).__name__}: {error}")
        return
    require_identical(found, expected, "without params, updates and state")


@law(lambda tx, declared: declared.complex, remedy="Declared(complex=False)")
def complex_phase(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """Turning the phase of complex gradients and params turns the updates: a complex number is one number."""
    params, gradients = generic_case(params, gradients, torch.complex128)
    turn = torch.polar(torch.ones((), dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64))
    turned = times(turn, params), [times(turn, grads) for grads in gradients]
    state, other = tx.init(params), tx.init(turned[0])
    for step, grads in enumerate(gradients):
        expected, state = tx.update(grads, state, params, **extra)
        updates, other = tx.update(turned[1][step], other, turned[0], **extra)
        require_close(updates, times(turn, expected), f"step {step}: updates")


def zero_case(params: Any, gradients: Any, dtype: torch.dtype) -> tuple[Any, Any]:
    """The same trees with zeros for all gradients."""
    params = generic(filled(params), 1, dtype)
    return params, [zeros(params) for _ in range(max(2, len(gradients)))]
