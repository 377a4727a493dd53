"""Constraints: no NaN goes on, no parameter becomes negative."""

import torch

import funcopt as fo


def test_zero_nans_replaces_and_reports():
    transformation = fo.zero_nans()
    updates = {"a": torch.tensor([1.0, float("nan")]), "b": torch.tensor(float("inf"))}
    result, state = transformation.update(updates, transformation.init(updates))
    assert result["a"].tolist() == [1, 0]
    assert result["b"].item() == float("inf")
    assert state == fo.ZeroNansState({"a": torch.tensor(True), "b": torch.tensor(False)})
    _, state = transformation.update({"a": torch.ones(2), "b": torch.ones(())}, state)
    assert not state.found_nan["a"]


def test_params_stay_nonnegative():
    optimizer = fo.chain(fo.sgd(1.0), fo.keep_params_nonnegative())
    params = {"w": torch.tensor([1.0, 1.0, -2.0])}
    grads = {"w": torch.tensor([0.5, 3.0, 0.0])}
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    assert fo.apply_updates(params, updates)["w"].tolist() == [0.5, 0.0, 0.0]


def test_nan_is_not_taken_for_a_constraint():
    tx = fo.keep_params_nonnegative()
    params = {"w": torch.ones(1)}
    updates, _ = tx.update({"w": torch.tensor([float("nan")])}, tx.init(params), params)
    assert updates["w"].isnan().all()
