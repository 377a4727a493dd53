"""Adadelta against torch.optim and the paper."""

import jax.numpy as jnp
import optax
import pytest
import torch

import funcopt as fo
from tests.rules.oracle import check_against_torch


@pytest.mark.parametrize("scale", [1.0, 1e-4])
@pytest.mark.parametrize("arguments", [{}, {"lr": 0.1, "rho": 0.5, "eps": 1e-3}, {"weight_decay": 0.1}], ids=str)
def test_against_torch(arguments, scale):
    ours = fo.adadelta(arguments.get("lr"), **{name: value for name, value in arguments.items() if name != "lr"})
    check_against_torch(ours, lambda params: torch.optim.Adadelta(params, **arguments), scale=scale)


def test_two_steps_by_hand():
    transformation = fo.scale_by_adadelta(rho=0.75, eps=0.25)
    gradient = torch.tensor(2.0, dtype=torch.float64)
    first, state = transformation.update(gradient, transformation.init(gradient))
    assert first.item() == pytest.approx(0.5 / 1.25**0.5 * 2)
    assert (state.e_g.item(), state.e_x.item()) == pytest.approx((1.0, 0.2))
    second, _ = transformation.update(gradient, state)
    assert second.item() == pytest.approx((0.45 / 2) ** 0.5 * 2)


def test_without_a_rate_it_goes_downhill():
    ours, theirs = fo.adadelta(), optax.adadelta()
    gradient = torch.ones(1)
    assert ours.update(gradient, ours.init(gradient), gradient)[0].item() < 0
    assert theirs.update(jnp.ones(1), theirs.init(jnp.ones(1)), jnp.ones(1))[0].item() > 0


def test_no_params_are_needed_without_weight_decay():
    gradient = torch.ones(1)
    assert fo.adadelta().update(gradient, fo.adadelta().init(gradient))[0].item() < 0


@pytest.mark.parametrize("arguments, name", [({"rho": 1.1}, "rho"), ({"eps": -1e-6}, "eps")])
def test_bad_arguments(arguments, name):
    with pytest.raises(ValueError, match=f"scale_by_adadelta: {name} must lie"):
        fo.adadelta(**arguments)
