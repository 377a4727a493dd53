"""RAdam against torch.optim; when it rectifies, and derivatives through that."""

import math

import pytest
import torch
from torch.func import grad

import funcopt as fo
from tests.rules.oracle import check_against_torch, gradients
from tests.trees import all_finite, finite_difference

STRICTLY_ABOVE_5 = math.nextafter(5.0, math.inf)


@pytest.mark.parametrize("scale", [1.0, 1e-5])
@pytest.mark.parametrize("arguments", [{}, {"betas": (0.8, 0.9), "eps": 1e-3}, {"betas": (0.5, 0.6)}], ids=str)
def test_against_torch(arguments, scale):
    b1, b2 = arguments.get("betas", (0.9, 0.999))
    ours = fo.radam(1e-3, b1, b2, arguments.get("eps", 1e-8), threshold=STRICTLY_ABOVE_5, eps_on="raw")
    check_against_torch(ours, lambda params: torch.optim.RAdam(params, **arguments), scale=scale)


def test_the_place_of_eps_matters_for_small_gradients():
    other = fo.radam(1e-3, b2=0.9)
    with pytest.raises(AssertionError):
        check_against_torch(other, lambda params: torch.optim.RAdam(params, betas=(0.9, 0.9)), rtol=1e-3, scale=1e-6)


def length(b2, t):
    return 2 / (1 - b2) - 1 - 2 * t * b2**t / (1 - b2**t)


def rectified_steps(b2, threshold, steps=12):
    """The steps at which the denominator is used: there the updates differ from the mean, which is 1."""
    transformation = fo.scale_by_radam(b2=b2, threshold=threshold, eps=1.0)
    gradient = torch.ones((), dtype=torch.float64)
    state, found = transformation.init(gradient), []
    for step in range(1, steps + 1):
        updates, state = transformation.update(gradient, state)
        if abs(updates.item() - 1) > 1e-9:
            found.append(step)
    return found


@pytest.mark.parametrize("b2, threshold", [(0.8, 5.0), (0.8, 6.5), (0.999, 4.5), (0.999, 5.0), (0.6, 5.0), (0.0, 5.0)])
def test_rectified_from_the_threshold_on(b2, threshold):
    expected = [t for t in range(1, 13) if length(b2, t) >= threshold]
    assert rectified_steps(b2, threshold) == expected


def test_the_factor_by_hand():
    """Gradients of 1 have mean and second moment 1, so that the update is the factor."""
    transformation = fo.scale_by_radam(b2=0.9, eps=0.0)
    gradient = torch.ones((), dtype=torch.float64)
    state = transformation.init(gradient)
    for _ in range(10):
        updates, state = transformation.update(gradient, state)
    limit, now = 19.0, length(0.9, 10)
    expected = ((now - 4) * (now - 2) * limit / ((limit - 4) * (limit - 2) * now)) ** 0.5
    assert updates.item() == pytest.approx(expected, rel=1e-12)


def test_a_float32_tensor_means_its_number():
    """The lengths are differences of numbers near 2000: in float32 they would have no digits left."""
    b2 = torch.tensor(0.999)
    grads = gradients(steps=1)[0]
    assert moved_after(b2, grads).item() == pytest.approx(moved_after(b2.item(), grads).item(), rel=1e-9)


def moved_after(b2, grads, steps=8):
    transformation = fo.scale_by_radam(b2=b2, eps=1e-3)
    state = transformation.init(grads)
    total = torch.zeros((), dtype=torch.float64)
    for step in range(steps):
        updates, state = transformation.update([(1 + step) * leaf for leaf in grads], state)
        total = total + sum(leaf.sum() for leaf in updates)
    return total


def test_the_derivative_in_b2_through_rectified_steps():
    grads = gradients(steps=1)[0]
    b2 = torch.tensor(0.9, dtype=torch.float64)
    assert length(0.9, 8) > 5
    expected = finite_difference(lambda value: moved_after(value, grads), b2)
    torch.testing.assert_close(grad(moved_after)(b2, grads), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("b2", [0.0, 0.6, 0.9], ids=lambda b2: f"limit {2 / (1 - b2) - 1:.3g}")
def test_derivatives_stay_finite_where_the_factor_is_none(b2):
    """Where the length, or its limit, is 4 or less, the factor would be a root of a negative number, or 1 / 0."""
    zeros = [torch.zeros_like(leaf) for leaf in gradients(steps=1)[0]]
    b2 = torch.tensor(b2, dtype=torch.float64)
    for grads in (gradients(steps=1)[0], zeros):
        assert all_finite(grad(moved_after, argnums=(0, 1))(b2, grads))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"threshold": 4.0}, r"scale_by_radam: threshold must lie in \(4, inf\)"),
        ({"eps_on": "both"}, "scale_by_radam: eps_on must be one of 'corrected', 'raw'"),
        ({"b2": 1.0}, "scale_by_radam: b2 must lie"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        fo.radam(0.1, **arguments)
