"""Wrappers that change the tree: dtypes, absent leaves and extra arguments; complex leaves as pairs; optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import funcopt as fo
from funcopt import tree
from tests.trees import assert_close, assert_identical, draw, run


def needs_grad():
    """Adds an extra argument with the structure of the updates, and scales by one that is a number."""

    def update(updates, state, params=None, *, grad, value, **extra):
        return tree.map(lambda u, g: value * (u + g), updates, grad), state

    return fo.GradientTransformation(lambda params: fo.EmptyState(), update)


# Flatten


def test_an_elementwise_transformation_gives_what_it_gives_without():
    for inner in (fo.adamw(0.1), fo.rmsprop(0.1, momentum=0.8, centered=True)):
        flat, _ = run(fo.flatten(inner), draw(1), steps=3)
        assert_identical(flat, run(inner, draw(1), steps=3)[0])


def test_a_norm_of_a_leaf_becomes_one_of_the_tree():
    flat = fo.flatten(fo.clip_by_block_rms(0.5))
    grads = {"small": torch.full((2,), 0.1), "large": torch.full((2,), 10.0)}
    updates, _ = flat.update(grads, flat.init(grads))
    rms = (2 * 0.1**2 + 2 * 10.0**2) ** 0.5 / 2
    assert_close(updates, tree.map(lambda g: g * 0.5 / rms, grads), rtol=1e-6)


@pytest.mark.parametrize(
    "inner, coupling",
    [
        (fo.adamw(0.1), "elementwise"),
        (fo.clip_by_block_rms(1.0), "treewise"),
        (fo.clip_by_global_norm(1.0), "treewise"),
    ],
    ids=repr,
)
def test_coupling(inner, coupling):
    assert fo.flatten(inner).coupling == coupling


def test_the_order_of_keys_does_not_matter_without_params():
    optimizer = fo.flatten(fo.sgd(0.1, momentum=0.9))
    state = optimizer.init({"a": torch.zeros(1), "b": torch.zeros(2)})
    _, state = optimizer.update({"b": torch.ones(2), "a": torch.zeros(1)}, state)
    updates, _ = optimizer.update({"a": torch.zeros(1), "b": torch.zeros(2)}, state)
    assert_close(updates, {"a": torch.zeros(1), "b": torch.full((2,), -0.09)}, rtol=1e-6)


MIXED = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def test_each_leaf_gets_its_dtype_back():
    params = {str(dtype): torch.ones(2, dtype=dtype) for dtype in MIXED}
    optimizer = fo.flatten(fo.adam(0.1))
    updates, state = optimizer.update(params, optimizer.init(params), params)
    assert [updates[str(dtype)].dtype for dtype in MIXED] == list(MIXED)
    assert state[0].mu.dtype == torch.float64
    theirs = optax.flatten(optax.sgd(0.1))
    mixed = {"half": jnp.ones(2, jnp.bfloat16), "single": jnp.ones(2, jnp.float32)}
    updates, _ = theirs.update(mixed, theirs.init(mixed))
    assert updates["half"].dtype == jnp.float32, "optax casts it back now: strike the difference"


def test_complex_and_real_leaves_together():
    params = {"complex": draw(1, torch.complex128), "real": draw(2)}
    grads = {"complex": draw(3, torch.complex128), "real": draw(4)}
    for inner in (fo.adam(0.1), fo.clip_by_global_norm(1.0)):
        optimizer = fo.flatten(inner)
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        assert_close(updates, inner.update(grads, inner.init(params), params)[0], rtol=1e-13)


@pytest.mark.parametrize(
    "inner", [fo.adamw(0.1), fo.chain(fo.clip_by_global_norm(1.0), fo.sgd(0.1, momentum=0.9))], ids=repr
)
def test_a_leaf_without_a_gradient_is_skipped_within_the_vector(inner):
    """Over three steps, of which the second lacks two leaves: as without flattening, where their state is kept."""
    optimizer, params = fo.flatten(inner), draw(1)
    state, expected_state = optimizer.init(params), inner.init(params)
    for step in range(3):
        grads = draw(2 + step)
        if step == 1:
            grads["a"]["weight"] = grads["b"][0] = None
        updates, state = optimizer.update(grads, state, params)
        expected, expected_state = inner.update(grads, expected_state, params)
        assert_close(updates, expected, rtol=1e-13)
    vectors = [leaf for leaf in tree.leaves(state) if leaf.ndim]
    assert vectors
    assert all(leaf.shape == tree.ravel(params)[0].shape for leaf in vectors)


def test_extra_arguments_like_params_are_flattened():
    optimizer = fo.flatten(needs_grad())
    params, extra = draw(1), draw(2)
    updates, _ = optimizer.update(params, optimizer.init(params), params, grad=extra, value=torch.tensor(2.0))
    assert_close(updates, tree.map(lambda u, g: 2 * (u + g), params, extra), rtol=1e-15)
    extra["a"]["bias"] = None
    updates, _ = optimizer.update(params, optimizer.init(params), grad=extra, value=torch.tensor(2.0))
    assert_close(updates["a"]["bias"], 2 * params["a"]["bias"], rtol=1e-15)


@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_params_of_one_tensor(shape):
    seen = {}

    def update(updates, state, params=None, **extra):
        seen.update(extra)
        return updates, state

    optimizer = fo.flatten(fo.GradientTransformation(lambda params: fo.EmptyState(), update))
    params = torch.ones(shape)
    extra = {
        "value": torch.tensor(2.0),
        "value_fn": fo.global_norm,
        "rate": 0.5,
        "none": None,
        "grad": torch.ones(2, 3),
    }
    updates, _ = optimizer.update(params, optimizer.init(params), params, **extra)
    assert updates.shape == shape
    assert seen["value"] is extra["value"]
    assert (seen["value_fn"], seen["rate"], seen["none"]) == (fo.global_norm, 0.5, None)
    assert seen["grad"].shape == ((6,) if shape else (2, 3))


def test_ravel_and_back():
    values = {"b": [torch.tensor(5.0), None], "a": torch.tensor([[1, 2], [3, 4]], dtype=torch.bfloat16)}
    vector, unravel = tree.ravel(values)
    assert vector.tolist() == [1, 2, 3, 4, 5]
    assert vector.dtype == torch.float32
    assert_identical(unravel(vector), values)
    unravel(vector)["b"][0].fill_(7)
    vector.fill_(7)
    assert values["b"][0].item() == 5
    vector, unravel = tree.ravel({"a": None})
    assert vector.shape == (0,)
    assert unravel(vector) == {"a": None}


# Real and imaginary parts


def complex_tree(seed):
    return {"complex": draw(seed, torch.complex128), "real": draw(seed + 50)}


def to_jax(values):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf.numpy()), values, is_leaf=lambda x: isinstance(x, torch.Tensor))


def test_optax_splits_alike():
    def make(library, split):
        return split(library.chain(library.clip(0.7), library.adam(0.1, 0.8, 0.95, 1e-3)))

    ours, theirs = make(fo, fo.split_real_and_imaginary), make(optax, optax.contrib.split_real_and_imaginary)
    params = complex_tree(1)
    with jax.enable_x64(True):
        state, reference = ours.init(params), theirs.init(to_jax(params))
        for step in range(3):
            grads = complex_tree(10 + step)
            updates, state = ours.update(grads, state, params)
            expected, reference = theirs.update(to_jax(grads), reference)
            expected = tree.map(lambda leaf, other: torch.from_numpy(np.array(other)), updates, expected)
            assert_close(updates, expected, rtol=1e-12)


def test_the_inner_state_is_real():
    optimizer, params = fo.split_real_and_imaginary(fo.adam(0.1)), complex_tree(1)
    state = optimizer.init(params)
    assert not any(leaf.is_complex() for leaf in tree.leaves(state))
    assert isinstance(state.inner_state[0].mu["complex"]["c"], fo.RealAndImaginary)
    assert isinstance(state.inner_state[0].mu["real"]["c"], torch.Tensor)


def test_second_moments_are_of_each_part():
    """As torch.optim.Adam has it: both parts move by the learning rate at the first step."""
    optimizer, params = fo.split_real_and_imaginary(fo.adam(0.1, eps=0.0)), torch.tensor([1 + 1j])
    updates, _ = optimizer.update(torch.tensor([3 - 4j]), optimizer.init(params))
    assert_close(updates, torch.tensor([-0.1 + 0.1j]), rtol=1e-6)


@pytest.mark.parametrize("with_params", [True, False])
def test_real_trees_pass_as_they_are(with_params):
    inner = fo.adam(0.1)
    optimizer, params = fo.split_real_and_imaginary(inner), draw(1)
    grads = draw(2)
    grads["a"]["bias"] = None
    args = (params,) if with_params else ()
    updates, state = optimizer.update(grads, optimizer.init(params), *args)
    assert_identical((updates, state.inner_state), inner.update(grads, inner.init(params), *args))


def test_a_complex_leaf_without_a_gradient():
    optimizer, params = fo.split_real_and_imaginary(fo.adam(0.1)), complex_tree(1)
    _, state = optimizer.update(complex_tree(2), optimizer.init(params), params)
    grads = complex_tree(3)
    grads["complex"]["c"] = None
    updates, new_state = optimizer.update(grads, state, params)
    assert updates["complex"]["c"] is None
    assert updates["complex"]["a"]["bias"] is not None
    assert_identical(new_state.inner_state[0].mu["complex"]["c"], state.inner_state[0].mu["complex"]["c"])


def test_extra_arguments_reach_the_inner_transformation():
    optimizer, params = fo.split_real_and_imaginary(needs_grad()), complex_tree(1)
    extra = {"grad": complex_tree(2), "value": torch.tensor(2.0, dtype=torch.float64)}
    updates, _ = optimizer.update(params, optimizer.init(params), params, **extra)
    assert_close(updates, tree.map(lambda u, g: 2 * (u + g), params, extra["grad"]), rtol=1e-15)


@pytest.mark.parametrize("inner", [fo.adamw(0.1), fo.clip_by_block_rms(1.0), fo.clip_by_global_norm(1.0)], ids=repr)
def test_splitting_keeps_the_coupling(inner):
    assert fo.split_real_and_imaginary(inner).coupling == inner.coupling


@pytest.mark.parametrize("wrap", [fo.flatten, fo.split_real_and_imaginary])
def test_what_is_no_transformation_is_refused(wrap):
    with pytest.raises(TypeError, match=f"{wrap.__name__}: inner must be a GradientTransformation, got inner="):
        wrap(fo.adam)


@pytest.mark.parametrize("wrap", [fo.flatten, fo.split_real_and_imaginary, fo.with_metrics])
def test_it_prints_as_its_call(wrap):
    assert repr(wrap(fo.sgd(0.1))) == f"{wrap.__name__}(sgd(0.1))"
