"""Laws of symmetry: what a change of the gradients by a sign, a factor or a rotation does; bounds and fixed points."""

from typing import Any

import torch
from torch import Tensor

from funcopt import tree
from funcopt.testing.comparison import at, require, require_close, require_identical
from funcopt.testing.law import law
from funcopt.testing.structure import zero_case
from funcopt.testing.trajectory import (
    all_finite,
    drawn_case,
    generic,
    generic_case,
    plus,
    times,
    updates_at,
    zeros,
)
from funcopt.transform import apply_updates

_SLACK = 1 + 1e-6


@law(remedy='Declared(zero_fixpoint="at zero") for weight decay, or None')
def zero_gradients(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """Zero gradients give zero updates where declared, and no NaN in any precision."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        some, nothing = zero_case(params, gradients, dtype)
        for start in (some, zeros(some)):
            where = f"{dtype}, {'zero' if start is not some else 'some'} params"
            still = declared.zero_fixpoint == "everywhere" or (declared.zero_fixpoint and start is not some)
            state = tx.init(start)
            for step, grads in enumerate(nothing):
                updates, state = tx.update(grads, state, start, **extra)
                require(all_finite((updates, state)), f"{where}, step {step}: not finite.")
                if still:
                    require_identical(updates, grads, f"{where}, step {step}: updates")


@law(lambda tx, declared: declared.odd, remedy="Declared(odd=False)")
def sign_flip(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """Negated gradients and params give negated updates."""
    expected = updates_at(tx, params, gradients, extra)
    found = updates_at(tx, times(-1, params), [times(-1, grads) for grads in gradients], extra)
    for step, (updates, wanted) in enumerate(zip(found, expected)):
        require_identical(updates, times(-1, wanted), f"step {step}: updates")


@law(lambda tx, declared: declared.descends)
def descent(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """The first update points downhill."""
    for start, (grads, *_) in (generic_case(params, gradients), drawn_case(params, gradients)):
        (updates,) = updates_at(tx, zeros(start), [grads], extra)
        slope = sum((_inner(u, g) for u, g in zip(tree.leaves(updates), tree.leaves(grads))), torch.zeros(()))
        require(slope <= 0, f"⟨update, gradient⟩ = {float(slope):.6g} > 0.")
        moves = any(bool(leaf.any()) for leaf in tree.leaves(updates))
        require(moves or not any(bool(leaf.any()) for leaf in tree.leaves(grads)), "nothing moves.")


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return torch.real(a.conj() * b).sum()


@law(lambda tx, declared: declared.scale is not None)
def gradient_scale(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """Gradients times a constant give updates times it (equivariant), or the same ones (invariant)."""
    for start, path in (generic_case(params, gradients), drawn_case(params, gradients)):
        expected = updates_at(tx, start, path, extra)
        for factor in (2.0**-12, 2.0**12):
            found = updates_at(tx, start, [times(factor, grads) for grads in path], extra)
            for step, (updates, wanted) in enumerate(zip(found, expected)):
                wanted = times(factor, wanted) if declared.scale == "equivariant" else wanted
                require_close(updates, wanted, f"gradients times {factor:g}, step {step}: updates")


@law(lambda tx, declared: declared.linear)
def linearity(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """The updates of a sum of gradients are the sum of their updates."""
    params, first = generic_case(params, gradients)
    second = [generic(grads, 50 + step) for step, grads in enumerate(first)]
    joint = [plus(times(3.0, a), b, -0.5) for a, b in zip(first, second)]
    runs = zip(*(updates_at(tx, zeros(params), each, extra) for each in (first, second, joint)))
    for step, (one, two, both) in enumerate(runs):
        require_close(both, plus(times(3.0, one), two, -0.5), f"step {step}: updates", factor=10)


@law(lambda tx, declared: declared.orthogonal)
def orthogonal_equivariance(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """Matrices of gradients and params turned from the left and right give updates turned alike."""
    params, gradients = generic_case(params, gradients)
    expected = updates_at(tx, params, gradients, extra)
    found = updates_at(tx, tree.map(_turned, params), [tree.map(_turned, grads) for grads in gradients], extra)
    for step, (updates, wanted) in enumerate(zip(found, expected)):
        require_close(updates, tree.map(_turned, wanted), f"step {step}: updates", factor=100)


def _turned(leaf: Tensor) -> Tensor:
    if leaf.ndim != 2 or leaf.numel() == 0:
        return leaf
    left, right = (torch.linalg.qr(generic(torch.empty(size, size), 60 + size, leaf.dtype))[0] for size in leaf.shape)
    turned: Tensor = left @ leaf @ right
    return turned


@law(lambda tx, declared: declared.bounded is not None)
def bounded(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """No number of an update is larger than the bound declared."""
    for updates in _extreme_updates(tx, params, gradients, extra):
        for path, leaf in tree.leaves_with_path(updates):
            largest = float(leaf.abs().max()) if leaf.numel() else 0.0
            told = f"{at('|update|', path)} is {largest!r} > {declared.bounded!r}."
            require(largest <= declared.bounded * _SLACK, told)


@law(lambda tx, declared: declared.norm_bounded is not None)
def norm_bounded(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """The norm of all updates together is not larger than the bound declared."""
    for updates in _extreme_updates(tx, params, gradients, extra):
        norm = float(tree.global_norm(updates))
        require(norm <= declared.norm_bounded * _SLACK, f"the norm is {norm!r} > {declared.norm_bounded!r}.")


@law(lambda tx, declared: declared.magnitude is not None)
def magnitude(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """Every number of an update has the magnitude declared, or is zero where the gradient is."""
    params, gradients = generic_case(params, gradients)
    for step, updates in enumerate(updates_at(tx, params, gradients, extra)):
        wanted = tree.map(lambda leaf: torch.full_like(leaf, declared.magnitude), updates)
        require_close(tree.map(torch.abs, updates), wanted, f"step {step}: |update|")
    _, nothing = zero_case(params, gradients, torch.float64)
    for updates in updates_at(tx, params, nothing, extra):
        require_identical(updates, nothing[0], "with zero gradients, updates")


def _extreme_updates(tx: Any, params: Any, gradients: Any, extra: Any) -> list[Any]:
    """Updates for gradients of very different sizes, in an order that makes running averages lag behind."""
    params, ones = generic_case(params, gradients, steps=6)
    sizes = (1e-3, 1e3, 0.0, 1.0, 1.0, 1e6)
    return updates_at(tx, params, [times(size, grads) for size, grads in zip(sizes, ones)], extra)


@law(lambda tx, declared: declared.direction is not None)
def direction(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """Updates are multiples of the gradients, and not negative ones."""
    params, ones = generic_case(params, gradients, steps=3)
    gradients = [times(size, grads) for size, grads in zip((1e-3, 1.0, 1e3), ones)]
    for step, (grads, updates) in enumerate(zip(gradients, updates_at(tx, params, gradients, extra))):
        pairs = list(zip(tree.leaves(updates), tree.leaves(grads)))
        joint = _ratio(pairs)
        factors = [joint if declared.direction == "tree" else _ratio([pair]) for pair in pairs]
        require(all(factor >= 0 for factor in factors), f"step {step}: the update points against the gradient.")
        expected = dict(enumerate(factor * g for factor, (_, g) in zip(factors, pairs)))
        require_close(dict(enumerate(u for u, _ in pairs)), expected, f"step {step}: updates, by leaf,")


def _ratio(pairs: list[tuple[Tensor, Tensor]]) -> float:
    over = sum(float((u * g).sum()) for u, g in pairs)
    under = sum(float((g * g).sum()) for _, g in pairs)
    return over / under if under else 1.0


@law(lambda tx, declared: declared.idempotent)
def idempotence(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """Applied to its own updates, it changes nothing."""
    params, ones = generic_case(params, gradients, steps=3)
    for size, grads in zip((1e-3, 1.0, 1e3), ones):
        once, _ = tx.update(times(size, grads), tx.init(params), params, **extra)
        twice, _ = tx.update(once, tx.init(params), params, **extra)
        require_close(twice, once, f"gradients of size {size:g}, the second time: updates")
        require(all_finite(apply_updates(params, twice)), "params are not finite.")


@law(lambda tx, declared: bool(declared.absorbs))
def absorption(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """A number in a gradient that is declared to be absorbed leaves updates and states finite."""
    params, gradients = generic_case(params, gradients, steps=3)
    for value in declared.absorbs:
        for everywhere in (True, False):
            spoilt = tree.map(lambda leaf, value=value, whole=everywhere: _spoilt(leaf, value, whole), gradients[1])
            state = tx.init(params)
            for step, grads in enumerate((gradients[0], spoilt, gradients[2])):
                updates, state = tx.update(grads, state, params, **extra)
                require(all_finite((updates, state)), f"{value} in the gradients of step 1, step {step}: not finite.")


def _spoilt(leaf: Tensor, value: float, whole: bool) -> Tensor:
    spoilt = leaf.clone()
    spoilt.view(-1)[slice(None) if whole else slice(0, 1)] = value
    return spoilt
