"""NAdam with Dozat's schedule: against torch.optim, by hand, and against the NAdam of optax in the limit."""

import pytest
import torch

import funcopt as fo
from tests.rules.oracle import check_against_torch, gradients

CASES = [
    {},
    {"betas": (0.8, 0.95), "eps": 1e-3},
    {"momentum_decay": 0.5},
    {"betas": (0.0, 0.9)},
]


def ours(betas=(0.9, 0.999), eps=1e-8, momentum_decay=4e-3):
    return fo.dozat_nadam(2e-3, *betas, eps, momentum_decay)


@pytest.mark.parametrize("scale", [1.0, 1e-6])
@pytest.mark.parametrize("arguments", CASES, ids=str)
def test_against_torch(arguments, scale):
    """torch keeps the product of the momenta in float32."""
    check_against_torch(ours(**arguments), lambda params: torch.optim.NAdam(params, **arguments), 2e-6, scale)


def test_against_torch_with_the_product_of_torch():
    """The same rounding of that product gives the same numbers to float64."""
    transformation = fo.dozat_nadam(2e-3)

    def init(params):
        direction, rate = transformation.init(params)
        return direction._replace(mu_product=direction.mu_product.float()), rate

    rounded = fo.GradientTransformation(init, transformation.update)
    state = check_against_torch(rounded, torch.optim.NAdam, 1e-9)
    assert state[0].mu_product.dtype == torch.float32


def test_two_steps_by_hand():
    transformation = fo.scale_by_nadam(0.5, 0.0, 0.0, momentum_decay=1.0)
    gradient = torch.tensor(2.0, dtype=torch.float64)
    first, state = transformation.update(gradient, transformation.init(gradient))
    second, state = transformation.update(gradient, state)
    m1, m2, m3 = (0.5 * (1 - 0.5 * 0.96**t) for t in (1, 2, 3))
    assert first.item() == pytest.approx(1 + 0.5 * m2 / (1 - m1 * m2), rel=1e-14)
    assert second.item() == pytest.approx((1 - m2) / (1 - m1 * m2) + 0.75 * m3 / (1 - m1 * m2 * m3), rel=1e-14)
    assert state.mu_product.item() == pytest.approx(m1 * m2, rel=1e-14)


def test_a_schedule_that_has_ended_is_the_nadam_of_optax():
    dozat, constant = fo.dozat_nadam(0.1, momentum_decay=1e9), fo.nadam(0.1)
    params = gradients(steps=1)[0]
    states = dozat.init(params), constant.init(params)
    for grads in gradients():
        updates, first = dozat.update(grads, states[0])
        expected, second = constant.update(grads, states[1])
        states = first, second
        torch.testing.assert_close(updates, expected, rtol=1e-12, atol=1e-14)


def test_the_product_remembers_a_momentum_that_changed():
    gradient = torch.ones((), dtype=torch.float64)
    _, state = fo.scale_by_nadam(0.9).update(gradient, fo.scale_by_nadam(0.9).init(gradient))
    _, state = fo.scale_by_nadam(0.5).update(gradient, state)
    expected = 0.9 * (1 - 0.5 * 0.96**0.004) * 0.5 * (1 - 0.5 * 0.96**0.008)
    assert state.mu_product.item() == pytest.approx(expected, rel=1e-14)


def test_the_product_is_kept_in_float32_for_bfloat16_parameters():
    params = torch.ones(3, dtype=torch.bfloat16)
    assert fo.scale_by_nadam().init(params).mu_product.dtype == torch.float32
