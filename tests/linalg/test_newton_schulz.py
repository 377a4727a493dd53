"""Newton-Schulz iteration: against torch to the bit, against the SVD, and in batches."""

import jax
import jax.numpy as jnp
import pytest
import torch
from optax.contrib import _muon
from torch.func import jvp, vmap
from torch.optim._muon import _zeropower_via_newtonschulz

import funcopt as fo
from funcopt.linalg.newton_schulz import DION, STANDARD

CONVERGENT = [STANDARD] * 6 + [(1.875, -1.25, 0.375)] * 6


def draw(*shape, dtype=torch.float64, seed=0):
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=wide).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (5, 5), (1, 7), (64, 32)], ids=str)
def test_the_iteration_of_torch_to_the_bit(shape, dtype):
    x = draw(*shape, dtype=dtype)
    expected = _zeropower_via_newtonschulz(x.clone(), STANDARD, 5, 1e-7).to(dtype)
    assert torch.equal(fo.newton_schulz(x, eps=1e-7, dtype=torch.bfloat16, eps_mode="floor"), expected)


@pytest.mark.parametrize("preconditioning", ["frobenius", "spectral", "aol", "schatten"])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)], ids=str)
def test_the_iteration_of_optax(shape, preconditioning):
    x = draw(*shape)
    with jax.enable_x64(True):
        theirs = _muon.orthogonalize_via_newton_schulz(
            jnp.asarray(x.numpy()), jnp.asarray(DION), preconditioning=preconditioning
        )
        expected = torch.from_numpy(jax.device_get(theirs).copy())
    actual = fo.newton_schulz(x, "dion", preconditioning=preconditioning)
    assert (actual - expected).abs().max() < 1e-11


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("preconditioning", ["frobenius", "spectral", "schatten"])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (2, 3, 5, 5), (2, 7, 3)], ids=str)
def test_the_limit_is_the_polar_factor(shape, preconditioning, dtype):
    x = draw(*shape, dtype=dtype)
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    limit = fo.newton_schulz(x, CONVERGENT, len(CONVERGENT), preconditioning=preconditioning)
    assert (limit - u @ vh).abs().max() < 1e-6


@pytest.mark.parametrize("shape", [(4, 6), (2, 7, 3)], ids=str)
def test_the_limit_after_rows_are_scaled_is_orthogonal(shape):
    limit = fo.newton_schulz(draw(*shape), CONVERGENT, len(CONVERGENT), preconditioning="aol")
    assert (torch.linalg.svdvals(limit) - 1).abs().max() < 1e-6


def test_five_steps_bring_singular_values_near_one():
    values = torch.linalg.svdvals(fo.newton_schulz(draw(64, 32)))
    assert values.min() > 0.6 and values.max() < 1.25


AS_TENSORS = tuple(torch.tensor(value, dtype=torch.float64) for value in STANDARD)


@pytest.mark.parametrize("coefficients", ["standard", "dion", AS_TENSORS], ids=["standard", "dion", "tensors"])
@pytest.mark.parametrize("shape", [(2, 4, 3), (2, 3, 3, 4)], ids=str)
def test_a_batch_is_its_matrices(shape, coefficients):
    x = draw(*shape)
    expected = torch.stack([fo.newton_schulz(m, coefficients) for m in x.flatten(0, -3)]).reshape(shape)
    assert (fo.newton_schulz(x, coefficients) - expected).abs().max() < 1e-12
    mapped = vmap(lambda m: fo.newton_schulz(m, coefficients))(x)
    assert (mapped - fo.newton_schulz(x, coefficients)).abs().max() < 1e-12


@pytest.mark.parametrize("preconditioning", ["frobenius", "spectral", "aol", "schatten"])
def test_zeros_stay_zeros_with_finite_derivatives(preconditioning):
    def fn(x):
        return fo.newton_schulz(x, preconditioning=preconditioning)

    x = torch.zeros(3, 2)
    value, tangent = jvp(fn, (x,), (torch.ones_like(x),))
    assert torch.equal(value, x) and tangent.isfinite().all()
    assert torch.func.grad(lambda x: fn(x).sum())(x).isfinite().all()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 0, 3)], ids=str)
def test_empty_matrices(shape):
    assert fo.newton_schulz(torch.zeros(shape)).shape == shape


def test_the_result_has_the_dtype_of_the_matrices():
    x = draw(3, 2, dtype=torch.float32)
    assert fo.newton_schulz(x, dtype=torch.bfloat16).dtype == torch.float32


BAD = [
    (lambda: fo.newton_schulz(torch.ones(3)), "newton_schulz: matrices must have two axes or more, got shape"),
    (lambda: fo.newton_schulz(torch.ones(2, 2), (1.0, 2.0)), "coefficients must be three numbers"),
    (lambda: fo.newton_schulz(torch.ones(2, 2), "muon"), "coefficients must be one of 'standard', 'dion'"),
    (lambda: fo.newton_schulz(torch.ones(2, 2), "dion", 6), "coefficients must be given for all 6 steps, got 5"),
    (lambda: fo.newton_schulz(torch.ones(2, 2), preconditioning="svd"), "preconditioning must be one of"),
]


@pytest.mark.parametrize("call, message", BAD, ids=[message for _, message in BAD])
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
