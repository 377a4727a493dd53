"""`compile=True`: the same numbers, and one graph whatever changes."""

from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import funcopt.optim
from tests.optim.classes import (
    CASES,
    FIRST,
    TOLERANCE,
    Case,
    assert_same_way,
    built,
    give_gradients,
    parameters,
    trajectory,
)

every_class = pytest.mark.parametrize("case", FIRST, ids=lambda case: case.name)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_same_numbers(case: Case) -> None:
    mine, _ = trajectory(case.mine, case, late=True, compile={"backend": "aot_eager"})
    theirs, _ = trajectory(case.theirs, case, late=True)
    tolerance = 3e-6 if isinstance(case.kwargs.get("lr"), torch.Tensor) else TOLERANCE.get(case.name, 1e-9)
    assert_same_way(mine, theirs, tolerance)


@every_class
def test_nothing_is_compiled_again(case: Case) -> None:
    """As rates, decays, momenta and steps change; for an elementwise rule not for missing gradients either."""
    counter = CompileCounterWithBackend("aot_eager")
    params = parameters(case.name, torch.float32)
    kwargs: dict[str, Any] = {"momentum": 0.9} if case.name in ("SGD", "RMSprop") else {}
    if "weight_decay" in case.mine(parameters(case.name)).defaults:
        kwargs["weight_decay"] = 0.1
    optimizer = built(case.mine, params, kwargs | {"compile": {"backend": counter}})
    addresses = [param.data_ptr() for param in params]
    compiled = 0
    for step in range(8):
        if step == 2:  # SGD's first step is another rule
            compiled = counter.frame_count
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (step + 1)
            if "betas" in group:
                group["betas"] = (0.9 - 0.01 * step, group["betas"][1])
            for key in ("momentum", "weight_decay"):
                if key in kwargs:
                    group[key] = group[key] * 0.9
        give_gradients(params, step, late=case.mine.definition.elementwise and step > 3)
        optimizer.step()
    assert 0 < counter.frame_count == compiled
    assert [param.data_ptr() for param in params] == addresses


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_with_inductor(name: str) -> None:
    case = Case(next(case for case in FIRST if case.name == name).info, {"weight_decay": 0.1})
    mine, optimizer = trajectory(case.mine, case, late=True, compile=True)
    theirs, _ = trajectory(case.theirs, case, late=True)
    assert_same_way(mine, theirs, 1e-9)
    assert optimizer.step.__func__.__name__ == "step"


def test_optimizers_share_what_is_compiled() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = 0
    for number in range(3):
        params = [torch.nn.Parameter(torch.ones(5 + number, 7))]
        optimizer = funcopt.optim.AdamW(params, lr=0.1 * (1 + number), compile={"backend": counter})
        give_gradients(params, 0)
        optimizer.step()
        compiled = compiled or counter.frame_count
    assert 0 < counter.frame_count == compiled


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[] if case.name == "SGD" else pytest.mark.slow, id=case.name) for case in FIRST],
)
def test_torch_compile_of_the_step(case: Case) -> None:
    """`torch.compile(opt.step, fullgraph=True)`, which torch's own classes break."""
    params, twins = parameters(case.name), parameters(case.name)
    optimizer, reference = built(case.mine, params, case.kwargs), built(case.mine, twins, case.kwargs)
    compiled = torch.compile(optimizer.step, backend="aot_eager", fullgraph=True)
    for step in range(3):
        give_gradients(params, step)
        give_gradients(twins, step)
        compiled()
        reference.step()
    for param, twin in zip(params, twins):
        torch.testing.assert_close(param, twin, rtol=1e-6, atol=1e-6)
