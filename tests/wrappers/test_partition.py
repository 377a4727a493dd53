"""Partitions: groups that do not see each other, labels of every kind, errors that name the culprit."""

import enum

import pytest
import torch
from hypothesis import given, settings, strategies as st

import funcopt as fo
from funcopt import tree
from tests.trees import assert_identical, draw
from tests.wrappers.test_masking import GRADIENTS, PARAMS, clipped_adamw, train


class Kind(enum.Enum):
    MATRIX = 1
    VECTOR = 2


TRANSFORMS = {
    "adam": clipped_adamw(),
    "sgd": fo.chain(fo.clip_by_global_norm(0.3), fo.sgd(fo.linear_schedule(0.1, 0.0, 10), momentum=0.9)),
    "still": fo.set_to_zero(),
}
labellings = st.fixed_dictionaries({path: st.sampled_from(list(TRANSFORMS)) for path in PARAMS})


@settings(deadline=None, max_examples=25)
@given(labels=labellings)
def test_a_partition_is_its_members_run_apart(labels):
    """Bit for bit, updates and states: norms, counts and schedules are those of the group."""
    history, state = train(fo.partition(TRANSFORMS, labels), PARAMS, GRADIENTS)
    for label, member in TRANSFORMS.items():
        group = [path for path in PARAMS if labels[path] == label]
        params, *gradients = [{path: values[path] for path in group} for values in (PARAMS, *GRADIENTS)]
        expected, expected_state = train(member, params, gradients)
        for updates, wanted in zip(history, expected):
            assert_identical({path: updates[path] for path in group}, wanted)
        if group:
            found = tree.leaves_with_path(state.inner_states[label])
            assert [path for path, _ in found] == [path for path, _ in tree.leaves_with_path(expected_state)]
            assert_identical([leaf for _, leaf in found], tree.leaves(expected_state))


def test_one_label_is_the_inner_transformation():
    history, state = train(fo.partition({"all": clipped_adamw()}, "all"), PARAMS, GRADIENTS)
    expected, expected_state = train(clipped_adamw(), PARAMS, GRADIENTS)
    assert_identical((history, state.inner_states["all"]), (expected, expected_state))


@settings(deadline=None, max_examples=10)
@given(labels=labellings, order=st.permutations(list(TRANSFORMS)))
def test_the_order_of_transforms_does_not_matter(labels, order):
    params, grads = PARAMS, GRADIENTS[0]
    results = []
    for names in (list(TRANSFORMS), order):
        optimizer = fo.partition({name: TRANSFORMS[name] for name in names}, labels)
        updates, state = optimizer.update(grads, optimizer.init(params), params)
        results.append((updates, {name: state.inner_states[name] for name in TRANSFORMS}))
    assert_identical(results[0], results[1])


@pytest.mark.parametrize(
    "labels, keys",
    [
        (("x", "y"), ["x", "y"]),
        ((0, 1), ["0", "1"]),
        ((True, False), ["True", "False"]),
        ((Kind.MATRIX, Kind.VECTOR), ["MATRIX", "VECTOR"]),
        (("x", 7), ["x", "7"]),
        ((0.5, -1), ["0.5", "-1"]),
    ],
)
def test_labels_of_every_kind(labels, keys):
    first, second = labels
    optimizer = fo.partition(
        {first: fo.adam(0.1), second: fo.sgd(0.1)}, {lambda path, leaf: leaf.ndim == 2: first, "*": second}
    )
    params = draw(1)
    updates, state = optimizer.update(draw(2), optimizer.init(params), params)
    assert list(state.inner_states) == keys
    prefix = f"inner_states.{keys[0]}.0.mu"
    assert [path for path, _ in tree.leaves_with_path(state) if ".mu." in path] == [
        f"{prefix}.a.weight",
        f"{prefix}.b.1",
    ]
    assert_identical(updates["c"], -0.1 * draw(2)["c"])


def test_labels_as_tree_prefix_function_and_patterns():
    params, grads = draw(1), draw(2)
    labels = (
        {"a": "adam", "b": "sgd", "c": "sgd"},
        {"a": {"bias": "adam", "weight": "adam"}, "b": ["sgd"] * 2, "c": "sgd"},
    )
    given_as = [*labels, lambda params: labels[0], {"a*": "adam", "*": "sgd"}, fo.by_path({"a*": "adam", "*": "sgd"})]
    results = []
    for one in given_as:
        optimizer = fo.partition(TRANSFORMS, one)
        results.append(optimizer.update(grads, optimizer.init(params), params))
    for result in results[1:]:
        assert_identical(result, results[0])


def test_a_transformation_that_no_leaf_uses_stays():
    optimizer = fo.partition({"used": fo.sgd(0.1), "unused": fo.adam(0.1)}, "used")
    state = optimizer.init(PARAMS)
    _, new_state = optimizer.update(GRADIENTS[0], state, PARAMS)
    assert_identical(new_state.inner_states["unused"], state.inner_states["unused"])
    assert new_state.inner_states["used"][0].count == 1


def test_partitions_within_partitions():
    inner = fo.partition({"m": fo.adam(0.1), "v": fo.sgd(0.1)}, {lambda path, leaf: leaf.ndim == 2: "m", "*": "v"})
    outer = fo.partition({"train": inner, "still": fo.set_to_zero()}, {"a*": "train", "*": "still"})
    whole = {"m": fo.adam(0.1), "v": fo.sgd(0.1), "still": fo.set_to_zero()}
    flat = fo.partition(whole, {"a.weight": "m", "a.bias": "v", "*": "still"})
    params, grads = draw(1), draw(2)
    updates, state = outer.update(grads, outer.init(params), params)
    assert_identical(updates, flat.update(grads, flat.init(params), params)[0])
    assert len(tree.leaves(state)) == len(tree.leaves(flat.init(params)))


@pytest.mark.parametrize("with_params", [True, False])
def test_an_absent_gradient_stays_absent_and_its_state_stays(with_params):
    members = {"adam": fo.adam(0.1), "sgd": TRANSFORMS["sgd"], "still": fo.set_to_zero()}
    optimizer = fo.partition(members, {"a*": "adam", "b*": "sgd", "*": "still"})
    params, grads = draw(1), draw(3)
    _, state = optimizer.update(draw(2), optimizer.init(params), params)
    grads["b"][1] = grads["c"] = None
    updates, new_state = optimizer.update(grads, state, params if with_params else None)
    assert updates["b"][1] is None and updates["c"] is None and updates["b"][0] is not None
    sums = [dict(tree.leaves_with_path(each))["inner_states.sgd.1.0.trace.b.1"] for each in (state, new_state)]
    assert_identical(sums[1], sums[0])


def test_params_in_buffers():
    labels = {"a": "adam", "b": "sgd", "c": "sgd"}
    optimizer = fo.partition({"adam": fo.adam(0.1), "sgd": fo.sgd(0.1, momentum=0.9)}, labels)
    params, grads = draw(1), draw(2)
    packed = fo.pack(params, labels)
    updates, state = optimizer.update(fo.pack_like(grads, packed), optimizer.init(packed), packed)
    assert_identical(fo.unpack((updates, state)), optimizer.update(grads, optimizer.init(params), params))
    with pytest.raises(ValueError, match=r"partition: the packed buffer .*'a\.bias' \('adam'\) and 'b\.0' \('sgd'\)"):
        optimizer.init(fo.pack(params))


X = {"x": fo.sgd(0.1), "y": fo.adam(0.1)}


@pytest.mark.parametrize(
    "transforms, labels, error, message",
    [
        (fo.sgd(0.1), "x", TypeError, "transforms must map labels to transformations"),
        ({"x": 0.1}, "x", TypeError, "member 'x' must be a GradientTransformation, got 0.1"),
        ({1: fo.sgd(0.1), "1": fo.sgd(0.1)}, "x", ValueError, "the labels 1 and '1' are both '1' in the state"),
        (X, {"a*": "x", "*": "z"}, ValueError, r"param_labels at '\*' must be one of the labels 'x', 'y', got 'z'"),
    ],
)
def test_what_is_refused_at_once(transforms, labels, error, message):
    with pytest.raises(error, match=f"^partition: {message}"):
        fo.partition(transforms, labels)


@pytest.mark.parametrize(
    "labels, message",
    [
        ("z", "param_labels must be one of the labels 'x', 'y', got 'z'"),
        (lambda p: tree.map(lambda leaf: leaf.ndim, p), r"param_labels at 'a\.bias' must be one of .*, got 1"),
        ({"a": "x", "b": "y"}, r"param_labels is a tree that does not fit the params: it has nothing for 'c'\. If its"),
        (
            {"a": "x", "bias": "y"},
            r"it has nothing for 'b'.* by_path\(\{\.\.\.\}\), or write globs such as 'encoder\*'",
        ),
        ({"a*": "x", "b*": "y"}, "no pattern matches the leaf 'c'"),
        ({"a*": "x", "bias*": "x", "*": "y"}, r"the pattern 'bias\*' has no leaf"),
        (lambda p: {"a": None, "b": "x", "c": "x"}, r"param_labels does not tell what holds for the leaf 'a\.bias'"),
    ],
)
def test_labels_that_do_not_fit(labels, message):
    with pytest.raises(ValueError, match=f"^partition: .*{message}"):
        fo.partition(X, labels).init(draw(1))


def test_states_that_do_not_fit():
    optimizer, params = fo.partition(X, "x"), {"w": torch.ones(2)}
    other = fo.partition({"x": fo.sgd(0.1)}, "x")
    with pytest.raises(ValueError, match=r"partition: the state: 'inner_states\.y' is missing"):
        optimizer.update(params, other.init(params), params)
    with pytest.raises(ValueError, match="partition: the state must be a PartitionState"):
        optimizer.update(params, fo.sgd(0.1).init(params), params)


def test_it_prints_as_its_call():
    text = "partition({'x': sgd(0.1), 'y': adam(0.1)}, {'*bias': 'x', '*': 'y'})"
    assert repr(fo.partition(X, {"*bias": "x", "*": "y"})) == text
