"""Scalars: accuracy of the bias correction, saturation, roots and quotients at zero."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, strategies as st
from torch.func import grad, jvp, vmap

from funcopt import numerics
from tests.trees import draw


def count(steps):
    return torch.tensor(steps, dtype=torch.int32)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.999, 0.9999, 0.99999])
@pytest.mark.parametrize("steps", [1, 2, 10, 100, 1000])
def test_bias_correction_to_full_accuracy(decay, steps):
    exact = float(1 - Fraction(decay) ** steps)
    assert numerics.bias_correction(decay, count(steps)).item() == pytest.approx(exact, rel=4e-16 * steps)
    tensor = torch.tensor(decay, dtype=torch.float64)
    assert numerics.bias_correction(tensor, count(steps)).item() == pytest.approx(exact, rel=1e-15 / (1 - decay))


def test_bias_correction_agrees_with_the_average_for_a_float32_decay():
    """A float32 decay is not 0.999, but average and correction must be wrong alike: Adam moves by the rate."""
    decay = torch.tensor(0.999)
    average = torch.zeros(1)
    for steps in range(1, 101):
        average = numerics.ema(average, torch.ones(1), decay)
        assert (average / numerics.bias_correction(decay, count(steps))).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("decay, steps, slope", [(0.9, 3, -3 * 0.81), (0.0, 1, -1.0), (0.0, 2, 0.0)])
def test_bias_correction_has_a_derivative_also_at_zero(decay, steps, slope):
    at = torch.tensor(decay, dtype=torch.float64)
    assert grad(lambda b: numerics.bias_correction(b, count(steps)))(at).item() == pytest.approx(slope)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64])
def test_increment_saturates(dtype):
    largest = torch.iinfo(dtype).max
    assert numerics.increment(torch.tensor(largest - 1, dtype=dtype)).item() == largest
    assert numerics.increment(torch.tensor(largest, dtype=dtype)).item() == largest
    assert numerics.increment(torch.tensor(0, dtype=dtype)).dtype == dtype


def test_safe_sqrt():
    x = torch.tensor([0.0, 4.0], dtype=torch.float64)
    assert numerics.safe_sqrt(x).tolist() == [0.0, 2.0]
    assert grad(lambda x: numerics.safe_sqrt(x).sum())(x).tolist() == [0.0, 0.25]
    assert jvp(numerics.safe_sqrt, (x,), (torch.ones_like(x),))[1].tolist() == [0.0, 0.25]


def test_safe_divide():
    x = torch.tensor([0.0, 4.0], dtype=torch.float64)
    assert numerics.safe_divide(torch.ones_like(x), x).tolist() == [0.0, 0.25]
    assert grad(lambda x: numerics.safe_divide(torch.ones_like(x), x).sum())(x).tolist() == [0.0, -1 / 16]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norms_of_half_precision_do_not_overflow(dtype):
    x = torch.full((100,), 300.0, dtype=dtype)  # 300² is beyond fp16
    assert numerics.norm(x).item() == pytest.approx(3000)
    assert numerics.root_mean_square(x).item() == pytest.approx(300)


def test_norms_of_nothing():
    assert numerics.norm(torch.zeros(0)).item() == 0
    assert numerics.root_mean_square(torch.zeros(0, 3)).item() == 0


@given(st.complex_numbers(max_magnitude=1e6))
def test_abs_square_is_real(z):
    square = numerics.abs_square(torch.tensor([z], dtype=torch.complex128))
    assert square.dtype == torch.float64
    assert square.item() == pytest.approx(abs(z) ** 2, rel=1e-12)


def test_root_of_zero_divides_nothing_by_nothing():
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor([0.0, 4.0], dtype=dtype)
        assert numerics.root(x)[1] == 2.0 and 0 < numerics.root(x)[0] < 1e-18
        assert (torch.zeros(2, dtype=dtype) / numerics.root(x)).tolist() == [0.0, 0.0]
        assert (numerics.root(x) + 1e-8)[0] == torch.tensor(1e-8, dtype=dtype)
        assert grad(lambda x: numerics.root(x).sum())(x).tolist() == [0.0, 0.25]
        assert jvp(numerics.root, (x,), (torch.ones_like(x),))[1].tolist() == [0.0, 0.25]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("decay", [0.0, 0.1, 0.5, 0.9, 0.9999, 1.0])
def test_a_number_and_a_tensor_mean_the_same(dtype, decay):
    """Numbers take one pass, tensors several, which can be vmapped and differentiated."""
    x, y = draw(1, dtype, (5,)), draw(2, dtype, (5,))
    tensor = torch.tensor(decay, dtype=torch.float64)
    tolerance = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(dtype).eps}
    torch.testing.assert_close(numerics.ema(x, y, decay), numerics.ema(x, y, tensor), **tolerance)
    torch.testing.assert_close(numerics.ema(x, y, decay), decay * x + (1 - decay) * y, **tolerance)
    torch.testing.assert_close(numerics.add_scaled(x, decay, y), numerics.add_scaled(x, tensor, y), **tolerance)
    torch.testing.assert_close(numerics.shift(x, decay), numerics.shift(x, tensor), **tolerance)


def realised(x):
    return numerics.realise(x.exp()) * torch.ones(3, dtype=torch.float64)


def test_realise_is_the_identity_in_every_mode():
    x = torch.tensor(0.5, dtype=torch.float64)
    compiled = torch.compile(realised, fullgraph=True, backend="aot_eager")
    expected = math.exp(0.5)
    assert compiled(x).tolist() == pytest.approx([expected] * 3)
    slopes = torch.compile(grad(lambda x: realised(x).sum()), fullgraph=True, backend="aot_eager")(x)
    assert slopes.item() == pytest.approx(3 * expected)
    batched = torch.compile(vmap(realised), fullgraph=True, backend="aot_eager")(torch.stack([x, 2 * x]))
    assert batched[:, 0].tolist() == pytest.approx([expected, math.exp(1.0)])


def test_scalars_where_there_is_no_float64():
    assert numerics.scalar_dtype(torch.device("mps")) == torch.float32
    assert numerics.scalar_dtype(torch.device("cpu")) == torch.float64
