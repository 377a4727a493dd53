"""What leaves may be beyond the laws of the kit: single complex numbers, other strides; integers are refused."""

import pytest
import torch

import funcopt as fo
from funcopt import tree
from tests.catalogue import CASES, ENTRIES, case_id
from tests.trees import all_finite, draw

SHAPES = {"a": {"bias": (3,), "weight": (4, 3)}, "b": [(), (0, 3)], "c": (0,)}


def signature(values):
    """What must not change from step to step."""
    return tree.flatten(values)[1], [(leaf.shape, leaf.dtype, leaf.device) for leaf in tree.leaves(values)]


@pytest.mark.parametrize("entry, case", [case for case in CASES if case[0].complex], ids=case_id)
def test_complex64_is_kept_and_zero_gradients_give_no_nan(entry, case):
    transformation = entry.make(**case)
    params = draw(1, torch.complex64, SHAPES)
    state = transformation.init(params)
    expected = signature(params), signature(state)
    for factor in (1.0, 0.0, 0.0):
        gradients = tree.map(lambda leaf, factor=factor: factor * leaf, draw(2, torch.complex64, SHAPES))
        updates, state = transformation.update(gradients, state, params)
        assert (signature(updates), signature(state)) == expected
        assert all_finite((updates, state))


@pytest.mark.parametrize("entry, case", CASES, ids=case_id)
def test_the_state_is_contiguous_whatever_the_strides_of_params(entry, case):
    params = tree.map(lambda leaf: leaf.mT.contiguous().mT if leaf.ndim > 1 else leaf, draw(1))
    assert not params["a"]["weight"].is_contiguous()
    assert all(leaf.is_contiguous() for leaf in tree.leaves(entry.make(**case).init(params)))


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
@pytest.mark.parametrize("leaf", [torch.zeros(2, dtype=torch.int64), torch.zeros((), dtype=torch.bool), 0.5])
def test_a_leaf_that_cannot_move_is_refused_by_its_path(entry, leaf):
    with pytest.raises(TypeError, match=r"init: the leaf 'a\.1' of params is a .*Keep it out of params"):
        entry.make(**entry.cases[0]).init({"a": [torch.zeros(2), leaf]})


@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if not entry.complex], ids=str)
def test_complex_leaves_are_refused_where_an_order_is_needed(entry):
    transformation = entry.make(**entry.cases[0])
    params = draw(1, torch.complex64)
    with pytest.raises(TypeError, match=f"{entry.name}: complex leaves"):
        transformation.update(params, transformation.init(params), params)


def test_updates_of_another_structure_are_refused_by_path():
    optimizer = fo.adam(0.1)
    params = draw(1)
    grads = draw(2)
    del grads["a"]["bias"]
    with pytest.raises(ValueError, match=r"'a\.bias' is missing"):
        optimizer.update(grads, optimizer.init(params), params)
