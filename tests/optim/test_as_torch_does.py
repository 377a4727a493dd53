"""Corners where the classes do as torch's: scaled gradients, buffers made early, values out of range, profiling."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

import funcopt.optim
from funcopt.optim.scaling import unscale
from tests.optim.classes import give_gradients


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adagrad"])
def test_fused_classes_leave_the_unscaled_gradient(name: str, maximize: bool) -> None:
    """As torch's kernels write it, unless they skip the step."""
    left = []
    for module in (funcopt.optim, torch.optim):
        param = torch.nn.Parameter(torch.ones(3))
        optimizer = getattr(module, name)([param], lr=0.1, fused=True, maximize=maximize)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        scaler.scale(torch.ones(()))
        for value in (2.0, float("inf")):
            param.grad = torch.tensor([4.0, -8.0, value])
            scaler.step(optimizer)
            scaler.update()
            left.append(param.grad)
    torch.testing.assert_close(left[:2], left[2:])
    assert left[0].tolist() == [1.0, -2.0, 0.5]


@pytest.mark.parametrize("given", ["init_state", "None", "reader", "copy", "loaded"])
def test_the_first_gradient_is_not_dampened_after_its_buffer_was_made(given: str) -> None:
    """Torch takes a buffer that is None for none; a buffer that was loaded has been used, here as there."""
    nets, histories = [torch.nn.Linear(2, 1) for _ in range(2)], []
    nets[1].load_state_dict(nets[0].state_dict())
    mine = funcopt.optim.SGD(nets[0].parameters(), lr=0.1, momentum=0.9, dampening=0.5)
    theirs = torch.optim.SGD(nets[1].parameters(), lr=0.1, momentum=0.9, dampening=0.5)
    if given == "reader":
        get_optimizer_state_dict(nets[0], mine)
    elif given == "None":
        for optimizer in (mine, theirs):
            for param in optimizer.param_groups[0]["params"]:
                optimizer.state[param]["momentum_buffer"] = None
    else:
        mine.init_state()
    if given == "copy":
        nets[0], mine = pickle.loads(pickle.dumps((nets[0], mine)))
    if given == "loaded":
        for optimizer in (mine, theirs):
            optimizer.load_state_dict(copy.deepcopy(mine.state_dict()))  # which torch would share
    for net, optimizer in zip(nets, (mine, theirs)):
        for step in range(3):
            give_gradients(list(net.parameters()), step)
            optimizer.step()
        histories.append([param.detach() for param in net.parameters()])
    torch.testing.assert_close(*histories)


@pytest.mark.parametrize("compile", [False, {"backend": "eager"}], ids=["eager", "compiled"])
@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("SGD", {"momentum": 1.5, "dampening": 0.5}),
        ("SGD", {"momentum": 3, "nesterov": True}),
        ("RMSprop", {"alpha": 1}),
        ("RMSprop", {"momentum": 1.5}),
        ("Muon", {"momentum": 1.25}),
    ],
)
def test_what_torch_accepts_is_accepted(name: str, kwargs: dict[str, Any], compile: Any) -> None:
    ends = []
    for module, options in ((funcopt.optim, {"compile": compile}), (torch.optim, {})):
        param = torch.nn.Parameter(torch.ones(3, 2, dtype=torch.float64))
        optimizer = getattr(module, name)([param], lr=0.01, **kwargs, **options)
        for step in range(4):
            give_gradients([param], step)
            optimizer.step()
        ends.append(param.detach())
    torch.testing.assert_close(*ends, rtol=1e-2 if name == "Muon" else 1e-9, atol=1e-12)


def test_the_step_is_named_where_somebody_profiles() -> None:
    param = torch.nn.Parameter(torch.ones(2))
    optimizer = funcopt.optim.SGD([param])
    param.grad = torch.ones(2)
    optimizer.step()
    with torch.autograd.profiler.profile() as profile:
        optimizer.step()
    assert "Optimizer.step#SGD.step" in {event.name for event in profile.function_events}


@pytest.mark.parametrize(("found", "left"), [(None, [1.0, -2.0]), (0.0, [1.0, -2.0]), (1.0, [4.0, -8.0])])
def test_unscaling_reads_nothing_back(found: float | None, left: list[float]) -> None:
    gradient = torch.tensor([4.0, -8.0])
    unscale([gradient], torch.tensor(4.0), None if found is None else torch.tensor(found))
    assert gradient.tolist() == left
