"""vmap over models and over hyperparameters gives what a loop gives."""

import pytest
import torch
from torch.func import vmap

import funcopt as fo
from funcopt import tree
from tests.catalogue import CASES, case_id, storage_tolerance
from tests.trees import assert_close, draw, stack

MODELS = 3
STEPS = 3
SCALARS = [(entry, case, name) for entry, case in CASES for name in entry.scalar_values(case)]


def tolerance(case):
    return max(1e-12, storage_tolerance(case))


def train(transformation, params, gradients):
    state = transformation.init(params)
    for grads in gradients:
        updates, state = transformation.update(grads, state, params)
        params = fo.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("entry, case", CASES, ids=case_id)
def test_over_models(entry, case):
    """init and update apart, as a user would call them, with a state per model in between."""
    transformation = entry.make(**case)
    params = [draw(seed) for seed in range(MODELS)]
    gradients = [[draw(100 * step + seed) for seed in range(MODELS)] for step in range(STEPS)]
    stacked = stack(params)
    state = vmap(transformation.init)(stacked)
    assert all(0 not in leaf.stride() for leaf in tree.leaves(state) if leaf.numel()), "an expanded state"
    for grads in gradients:
        updates, state = vmap(transformation.update)(stack(grads), state, stacked)
        stacked = vmap(fo.apply_updates)(stacked, updates)
    loop = [train(transformation, params[i], [grads[i] for grads in gradients]) for i in range(MODELS)]
    assert_close((stacked, state), stack(loop), rtol=tolerance(case))


@pytest.mark.parametrize("entry, case, name", SCALARS, ids=case_id)
def test_over_a_hyperparameter(entry, case, name):
    params, gradients = draw(1), [draw(10 + step) for step in range(STEPS)]
    values = entry.scalar_values(case)[name] * torch.tensor([1.0, 0.7, 0.4], dtype=torch.float64)

    def trained(value):
        return train(entry.make(**{**case, name: value}), params, gradients)

    loop = [trained(value.item()) for value in values]
    assert_close(vmap(trained)(values), stack(loop), rtol=tolerance(case))


@pytest.mark.parametrize("entry, case, name", SCALARS, ids=case_id)
def test_a_tensor_means_what_its_number_means(entry, case, name):
    params, gradients = draw(1), [draw(10 + step) for step in range(STEPS)]
    value = entry.scalar_values(case)[name]
    tensor = torch.tensor(value, dtype=torch.float64)
    result = train(entry.make(**{**case, name: tensor}), params, gradients)
    assert_close(result, train(entry.make(**{**case, name: value}), params, gradients), rtol=tolerance(case))
