"""Sparse gradients: SGD and Adagrad take them as torch does; uncoalesced, hybrid, complex and empty ones too."""

from typing import Any

import pytest
import torch
from torch import Tensor

import funcopt.optim

CASES = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True}),
    ("SGD", {"lr": torch.tensor(0.1, dtype=torch.float64)}),
    ("Adagrad", {"lr": 0.1}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.2, "initial_accumulator_value": 0.3, "maximize": True}),
]


@pytest.fixture(autouse=True)
def _invariants():
    with torch.sparse.check_sparse_tensor_invariants(True):
        yield


def gradient(step: int, dense_dims: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    number = 0 if step == 2 else 4
    sparse = 2 - dense_dims
    places = torch.randint(3, (sparse, number), generator=generator)  # a place may occur twice
    wide = torch.randn((number, *[3] * dense_dims), generator=generator, dtype=dtype)
    return torch.sparse_coo_tensor(places, wide, (3, 3), check_invariants=True)


@pytest.mark.parametrize(("name", "kwargs"), CASES, ids=lambda value: value if isinstance(value, str) else str(value))
@pytest.mark.parametrize("dense_dims", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_as_torch(name: str, kwargs: dict[str, Any], dense_dims: int, dtype: torch.dtype) -> None:
    if dtype.is_complex and name == "Adagrad":
        return  # torch sums complex squares of sparse gradients, which is no sum of their sizes
    results = []
    for module in (funcopt.optim, torch.optim):
        param = torch.nn.Parameter(torch.ones(3, 3, dtype=dtype))
        optimizer = getattr(module, name)([param], **kwargs)
        for step in range(5):
            param.grad = gradient(step, dense_dims, dtype)
            optimizer.step()
        results.append((param.detach(), dict(optimizer.state[param])))
    (mine, state), (theirs, expected) = results
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    assert list(state) == list(expected)
    for key, value in expected.items():
        ours = state[key]
        assert ours.layout == value.layout
        torch.testing.assert_close(ours.to_dense(), value.to_dense(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_weight_decay_is_refused(name: str) -> None:
    param = torch.nn.Parameter(torch.ones(3, 3))
    optimizer = getattr(funcopt.optim, name)([param], weight_decay=0.1)
    param.grad = gradient(0, 0, torch.float32)
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    torch.testing.assert_close(param.detach(), torch.ones(3, 3))


def test_complex_adagrad_does_the_same_for_sparse_and_dense_gradients() -> None:
    """Torch squares complex numbers where the gradient is sparse, and sums squares of their parts where it is dense."""
    params = [torch.nn.Parameter(torch.ones(3, 3, dtype=torch.complex128)) for _ in range(2)]
    optimizers = funcopt.optim.Adagrad(params[:1], lr=0.1), torch.optim.Adagrad(params[1:], lr=0.1)
    for step in range(4):
        grad = gradient(step, 1, torch.complex128)
        params[0].grad, params[1].grad = grad, grad.to_dense()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(params[0].detach(), params[1].detach(), rtol=1e-12, atol=1e-12)
