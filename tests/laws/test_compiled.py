"""Compiled by Inductor, with donation: one graph for twenty steps, the eager numbers, and the memory of the arguments.

That every entry is one graph under the tracer is a law of the kit.
"""

import pytest
import torch

import funcopt as fo
from funcopt import tree
from tests.catalogue import CASES
from tests.trees import assert_close, draw

SMALL = {"a": {"bias": (3,), "weight": (2, 3)}, "b": (), "c": (0, 2)}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def train(step, params, state, steps=20):
    for seed in range(steps):
        with torch.compiler.set_stance("default" if seed == 0 else "fail_on_recompile"):
            params, state = step(params, state, draw(20 + seed, torch.float32, SMALL))
    return params, state


INDUCTOR = ["adamw", "amsgrad", "rmsprop", "clip_by_global_norm", "sgd"]


@pytest.mark.parametrize("name", INDUCTOR)
def test_inductor_donated(name):
    entry, case = next((entry, case) for entry, case in CASES[::-1] if entry.name == name)
    transformation = entry.make(**case)

    def step(params, state, grads):
        updates, state = transformation.update(grads, state, params)
        return fo.apply_updates(params, updates), state

    params = draw(1, torch.float32, SMALL)
    state = transformation.init(params)
    expected = train(step, params, state)
    donated = tree.clone((params, state))
    result = train(fo.compile(step, donate_argnums=(0, 1)), *donated)
    assert_close(result, expected, rtol=2e-6)
    assert all(new is old for new, old in zip(tree.leaves(result), tree.leaves(donated)))
