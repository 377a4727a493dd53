"""Pure functions: arguments stay as they are, also when a consumer overwrites what came out."""

import pytest
import torch

import funcopt as fo
from funcopt import tree
from tests.catalogue import CASES, case_id
from tests.trees import assert_identical, draw


def overwrite(values):
    for leaf in tree.leaves(values):
        leaf.fill_(True if leaf.dtype == torch.bool else 77)


def storages(values):
    return [leaf.untyped_storage().data_ptr() for leaf in tree.leaves(values) if leaf.numel()]


@pytest.mark.parametrize("entry, case", CASES, ids=case_id)
def test_no_argument_is_touched(entry, case):
    transformation = entry.make(**case)
    params, grads = draw(1), draw(2)
    state = transformation.init(params)
    _, state = transformation.update(draw(3), state, params)
    arguments = (grads, state, params)
    before = tree.clone(arguments)
    updates, new_state = transformation.update(grads, state, params)
    kept = tree.clone(new_state)
    overwrite(updates)
    assert_identical(new_state, kept, "the new state shares memory with the updates")
    overwrite(new_state)
    assert_identical(arguments, before, "an argument changed")


@pytest.mark.parametrize("entry, case", CASES, ids=case_id)
def test_init_shares_nothing_with_params(entry, case):
    params = draw(1)
    before = tree.clone(params)
    state = entry.make(**case).init(params)
    assert all(leaf.is_contiguous() for leaf in tree.leaves(state))
    assert len(set(storages(state))) == len(storages(state)), "two leaves of the state share memory"
    overwrite(state)
    assert_identical(params, before)


@pytest.mark.parametrize("entry, case", CASES, ids=case_id)
def test_the_same_arguments_give_the_same_result(entry, case):
    transformation = entry.make(**case)
    params, grads = draw(1), draw(2)
    state = transformation.init(params)
    generator_state = torch.get_rng_state()
    first = transformation.update(grads, state, params)
    transformation.update(draw(5), state, params)
    assert_identical(transformation.update(grads, state, params), first)
    assert torch.equal(torch.get_rng_state(), generator_state), "the global random state was used"


@pytest.mark.parametrize("entry, case", CASES, ids=case_id)
def test_the_state_is_all_there_is(entry, case):
    """A second transformation, built alike, goes on from a copied state as the first one does."""
    first, second = entry.make(**case), entry.make(**case)
    params = draw(1)
    _, state = first.update(draw(2), first.init(params), params)
    assert_identical(second.update(draw(3), tree.clone(state), params), first.update(draw(3), state, params))


def test_apply_updates_shares_nothing():
    params, updates = draw(1), draw(2)
    updates["a"]["bias"] = None
    before = tree.clone((params, updates))
    overwrite(fo.apply_updates(params, updates))
    assert_identical((params, updates), before)
