"""AMSGrad: the maximum of raw moments, as in torch.optim, or of corrected ones, as in optax."""

import pytest
import torch

import funcopt as fo
from tests.rules.oracle import check_against_torch


@pytest.mark.parametrize("scale", [1.0, 1e-6])
@pytest.mark.parametrize("arguments", [{}, {"betas": (0.8, 0.5), "eps": 1e-3}], ids=str)
def test_against_torch(arguments, scale):
    b1, b2 = arguments.get("betas", (0.9, 0.999))
    ours = fo.amsgrad(1e-3, b1, b2, arguments.get("eps", 1e-8), max_of="raw")
    check_against_torch(ours, lambda params: torch.optim.Adam(params, amsgrad=True, **arguments), scale=scale)


def test_the_two_differ():
    with pytest.raises(AssertionError):
        check_against_torch(fo.amsgrad(1e-3), lambda params: torch.optim.Adam(params, amsgrad=True), rtol=0.1)


@pytest.mark.parametrize("max_of, kept", [("raw", 0.5), ("corrected", 1.0)])
def test_what_is_kept(max_of, kept):
    transformation = fo.scale_by_amsgrad(b2=0.5, max_of=max_of)
    params = torch.ones((), dtype=torch.float64)
    state = transformation.init(params)
    for gradient in (1.0, 0.0):
        _, state = transformation.update(params * gradient, state)
    assert state.nu_max.item() == kept


def test_bad_arguments():
    with pytest.raises(ValueError, match="scale_by_amsgrad: max_of must be one of 'corrected', 'raw', got max_of='v'"):
        fo.amsgrad(0.1, max_of="v")
