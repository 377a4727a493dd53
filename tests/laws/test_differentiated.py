"""Derivatives through two steps: right against finite differences, forward and reverse, and finite at zero."""

import pytest
import torch
from torch.func import grad, jvp

import funcopt as fo
from funcopt import tree
from tests.catalogue import CASES, case_id
from tests.trees import all_finite, draw, finite_difference, weighted_sum

SMOOTH = [(entry, case) for entry, case in CASES if not any(isinstance(v, torch.dtype) for v in case.values())]
"""All cases but those that store in low precision: rounding has no derivative."""
SCALARS = [(entry, case, name) for entry, case in SMOOTH for name in entry.scalar_values(case)]


def trained(transformation, params, first, second):
    """A scalar that depends on all that two steps give: params, updates and state."""
    state = transformation.init(params)
    updates, state = transformation.update(first, state, params)
    params = fo.apply_updates(params, updates)
    updates, state = transformation.update(second, state, params)
    real = [leaf for leaf in tree.leaves(state) if leaf.is_floating_point()]
    return weighted_sum((updates, fo.apply_updates(params, updates), real))


def along(values, direction, distance):
    return tree.map(lambda leaf, step: leaf + distance * step, values, direction)


def check_derivative(fn, at):
    """Reverse and forward mode against a finite difference, for a function of a 0-d tensor."""
    expected = finite_difference(fn, at)
    reverse = grad(fn)(at)
    forward = jvp(fn, (at,), (torch.ones_like(at),))[1]
    scale = max(1.0, abs(expected.item()))
    assert abs(reverse - expected) < 1e-6 * scale, f"reverse {reverse}, finite difference {expected}"
    assert abs(forward - reverse) < 1e-9 * scale, f"forward {forward}, reverse {reverse}"


@pytest.mark.parametrize("entry, case", SMOOTH, ids=case_id)
def test_in_gradients(entry, case):
    transformation, params, direction = entry.make(**case), draw(1), draw(7)

    def fn(distance):
        return trained(transformation, params, along(draw(2), direction, distance), along(draw(3), direction, distance))

    check_derivative(fn, torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize("entry, case", SMOOTH, ids=case_id)
def test_in_params(entry, case):
    transformation, direction = entry.make(**case), draw(7)

    def fn(distance):
        return trained(transformation, along(draw(1), direction, distance), draw(2), draw(3))

    check_derivative(fn, torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize("entry, case, name", SCALARS, ids=case_id)
def test_in_hyperparameters(entry, case, name):
    def fn(value):
        return trained(entry.make(**{**case, name: value}), draw(1), draw(2), draw(3))

    check_derivative(fn, torch.tensor(entry.scalar_values(case)[name], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("entry, case", SMOOTH, ids=case_id)
def test_finite_at_zero_gradients(entry, case, dtype):
    """In gradients, params and all hyperparameters at once, where gradients and then params too are zero."""
    values = {name: torch.tensor(value, dtype=dtype) for name, value in entry.scalar_values(case).items()}
    zeros = tree.map(torch.zeros_like, draw(1, dtype))

    def fn(params, grads, values):
        return trained(entry.make(**{**case, **values}), params, grads, grads)

    for params in (draw(1, dtype), zeros):
        assert all_finite(grad(fn, argnums=(0, 1))(params, zeros, values))
        if values:
            assert all_finite(grad(fn, argnums=2)(params, zeros, values))


def test_learning_to_learn():
    """The usual use: the gradient of a loss after training with respect to the learning rate."""
    target = draw(5)

    def loss(params):
        return sum(((p - t) ** 2).sum() for p, t in zip(tree.leaves(params), tree.leaves(target)))

    def final_loss(learning_rate):
        optimizer = fo.chain(fo.clip_by_global_norm(1.0), fo.adamw(learning_rate))
        params = draw(1)
        state = optimizer.init(params)
        for _ in range(4):
            updates, state = optimizer.update(grad(loss)(params), state, params)
            params = fo.apply_updates(params, updates)
        return loss(params)

    check_derivative(final_loss, torch.tensor(0.1, dtype=torch.float64))
