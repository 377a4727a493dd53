"""Rprop against torch.optim, and what its rule promises."""

import pytest
import torch

import funcopt as fo
from tests.rules.torch_trajectory import assert_same, gradients, trajectories

SHAPES = [(3,), (4, 3), (), (2, 3, 2), (0, 3)]
CASES = {
    "default": ((0.01,), {}),
    "etas": ((0.01, 0.3, 1.7), {"etas": (0.3, 1.7)}),
    "bounds": ((0.02, 0.5, 1.2, 0.015, 0.03), {"step_sizes": (0.015, 0.03)}),
    "a first step above the largest": ((1.0, 0.5, 1.2, 1e-6, 0.1), {"step_sizes": (1e-6, 0.1)}),
}


@pytest.mark.parametrize("name", CASES)
def test_as_in_torch(name):
    arguments, options = CASES[name]
    params, *grads = gradients(SHAPES, 21)
    ours, theirs, _ = trajectories(
        fo.rprop(*arguments), lambda p: torch.optim.Rprop(p, lr=arguments[0], **options), params, grads
    )
    assert_same(ours, theirs, 1e-14)


def steps(values, **options):
    optimizer, params = fo.rprop(0.1, **options), torch.ones(1, dtype=torch.float64)
    state, made = optimizer.init(params), []
    for value in values:
        updates, state = optimizer.update(torch.tensor([value], dtype=torch.float64), state, params)
        made.append(round(-updates.item(), 12))
    return made


def test_a_step_is_that_of_its_own_gradient():
    """optax gives 0, 0.1, 0.12: each time the step before."""
    assert steps([3.0, 2.0, 1.0]) == [0.1, 0.12, 0.144]


def test_a_turn_rests_one_step_and_is_then_forgotten():
    assert steps([1.0, -1.0, -1.0, -1.0]) == [0.1, 0.0, -0.05, -0.06]


def test_bounds_hold_from_the_first_step():
    assert steps([1.0, 1.0], max_step_size=0.05) == [0.05, 0.05]


def test_products_of_tiny_gradients_do_not_underflow():
    """In float32 the product of two of these is 0, and torch does not see that they agree."""
    optimizer, params = fo.rprop(0.1), torch.ones(1)
    tiny = torch.full((1,), 1e-30)
    _, state = optimizer.update(tiny, optimizer.init(params), params)
    assert optimizer.update(tiny, state, params)[0].item() == pytest.approx(-0.12)


BAD = [
    ({"eta_minus": 1.0}, r"scale_by_rprop: eta_minus must lie in \(0, 1\)"),
    ({"eta_plus": 1.0}, r"scale_by_rprop: eta_plus must lie in \(1, inf\)"),
    ({"min_step_size": -1.0}, r"scale_by_rprop: min_step_size must lie in \[0, inf\)"),
]


@pytest.mark.parametrize("arguments, message", BAD, ids=str)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        fo.rprop(0.1, **arguments)
