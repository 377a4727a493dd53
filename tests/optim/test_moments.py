"""Adamax, NAdam, RAdam and Adadelta: what the tests of all classes leave out."""

import pytest
import torch

import funcopt.optim
from tests.optim.classes import FIRST, Case, assert_same_way, parameters, random, trajectory
from tests.trees import finite_difference

NAMES = ("Adadelta", "Adamax", "NAdam", "RAdam")
OTHER = {
    "Adadelta": {"rho": 0.8, "weight_decay": 0.1},
    "Adamax": {"betas": (0.8, 0.9), "weight_decay": 0.1},
    "NAdam": {"betas": (0.8, 0.9), "momentum_decay": 0.1},
    "RAdam": {"betas": (0.8, 0.9), "weight_decay": 0.1, "decoupled_weight_decay": True},
}
every_name = pytest.mark.parametrize("name", NAMES)


def case_of(name, **kwargs):
    return Case(next(case for case in FIRST if case.name == name).info, kwargs)


@pytest.fixture
def double_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def ways(name, params, gradients, **kwargs):
    """The parameters after each step of torch's class, those of ours, and our optimizer."""
    histories = []
    for module in (torch.optim, funcopt.optim):
        own = [param.detach().clone().requires_grad_() for param in params]
        optimizer = getattr(module, name)(own, **kwargs)
        histories.append([])
        for grads in gradients:
            for param, grad in zip(own, grads):
                param.grad = None if grad is None else grad.clone()
            optimizer.step()
            histories[-1].append([param.detach().clone() for param in own])
    return *histories, optimizer


@every_name
@pytest.mark.parametrize("size", [1e-7, 1e5])
def test_small_and_large_gradients(name, size):
    """Where it matters what ε is added to."""
    generator = torch.Generator().manual_seed(0)
    params = parameters(name)
    gradients = [[size * random(param.shape, param.dtype, generator) for param in params] for _ in range(10)]
    theirs, ours, _ = ways(name, params, gradients, **OTHER[name])
    assert_same_way(ours, theirs, 1e-9)


@every_name
def test_a_parameter_without_numbers_counts_its_steps(name):
    """Also where it is the only one of its age."""
    full, empty = torch.ones(2, dtype=torch.float64), torch.ones(0, 3, dtype=torch.float64)
    gradients = [[full if step > 1 else None, empty] for step in range(5)]
    theirs, ours, optimizer = ways(name, [full, empty], gradients, **OTHER[name])
    assert_same_way(ours, theirs, 1e-9)
    assert [state["step"].item() for state in optimizer.state.values()] == [5, 3]


@every_name
def test_bfloat16_is_computed_in_float32_and_rounded_once(name):
    narrow = parameters(name, torch.bfloat16)
    wide = [param.detach().float().requires_grad_() for param in narrow]
    generator = torch.Generator().manual_seed(0)
    for params in zip(narrow, wide):
        grad = random(params[0].shape, torch.bfloat16, generator)
        for param in params:
            param.grad = grad.to(param.dtype)
    for params in (narrow, wide):
        getattr(funcopt.optim, name)(params).step()
    assert all(torch.equal(first, second.bfloat16()) for first, second in zip(narrow, wide))


@every_name
def test_scalars_are_wide_where_that_is_the_default(name, double_by_default):
    case = case_of(name, **OTHER[name])
    ours, optimizer = trajectory(case.mine, case)
    theirs, reference = trajectory(case.theirs, case)
    assert_same_way(ours, theirs, 1e-9)
    for state, other in zip(optimizer.state.values(), reference.state.values()):
        assert [value.dtype for value in state.values()] == [value.dtype for value in other.values()]
        assert state["step"].dtype == torch.float64


@every_name
def test_differentiated_through_eight_steps(name):
    """RAdam begins to rectify. torch's Adamax fails, and so do the rates of Adadelta and NAdam."""
    start = torch.tensor([1.0, -2.0], dtype=torch.float64)

    def end(value):
        param = start * value
        optimizer = getattr(funcopt.optim, name)([param], lr=0.1 * value, differentiable=True, **OTHER[name])
        for _ in range(8):
            param.grad = param.clone() ** 2
            optimizer.step()
        return param.sum()

    one = torch.ones((), dtype=torch.float64, requires_grad=True)
    expected = finite_difference(end, one.detach())
    assert abs(torch.autograd.grad(end(one), one)[0] - expected) < 1e-6 * abs(expected)


@pytest.mark.slow
@every_name
def test_with_inductor(name):
    torch.compiler.reset()
    case = case_of(name, **OTHER[name])
    ours, _ = trajectory(case.mine, case, compile=True)
    theirs, _ = trajectory(case.theirs, case)
    assert_same_way(ours, theirs, 1e-9)
