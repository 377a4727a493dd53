"""reduce_on_plateau: when the scale falls, against optax, torch and by hand; values that are NaN or negative."""

import math

import jax
import jax.numpy as jnp
import optax
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.func import grad_and_value, vmap

import funcopt as fo
from tests.trees import assert_identical

GRADS = {"w": torch.ones(1)}


def scales(values, **arguments):
    """The scale of each step, read from the updates of unit gradients."""
    transformation = fo.reduce_on_plateau(**arguments)
    state, found = transformation.init(GRADS), []
    for value in values:
        updates, state = transformation.update(GRADS, state, value=value)
        assert state.scale == updates["w"]
        found.append(updates["w"].item())
    return found


def optax_scales(values, **arguments):
    transformation = optax.contrib.reduce_on_plateau(**arguments)
    state, found = transformation.init(jnp.ones(1)), []
    with jax.disable_jit():
        for value in values:
            updates, state = transformation.update(jnp.ones(1), state, value=value)
            found.append(float(updates[0]))
    return found


BY_HAND = {
    "the new scale applies at once, and a reduction is followed by a cooldown": (
        {"factor": 0.5, "patience": 2, "cooldown": 1, "atol": 1e-3, "rtol": 0.0},
        [5, 4, 4, 4, 4, 4, 4, 4],
        [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25],
    ),
    "no improvement by less than rtol": (
        {"factor": 0.5, "patience": 1, "rtol": 0.1},
        [10, 9.5, 8.9, 8.1, 8.05],
        [1, 0.5, 0.5, 0.25, 0.125],
    ),
    "means of two": (
        {"factor": 0.5, "patience": 1, "accumulation_size": 2},
        [4, 2, 5, 1, 1, 1, 9, 9],
        [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25],
    ),
    "not below min_scale": ({"factor": 0.5, "patience": 1, "min_scale": 0.3}, [1] * 5, [1, 0.5, 0.3, 0.3, 0.3]),
    "a first value that is infinite": ({"factor": 0.5, "patience": 2}, [math.inf, 3, 3, 3], [1, 1, 1, 0.5]),
    "NaN is no improvement": (
        {"factor": 0.5, "patience": 2},
        [math.nan, math.nan, 3, math.nan, 2, 2, math.nan],
        [1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.25],
    ),
    "nor is a mean with a NaN": (
        {"factor": 0.5, "patience": 1, "accumulation_size": 2},
        [3, 3, 1, math.nan, 1, 1],
        [1, 1, 1, 0.5, 0.5, 0.5],
    ),
    "a negative value that stays": ({"factor": 0.5, "patience": 2, "rtol": 0.1}, [-10, -10, -10], [1, 1, 0.5]),
    "a negative value that falls": (
        {"factor": 0.5, "patience": 1, "rtol": 0.1},
        [-10, -10.5, -11.5, -13],
        [1, 0.5, 0.5, 0.5],
    ),
    "rtol of 1": ({"factor": 0.5, "patience": 1, "rtol": 1.0}, [1, 0.5, -1], [1, 0.5, 0.5]),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name):
    arguments, values, expected = BY_HAND[name]
    assert scales(values, **arguments) == pytest.approx(expected)


KNOWN_DIFFERENCES = {
    "a negative value that stays": [1, 1, 1],
    "a negative value that falls": [1, 1, 1, 1],
    "rtol of 1": [0.5, 0.25, 0.125],
}
"""The cases in which optax gives something else: it takes what is up to rtol worse than a negative value for better."""


@pytest.mark.parametrize("name", BY_HAND)
def test_as_optax_but_for_known_differences(name):
    arguments, values, expected = BY_HAND[name]
    assert optax_scales(values, **arguments) == pytest.approx(KNOWN_DIFFERENCES.get(name, expected))


def test_with_a_patience_of_zero_optax_reduces_when_the_loss_falls():
    assert optax_scales([3, 2, 1], factor=0.5, patience=0) == [0.5, 0.25, 0.125]
    with pytest.raises(ValueError, match="patience must be at least 1"):
        fo.reduce_on_plateau(patience=0)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    values=st.lists(st.floats(0.5, 4.0, width=32), min_size=1, max_size=25),
    patience=st.integers(1, 3),
    cooldown=st.integers(0, 2),
    rtol=st.sampled_from([1e-4, 0.2]),
)
def test_as_torch_with_one_more_patience(values, patience, cooldown, rtol):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=patience - 1, threshold=rtol, cooldown=cooldown, min_lr=0.1, eps=0.0
    )
    expected = []
    for value in values:
        theirs.step(value)
        expected.append(optimizer.param_groups[0]["lr"])
    found = scales(values, factor=0.5, patience=patience, rtol=rtol, cooldown=cooldown, min_scale=0.1)
    assert found == pytest.approx(expected)


def test_the_loss_of_grad_and_value_through_a_chain():
    optimizer = fo.chain(fo.sgd(0.1), fo.reduce_on_plateau(factor=0.5, patience=1))
    params = {"w": torch.tensor([1.0])}
    state = optimizer.init(params)
    grads, value = grad_and_value(lambda params: 0.0 * params["w"].sum() + 2.0)(params)
    for _ in range(3):
        _, state = optimizer.update(grads, state, params, value=value)
    assert state[1].scale.item() == 0.25 and state[1].best_value.item() == 2.0


def test_each_of_many_runs_has_its_own_scale():
    transformation = fo.reduce_on_plateau(factor=0.5, patience=1)
    grads = torch.ones(3, 2)
    state = vmap(transformation.init)(grads)
    update = vmap(lambda g, state, value: transformation.update(g, state, value=value))
    for values in ([1.0, 1.0, 1.0], [1.0, 0.5, 2.0]):
        updates, state = update(grads, state, torch.tensor(values))
    assert updates[:, 0].tolist() == [0.5, 1.0, 0.5]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    """0.9¹⁰ is not rounded to bfloat16 on the way, and a value of any dtype fits."""
    transformation = fo.reduce_on_plateau(factor=0.9, patience=1)
    grads = torch.ones(2, dtype=dtype)
    state = transformation.init(grads)
    before = [leaf.dtype for leaf in state]
    for value in (torch.tensor(1.0, dtype=torch.bfloat16), torch.tensor(1.0, dtype=torch.float64), 1, *[1.0] * 8):
        updates, state = transformation.update(grads, state, value=value)
    assert [leaf.dtype for leaf in state] == before and updates.dtype == dtype
    assert state.scale.item() == pytest.approx(0.9**10, rel=1e-6)


def test_gradients_that_are_absent_or_not_finite():
    transformation = fo.reduce_on_plateau(factor=0.5, patience=1)
    grads = {"a": torch.tensor([torch.inf]), "b": None}
    updates, state = transformation.update(grads, transformation.init(grads), value=1.0)
    assert updates["a"].item() == torch.inf and updates["b"] is None
    assert_identical(state.scale, torch.tensor(1.0))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"factor": 1.0}, r"reduce_on_plateau: factor must lie in \(0, 1\), got factor=1.0"),
        ({"rtol": -0.1}, r"rtol must lie in \[0, 1\]"),
        ({"rtol": 1.5}, r"rtol must lie in \[0, 1\]"),
        ({"atol": -0.1}, r"atol must lie in \[0, inf\)"),
        ({"rtol": 0.0, "atol": 0.0}, "rtol or atol must be positive"),
        ({"cooldown": -1}, "cooldown must be at least 0"),
        ({"accumulation_size": 0}, "accumulation_size must be at least 1"),
        ({"min_scale": 2.0}, "min_scale must lie in"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        fo.reduce_on_plateau(**arguments)


def test_a_value_is_needed_and_has_no_axes():
    optimizer = fo.chain(fo.sgd(0.1), fo.reduce_on_plateau())
    with pytest.raises(TypeError, match="reduce_on_plateau: update needs the extra argument 'value'"):
        optimizer.update(GRADS, optimizer.init(GRADS), GRADS)
    with pytest.raises(ValueError, match=r"value must be a number or a 0-d tensor, got shape \(1,\)"):
        optimizer.update(GRADS, optimizer.init(GRADS), GRADS, value=torch.ones(1))
