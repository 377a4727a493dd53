"""Laws of derivatives: through two steps, right, and finite where gradients are zero."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jvp

from funcopt import tree
from funcopt.testing.comparison import at, require
from funcopt.testing.law import law
from funcopt.testing.remake import hyperparameters, remake
from funcopt.testing.structure import zero_case
from funcopt.testing.trajectory import all_finite, follow, generic, plus, smooth_case

_STEPS = 2
_RELATIVE = 1e-6  # what a finite difference of fourth order in float64 reaches


def _differentiable(tx: Any, declared: Any) -> bool:
    return bool(declared.differentiable) and declared.stored_in is None


_REMEDY = "Declared(differentiable=False) if it rounds or stops gradients on purpose"


@law(_differentiable, share=0.25, remedy=_REMEDY)
def derivative_in_gradients(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """Derivatives in the gradients equal finite differences, in forward and in reverse mode."""
    params, gradients = smooth_case(params, gradients, declared.margin, _STEPS)
    direction = generic(params, 7)

    def fn(distance: Tensor) -> Tensor:
        return _outcome(tx, params, [plus(grads, direction, distance) for grads in gradients], extra)

    _require_derivative(fn, 0.0, "in the gradients")


@law(_differentiable, share=0.25, remedy=_REMEDY)
def derivative_in_params(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """Derivatives in the params equal finite differences, in forward and in reverse mode."""
    params, gradients = smooth_case(params, gradients, declared.margin, _STEPS)
    direction = generic(params, 7)

    def fn(distance: Tensor) -> Tensor:
        return _outcome(tx, plus(params, direction, distance), gradients, extra)

    _require_derivative(fn, 0.0, "in the params")


@law(
    lambda tx, declared: _differentiable(tx, declared) and bool(hyperparameters(tx, declared)),
    share=0.25,
    remedy="Declared(hyperparameters=...) with those that are differentiated",
)
def derivative_in_hyperparameters(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """Derivatives in every hyperparameter equal finite differences, in forward and in reverse mode."""
    params, gradients = smooth_case(params, gradients, declared.margin, _STEPS)
    for name, value in hyperparameters(tx, declared).items():

        def fn(value: Tensor, name: str = name) -> Tensor:
            return _outcome(remake(tx, **{name: value}), params, gradients, extra)

        _require_derivative(fn, value, f"in {name}")


@law(_differentiable, share=0.25, remedy=_REMEDY)
def derivatives_finite_at_zero(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """Derivatives in gradients, params and hyperparameters are finite where gradients, and then params, are zero."""
    for dtype in (torch.float32, torch.float64):
        some_params, (zeros, *_) = zero_case(params, gradients, dtype)
        values = {n: torch.tensor(v, dtype=dtype) for n, v in hyperparameters(tx, declared).items()}

        def fn(params: Any, grads: Any, values: Any) -> Tensor:
            return _outcome(remake(tx, **values), params, [grads] * _STEPS, extra)

        for start in (some_params, zeros):
            where = f"{dtype}, zero gradients{' and params' if start is zeros else ''}"
            for name, found in zip(("params", "gradients"), grad(fn, argnums=(0, 1))(start, zeros, values)):
                _require_finite(found, f"{where}: the derivative in the {name}")
            if values:
                _require_finite(grad(fn, argnums=2)(start, zeros, values), f"{where}: the derivative in")


def _require_finite(derivatives: tree.Tree, what: str) -> None:
    for path, leaf in tree.leaves_with_path(derivatives):
        require(all_finite(leaf), f"{at(what, path)} is {leaf}.")


def _outcome(tx: Any, params: Any, gradients: list[Any], extra: Any) -> Tensor:
    """A number that depends on all that the steps give: updates, states and params."""
    generator = torch.Generator().manual_seed(99)
    total = torch.zeros((), dtype=torch.float64)
    for leaf in tree.leaves([tuple(step) for step in follow(tx, params, gradients, extra)]):
        if leaf.is_floating_point():
            weights = torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
            total = total + (weights * leaf).sum()
    return total


def _require_derivative(fn: Callable[[Tensor], Tensor], at: float, what: str) -> None:
    """Reverse mode against a difference of fourth order, whose error is of order step⁴, and forward against reverse."""
    point, step = torch.tensor(at, dtype=torch.float64), 2e-7
    near, far = fn(point + step) - fn(point - step), fn(point + 2 * step) - fn(point - 2 * step)
    difference = float((8 * near - far) / (12 * step))
    reverse = float(grad(fn)(point))
    forward = float(jvp(fn, (point,), (torch.ones_like(point),))[1])
    scale = max(1.0, abs(difference), abs(float(fn(point))))
    require(
        abs(reverse - difference) <= _RELATIVE * scale,
        f"the derivative {what}: {reverse:.9g} in reverse mode, {difference:.9g} by finite differences.",
    )
    require(
        abs(forward - reverse) <= 1e-9 * scale,
        f"the derivative {what}: {forward:.12g} in forward mode, {reverse:.12g} in reverse mode.",
    )
