"""Keys and draws against jax.random: equal bits, and normal numbers to rounding."""

import contextlib

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from funcopt import random

JAX_DTYPES = {
    torch.float16: jnp.float16,
    torch.bfloat16: jnp.bfloat16,
    torch.float32: jnp.float32,
    torch.float64: jnp.float64,
    torch.complex64: jnp.complex64,
    torch.complex128: jnp.complex128,
}
LOW_PRECISION = [torch.float16, torch.bfloat16, torch.float32]
BITS = {8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32, 64: jnp.uint64}

seeds_of_32_bits = st.integers(0, 2**32 - 1)
seeds = st.integers(-(2**63), 2**63 - 1)
shapes = st.sampled_from([(), (0,), (1,), (5,), (2, 3), (3, 0, 2), (2, 1, 4)])  # few: jax compiles for each

few = settings(max_examples=25, deadline=None, derandomize=True)


@contextlib.contextmanager
def jax_x64(enabled):
    with jax.enable_x64(enabled), jax.default_device(jax.devices("cpu")[0]):
        yield


@pytest.fixture(autouse=True)
def jax_on_the_cpu():
    with jax_x64(False):
        yield


def words(keys):
    """The words of jax's keys, as funcopt holds them."""
    return torch.from_numpy(np.asarray(jax.random.key_data(keys)).astype(np.int64))


def tensor(array):
    array = np.asarray(array)
    return torch.from_numpy(array.astype(np.float32 if array.dtype == jnp.bfloat16 else array.dtype))


def assert_equal(actual, expected):
    expected = tensor(expected)
    assert actual.shape == expected.shape
    assert torch.equal(actual.to(expected.dtype), expected)


def deviation(actual, expected):
    expected = tensor(expected)
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    return (actual - expected).abs().max().item() if actual.numel() else 0.0


@few
@given(seeds)
def test_key(seed):
    with jax_x64(True):
        assert torch.equal(random.key(seed), words(jax.random.key(seed)))


@few
@given(seeds_of_32_bits)
def test_key_without_x64(seed):
    assert torch.equal(random.key(seed), words(jax.random.key(seed)))


@few
@given(seeds_of_32_bits, shapes)
def test_split(seed, shape):
    key, expected = random.key(seed), jax.random.key(seed)
    assert torch.equal(random.split(key), words(jax.random.split(expected)))
    assert torch.equal(random.split(key, shape), words(jax.random.split(expected, shape)))


@few
@given(seeds_of_32_bits, st.integers(0, 2**32 - 1))
def test_fold_in(seed, data):
    expected = words(jax.random.fold_in(jax.random.key(seed), data))
    assert torch.equal(random.fold_in(random.key(seed), data), expected)
    assert torch.equal(random.fold_in(random.key(seed), torch.tensor(data)), expected)


def test_fold_in_of_a_negative_tensor():
    expected = words(jax.random.fold_in(jax.random.key(3), jnp.int32(-5)))
    assert torch.equal(random.fold_in(random.key(3), torch.tensor(-5, dtype=torch.int32)), expected)


@few
@given(seeds_of_32_bits, st.lists(st.integers(0, 9), min_size=1, max_size=4))
def test_chain_of_splits(seed, path):
    key, expected = random.key(seed), jax.random.key(seed)
    for index in path:
        key, expected = random.split(key, 10)[index], jax.random.split(expected, 10)[index]
    assert torch.equal(key, words(expected))
    assert_equal(random.uniform(key, (3,)), jax.random.uniform(expected, (3,)))


@few
@given(seeds, shapes, st.sampled_from(list(BITS)))
def test_bits(seed, shape, width):
    with jax_x64(True):
        expected = np.asarray(jax.random.bits(jax.random.key(seed), shape, BITS[width])).astype(np.int64)
    assert_equal(random.bits(random.key(seed), shape, width), expected)


@few
@given(seeds_of_32_bits, shapes, st.sampled_from(LOW_PRECISION))
def test_uniform(seed, shape, dtype):
    expected = jax.random.uniform(jax.random.key(seed), shape, JAX_DTYPES[dtype])
    assert_equal(random.uniform(random.key(seed), shape, dtype), expected)


@few
@given(seeds, shapes)
def test_uniform_in_float64(seed, shape):
    with jax_x64(True):
        expected = jax.random.uniform(jax.random.key(seed), shape)
        assert_equal(random.uniform(random.key(seed), shape, torch.float64), expected)


RANGES = [(-0.3, 0.7), (-100.0, 3.0), (1e-3, 1e3), (5.0, 5.0), (2.0, 1.0)]


@pytest.mark.parametrize("minval, maxval", RANGES)
@pytest.mark.parametrize("dtype", LOW_PRECISION, ids=str)
def test_uniform_in_a_range(dtype, minval, maxval):
    expected = jax.random.uniform(jax.random.key(7), (10_000,), JAX_DTYPES[dtype], minval, maxval)
    assert_equal(random.uniform(random.key(7), (10_000,), dtype, minval, maxval), expected)


@pytest.mark.parametrize("minval, maxval", RANGES)
def test_uniform_in_a_range_in_float64(minval, maxval):
    with jax_x64(True):
        expected = tensor(jax.random.uniform(jax.random.key(7), (10_000,), jnp.float64, minval, maxval))
    actual = random.uniform(random.key(7), (10_000,), torch.float64, minval, maxval)
    torch.testing.assert_close(actual, expected, rtol=0, atol=2.3e-16 * max(abs(minval), abs(maxval), 1))


def test_uniform_with_bounds_that_broadcast():
    minval, maxval = np.float32([[-1], [0]]), np.float32([1, 2, 50])
    expected = jax.random.uniform(jax.random.key(7), (2, 3), minval=minval, maxval=maxval)
    bounds = {"minval": torch.from_numpy(minval), "maxval": torch.from_numpy(maxval)}
    assert_equal(random.uniform(random.key(7), (2, 3), **bounds), expected)


@few
@given(seeds_of_32_bits, shapes, st.sampled_from(LOW_PRECISION))
def test_normal(seed, shape, dtype):
    actual = random.normal(random.key(seed), shape, dtype)
    expected = jax.random.normal(jax.random.key(seed), shape, JAX_DTYPES[dtype])
    if dtype == torch.float32:
        assert deviation(actual, expected) < 2e-6
    else:
        assert_equal(actual, expected)


@few
@given(seeds, shapes)
def test_normal_in_float64(seed, shape):
    with jax_x64(True):
        expected = jax.random.normal(jax.random.key(seed), shape)
    assert deviation(random.normal(random.key(seed), shape, torch.float64), expected) < 1e-12


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 4), (1000,)], ids=str)
def test_complex_normal(dtype, shape):
    with jax_x64(dtype == torch.complex128):
        expected = jax.random.normal(jax.random.key(8), shape, JAX_DTYPES[dtype])
    assert deviation(random.normal(random.key(8), shape, dtype), expected) < (2e-6 if dtype.itemsize == 8 else 1e-12)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_million_normal_numbers(seed):
    """In the tails too. In float64 the far tail of jax is off: it cancels in 1 - x², and torch.erfinv does not."""
    expected = jax.random.normal(jax.random.key(seed), (1_000_000,))
    assert deviation(random.normal(random.key(seed), (1_000_000,)), expected) < 2e-6
    with jax_x64(True):
        expected = jax.random.normal(jax.random.key(seed), (1_000_000,))
    assert deviation(random.normal(random.key(seed), (1_000_000,), torch.float64), expected) < 1e-10


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_all_normal_numbers_in_half_precision(dtype):
    """100,000 draws meet each of the 1024 or 128 values."""
    expected = jax.random.normal(jax.random.key(4), (100_000,), JAX_DTYPES[dtype])
    assert_equal(random.normal(random.key(4), (100_000,), dtype), expected)


@few
@given(seeds_of_32_bits, shapes)
def test_rademacher(seed, shape):
    expected = jax.random.rademacher(jax.random.key(seed), shape)
    actual = random.rademacher(random.key(seed), shape)
    assert actual.dtype == tensor(expected).dtype
    assert_equal(actual, expected)


def test_vmap_over_keys():
    keys, expected = random.split(random.key(6), 4), jax.random.split(jax.random.key(6), 4)
    drawn = jax.vmap(lambda key: jax.random.uniform(key, (3,)))(expected)
    assert_equal(torch.func.vmap(lambda key: random.uniform(key, (3,)))(keys), drawn)
