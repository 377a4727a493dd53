"""Factors by path: which leaf gets which, and what is no factor."""

import pytest
import torch
from torch.func import grad, vmap

import funcopt as fo
from funcopt import tree
from tests.trees import assert_identical, draw


def scaled(multipliers, updates, params=None):
    transformation = fo.scale_by_path(multipliers)
    return transformation.update(updates, transformation.init(updates), params)[0]


@pytest.mark.parametrize(
    "multipliers",
    [
        {"a": 2.0, "b": [3, 0.0], "c": torch.tensor(-1.0)},
        {"c": torch.tensor(-1.0), "b": [3, 0.0], "a": {"weight": 2.0, "bias": 2.0}},
        {"a*": 2.0, "b.0": 3, "b*": 0.0, "*": torch.tensor(-1.0)},
        lambda params: {"a": 2.0, "b": [3, 0.0], "c": torch.tensor(-1.0)},
    ],
)
def test_every_leaf_has_its_factor(multipliers):
    grads = draw(2)
    expected = {
        "a": {name: 2 * leaf for name, leaf in grads["a"].items()},
        "b": [3 * grads["b"][0], 0 * grads["b"][1]],
        "c": -grads["c"],
    }
    assert_identical(scaled(multipliers, grads, draw(1)), expected)


def test_layerwise_decay_of_the_learning_rate():
    """Factors computed from the path, as for fine-tuning: 0.5 per layer below the last."""
    params = {f"layer{i}": torch.ones(2) for i in range(3)} | {"head": torch.ones(2)}
    factors = {f"layer{i}*": 0.5 ** (3 - i) for i in range(3)} | {"*": 1.0}
    optimizer = fo.chain(fo.adamw(0.1, weight_decay=0.5), fo.scale_by_path(factors))
    whole = fo.adamw(0.1, weight_decay=0.5)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    full, _ = whole.update(params, whole.init(params), params)
    for i, name in enumerate(params):
        assert_identical(updates[name], 0.5 ** (3 - i) * full[name])


def test_factors_may_be_batched_and_differentiated():
    grads = {"w": torch.ones(2), "b": torch.ones(3)}

    def total(factor):
        return sum(leaf.sum() for leaf in scaled({"w": factor, "*": 2.0}, grads).values())

    assert total(torch.tensor(3.0)).item() == 12
    assert vmap(total)(torch.tensor([0.0, 1.0])).tolist() == [6, 8]
    assert grad(total)(torch.tensor(3.0)).item() == 2


def test_a_tensor_within_packed_params():
    factor, params = torch.tensor(2.0), {"w": torch.ones(2), "b": torch.ones(3)}
    assert_identical(scaled({"*": factor}, fo.pack(params)).buffers[0], torch.full((5,), 2.0))


@pytest.mark.parametrize(
    "multipliers, error, message",
    [
        ({"*": "2"}, TypeError, r"multipliers at '\*' must be a number or a 0-d tensor, got"),
        ({"*": True}, TypeError, "must be a number or a 0-d tensor"),
        ({"*": fo.constant_schedule(1.0)}, TypeError, "must be a number or a 0-d tensor"),
        ({"*": float("nan")}, ValueError, r"multipliers at '\*' must lie in \(-inf, inf\)"),
        ({"*": torch.ones(2)}, ValueError, r"must be a number or a 0-d tensor, got shape \(2,\)"),
    ],
)
def test_what_is_no_factor_is_refused_at_once(multipliers, error, message):
    with pytest.raises(error, match=f"^scale_by_path: .*{message}"):
        fo.scale_by_path(multipliers)


@pytest.mark.parametrize(
    "multipliers, message",
    [
        ({"a": 1.0, "b": float("inf"), "c": 1.0}, r"multipliers at 'b' must lie in \(-inf, inf\)"),
        ({"a": 1.0}, "multipliers is a tree that does not fit the params: it has nothing for 'b'"),
        ({"a*": 1.0}, r"no pattern matches the leaf 'b\.0'"),
    ],
)
def test_what_does_not_fit_is_refused_by_init(multipliers, message):
    with pytest.raises(ValueError, match=f"^scale_by_path: .*{message}"):
        fo.scale_by_path(multipliers).init(draw(1))


def test_none_and_masked_out():
    updates = {"w": torch.ones(2), "b": None, "m": tree.MaskedNode()}
    assert_identical(
        scaled({"w": 2.0, "*": 1.0}, updates), {"w": torch.full((2,), 2.0), "b": None, "m": tree.MaskedNode()}
    )
