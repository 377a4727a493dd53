"""The adapter does what the functional loop does, to the last bit, for every transformation of the catalogue."""

import pytest
import torch

import funcopt as fo
import funcopt.optim
from funcopt import tree
from tests.catalogue import CASES, case_id
from tests.trees import assert_identical, draw

SHAPES = {"a.bias": (3,), "a.weight": (4, 3), "b.0": (), "b.1": (0, 3), "c": (2, 3, 2)}
MASK = {"a.bias": False, "a.weight": True, "b.0": True, "b.1": True, "c": False}


def for_named_params(case):
    """The case with its mask for the flat tree of named parameters."""
    return {key: MASK if isinstance(value, dict) and "a" in value else value for key, value in case.items()}


def model(dtype=torch.float32):
    return {name: torch.nn.Parameter(leaf) for name, leaf in draw(1, dtype, SHAPES).items()}


def gradients(step, dtype=torch.float32, absent=()):
    return {name: None if name in absent else leaf for name, leaf in draw(100 + step, dtype, SHAPES).items()}


def set_gradients(params, values):
    for name, param in params.items():
        param.grad = values[name]


def functional(tx, params, steps):
    params = tree.map(torch.clone, params)
    state = tx.init(params)
    for grads in steps:
        updates, state = tx.update(grads, state, params)
        params = fo.apply_updates(params, updates)
    return params, state


STEPS = [(), ("a.weight",), (), ("a.bias", "c")]


@pytest.mark.parametrize("entry, case", CASES, ids=case_id)
def test_adapter_is_the_functional_loop(entry, case):
    tx = entry.make(**for_named_params(case))
    params = model()
    steps = [gradients(i, absent=absent) for i, absent in enumerate(STEPS)]
    expected, state = functional(tx, {name: param.detach() for name, param in params.items()}, steps)
    optimizer = funcopt.optim.Optimizer(params.items(), tx)
    for grads in steps:
        set_gradients(params, grads)
        optimizer.step()
    assert_identical({name: param.detach() for name, param in params.items()}, expected)
    assert_identical(optimizer.functional_state(), state)
