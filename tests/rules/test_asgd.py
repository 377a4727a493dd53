"""ASGD against torch.optim, and its average."""

import pytest
import torch

import funcopt as fo
from tests.rules.torch_trajectory import assert_same, gradients, trajectories
from tests.trees import assert_close, assert_identical

SHAPES = [(3,), (4, 3), (), (0, 3)]


def in_float32(state):
    """The state with rates as torch keeps them, whatever the parameters."""
    return state._replace(eta=state.eta.float(), mu=state.mu.float())


CASES = {
    "default": {},
    "averaging": {"lambd": 0.1, "t0": 5},
    "averaging at once": {"lambd": 0.5, "alpha": 0.6, "t0": 0},
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_as_in_torch(name, dtype):
    params, *grads = gradients(SHAPES, 21, dtype)
    optimizer, optimizers = fo.asgd(0.1, **CASES[name]), []
    oracle = lambda p: optimizers.append(torch.optim.ASGD(p, lr=0.1, **CASES[name])) or optimizers[0]  # noqa: E731
    start = in_float32(optimizer.init(params))
    ours, theirs, state = trajectories(optimizer, oracle, params, grads, start)
    assert_same(ours, theirs, 1e-12)
    averages = [optimizers[0].state[p]["ax"] for p in optimizers[0].param_groups[0]["params"]]
    assert_close(state.ax, averages, rtol=1e-12)
    assert state.eta.item() == next(iter(optimizers[0].state.values()))["eta"].item()


def test_coupled_decay_comes_before():
    params, *grads = gradients(SHAPES, 21)
    optimizer = fo.chain(fo.add_decayed_weights(0.3), fo.asgd(0.1, t0=3))
    decay, start = optimizer.init(params)
    ours, theirs, _ = trajectories(
        optimizer,
        lambda p: torch.optim.ASGD(p, lr=0.1, t0=3, weight_decay=0.3),
        params,
        grads,
        (decay, in_float32(start)),
    )
    assert_same(ours, theirs, 1e-12)


def test_the_average_is_what_is_evaluated():
    params, *grads = gradients([(3,)], 6)
    optimizer = fo.asgd(0.1, lambd=0.0, t0=2)
    state = optimizer.init(params)
    assert_identical(fo.eval_params(state, params), params)
    visited = []
    for g in grads:
        updates, state = optimizer.update(g, state, params)
        params = fo.apply_updates(params, updates)
        visited.append(params[0])
    mean = sum(visited[3:]) / len(visited[3:])  # the weight is 1 still at step t0 + 2
    assert_close(fo.eval_params(state, params), [mean], rtol=1e-14)


def test_a_scheduled_rate_is_not_late():
    """torch applies a changed rate one step later."""
    optimizer, params = fo.asgd(lambda count: 1.0 - 0.5 * (count > 0), lambd=0.0), torch.zeros(1)
    state, made = optimizer.init(params), []
    for _ in range(3):
        updates, state = optimizer.update(torch.ones(1), state, params)
        made.append(updates.item())
    assert made == [-1.0, -0.5, -0.5]


def test_the_average_follows_parameters_as_they_are_rounded():
    params = torch.ones(4, dtype=torch.bfloat16)
    optimizer = fo.asgd(1e-3)
    updates, state = optimizer.update(torch.full((4,), 0.1), optimizer.init(params), params)
    moved = fo.apply_updates(params, updates)
    assert state.ax.dtype == torch.float32
    assert torch.equal(state.ax, moved.float())
