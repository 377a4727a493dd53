"""What leaves may be: every floating and complex dtype, 0-d, empty, absent; integers are refused."""

import pytest
import torch

import funcopt as fo
from funcopt import tree
from tests.catalogue import CASES, ENTRIES, case_id
from tests.trees import all_finite, assert_close, assert_identical, draw

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.complex64)
SHAPES = {"a": {"bias": (3,), "weight": (4, 3)}, "b": [(), (0, 3)], "c": (0,)}


def signature(values):
    """What must not change from step to step."""
    return tree.flatten(values)[1], [(leaf.shape, leaf.dtype, leaf.device) for leaf in tree.leaves(values)]


def accepted(entry, dtype):
    return entry.complex or not dtype.is_complex


LEAF_CASES = [(entry, case, dtype) for entry, case in CASES for dtype in DTYPES if accepted(entry, dtype)]


@pytest.mark.parametrize("entry, case, dtype", LEAF_CASES, ids=case_id)
def test_dtypes_and_shapes_are_kept(entry, case, dtype):
    transformation = entry.make(**case)
    params = draw(1, dtype, SHAPES)
    state = transformation.init(params)
    expected = signature(params), signature(state)
    for step in range(3):
        updates, state = transformation.update(draw(2 + step, dtype, SHAPES), state, params)
        assert (signature(updates), signature(state)) == expected
        assert all_finite((updates, state))
        params = fo.apply_updates(params, updates)
        assert signature(params) == expected[0]


@pytest.mark.parametrize("entry, case, dtype", LEAF_CASES, ids=case_id)
def test_zero_gradients_give_no_nan(entry, case, dtype):
    """fp16 in particular, where 1e-8 is zero; at zero parameters too."""
    transformation = entry.make(**case)
    for params in (draw(1, dtype, SHAPES), tree.map(torch.zeros_like, draw(1, dtype, SHAPES))):
        state = transformation.init(params)
        for _ in range(3):
            updates, state = transformation.update(tree.map(torch.zeros_like, params), state, params)
            assert all_finite((updates, state))


@pytest.mark.parametrize("entry, case", CASES, ids=case_id)
def test_moments_are_at_least_float32(entry, case):
    chosen = [value for value in case.values() if isinstance(value, torch.dtype)]
    state = entry.make(**case).init(draw(1, torch.bfloat16))
    assert all(
        leaf.dtype in (torch.float32, torch.int32, torch.int64, torch.bool, *chosen) for leaf in tree.leaves(state)
    )


@pytest.mark.parametrize("entry, case", CASES, ids=case_id)
def test_an_absent_gradient_skips_its_leaf(entry, case):
    transformation = entry.make(**case)
    params = draw(1)
    _, state = transformation.update(draw(2), transformation.init(params), params)
    grads = draw(3)
    grads["a"]["weight"] = None
    updates, new_state = transformation.update(grads, state, params)
    assert updates["a"]["weight"] is None
    assert all(leaf is not None for path, leaf in tree.leaves_with_path(updates) if path != "a.weight")
    for (path, new), (_, old) in zip(tree.leaves_with_path(new_state), tree.leaves_with_path(state)):
        if path.endswith("a.weight"):
            assert_identical(new, old, path)
    assert_identical(fo.apply_updates(params, updates)["a"]["weight"], params["a"]["weight"])


@pytest.mark.parametrize("entry, case", CASES, ids=case_id)
def test_an_absent_parameter_is_as_if_it_were_not_there(entry, case):
    transformation = entry.make(**case)
    params, grads = draw(1), draw(2)
    params["b"] = grads["b"] = None
    updates, state = transformation.update(grads, transformation.init(params), params)
    assert updates["b"] is None
    assert all(leaf is None for path, leaf in tree.leaves_with_path(state) if path.endswith(".b"))
    if transformation.coupling != "treewise" and not entry.ordered:
        full = transformation.update(draw(2), transformation.init(draw(1)), draw(1))[0]
        assert_identical((updates["a"], updates["c"]), (full["a"], full["c"]))


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


@pytest.mark.parametrize("entry, case", CASES, ids=case_id)
def test_empty_trees(entry, case):
    transformation = entry.make(**case)
    for params in ({}, [], (), {"a": {}}, {"a": None}):
        if "mask" in case and params != {} and not callable(case["mask"]):
            continue
        mask = {} if isinstance(case.get("mask"), dict) else case.get("mask")
        built = transformation if mask is None else entry.make(**{**case, "mask": mask})
        updates, _ = built.update(params, built.init(params), params)
        assert tree.flatten(updates)[1] == tree.flatten(params)[1]


@pytest.mark.parametrize("entry, case", [case for case in CASES if not case[0].ordered], ids=case_id)
def test_the_order_of_keys_does_not_matter(entry, case):
    def reordered(values):
        return {"c": values["c"], "b": values["b"], "a": {name: values["a"][name] for name in ("weight", "bias")}}

    transformation = entry.make(**case)
    params, grads = draw(1), draw(2)
    updates, state = transformation.update(reordered(grads), transformation.init(params), params)
    expected, expected_state = transformation.update(grads, transformation.init(params), params)
    assert_close(reordered(updates), reordered(expected), rtol=1e-14)
    assert_close(state, expected_state, rtol=1e-14)


def test_updates_of_another_structure_are_refused_by_path():
    optimizer = fo.adam(0.1)
    params = draw(1)
    grads = draw(2)
    del grads["a"]["bias"]
    with pytest.raises(ValueError, match=r"'a\.bias' is missing"):
        optimizer.update(grads, optimizer.init(params), params)
