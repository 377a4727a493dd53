"""Adagrad with ε outside of the root, as in torch.optim."""

import pytest
import torch

import funcopt as fo
from tests.rules.oracle import check_against_torch


@pytest.mark.parametrize("scale", [1.0, 1e-8])
@pytest.mark.parametrize("arguments", [{}, {"initial_accumulator_value": 0.3, "eps": 1e-3}], ids=str)
def test_against_torch(arguments, scale):
    ours = fo.adagrad(1e-2, **{"initial_accumulator_value": 0.0, "eps": 1e-10, **arguments}, eps_in_sqrt=False)
    check_against_torch(ours, lambda params: torch.optim.Adagrad(params, **arguments), scale=scale)


def test_the_decay_of_the_rate_is_a_schedule():
    ours = fo.adagrad(lambda count: 0.01 / (1 + 0.5 * count.double()), 0.0, 1e-10, eps_in_sqrt=False)
    check_against_torch(ours, lambda params: torch.optim.Adagrad(params, lr=0.01, lr_decay=0.5))


@pytest.mark.parametrize("eps_in_sqrt, expected", [(True, 3 / 5), (False, 3 / 19)])
def test_the_place_of_eps(eps_in_sqrt, expected):
    transformation = fo.scale_by_rss(0.0, eps=16.0, eps_in_sqrt=eps_in_sqrt)
    gradient = torch.tensor([3.0, 0.0], dtype=torch.float64)
    updates, _ = transformation.update(gradient, transformation.init(gradient))
    torch.testing.assert_close(updates, torch.tensor([expected, 0.0], dtype=torch.float64))
