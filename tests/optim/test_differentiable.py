"""`differentiable=True`: autograd goes through the step, to the learning rate and to the gradient."""

import pytest
import torch
from torch import Tensor

from tests.optim.classes import FIRST, Case

DIFFERENTIABLE = [
    case for case in FIRST if "differentiable" in case.mine([torch.nn.Parameter(torch.ones(2, 2))]).defaults
]
every_class = pytest.mark.parametrize("case", DIFFERENTIABLE, ids=lambda case: case.name)


def final(cls, start: Tensor, rate: Tensor, scale: Tensor) -> Tensor:
    """The parameter after three steps, as a function of where it starts, the rate, and the size of the gradients."""
    param = start.clone()
    optimizer = cls([param], lr=rate, differentiable=True)
    for step in range(3):
        param.grad = scale * torch.cos(param * (step + 1)) + 0.1 * param
        optimizer.step()
    return param


@every_class
def test_derivatives_agree_with_finite_differences(case: Case) -> None:
    """With respect to the learning rate too, where torch has an error or no gradient for many classes."""
    start = torch.linspace(0.3, 0.9, 4, dtype=torch.float64, requires_grad=True)
    rate = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    if case.name in ("Rprop", "ASGD"):  # float32 scalars, and steps that know only the sign
        final(case.mine, start, rate, scale).sum().backward()
        assert start.grad is not None
        return
    assert torch.autograd.gradcheck(
        lambda *inputs: final(case.mine, *inputs), (start, rate, scale), rtol=1e-3, atol=1e-5
    )
