"""The adapter does what the functional loop does, to the last bit, for every transformation of the catalogue."""

import pytest
import torch

import funcopt as fo
from funcopt import tree
from funcopt.optim import Optimizer, as_optimizer, states
from tests.catalogue import CASES, ENTRIES, OPTIMIZERS, case_id
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


def adapted(make, steps, params):
    """The parameters after these steps of the optimizer that `make` gives, and the optimizer."""
    optimizer = make(params)
    for grads in steps:
        set_gradients(params, grads)
        optimizer.step()
    return {name: param.detach() for name, param in params.items()}, optimizer


def some_steps(start=0, dtype=torch.float32):
    return [gradients(start + i, dtype, absent) for i, absent in enumerate(STEPS)]


@pytest.mark.parametrize("entry, case", CASES, ids=case_id)
def test_adapter_is_the_functional_loop(entry, case):
    tx = entry.make(**for_named_params(case))
    expected, state = functional(tx, {name: param.detach() for name, param in model().items()}, some_steps())
    params, optimizer = adapted(lambda params: Optimizer(params.items(), tx), some_steps(), model())
    assert_identical(params, expected)
    assert_identical(optimizer.functional_state(), state)


@pytest.mark.parametrize("entry, case", CASES, ids=case_id)
def test_groups_apart_are_the_functional_loop_on_all_of_them(entry, case, monkeypatch):
    monkeypatch.setattr(states, "_same", lambda arguments, others: False)
    tx = entry.make(**for_named_params(case))
    expected, _ = functional(tx, {name: param.detach() for name, param in model().items()}, some_steps())

    def two_groups(params):
        items = [*params.items()]
        return Optimizer([{"params": items[:2]}, {"params": items[2:]}], tx)

    params, _ = adapted(two_groups, some_steps(), model())
    assert_identical(params, expected)


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_checkpoints_go_on(entry):
    dtype = torch.bfloat16
    tx = entry.make(**for_named_params(entry.cases[0]))
    params, optimizer = adapted(lambda params: Optimizer(params.items(), tx), some_steps(0, dtype), model(dtype))
    twins = {name: torch.nn.Parameter(param.clone()) for name, param in params.items()}
    twin = Optimizer(twins.items(), tx)
    twin.load_state_dict(optimizer.state_dict())
    assert_identical(twin.functional_state(), optimizer.functional_state())
    originals = dict(zip(params, optimizer.param_groups[0]["params"]))
    for each, owner in ((optimizer, originals), (twin, twins)):
        set_gradients(owner, gradients(9, dtype))
        each.step()
    assert_identical([p.detach() for p in twins.values()], [p.detach() for p in originals.values()])


@pytest.mark.parametrize("entry", [entry for entry in OPTIMIZERS if entry.build is None], ids=str)
def test_classes_of_factories_are_the_functional_loop(entry):
    case = for_named_params(entry.cases[-1])
    expected, _ = functional(entry.make(**case), {name: p.detach() for name, p in model().items()}, some_steps())
    make = as_optimizer(getattr(fo, entry.name))
    params, _ = adapted(lambda params: make(params.items(), **case), some_steps(), model())
    assert_identical(params, expected)
