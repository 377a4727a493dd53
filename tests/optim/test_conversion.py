"""States go from torch.optim to the functional face and back, and the same way is gone on from there."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import funcopt as fo
from funcopt.optim import state_from_torch, state_to_torch

PAIRS: dict[str, tuple[Callable[[Any], torch.optim.Optimizer], fo.GradientTransformation]] = {
    "SGD": (lambda p: torch.optim.SGD(p, 0.1), fo.sgd(0.1)),
    "SGD momentum": (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), fo.sgd(0.1, momentum=0.9)),
    "Adam": (lambda p: torch.optim.Adam(p, 0.1), fo.adam(0.1)),
    "AdamW": (lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.1), fo.adamw(0.1, weight_decay=0.1)),
    "Adam amsgrad": (lambda p: torch.optim.Adam(p, 0.1, amsgrad=True), fo.amsgrad(0.1, max_of="raw")),
    "Adamax": (lambda p: torch.optim.Adamax(p, 0.1), fo.adamax(0.1)),
    "NAdam": (lambda p: torch.optim.NAdam(p, 0.1), fo.dozat_nadam(0.1)),
    "RAdam": (lambda p: torch.optim.RAdam(p, 0.1), fo.radam(0.1, eps_on="raw")),
    "RMSprop": (lambda p: torch.optim.RMSprop(p, 0.1), fo.rmsprop(0.1, decay=0.99, eps_in_sqrt=False)),
    "RMSprop centered": (
        lambda p: torch.optim.RMSprop(p, 0.1, centered=True, momentum=0.5),
        fo.chain(fo.scale_by_stddev(0.99, eps_in_sqrt=False), fo.trace(0.5), fo.scale_by_learning_rate(0.1)),
    ),
    "Rprop": (lambda p: torch.optim.Rprop(p, 0.1), fo.rprop(0.1)),
    "Adadelta": (lambda p: torch.optim.Adadelta(p, 0.1), fo.adadelta(0.1)),
    "Adagrad": (lambda p: torch.optim.Adagrad(p, 0.1), fo.adagrad(0.1, 0.0, 1e-10, eps_in_sqrt=False)),
    "ASGD": (lambda p: torch.optim.ASGD(p, 0.1, t0=1), fo.asgd(0.1, t0=1)),
}
every_pair = pytest.mark.parametrize("name", PAIRS)


def gradients(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        "weight": torch.randn(3, 4, generator=generator, dtype=torch.float64),
        "bias": torch.randn(3, generator=generator, dtype=torch.float64),
    }


def run_torch(optimizer: torch.optim.Optimizer, steps: range) -> list[torch.Tensor]:
    params = optimizer.param_groups[0]["params"]
    for step in steps:
        for param, grad in zip(params, gradients(step).values()):
            param.grad = grad
        optimizer.step()
    return [param.detach().clone() for param in params]


def run(tx: fo.GradientTransformation, params: Any, state: Any, steps: range) -> tuple[Any, Any]:
    for step in steps:
        updates, state = tx.update(gradients(step), state, params)
        params = fo.apply_updates(params, updates)
    return params, state


def started(make: Callable[[Any], torch.optim.Optimizer]) -> torch.optim.Optimizer:
    return make([torch.nn.Parameter(grad) for grad in gradients(100).values()])


@every_pair
def test_from_torch(name: str) -> None:
    make, tx = PAIRS[name]
    optimizer = started(make)
    params = dict(zip(("weight", "bias"), run_torch(optimizer, range(3))))
    state = state_from_torch(optimizer.state_dict(), tx.init(params), params)
    assert fo.tree.flatten(state)[1] == fo.tree.flatten(tx.init(params))[1]
    params, _ = run(tx, params, state, range(3, 6))
    for mine, theirs in zip(params.values(), run_torch(optimizer, range(3, 6))):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6 if name in ("NAdam", "ASGD") else 1e-10)


@every_pair
def test_to_torch(name: str) -> None:
    make, tx = PAIRS[name]
    params = gradients(100)
    params, state = run(tx, params, tx.init(params), range(3))
    optimizer = make([torch.nn.Parameter(param.clone()) for param in params.values()])
    optimizer.load_state_dict(state_to_torch(state, params, optimizer.state_dict()))
    params, _ = run(tx, params, state, range(3, 6))
    for mine, theirs in zip(params.values(), run_torch(optimizer, range(3, 6))):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6 if name in ("NAdam", "ASGD") else 1e-10)


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 4, 5)], ids=str)
def test_adafactor(shape: tuple[int, ...]) -> None:
    optimizer = torch.optim.Adafactor([torch.nn.Parameter(torch.ones(shape, dtype=torch.float64))])
    optimizer.param_groups[0]["params"][0].grad = (
        torch.linspace(1, 2, 20 if len(shape) == 2 else torch.Size(shape).numel()).view(shape).double()
    )
    optimizer.step()
    tx = fo.scale_by_factored_rms(min_dim_size_to_factor=0, factored_dims="last", eps_mode="floor")
    params = [torch.ones(shape, dtype=torch.float64)]
    state = state_from_torch(optimizer.state_dict(), tx.init(params), params)
    assert state.count == 1
    back = state_to_torch(state, params, optimizer.state_dict())["state"][0]
    for key, value in optimizer.state_dict()["state"][0].items():
        torch.testing.assert_close(back[key], value, check_dtype=False)


def test_masked_parameters_keep_no_state() -> None:
    """Of a partition, each part takes its own; a frozen parameter has none in torch either."""
    tx = fo.partition({"train": fo.adam(0.1), "frozen": fo.set_to_zero()}, {"weight": "train", "bias": "frozen"})
    weight, bias = (torch.nn.Parameter(grad) for grad in gradients(100).values())
    optimizer = torch.optim.Adam([weight, bias], lr=0.1)
    for step in range(3):
        weight.grad = gradients(step)["weight"]
        optimizer.step()
    params = {"weight": weight.detach().clone(), "bias": bias.detach().clone()}
    state = state_from_torch(optimizer.state_dict(), tx.init(params), params)
    updates, _ = tx.update(gradients(3), state, params)
    weight.grad = gradients(3)["weight"]
    optimizer.step()
    torch.testing.assert_close(params["weight"] + updates["weight"], weight.detach(), rtol=1e-10, atol=1e-10)
    back = state_to_torch(state, params, optimizer.state_dict())
    assert list(back["state"]) == [0]


def test_what_does_not_fit_is_told() -> None:
    optimizer = started(PAIRS["Adam"][0])
    run_torch(optimizer, range(2))
    params = gradients(100)
    saved = optimizer.state_dict()
    with pytest.raises(ValueError, match="no 'max_exp_avg_sq', only 'step', 'exp_avg', 'exp_avg_sq'"):
        state_from_torch(saved, fo.amsgrad(0.1).init(params), params)
    other = {"bias": params["bias"], "weight": params["weight"]}
    with pytest.raises(
        ValueError, match=r"'exp_avg' has the shape \(3, 4\) in the state dict, and \(3,\) in the state"
    ):
        state_from_torch(saved, fo.adam(0.1).init(other), other)
    with pytest.raises(ValueError, match="the learning rate is inside of this momentum"):
        state_from_torch(saved, fo.rmsprop(0.1, momentum=0.9).init(params), params)
    averaged = fo.chain(fo.adam(0.1), fo.ema(0.9))
    with pytest.raises(ValueError, match=r"state_to_torch: the state holds a tensor of shape \(3, 4\) that no class"):
        state_to_torch(averaged.init(params), params, saved)
    saved["state"][0]["step"] += 1
    with pytest.raises(ValueError, match=r"'step' differs between the parameters \(2.0, 3.0\)"):
        state_from_torch(saved, fo.adam(0.1).init(params), params)
