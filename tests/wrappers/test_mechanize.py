"""mechanize: against optax at its defaults, what the learned scale does, absent gradients, half precision."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import funcopt as fo
from funcopt import tree
from tests.trees import assert_close, assert_identical, draw

STEPS = 40
SCALES = torch.tensor([1.0, 10.0, 0.1, 3.0], dtype=torch.float64)


def loss(params):
    return (SCALES * (params - 1.0) ** 2).sum()


def train(optimizer, params, steps):
    state = optimizer.init(params)
    for _ in range(steps):
        updates, state = optimizer.update(torch.func.grad(loss)(params), state, params)
        params = fo.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("base", ["sgd", "adam"])
def test_as_optax_at_the_defaults(base):
    """From s = 1e-6 on, over three orders of magnitude. Later on a rounding grows: in 100 steps of sgd to 1e-5."""
    ours, start = fo.mechanize(getattr(fo, base)(1.0)), torch.zeros(4, dtype=torch.float64)
    with jax.enable_x64(True):
        theirs, params = optax.contrib.mechanize(getattr(optax, base)(1.0)), jnp.asarray(start.numpy())
        state, update = theirs.init(params), jax.jit(theirs.update)
        for _ in range(STEPS):
            grads = jnp.asarray(SCALES.numpy()) * 2 * (params - 1.0)
            updates, state = update(grads, state, params)
            params = optax.apply_updates(params, updates)
        found, our_state = train(ours, start, STEPS)
        np.testing.assert_allclose(found, params, rtol=1e-12)
        for name in ("r", "m", "v", "s"):
            np.testing.assert_allclose(getattr(our_state, name), getattr(state, name), rtol=1e-12, err_msg=name)
    assert our_state.s.sum() > 1e-3


@pytest.mark.parametrize("rate", [1e-3, 1.0, 1e3])
def test_the_scale_is_found_whatever_the_rate_of_the_base(rate):
    params, state = train(fo.mechanize(fo.adam(rate)), torch.zeros(4, dtype=torch.float64), 400)
    assert loss(params) < 1e-2 * loss(torch.zeros(4, dtype=torch.float64))
    assert 0.01 < state.s.sum().item() * rate < 1.0


def test_params_are_x0_minus_the_scaled_sum_of_updates():
    """While s stays the same, each step is s w."""
    optimizer = fo.mechanize(fo.sgd(0.1), s_init=0.5, eps=1e-12)
    params = torch.ones(3, dtype=torch.float64)
    grads = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
    updates, state = optimizer.update(grads, optimizer.init(params), params)
    assert_close(updates, -0.1 * grads * state.s.sum(), rtol=1e-14)
    assert_identical(state.x0, params)


def test_training_starts_from_the_params_of_the_first_step():
    """Weights may be loaded after init."""
    optimizer, loaded = fo.mechanize(fo.sgd(0.1)), torch.full((2,), 7.0)
    _, state = optimizer.update(torch.ones(2), optimizer.init(torch.zeros(2)), loaded)
    assert_identical(state.x0, loaded)


def test_a_skipped_leaf_is_not_in_the_sums():
    optimizer = fo.mechanize(fo.adam(1.0), weight_decay=0.1, s_init=0.1)
    both, alone = draw(1), draw(1)
    alone["c"] = None
    states = optimizer.init(both), optimizer.init(alone)
    for step in range(4):
        grads = draw(10 + step)
        grads["c"] = None
        (first, left), (second, right) = (optimizer.update(grads, s, p) for s, p in zip(states, (both, alone)))
        both, alone, states = fo.apply_updates(both, first), fo.apply_updates(alone, second), (left, right)
    assert_identical((left.r, left.m, left.v, left.s), (right.r, right.m, right.v, right.s))
    assert_identical((both["a"], both["b"]), (alone["a"], alone["b"]))
    assert_identical((both["c"], left.x0["c"]), (draw(1)["c"], draw(1)["c"]))


def test_complex_leaves_are_two_reals():
    optimizer = fo.mechanize(fo.sgd(0.1), s_init=0.1)
    whole = draw(1, torch.complex128, {"w": (4,)})
    parts = {"re": whole["w"].real.clone(), "im": whole["w"].imag.clone()}
    states = optimizer.init(whole), optimizer.init(parts)
    for step in range(4):
        grads = draw(10 + step, torch.complex128, {"w": (4,)})
        updates, first = optimizer.update(grads, states[0], whole)
        whole = fo.apply_updates(whole, updates)
        updates, second = optimizer.update({"re": grads["w"].real, "im": grads["w"].imag}, states[1], parts)
        parts, states = fo.apply_updates(parts, updates), (first, second)
    assert_close(whole["w"], torch.complex(parts["re"], parts["im"]), rtol=1e-13)
    assert_close(first.s, second.s, rtol=1e-12)


def test_half_precision_keeps_its_scalars():
    """1 - 1e-6 is 1 in bfloat16, the dtype that optax has them in then."""
    params = {"w": torch.ones(2, dtype=torch.bfloat16), "v": torch.ones(2)}
    optimizer = fo.mechanize(fo.sgd(0.1))
    _, state = optimizer.update(params, optimizer.init(params), params)
    assert {leaf.dtype for leaf in (state.r, state.m, state.v, state.s)} == {torch.float32}
    assert {leaf.dtype for leaf in tree.leaves(state.x0)} == {torch.float32}
    assert state.s.shape == (6,)
    theirs = optax.contrib.mechanize(optax.sgd(0.1)).init(jnp.ones(2, dtype=jnp.bfloat16))
    assert theirs.s.dtype == jnp.bfloat16


def test_extra_arguments_reach_the_base_optimizer():
    base = fo.chain(fo.sgd(0.1), fo.reduce_on_plateau(factor=0.5, patience=1))
    optimizer, params = fo.mechanize(base), torch.ones(2)
    state = optimizer.init(params)
    for _ in range(2):
        _, state = optimizer.update(params, state, params, value=1.0)
    assert state.base_optimizer_state[1].scale.item() == 0.5


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: fo.mechanize(fo.adam), TypeError, "mechanize: base_optimizer must be a GradientTransformation"),
        (lambda: fo.mechanize(fo.sgd(1.0), -0.1), ValueError, "mechanize: weight_decay must lie in"),
        (lambda: fo.mechanize(fo.sgd(1.0), eps=0.0), ValueError, r"mechanize: eps must lie in \(0, inf\), got eps=0"),
        (lambda: fo.mechanize(fo.sgd(1.0), s_init=0.0), ValueError, "mechanize: s_init must lie in"),
        (lambda: fo.mechanize(fo.sgd(1.0), num_betas=0), ValueError, "mechanize: num_betas must be at least 1"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_params_are_needed():
    optimizer = fo.mechanize(fo.sgd(0.1))
    with pytest.raises(ValueError, match="mechanize: update needs the parameters"):
        optimizer.update(torch.ones(1), optimizer.init(torch.ones(1)))
