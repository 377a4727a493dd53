"""AdaMax against torch.optim, and its maximum."""

import pytest
import torch

import funcopt as fo
from tests.rules.oracle import check_against_torch


@pytest.mark.parametrize("scale", [1.0, 1e-6])
@pytest.mark.parametrize("arguments", [{}, {"betas": (0.8, 0.7), "eps": 1e-3}], ids=str)
def test_against_torch(arguments, scale):
    b1, b2 = arguments.get("betas", (0.9, 0.999))
    ours = fo.adamax(2e-3, b1, b2, arguments.get("eps", 1e-8))
    check_against_torch(ours, lambda params: torch.optim.Adamax(params, **arguments), scale=scale)


def test_the_maximum_decays_until_a_gradient_is_larger():
    transformation = fo.scale_by_adamax(b2=0.5, eps=0.0)
    params = torch.zeros(1, dtype=torch.float64)
    state, seen = transformation.init(params), []
    for gradient in (4.0, 1.0, 1.5, -3.0):
        _, state = transformation.update(params + gradient, state)
        seen.append(state.nu.item())
    assert seen == [4.0, 2.0, 1.5, 3.0]


def test_the_first_step_is_the_sign():
    gradient = torch.tensor([-7.0, 1e-20, 0.0], dtype=torch.float64)
    transformation = fo.scale_by_adamax(eps=0.0)
    updates, _ = transformation.update(gradient, transformation.init(gradient))
    torch.testing.assert_close(updates, gradient.sign())


def test_the_decay_of_adamaxw_is_decoupled():
    params, zeros = torch.full((2,), 3.0, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    optimizer = fo.adamaxw(0.1, weight_decay=0.5)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    torch.testing.assert_close(updates, torch.full_like(params, -0.1 * 0.5 * 3.0))
