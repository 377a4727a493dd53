"""Parts of a state by name, and the leaves of a state that belong to a parameter."""

from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

import funcopt as fo
from funcopt import tree
from tests.catalogue import CASES, case_id
from tests.trees import assert_identical, draw

PARAMS = {"w": torch.ones(2, 3), "mu": torch.ones(3)}  # a parameter that is named as a field of the state


@pytest.fixture
def state():
    return fo.named_chain(("clip", fo.clip_by_global_norm(1.0)), ("adam", fo.adam(0.1))).init(PARAMS)


# -------------------------------------------------------------------------------------------------------- get


def test_a_field_a_key_and_a_class_are_found(state):
    assert tree.get(state, "last_rate") is state["adam"][1].last_rate
    assert tree.get(state, "clip") is state["clip"]
    assert tree.get(state, "ScaleByAdamState") is state["adam"][0]
    assert tree.get(state, "nu") is state["adam"][0].nu
    assert tree.get({3: "three"}, "3") == "three"


def test_what_is_not_there_is_the_default(state):
    assert tree.get(state, "momentum") is None
    assert tree.get(state, "momentum", 7) == 7
    assert tree.get(state, "0") is None, "positions are no names"


def test_several_hits_are_told_by_path(state):
    with pytest.raises(KeyError, match=r"'count' occurs at 'adam\.0\.count', 'adam\.1\.count'; choose"):
        tree.get(state, "count")
    assert tree.get(state, "count", filtering=lambda path, part: path.startswith("adam.1")) is state["adam"][1].count
    assert tree.get(tree.get(state, "ScaleByAdamState"), "count") is state["adam"][0].count


def test_parts_of_hits_are_hits(state):
    paths = [path for path, _ in tree.get_all_with_path(state, "mu")]
    assert paths == ["adam.0.mu", "adam.0.mu.mu", "adam.0.nu.mu"]
    only = tree.get_all_with_path(state, "mu", lambda path, part: isinstance(part, dict))
    assert [path for path, _ in only] == ["adam.0.mu"]


def test_masked_leaves_are_passed_over():
    masked = tree.mask({"a": torch.ones(1), "b": torch.ones(1)}, {"a": False, "b": True})
    nested = ({"a": torch.zeros(1)}, masked, fo.EmptyState())
    assert [path for path, _ in tree.get_all_with_path(nested, "a")] == ["0.a"]
    assert [path for path, _ in tree.get_all_with_path(nested, "MaskedNode")] == ["1.a"]
    assert tree.get(nested, "EmptyState") == fo.EmptyState()


def test_the_root_has_an_empty_path():
    assert tree.get_all_with_path(fo.EmptyState(), "EmptyState") == [("", fo.EmptyState())]


# -------------------------------------------------------------------------------------------------------- set


def test_set_replaces_every_hit_and_shares_the_rest(state):
    before = tree.clone(state)
    new = tree.set(state, count=5, last_rate=0.2)
    assert new["adam"][0].count == new["adam"][1].count == 5
    assert new["adam"][0].count is not new["adam"][1].count
    assert new["adam"][1].last_rate.item() == torch.tensor(0.2).item()
    assert new["adam"][0].mu is state["adam"][0].mu and new["clip"] is state["clip"]
    assert_identical(state, before)
    assert [(leaf.dtype, leaf.shape) for leaf in tree.leaves(new)] == [
        (leaf.dtype, leaf.shape) for leaf in tree.leaves(state)
    ]


def test_set_takes_trees_and_copies_them(state):
    value = draw(3, torch.float32, {"mu": (3,), "w": (2, 3)})  # keys in another order
    new = tree.set(state, lambda path, part: path == "adam.0.mu", mu=value)
    assert_identical(new["adam"][0].mu, {key: value[key] for key in ("w", "mu")})
    value["mu"].fill_(7)
    assert not (new["adam"][0].mu["mu"] == 7).any()
    whole = tree.set(state, ScaleByAdamState=state["adam"][0]._replace(count=torch.tensor(3, dtype=torch.int32)))
    assert tree.get(whole["adam"][0], "count") == 3


def test_set_knows_dicts_by_their_own_keys_and_kinds():
    new = tree.set((OrderedDict({2: torch.zeros(())}), [None]), **{"2": 1.5})
    assert type(new[0]) is OrderedDict and new[0][2] == 1.5


@pytest.mark.parametrize(
    "values, error, message",
    [
        (
            {"lr": 0.1},
            KeyError,
            r"nothing is named 'lr'; there are clip, adam, norm, clipped, count, mu, nu, last_rate, w\.",
        ),
        ({"last_rate": torch.ones(2)}, ValueError, r"'adam\.1\.last_rate' must be .* shape \(\), got .* shape \(2,\)"),
        ({"last_rate": torch.ones(()).double()}, TypeError, r"must be of torch\.float32, got torch\.float64; cast"),
        ({"last_rate": "0.1"}, TypeError, r"'adam\.1\.last_rate' must be a tensor of shape \(\) of .*got '0\.1'"),
        ({"last_rate": True}, TypeError, "got True"),
        ({"last_rate": None}, TypeError, "got None"),
        ({"count": 1.5}, TypeError, r"'adam\.0\.count' must be .*int32, got 1\.5"),
        ({"nu": {"w": torch.ones(2, 3)}}, ValueError, r"'adam\.0\.nu' must have the structure of a dict of w, mu, got"),
        ({"nu": {"w": torch.ones(2, 3), "mu": None}}, TypeError, r"'adam\.0\.nu\.mu' must be"),
        ({"nu": torch.ones(2)}, ValueError, r"'adam\.0\.nu' must have the structure of a dict"),
    ],
)
def test_set_refuses_what_does_not_fit(state, values, error, message):
    before = tree.clone(state)
    with pytest.raises(error, match=message):
        tree.set(state, **values)
    assert_identical(state, before)


TREES = st.recursive(
    st.integers(0, 9).map(lambda value: torch.tensor(float(value))),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
        | st.tuples(inner, inner)
        | inner.map(fo.TraceState)
    ),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(values=TREES, key=st.sampled_from(["a", "b", "trace"]))
def test_what_is_set_is_what_is_got(values, key):
    """Every tensor under a name is replaced, and nothing else."""

    def filtering(path, part):
        return isinstance(part, Tensor)

    hits = [path for path, _ in tree.get_all_with_path(values, key, filtering)]
    if not hits:
        with pytest.raises(KeyError):
            tree.set(values, filtering, **{key: -1.0})
        return
    new = tree.set(values, filtering, **{key: -1.0})
    assert tree.flatten(new)[1] == tree.flatten(values)[1]
    for (path, leaf), (_, old) in zip(tree.leaves_with_path(new), tree.leaves_with_path(values)):
        assert leaf == -1 if path in hits else leaf is old


# -------------------------------------------------------------------------------------------------------- paths


def test_paths_of_named_members_do_not_depend_on_positions():
    """What comes before, or a value that becomes a schedule, leaves every path of the others as it is."""

    def paths(*members):
        return {path for path, _ in tree.leaves_with_path(fo.named_chain(*members).init(PARAMS))}

    adam = ("adam", fo.inject_hyperparams(fo.adamw)(0.1))
    scheduled = ("adam", fo.inject_hyperparams(fo.adamw)(lambda count: 0.1, b1=lambda count: 0.5))
    trace, noise = ("trace", fo.trace(0.9)), ("noise", fo.add_noise(0.1, 0.5))
    assert paths(trace, adam) == paths(adam, trace) == paths(trace, scheduled)
    assert paths(trace, adam) < paths(noise, adam, trace)
    assert "adam.hyperparams.learning_rate" in paths(adam)


# ---------------------------------------------------------------------------------------------------- map_params


def owned(transformation, params):
    """The paths of the leaves of a state that belong to a parameter, each with the path of that parameter."""
    state = transformation.init(params)
    names = iter([path for path, leaf in tree.leaves_with_path(params) if leaf is not None])
    names = tree.map(lambda leaf: next(names), params)
    marked = fo.map_params(
        transformation, lambda leaf, param, name: name, state, params, names, transform_non_params=lambda leaf: None
    )
    return {path: name for path, name in tree.leaves_with_path(marked) if name is not None}


def ends_like_a_path_of(params, paths):
    names = [path for path, leaf in tree.leaves_with_path(params) if leaf is not None]
    return {path: name for path in paths for name in names if f".{path}".endswith(f".{name}")}


@pytest.mark.parametrize("entry, case", CASES, ids=case_id)
def test_the_leaves_that_belong_to_params(entry, case):
    transformation, params = entry.make(**case), draw(1)
    paths = [path for path, _ in tree.leaves_with_path(transformation.init(params))]
    assert owned(transformation, params) == ends_like_a_path_of(params, paths)


SIMPLE = [(entry, case) for entry, case in CASES if entry.build is None and not isinstance(case.get("mask"), dict)]


@pytest.mark.parametrize("entry, case", SIMPLE, ids=case_id)
def test_flat_dicts_with_dotted_names_and_bare_tensors(entry, case):
    transformation = entry.make(**case)
    flat = {"layer.weight": torch.ones(2, 3), "layer.0.bias": torch.ones(()), "count": torch.ones(())}
    expected = [path for path, _ in tree.leaves_with_path(transformation.init(flat))]
    in_flat = owned(transformation, flat)
    assert in_flat.items() >= ends_like_a_path_of({"layer.weight": 0, "layer.0.bias": 0}, expected).items()
    for name, bare in flat.items():
        state = transformation.init(bare)
        alike = {
            path for path, leaf in tree.leaves_with_path(state) if leaf.shape == bare.shape and leaf.is_floating_point()
        }
        under_name = {path.removesuffix(f".{name}") for path, owner in in_flat.items() if owner == name}
        assert set(owned(transformation, bare)) == under_name & alike


def test_adam_by_hand():
    params = {"a": torch.ones(()), "b": [torch.ones(2), None]}
    optimizer = fo.chain(fo.adam(0.1), fo.inject_hyperparams(fo.sgd)(0.1, momentum=0.9))
    assert owned(optimizer, params) == {
        "0.0.mu.a": "a",
        "0.0.mu.b.0": "b.0",
        "0.0.nu.a": "a",
        "0.0.nu.b.0": "b.0",
        "1.inner_state.0.trace.a": "a",
        "1.inner_state.0.trace.b.0": "b.0",
    }


def test_masked_leaves_belong_to_nobody():
    params = {"a": torch.ones(1), "b": torch.ones(2)}

    def init(params):
        return fo.adam(0.1).init(tree.mask(params, {"a": False, "b": True}))

    marked = fo.map_params(init, lambda leaf, param: tuple(param.shape), init(params), params)
    assert repr(marked[0].mu) == "{'a': MaskedNode(), 'b': (2,)}"


class Memory(NamedTuple):
    rows: Any  # one number for each row of a matrix
    stack: Any  # the last two gradients
    best: Tensor
    by_name: dict[str, Tensor]
    unknown: Any


def remember(params):
    return Memory(
        tree.map(lambda leaf: leaf.sum(-1), params),
        tree.map(lambda leaf: torch.stack([leaf, leaf]), params),
        torch.zeros(()),
        {"w": torch.zeros(()), "mu": torch.zeros(())},  # as if it were params, were it not declared
        torch.zeros(()),
    )


def test_leaves_of_other_shapes_belong_to_params_and_declared_tensors_do_not():
    assert set(owned(fo.GradientTransformation(remember, len), PARAMS)) == {"rows.w", "rows.mu", "stack.w", "stack.mu"}
    single = owned(fo.GradientTransformation(remember, len), torch.ones(()).expand(3))
    assert not single, "shapes differ, and there is no structure to go by"


def test_a_class_whose_annotations_cannot_be_evaluated():
    class Local(NamedTuple):
        count: "Unheard"  # noqa: F821
        mu: "Any"

    params = {"w": torch.ones(2)}
    found = owned(fo.GradientTransformation(lambda params: Local(torch.zeros(()), tree.clone(params)), len), params)
    assert set(found) == {"mu.w"}


def test_map_params_maps():
    params = draw(1)
    optimizer = fo.adam(0.1)
    _, state = optimizer.update(draw(2), optimizer.init(params), params)
    new = fo.map_params(optimizer, lambda leaf, param, scale: leaf + scale * param, state, params, draw(3))
    expected = tree.map(lambda leaf, param, scale: leaf + scale * param, state[0].nu, params, draw(3))
    assert_identical(new[0].nu, expected)
    assert new[0].count is state[0].count
    counted = fo.map_params(optimizer.init, lambda leaf, param: leaf, state, params, transform_non_params=torch.neg)
    assert counted[0].count == -1 and counted[0].mu["b"] == state[0].mu["b"]


def test_map_params_of_a_vmapped_state_and_of_meta_tensors():
    params, optimizer = torch.ones(3, 2), fo.adam(0.1)
    state = torch.vmap(optimizer.init)(params)
    shapes = fo.map_params(optimizer, lambda leaf, param: (leaf.shape, param.shape), state, params[0])
    assert shapes[0].mu == ((3, 2), (2,))
    meta = {"w": torch.empty(10**9, 1000, device="meta")}
    assert (
        fo.map_params(optimizer, lambda leaf, param: leaf.device.type, optimizer.init(meta), meta)[0].mu["w"] == "meta"
    )


def test_map_params_of_a_foreign_state_is_refused_by_path():
    params = draw(1)
    with pytest.raises(ValueError, match=r"'0\.mu\.a\.bias' is missing"):
        fo.map_params(fo.adam(0.1), lambda leaf, param: leaf, fo.sgd(0.1, momentum=0.9).init(params), params)
    with pytest.raises(ValueError, match=r"'a\.bias' is missing"):
        fo.map_params(fo.adam(0.1), lambda leaf, *rest: leaf, fo.adam(0.1).init(params), params, {"b": [1, 2], "c": 1})
