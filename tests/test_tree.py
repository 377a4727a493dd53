"""Trees: None, order, prefixes, dtypes, errors that name a path."""

from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch
from torch.func import grad

import funcopt as fo
from funcopt import tree
from tests.trees import assert_identical, draw


class Pair(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor


def test_paths():
    values = {"conv": [torch.zeros(1), Pair(torch.zeros(1), None)]}
    assert [path for path, _ in tree.leaves_with_path(values)] == ["conv.0", "conv.1.left", "conv.1.right"]


@pytest.mark.parametrize(
    "values, paths",
    [
        (torch.zeros(1), [""]),
        (None, [""]),
        ({}, []),
        ({1: 0.5, "1": (None, [])}, ["1", "1.0"]),
        (OrderedDict(a=Pair(tree.MaskedNode(), {"b.c": "text"})), ["a.right.b.c"]),
        ([Pair({"a": 1}, 2), OrderedDict()], ["0.left.a", "0.right"]),
    ],
)
def test_paths_come_in_the_order_of_leaves(values, paths):
    pairs = tree.leaves_with_path(values)
    assert [path for path, _ in pairs] == paths
    assert all(leaf is other for (_, leaf), other in zip(pairs, tree.flatten(values)[0]))
    assert len(pairs) == tree.flatten(values)[1].num_leaves


def test_map_passes_none_and_matches_by_key():
    a, b = {"x": torch.ones(1), "y": None}, {"y": torch.ones(1), "x": torch.full((1,), 2.0)}
    assert_identical(tree.map(torch.add, a, b), {"x": torch.full((1,), 3.0), "y": None})


def test_a_prefix_comes_first():
    chosen = tree.map(lambda keep, part: part if keep else "left out", {"a": True, "b": False}, {"a": [1, 2], "b": 3})
    assert chosen == {"a": [1, 2], "b": "left out"}


@pytest.mark.parametrize(
    "other, message",
    [
        ({"a": [1]}, r"'a\.1' is missing"),
        ({"a": [1, 2], "b": 3}, "'b' is not expected"),
        ({"a": (1, 2)}, "containers of other types"),
        ([1, 2], r"'a\.0' is missing.*'0' is not expected"),
    ],
)
def test_a_mismatch_names_the_path(other, message):
    with pytest.raises(ValueError, match=message):
        tree.map(lambda a, b: a, {"a": [1, 2]}, other)


def test_map_rule_computes_in_float32_and_rounds_once():
    seen = []

    def rule(g, m):
        seen.append((g.dtype, m.dtype))
        return g / 3, m + g / 3

    g = torch.tensor([1.0], dtype=torch.float16)
    m = torch.zeros(1, dtype=torch.bfloat16)
    update, total = tree.map_rule(rule, [g], [m])
    assert seen == [(torch.float32, torch.float32)]
    assert update[0].dtype == torch.float16
    assert update[0].item() == torch.tensor(1 / 3, dtype=torch.float16).item()
    assert total[0].item() == torch.tensor(1 / 3, dtype=torch.bfloat16).item()


def test_map_rule_owns_what_it_returns():
    g, m = torch.ones(2), torch.ones(2)
    (update,), (first,), (second,) = tree.map_rule(lambda g, m, n: (g, g, m), [g], [m], [torch.ones(2)])
    pointers = {tensor.data_ptr() for tensor in (g, m, update, first, second)}
    assert len(pointers) == 5


def test_map_rule_keeps_the_state_of_an_absent_leaf():
    updates, state = tree.map_rule(lambda g, m: (g, m + 1), [None, torch.ones(1)], [torch.zeros(1), torch.zeros(1)])
    assert updates[0] is None
    assert [leaf.item() for leaf in state] == [0, 1]


def test_accumulators():
    params = draw(1, torch.bfloat16)
    assert {leaf.dtype for leaf in tree.leaves(tree.zeros_like(params))} == {torch.float32}
    assert {leaf.dtype for leaf in tree.leaves(tree.zeros_like(params, torch.float16))} == {torch.float16}
    complex_params = {"z": torch.ones(2, dtype=torch.complex64)}
    assert tree.zeros_like(complex_params, torch.float16)["z"].dtype == torch.complex64
    assert tree.full_like(complex_params, 0.5, real=True)["z"].tolist() == [0.5, 0.5]


def test_mask_like():
    values = {"a": [torch.ones(2), None], "b": torch.zeros(3)}
    masked = tree.mask_like(values, {"a": [tree.MaskedNode(), torch.ones(2)], "b": torch.ones(3)})
    assert masked["a"] == [tree.MaskedNode(), None] and masked["b"] is values["b"]


def test_copies_for_a_state():
    params = {"half": torch.ones(3, 4, dtype=torch.float16).T, "full": torch.ones(2), "none": None}
    copy = tree.clone_wide(params)
    assert copy["half"].dtype == torch.float32 and copy["half"].is_contiguous() and copy["none"] is None
    assert copy["full"].data_ptr() != params["full"].data_ptr()
    assert tree.clone_wide(params, torch.bfloat16)["full"].dtype == torch.bfloat16
    assert tree.clone_wide([torch.ones(2, dtype=torch.complex64)], torch.bfloat16)[0].dtype == torch.complex64
    with pytest.raises(TypeError, match="init: the leaf 'n' of params"):
        tree.clone_wide({"n": torch.ones(2, dtype=torch.int64)})


def test_accumulators_of_views_are_contiguous():
    params = {"w": torch.ones(3, 4).T, "v": torch.ones(1).expand(5)}
    assert all(leaf.is_contiguous() for leaf in tree.leaves(tree.zeros_like(params)))
    assert all(leaf.is_contiguous() for leaf in tree.leaves(tree.clone(params)))


def test_global_norm():
    values = {"a": torch.tensor([3.0, 0.0]), "b": None, "c": [torch.tensor(4.0), torch.zeros(0)]}
    assert fo.global_norm(values).item() == 5
    assert fo.global_norm({}).item() == 0
    assert fo.global_norm({"z": torch.tensor([3 + 4j])}).item() == 5
    assert fo.global_norm({"h": torch.full((4,), 300.0, dtype=torch.float16)}).item() == 600
    assert all((g == 0).all() for g in grad(fo.global_norm)([torch.zeros(2), torch.zeros(())]))


def test_substructures_are_depth_first():
    structure = tree.flatten(({"a": [1, 2]}, 3))[1]
    starts = [(start, part.num_leaves) for start, part in tree.substructures(structure)]
    assert starts == [(0, 3), (0, 2), (0, 2), (0, 1), (1, 1), (2, 1)]


def test_mask_and_unmask():
    values = {"a": [torch.ones(2), None], "b": {"c": torch.zeros(3), "d": torch.zeros(4)}}
    masked = tree.mask(values, {"a": [False, True], "b": {"c": True, "d": False}})
    assert masked["a"] == [tree.MaskedNode(), None] and masked["b"]["d"] == tree.MaskedNode()
    assert [leaf.numel() for leaf in tree.leaves(masked)] == [3]
    other = tree.map(lambda leaf: leaf + 5, values)
    filled = tree.unmask(masked, other)
    assert filled["a"][0].tolist() == [6.0, 6.0] and filled["b"]["c"].tolist() == [0.0] * 3
    assert filled["b"]["d"].tolist() == [5.0] * 4
    assert tree.mask(values, {"a": False, "b": True})["a"] == [tree.MaskedNode(), tree.MaskedNode()]
    assert tree.unmask(tree.mask(values, {"a": False, "b": True}), values)["a"][1] is None


def test_broadcast_prefix():
    values = {"b": [0, None], "a": {"c": 1, "d": tree.MaskedNode()}}
    assert tree.broadcast_prefix({"a": "x", "b": ["y", "z"]}, values) == ["y", "z", "x"]
    assert tree.broadcast_prefix({"a": {"d": "v", "c": "x"}, "b": "y"}, values) == ["y", "y", "x"]
    assert tree.broadcast_prefix("x", values) == ["x", "x", "x"]
    with pytest.raises(ValueError, match="'b' is not expected"):
        tree.broadcast_prefix({"a": "x"}, {"a": 1, "b": 2})


def test_where_takes_one_side_whole():
    bad, good = {"x": torch.tensor([torch.nan])}, {"x": torch.tensor([1.0], dtype=torch.float64)}
    for condition, expected in ((False, 1.0), (True, torch.nan)):
        taken = tree.where(torch.tensor(condition), bad, good)["x"]
        assert taken.dtype == torch.float64
        assert torch.equal(taken.nan_to_num(7.0), torch.tensor([expected], dtype=torch.float64).nan_to_num(7.0))
