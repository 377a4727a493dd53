"""Skip functions and `skip_if`: what they say, against optax, and what a skipped step changes."""

import functools

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.func import vmap

import funcopt as fo
from funcopt import tree
from tests.trees import draw

INF, NAN = float("inf"), float("nan")
NUMBERS = st.lists(st.sampled_from([0.0, 1.0, -2.0, 3.5, INF, -INF, NAN]), min_size=1, max_size=6)


def answers(name, values, **bounds):
    """What both libraries say of gradients with these numbers, in two leaves."""
    ours = functools.partial(getattr(fo, name), **bounds)
    theirs = functools.partial(getattr(optax, name), **bounds)
    step = torch.zeros((), dtype=torch.int32)
    skip, info = ours({"a": torch.tensor(values[:3]), "b": torch.tensor(values[3:])}, step, None)
    reference = theirs({"a": jnp.array(values[:3]), "b": jnp.array(values[3:])}, jnp.int32(0), None)
    return (bool(skip), {key: float(value) for key, value in info.items()}), (
        bool(reference[0]),
        {key: float(value) for key, value in reference[1].items()},
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(values=NUMBERS, bound=st.sampled_from([0.0, 1.0, 5.0, 20.0, INF]))
def test_skip_functions_say_what_those_of_optax_say(values, bound):
    for ours, theirs in (
        answers("skip_not_finite", values),
        answers("skip_large_updates", values, max_squared_norm=bound),
    ):
        assert ours[0] == theirs[0]
        assert ours[1].keys() == theirs[1].keys()
        np.testing.assert_allclose(list(ours[1].values()), list(theirs[1].values()), rtol=1e-6)


def test_skip_functions_of_other_leaves():
    step = torch.zeros((), dtype=torch.int32)
    for grads in ({}, {"a": None}, [torch.zeros(0)]):
        assert not fo.skip_not_finite(grads, step, None)[0]
        assert not fo.skip_large_updates(grads, step, None, 1.0)[0]
    half = [torch.full((4,), 300.0, dtype=torch.float16)]  # its square is infinite in half precision
    assert fo.skip_large_updates(half, step, None, 4e5)[1]["norm_squared"] == 360000
    imaginary = [torch.tensor([3.0 + 4.0j])]
    assert fo.skip_large_updates(imaginary, step, None, 25.0)[0]
    assert not fo.skip_large_updates(imaginary, step, None, 25.1)[0]
    with pytest.raises(ValueError, match=r"max_squared_norm must lie in \[0, inf\]"):
        fo.skip_large_updates(half, step, None, -1.0)


def test_a_skipped_step_changes_counts_and_info_only():
    made = fo.skip_if(fo.adam(0.1), functools.partial(fo.skip_large_updates, max_squared_norm=10.0))
    assert made.coupling == "treewise"
    params = torch.ones(2)
    state = made.init(params)
    seen = []
    for size in (1.0, 3.0, 1.0, NAN):
        updates, state = made.update(size * params, state, params)
        seen.append((state.gradient_step.item(), state.total_skipped.item(), state.skip_state["norm_squared"].item()))
        assert bool((updates == 0).all()) == bool(state.skip_state["should_skip"])
    assert seen == [(1, 0, 2.0), (1, 1, 18.0), (2, 1, 2.0), (2, 2, pytest.approx(NAN, nan_ok=True))]
    assert state.inner_state[0].count == 2


def test_each_model_skips_on_its_own():
    made = fo.skip_if(fo.sgd(1.0), fo.skip_not_finite)
    params = torch.ones(3, 2)
    grads = torch.tensor([[1.0, 2.0], [NAN, 1.0], [3.0, 4.0]])
    updates, state = vmap(made.update)(grads, vmap(made.init)(params), params)
    assert updates.tolist() == [[-1.0, -2.0], [0.0, 0.0], [-3.0, -4.0]]
    assert state.total_skipped.tolist() == [0, 1, 0]


def test_a_skip_function_of_ones_own():
    """It gets the number of steps taken and the params; its info may be any tree of tensors."""

    def far(updates, gradient_step, params):
        return (updates.abs() > params.abs() + gradient_step).any(), [updates.abs().max(), {"grads": updates}]

    made = fo.skip_if(fo.sgd(1.0), far)
    params = torch.ones(2)
    state = made.init(params)
    grads = 2 * params
    updates, state = made.update(grads, state, params)
    assert updates.tolist() == [0.0, 0.0]
    updates, state = made.update(params, state, params)
    updates, state = made.update(grads, state, params)
    assert updates.tolist() == [-2.0, -2.0]
    grads.fill_(9.0)
    assert state.skip_state[1]["grads"].tolist() == [2.0, 2.0], "the info shares memory with the gradients"


def test_the_info_keeps_its_dtype():
    made = fo.skip_if(fo.sgd(1.0), functools.partial(fo.skip_large_updates, max_squared_norm=10.0))
    state = made.init(draw(1, torch.float32))
    _, state = made.update(draw(2, torch.float64), state)
    assert state.skip_state["norm_squared"].dtype == torch.float32


def test_errors():
    with pytest.raises(
        TypeError, match="skip_if: should_skip_update_fn must be a function, got should_skip_update_fn=3"
    ):
        fo.skip_if(fo.sgd(0.1), 3)
    with pytest.raises(TypeError, match="skip_if: inner must be a GradientTransformation"):
        fo.skip_if(fo.skip_not_finite, fo.sgd(0.1))
    per_leaf = fo.skip_if(fo.sgd(0.1), lambda updates, step, params: (tree.leaves(updates)[0] > 0, ()))
    with pytest.raises(
        TypeError, match=r"skip_if: <lambda> must return a bool tensor of shape \(\), got .*shape \(2,\)"
    ):
        per_leaf.init(torch.ones(2))
