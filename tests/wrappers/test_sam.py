"""Sharpness-aware minimisation: the two ways to run it, views, and what it refuses."""

import pytest
import torch
from torch.func import grad

import funcopt as fo
from funcopt import tree
from tests.trees import assert_close, assert_identical, draw


def loss(params):
    return sum((leaf**4 / 4 - leaf).sum() for leaf in tree.leaves(params))


ASCENT = fo.chain(fo.normalize(), fo.sgd(0.05))


def transparent(optimizer, params, steps):
    state = optimizer.init(params)
    for _ in range(steps):
        updates, state = optimizer.update(grad(loss)(params), state, params)
        params = fo.apply_updates(params, updates)
    return params, state


def test_the_first_call_goes_up_and_the_second_makes_the_step():
    params = {"w": torch.tensor([0.0, 2.0], dtype=torch.float64)}
    gradient = grad(loss)(params)["w"]
    up, state = transparent(fo.sam(fo.sgd(0.1), ASCENT), params, 1)
    assert_close(up["w"], params["w"] + 0.05 * gradient / gradient.norm(), rtol=1e-15)
    down, _ = transparent(fo.sam(fo.sgd(0.1), ASCENT), params, 2)
    assert_close(down["w"], params["w"] - 0.1 * grad(loss)(up)["w"], rtol=1e-15)
    assert_identical(fo.eval_params(state, up), params)


@pytest.mark.parametrize("period", [1, 2, 4])
@pytest.mark.parametrize("reset_state", [False, True])
def test_opaque_is_transparent_in_one_call(period, reset_state):
    remembers = reset_state or period == 1  # else the two are to differ: one resets within a step, one does not
    ascent = fo.chain(fo.normalize(), fo.sgd(0.05, momentum=0.7 if remembers else 0.0))
    optimizer = fo.adam(0.1)
    expected, _ = transparent(fo.sam(optimizer, ascent, period, reset_state), draw(1), 3 * period)
    opaque = fo.sam(optimizer, ascent, period, reset_state, opaque_mode=True)
    params, state = draw(1), opaque.init(draw(1))
    for _ in range(3):
        updates, state = opaque.update(grad(loss)(params), state, params, grad_fn=lambda point, i: grad(loss)(point))
        params = fo.apply_updates(params, updates)
    assert_close(params, expected, rtol=1e-13)
    assert_identical(fo.eval_params(state, params), params)


def test_a_leaf_without_a_gradient_at_the_first_call_is_where_it_was():
    optimizer = fo.sam(fo.sgd(0.1), ASCENT)
    params, state = transparent(optimizer, {"w": torch.ones(2), "b": torch.ones(1)}, 4)
    before = params["b"]
    for gradient in (None, torch.ones(1)):
        grads = {**grad(loss)(params), "b": gradient}
        updates, state = optimizer.update(grads, state, params)
        params = fo.apply_updates(params, updates)
    assert_close(params["b"], before - 0.1, rtol=1e-6)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: fo.sam(fo.adam, ASCENT), TypeError, "sam: optimizer must be a GradientTransformation"),
        (lambda: fo.sam(fo.sgd(0.1), ASCENT, 0), ValueError, "sam: sync_period must be at least 1"),
        (
            lambda: fo.sam(fo.sgd(0.1), ASCENT, opaque_mode=True).update(
                torch.ones(1), fo.sam(fo.sgd(0.1), ASCENT, opaque_mode=True).init(torch.ones(1)), torch.ones(1)
            ),
            TypeError,
            "sam: update needs the extra argument 'grad_fn'",
        ),
        (
            lambda: fo.sam(fo.sgd(0.1), ASCENT).update(torch.ones(1), fo.sam(fo.sgd(0.1), ASCENT).init(torch.ones(1))),
            ValueError,
            "sam: update needs the parameters",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
