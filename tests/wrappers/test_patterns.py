"""Values by path: which pattern takes a leaf, what is refused, and that a mask means the same however it is given."""

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

import funcopt as fo
from funcopt import tree
from tests.trees import assert_identical, draw


def is_matrix(path, leaf):
    return leaf.ndim == 2


@pytest.mark.parametrize(
    "patterns, expected",
    [
        ({"*": 1}, {"a": {"bias": 1, "weight": 1}, "b": [1, 1], "c": 1}),
        ({"*bias": 1, "*": 2}, {"a": {"bias": 1, "weight": 2}, "b": [2, 2], "c": 2}),
        ({"a*": 1, "?": 2, "b.[0-9]": 3}, {"a": {"bias": 1, "weight": 1}, "b": [3, 3], "c": 2}),
        ({"a.bias": 1, "b.0": 2, is_matrix: 3, "*": 4}, {"a": {"bias": 1, "weight": 3}, "b": [2, 3], "c": 4}),
        (
            {lambda path, leaf: path.startswith("a"): "x", "*": "y"},
            {"a": {"bias": "x", "weight": "x"}, "b": ["y", "y"]},
        ),
        ({"[!a]*": 1, "A*": 2, "a*": 3}, None),
    ],
)
def test_the_first_match_wins(patterns, expected):
    if expected is None:
        with pytest.raises(ValueError, match=r"by_path: the pattern 'A\*' has no leaf"):  # case matters
            fo.by_path(patterns)(draw(1))
    else:
        found = fo.by_path(patterns)(draw(1))
        assert found == {"c": "y", **expected}


def test_a_star_may_be_left_without_a_leaf():
    assert fo.by_path({"a*": 1, "b*": 2, "c": 3, "*": 4})(draw(1))["c"] == 3


def test_flat_names_are_paths():
    params = {"encoder.0.bias": torch.ones(1), "encoder.0.weight": torch.ones(1)}
    assert list(fo.by_path({"*.bias": 1, "encoder*": 2})(params).values()) == [1, 2]


def test_a_leaf_that_is_none_goes_by_its_path():
    params = {"w": torch.ones(2, 2), "b": None}
    assert fo.by_path({"b": 1, "*": 2})(params) == {"w": 2, "b": 1}
    assert fo.by_path({is_matrix: 1, "b": 2})(params) == {"w": 1, "b": None}
    assert fo.by_path({"w": 1})(params) == {"w": 1, "b": None}


def test_patterns_may_be_meant_for_leaves_that_are_masked_out():
    """A mask within a group sees the other groups' leaves as masked out; its patterns need not match in its own."""
    params = {"w": torch.ones(2, 2), "b": tree.MaskedNode()}
    assert fo.by_path({"*b": 1, "*": 2})(params) == {"w": 2, "b": tree.MaskedNode()}
    assert fo.by_path({"w": 1, lambda path, leaf: leaf.ndim == 1: 2})(params)["w"] == 1
    with pytest.raises(ValueError, match="the pattern 'c' has no leaf"):
        fo.by_path({"c": 1, "*": 2})(params)


@pytest.mark.parametrize("params", [{}, [], (), {"a": {}}, {"a": None}, {"a": tree.MaskedNode()}])
def test_nothing_is_asked_of_a_tree_without_leaves(params):
    assert tree.leaves(fo.by_path({"x*": 1, is_matrix: 2})(params)) == []


@pytest.mark.parametrize(
    "patterns, message",
    [
        ({"*bias": 1, "a.weight": 2}, r"no pattern matches the leaf 'b\.0'; end with '\*'"),
        ({"*": 1, "*bias": 2}, r"the pattern '\*bias' has no leaf: .*earlier.* The leaves are 'a\.bias', 'a\.weight'"),
        ({"typo": 1, "*": 2}, "the pattern 'typo' has no leaf"),
        ({"a*": 1, lambda path, leaf: leaf.ndim > 5: 2, "*": 3}, "the pattern <lambda> has no leaf"),
    ],
)
def test_patterns_that_do_not_fit_are_named(patterns, message):
    with pytest.raises(ValueError, match=f"^by_path: {message}"):
        fo.by_path(patterns)(draw(1))
    for make in (fo.masked, fo.freeze):
        masks = {pattern: value == 1 for pattern, value in patterns.items()}
        with pytest.raises(ValueError, match=f"^(by_path|{make.__name__}): {message}"):
            make(fo.adam(0.1), fo.by_path(masks)).init(draw(1))


@pytest.mark.parametrize(
    "patterns, message",
    [
        (3, "patterns must be a dict"),
        ({3: True}, "a pattern is a str or a function of path and leaf, got 3"),
        ({"*": [True]}, r"a pattern has one value for each leaf, got \[True\] for '\*'"),
        ({"*": None}, r"a pattern has one value for each leaf, got None for '\*'"),
    ],
)
def test_what_is_no_pattern_is_refused_at_once(patterns, message):
    with pytest.raises(TypeError, match=f"by_path: {message}"):
        fo.by_path(patterns)


def test_by_path_prints_as_its_call():
    mask = fo.by_path({"*bias": False, is_matrix: True, "*": False})
    text = "adamw(0.1, mask=by_path({'*bias': False, is_matrix: True, '*': False}))"
    assert repr(fo.adamw(0.1, mask=mask)) == text


def test_by_path_masks_the_weight_decay_of_an_optimizer():
    params, grads = draw(1), draw(2)
    by_path = fo.adamw(0.1, weight_decay=0.5, mask=fo.by_path({"*bias": False, "*": True}))
    by_tree = fo.adamw(0.1, weight_decay=0.5, mask={"a": {"bias": False, "weight": True}, "b": True, "c": True})
    updates, _ = by_path.update(grads, by_path.init(params), params)
    assert_identical(updates, by_tree.update(grads, by_tree.init(params), params)[0])


@settings(deadline=None, max_examples=30)
@given(bits=st.lists(st.booleans(), min_size=5, max_size=5))
def test_a_mask_means_the_same_as_tree_function_and_patterns(bits):
    params, grads = draw(1), draw(2)
    paths, structure = [path for path, _ in tree.leaves_with_path(params)], tree.flatten(params)[1]
    as_tree = tree.unflatten(bits, structure)
    patterns = {f"{path[:-1]}[{path[-1]}]": bit for path, bit in zip(paths, bits)}
    results = []
    for mask in (as_tree, lambda params: as_tree, patterns, fo.by_path(patterns)):
        optimizer = fo.freeze(
            fo.masked(fo.chain(fo.clip_by_global_norm(0.1), fo.adam(0.1)), mask),
            mask={"a": False, "b": True, "c": False},
        )
        results.append(optimizer.update(grads, optimizer.init(params), params))
    for result in results[1:]:
        assert_identical(result, results[0])


def test_one_graph_with_all_kinds_of_patterns():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    params = draw(1, torch.float32)

    def step(params, grads):
        mask = fo.by_path({lambda path, leaf: leaf.ndim == 2: True, "a.b?as": False, "*": True})
        optimizer = fo.masked(fo.sgd(0.1), mask)
        return optimizer.update(grads, optimizer.init(params), params)[0]

    compiled = torch.compile(step, backend=counter, fullgraph=True)
    for seed in (2, 3):
        grads = draw(seed, torch.float32)
        assert_identical(compiled(params, grads), step(params, grads))
    assert counter.frame_count == 1
