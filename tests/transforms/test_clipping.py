"""Clipping: bounds, direction, units of a layout, per-example sums against optax and against a loop."""

import jax
import numpy as np
import optax
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.func import grad, vmap

import funcopt as fo
from funcopt import tree
from tests.trees import assert_close, draw


def to_jax(values):
    return tree.map(lambda leaf: jax.numpy.asarray(leaf.numpy()), values)


def clipped(transformation, updates, params=None):
    return transformation.update(updates, transformation.init(updates), params)[0]


@settings(deadline=None, max_examples=50)
@given(scale=st.floats(1e-3, 1e3), bound=st.floats(1e-3, 1e3))
def test_global_norm_bounds_and_keeps_the_direction(scale, bound):
    updates = tree.map(lambda leaf: scale * leaf, draw(1))
    result = clipped(fo.clip_by_global_norm(bound), updates)
    norm, new_norm = fo.global_norm(updates), fo.global_norm(result)
    assert new_norm <= bound * (1 + 1e-12)
    assert_close(
        tree.map(lambda leaf: leaf * norm, result), tree.map(lambda leaf: leaf * new_norm, updates), rtol=1e-12
    )
    if norm < bound:
        assert_close(result, updates, rtol=0)


def test_global_norm_of_nan_and_infinity_is_not_hidden():
    for value in (float("nan"), float("inf")):
        assert clipped(fo.clip_by_global_norm(1.0), {"w": torch.tensor([1.0, value])})["w"].isnan().any()


def test_clip_keeps_nan():
    result = clipped(fo.clip(1.0), {"w": torch.tensor([float("nan"), float("-inf"), 3.0, 0.5])})["w"]
    assert result[0].isnan()
    assert result[1:].tolist() == [-1, 1, 0.5]


def test_block_rms_of_each_leaf():
    result = clipped(fo.clip_by_block_rms(2.0), {"a": torch.full((4,), 8.0), "b": torch.full((4,), 1.0)})
    assert result["a"].tolist() == [2.0] * 4
    assert result["b"].tolist() == [1.0] * 4


@pytest.mark.parametrize(
    "shape, norms", [((4,), (1,)), ((3, 4), (3, 1)), ((2, 3, 4), (2, 1, 1)), ((2, 3, 3, 3), (2, 1, 1, 1)), ((), ())]
)
def test_units_of_torch_weights_are_rows(shape, norms):
    x = torch.randn(shape, dtype=torch.float64)
    dims = tuple(range(1, x.ndim)) if x.ndim > 1 else tuple(range(x.ndim))
    expected = x.abs() if x.ndim == 0 else torch.linalg.vector_norm(x, dim=dims, keepdim=True)
    assert expected.shape == norms
    assert torch.allclose(fo.unitwise_norm(x), expected.expand(shape))


@pytest.mark.parametrize("shape", [(), (4,), (1, 4), (3, 4), (2, 3, 4), (2, 3, 4, 2), (2, 2, 3, 4, 2)])
def test_units_of_jax_weights_as_optax(shape):
    x = torch.randn(shape)
    expected = optax.transforms.unitwise_norm(jax.numpy.asarray(x.numpy()))
    np.testing.assert_allclose(fo.unitwise_norm(x, layout="jax").numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, (0, 1)])
def test_units_over_a_given_axis_as_optax(axis):
    params, grads = {"w": torch.randn(3, 4)}, {"w": torch.randn(3, 4)}
    theirs = optax.adaptive_grad_clip(0.1, axis=axis)
    expected, _ = theirs.update(to_jax(grads), theirs.init(to_jax(params)), to_jax(params))
    result = clipped(fo.adaptive_grad_clip(0.1, axis=axis), grads, params)
    np.testing.assert_allclose(result["w"].numpy(), expected["w"], rtol=1e-5)


def test_unitwise_clip_as_optax():
    g, bound = torch.rand(5), torch.rand(5)
    expected = optax.transforms.unitwise_clip(*(jax.numpy.asarray(x.numpy()) for x in (g, bound, g)))
    np.testing.assert_allclose(fo.unitwise_clip(g, bound, g).numpy(), expected, rtol=1e-6)


def test_adaptive_clip_bounds_each_unit_by_its_weights():
    params, grads = {"w": torch.randn(5, 7)}, {"w": 100 * torch.randn(5, 7)}
    result = clipped(fo.adaptive_grad_clip(0.1), grads, params)
    bound = 0.1 * torch.linalg.vector_norm(params["w"], dim=1)
    assert torch.allclose(torch.linalg.vector_norm(result["w"], dim=1), bound)


def per_example(batch=6, seed=1):
    shapes = {"a": {"weight": (batch, 4, 3)}, "b": [(batch,), (batch, 5)]}
    grads = draw(seed, torch.float32, shapes)
    grads["b"][1][2] = 0.0
    grads["a"]["weight"][2] = 0.0
    grads["b"][0][2] = 0.0  # one example without any gradient
    return grads


def test_per_example_global_norm_as_optax():
    grads = per_example()
    total, clips = fo.per_example_global_norm_clip(grads, 3.0)
    expected, expected_clips = optax.per_example_global_norm_clip(to_jax(grads), 3.0)
    assert_close(total, tree.map(lambda leaf: torch.from_numpy(np.array(leaf)), expected), rtol=1e-5)
    assert clips.item() == int(expected_clips)
    assert 0 < clips.item() < 6


@pytest.mark.parametrize("uniform", [True, False])
def test_per_example_layer_norm_as_optax(uniform):
    grads = per_example()
    total, clips = fo.per_example_layer_norm_clip(grads, 3.0, uniform)
    expected, expected_clips = optax.per_example_layer_norm_clip(to_jax(grads), 3.0, uniform)
    assert_close(total, tree.map(lambda leaf: torch.from_numpy(np.array(leaf)), expected), rtol=1e-5)
    assert [leaf.item() for leaf in tree.leaves(clips)] == [int(leaf) for leaf in jax.tree.leaves(expected_clips)]


def test_per_example_clipping_is_a_loop_over_examples():
    grads = draw(3, torch.float64, {"w": (4, 3), "b": (4,)})
    total, _ = fo.per_example_global_norm_clip(grads, 1.0)
    alone = [clipped(fo.clip_by_global_norm(1.0), tree.map(lambda leaf, i=i: leaf[i], grads)) for i in range(4)]
    assert_close(total, tree.map(lambda *leaves: sum(leaves), *alone), rtol=1e-12)


def test_per_example_clipping_in_its_modes():
    def sums(grads):
        return fo.per_example_global_norm_clip(grads, 1.0)[0]

    grads = {"w": torch.randn(2, 5, 3, dtype=torch.float64)}
    batched = vmap(sums)(grads)
    assert_close(batched["w"][1], sums({"w": grads["w"][1]})["w"], rtol=1e-12)
    compiled = fo.compile(sums, backend="aot_eager")({"w": grads["w"][0]})
    assert_close(compiled, sums({"w": grads["w"][0]}), rtol=1e-12)
    slopes = grad(lambda g: sums(g)["w"].sum())({"w": torch.zeros(2, 3)})
    assert torch.isfinite(slopes["w"]).all()
    layer = grad(lambda g: fo.per_example_layer_norm_clip(g, 1.0)[0]["w"].sum())({"w": torch.zeros(2, 3)})
    assert torch.isfinite(layer["w"]).all()
