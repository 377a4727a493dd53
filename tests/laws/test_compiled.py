"""Compiled: one graph without a break, no second one while steps and hyperparameters move, and the eager numbers."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import funcopt as fo
from funcopt import tree
from tests.catalogue import CASES, ENTRIES, OPTIMIZERS, TRANSFORMATIONS, case_id
from tests.trees import assert_close, draw

SMALL = {"a": {"bias": (3,), "weight": (2, 3)}, "b": (), "c": (0, 2)}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def train(step, params, state, steps):
    for seed in range(steps):
        params, state = step(params, state, draw(20 + seed, torch.float32, SMALL))
    return params, state


def step_of(transformation):
    def step(params, state, grads):
        updates, state = transformation.update(grads, state, params)
        return fo.apply_updates(params, updates), state

    return step


def left_for_later(entry, case):
    return [pytest.mark.slow] if entry.heavy and case is not entry.cases[-1] else []


@pytest.mark.parametrize(
    "entry, case", [pytest.param(*both, marks=left_for_later(*both)) for both in CASES], ids=case_id
)
def test_one_graph_for_all_steps(entry, case):
    transformation = entry.make(**case)
    step = step_of(transformation)
    params = draw(1, torch.float32, SMALL)
    state = transformation.init(params)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = fo.compile(step, backend=counter)
    actual = train(compiled, params, state, 20)
    assert counter.frame_count == 1
    assert_close(actual, train(step, params, state, 20), rtol=2e-6)


CORE = (*OPTIMIZERS, *TRANSFORMATIONS)
WITH_SCALARS = [
    pytest.param(entry, marks=() if entry in CORE else pytest.mark.slow) for entry in ENTRIES if entry.scalars
]


@pytest.mark.parametrize("entry", WITH_SCALARS, ids=str)
def test_hyperparameters_given_as_tensors_do_not_recompile(entry):
    """Init and update are traced together with the construction of the transformation."""
    case = entry.cases[-1]
    scalars = entry.scalar_values(case)
    params, grads = draw(1, torch.float32, SMALL), draw(2, torch.float32, SMALL)

    def updates_of(values, params, grads):
        transformation = entry.make(**{**case, **values})
        state = transformation.init(params)
        return transformation.update(grads, state, params)[0]

    counter = CompileCounterWithBackend("aot_eager")
    compiled = fo.compile(updates_of, backend=counter)
    graphs = []
    for factor in (1.0, 0.9, 0.5):
        values = {name: factor * value for name, value in scalars.items()}
        tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
        assert_close(compiled(tensors, params, grads), updates_of(values, params, grads), rtol=2e-6)
        graphs.append(counter.frame_count)
    assert graphs[0] == graphs[-1]


INDUCTOR = ["adamw", "amsgrad", "rmsprop", "clip_by_global_norm", "sgd"]


@pytest.mark.parametrize("name", INDUCTOR)
def test_inductor_donated(name):
    entry, case = next((entry, case) for entry, case in CASES[::-1] if entry.name == name)
    transformation = entry.make(**case)
    step = step_of(transformation)
    params = draw(1, torch.float32, SMALL)
    state = transformation.init(params)
    expected = train(step, params, state, 5)
    donated = tree.clone((params, state))
    result = train(fo.compile(step, donate_argnums=(0, 1)), *donated, 5)
    assert_close(result, expected, rtol=2e-6)
    assert all(new is old for new, old in zip(tree.leaves(result), tree.leaves(donated)))
