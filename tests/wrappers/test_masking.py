"""Masks and freezing: what is masked out is as if it were not there, and comes out as it should."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.func import vmap

import funcopt as fo
from funcopt import tree
from tests.catalogue.entry import only_matrices
from tests.trees import all_finite, assert_close, assert_identical, draw

STEPS = 3


def clipped_adamw(learning_rate: Any = 0.1) -> fo.GradientTransformation:
    return fo.chain(fo.clip_by_global_norm(0.5), fo.adamw(learning_rate, weight_decay=0.1, mask=only_matrices))


def train(optimizer, params, gradients):
    """All updates, and the last state."""
    state, history = optimizer.init(params), []
    for grads in gradients:
        updates, state = optimizer.update(grads, state, params)
        params = fo.apply_updates(params, updates)
        history.append(updates)
    return history, state


def flat(values):
    return dict(tree.leaves_with_path(values))


PARAMS, GRADIENTS = flat(draw(1)), [flat(draw(10 + step)) for step in range(STEPS)]
masks = st.fixed_dictionaries({path: st.booleans() for path in PARAMS})


def restricted(values, mask, to=True):
    return {path: leaf for path, leaf in values.items() if mask[path] is to}


def test_true_everywhere_is_the_inner_transformation():
    expected, expected_state = train(clipped_adamw(), PARAMS, GRADIENTS)
    for wrapped in (fo.masked(clipped_adamw(), True), fo.freeze(clipped_adamw(), False)):
        history, state = train(wrapped, PARAMS, GRADIENTS)
        assert_identical(history, expected)
        assert_identical(state.inner_state, expected_state)


def test_false_everywhere_is_the_identity_and_true_everywhere_frozen():
    history, _ = train(fo.masked(clipped_adamw(), False), PARAMS, GRADIENTS)
    assert_identical(history, GRADIENTS)
    history, _ = train(fo.freeze(clipped_adamw(), True), PARAMS, GRADIENTS)
    assert_identical(history, tree.map(torch.zeros_like, GRADIENTS))


@settings(deadline=None, max_examples=25)
@given(mask=masks)
def test_inner_sees_the_subtree_alone(mask):
    """Bit for bit, with a norm over all leaves and a mask of its own within."""
    expected, expected_state = train(
        clipped_adamw(), restricted(PARAMS, mask), [restricted(g, mask) for g in GRADIENTS]
    )
    history, state = train(fo.masked(clipped_adamw(), mask), PARAMS, GRADIENTS)
    frozen, frozen_state = train(fo.freeze(clipped_adamw(), tree.map(lambda keep: not keep, mask)), PARAMS, GRADIENTS)
    for updates, still, wanted, grads in zip(history, frozen, expected, GRADIENTS):
        assert_identical(restricted(updates, mask), wanted)
        assert_identical(restricted(still, mask), wanted)
        assert_identical(restricted(updates, mask, False), restricted(grads, mask, False))
        assert all((leaf == 0).all() for leaf in restricted(still, mask, False).values())
    for one in (state, frozen_state) if any(mask.values()) else ():
        assert tree.leaves_with_path(one.inner_state) and len(tree.leaves(one)) == len(tree.leaves(expected_state))
        for (path, leaf), (other, wanted) in zip(*map(tree.leaves_with_path, (one.inner_state, expected_state))):
            assert path == other
            assert_identical(leaf, wanted)


@settings(deadline=None, max_examples=15)
@given(outer=masks, inner=masks)
def test_masks_within_masks(outer, inner):
    """A leaf is seen where both masks are True; that one mask is a tree of the whole model does not matter."""
    both = {path: outer[path] and inner[path] for path in PARAMS}
    nested = fo.masked(fo.masked(clipped_adamw(), inner), outer)
    history, state = train(nested, PARAMS, GRADIENTS)
    expected, expected_state = train(fo.masked(clipped_adamw(), both), PARAMS, GRADIENTS)
    assert_identical(history, expected)
    if any(both.values()):
        assert_identical(state.inner_state, expected_state)
    frozen, _ = train(fo.freeze(fo.freeze(clipped_adamw(), inner), outer), PARAMS, GRADIENTS)
    either = {path: outer[path] or inner[path] for path in PARAMS}
    assert_identical(frozen, train(fo.freeze(clipped_adamw(), either), PARAMS, GRADIENTS)[0])


@settings(deadline=None, max_examples=10)
@given(mask=masks, order=st.permutations(list(PARAMS)))
def test_the_order_of_keys_does_not_matter(mask, order):
    def reordered(values):
        return {path: values[path] for path in order}

    optimizer = fo.masked(clipped_adamw(), mask)
    expected, state = optimizer.update(GRADIENTS[0], optimizer.init(PARAMS), PARAMS)
    updates, new_state = optimizer.update(reordered(GRADIENTS[0]), optimizer.init(PARAMS), PARAMS)
    assert_identical((updates, new_state), (expected, state))
    other = fo.masked(clipped_adamw(), reordered(mask))
    assert_identical(other.update(GRADIENTS[0], other.init(PARAMS), PARAMS), (expected, state))


def test_what_is_masked_out_has_no_state():
    params = draw(1, torch.float32)
    optimizer = fo.freeze(fo.adam(0.1), {"a": True, "b": True, "c": False})
    state = optimizer.init(params)
    counts, moments = 4 + 4 + 4, 2 * params["c"].nbytes
    assert sum(leaf.nbytes for leaf in tree.leaves(state)) == counts + moments
    assert state.inner_state[0].mu["a"] == {"bias": fo.MaskedNode(), "weight": fo.MaskedNode()}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_of_a_frozen_leaf_does_no_harm(bad):
    params, grads = draw(1), draw(2)
    optimizer = fo.freeze(clipped_adamw(), {"*weight": True, "*": False})
    good, _ = optimizer.update(grads, optimizer.init(params), params)
    grads["a"]["weight"].fill_(bad)
    updates, state = optimizer.update(grads, optimizer.init(params), params)
    assert_identical(updates, good)
    assert all_finite((updates, state))


@pytest.mark.parametrize("make", [fo.masked, fo.freeze])
@pytest.mark.parametrize("path", PARAMS)
def test_an_absent_gradient_stays_absent(make, path):
    """Wherever it is, with and without params; the others do not notice."""
    mask = {name: name in ("a.weight", "b.0") for name in PARAMS}
    optimizer = make(fo.adam(0.1), mask)
    expected, _ = optimizer.update(GRADIENTS[0], optimizer.init(PARAMS))
    for params in (PARAMS, None):
        updates, state = optimizer.update({**GRADIENTS[0], path: None}, optimizer.init(PARAMS), params)
        assert updates[path] is None
        assert_identical({**updates, path: expected[path]}, expected)
        assert tree.flatten(state)[1] == tree.flatten(optimizer.init(PARAMS))[1]


def test_without_params_a_function_gets_the_updates():
    seen = []

    def matrices(values):
        seen.append(values)
        return tree.map(lambda leaf: leaf.ndim == 2, values)

    optimizer = fo.masked(fo.adam(0.1), matrices)
    state = optimizer.init(PARAMS)
    updates, _ = optimizer.update(GRADIENTS[0], state)
    assert [values is expected for values, expected in zip(seen, (PARAMS, GRADIENTS[0]))] == [True, True]
    assert_identical(updates, optimizer.update(GRADIENTS[0], state, PARAMS)[0])
    absent = {**GRADIENTS[0], "c": None}
    with pytest.raises(
        ValueError, match=r"masked: mask .* 'c', whose update is None; call update\(updates, state, par"
    ):
        optimizer.update(absent, state)
    globs = fo.masked(fo.adam(0.1), {"a.weight": True, "*": False})
    assert globs.update(absent, globs.init(PARAMS))[0]["c"] is None


@fo.factory
def scale_by_extras():
    """Multiplies each update by the leaf of `grad`, and by `value`."""

    def update(updates, state, params=None, *, grad, value, **extra):
        assert sorted(extra) == ["tags", "text"]
        tagged = tree.map(lambda u, tag: u if tag == "seen" else 7 * u, updates, extra["tags"])
        return tree.map_rule(lambda u, g: u * g * value, tagged, reads=(grad,)), state

    return fo.GradientTransformation(lambda params: fo.EmptyState(), update)


def test_extra_arguments_like_the_updates_are_masked():
    params, grads, other = draw(1), draw(2), draw(3)
    mask = {"a": {"bias": True, "weight": False}, "b": True, "c": False}
    tags = {"c": "", "b": ["seen", "seen"], "a": {"weight": "", "bias": "seen"}}
    extra = {"grad": other, "value": torch.tensor(2.0), "tags": tags, "text": "as it is"}
    optimizer = fo.masked(scale_by_extras(), mask)
    updates, _ = optimizer.update(grads, optimizer.init(params), params, **extra)
    assert_close(updates["a"]["bias"], grads["a"]["bias"] * other["a"]["bias"] * 2, rtol=1e-15)
    assert_identical((updates["a"]["weight"], updates["c"]), (grads["a"]["weight"], grads["c"]))
    split = fo.partition({"x": scale_by_extras(), "y": scale_by_extras()}, {"a": "x", "b": "y", "c": "y"})
    tags = tree.map(lambda tag: "seen", tags)
    updates, _ = split.update(grads, split.init(params), params, **{**extra, "tags": tags})
    assert_close(updates["c"], grads["c"] * other["c"] * 2, rtol=1e-15)


def test_a_bare_tensor():
    """The loss of a model of one number looks like its update; it must not be masked."""

    @fo.factory
    def scale_by_value():
        def update(updates, state, params=None, *, value, **extra):
            return tree.map_rule(lambda u: u * value, updates), state

        return fo.GradientTransformation(lambda params: fo.EmptyState(), update)

    for mask, expected in ((True, 6.0), (False, 2.0)):
        optimizer = fo.masked(scale_by_value(), mask)
        params = torch.tensor(1.0)
        updates, _ = optimizer.update(torch.tensor(2.0), optimizer.init(params), params, value=torch.tensor(3.0))
        assert updates.item() == expected


def test_without_a_leaf_inner_does_not_run_and_its_state_is_placed():
    """On the device of params (meta here), and under vmap with a number of its own for each model."""
    inner = fo.chain(fo.clip_by_global_norm(1.0), fo.adam(0.1))
    optimizer = fo.masked(inner, {"w": False})
    state = optimizer.init({"w": torch.ones(2, device="meta")})
    assert {leaf.device.type for leaf in tree.leaves(state)} == {"meta"}
    stacked = {"w": torch.ones(3, 2)}
    state = vmap(optimizer.init)(stacked)
    assert all(leaf.stride() == (1,) for leaf in tree.leaves(state))
    updates, new_state = vmap(optimizer.update)(stacked, state, stacked)
    assert all(0 not in leaf.stride() for leaf in tree.leaves(new_state))
    assert_identical((updates, new_state), (stacked, state))


@pytest.mark.slow
def test_donated_and_compiled():
    torch._dynamo.reset()
    optimizer = fo.freeze(
        fo.partition({"x": clipped_adamw(), "y": fo.sgd(0.1, momentum=0.9)}, {"*bias": "x", "*": "y"}),
        {"a": False, "b": True, "c": False},
    )

    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return fo.apply_updates(params, updates), state

    params = draw(1, torch.float32)
    state = optimizer.init(params)
    donated = tree.clone((params, state))
    compiled = fo.compile(step, donate_argnums=(0, 1), backend="aot_eager")
    result = donated
    for seed in (2, 3, 4):
        params, state = step(params, state, draw(seed, torch.float32))
        result = compiled(*result, draw(seed, torch.float32))
    assert_close(result, (params, state), rtol=1e-6)
    assert all(new is old for new, old in zip(tree.leaves(result), tree.leaves(donated)))


def test_packed():
    """Buffers are masked whole; leaves of one buffer that differ are refused."""
    mask = {"a": True, "b": False, "c": True}
    for make in (fo.masked, fo.freeze):
        optimizer, params, grads = (
            make(fo.masked(fo.adam(0.1), fo.by_path({"a*": True, "*": False})), mask),
            draw(1),
            draw(2),
        )
        packed = fo.pack(params, {"a": 0, "b": 1, "c": 2})
        updates, state = optimizer.update(fo.pack_like(grads, packed), optimizer.init(packed), packed)
        expected, expected_state = optimizer.update(grads, optimizer.init(params), params)
        assert_identical(fo.unpack((updates, state)), (expected, expected_state))
    with pytest.raises(ValueError, match=r"freeze: the packed buffer 'float64' holds leaves .* differently"):
        optimizer.init(fo.pack(params))


@pytest.mark.parametrize("make", [fo.masked, fo.freeze])
@pytest.mark.parametrize(
    "mask, error, message",
    [
        ({"a": 1.0, "b": True, "c": True}, TypeError, "a mask is a tree of bools, got 1.0 for mask at 'a'"),
        (None, ValueError, "mask does not tell what holds for the leaf 'a.bias'"),
        (torch.tensor(True), TypeError, "a mask is a tree of bools"),
        ({"a": True, "b": True}, ValueError, "mask is a tree that does not fit the params: it has nothing for 'c'"),
        ({"a": {"bias": True}, "b": True, "c": True}, ValueError, r"it has nothing for 'a\.weight'.* by_path\(\{"),
        ({"a": True, "b": True, "c": {"x": True}}, ValueError, "it goes on below the leaf 'c'"),
        ({"a": True, "b": True, "c": True, "d": True}, ValueError, "params have no 'd'"),
        ({"a": True, "b": (True, True), "c": True}, ValueError, "it has containers of other types"),
        (lambda params: [True], ValueError, "it has nothing for 'a'"),
        ({"a*": True}, ValueError, r"no pattern matches the leaf 'b\.0'"),
    ],
)
def test_masks_that_do_not_fit(make, mask, error, message):
    optimizer = make(fo.adam(0.1), mask)
    with pytest.raises(error, match=f"^{make.__name__}: .*{message}"):
        optimizer.init(draw(1))
    state = make(fo.adam(0.1), True).init(draw(1))
    with pytest.raises(error, match=f"^{make.__name__}: .*{message}"):
        optimizer.update(draw(2), state, draw(1))


@pytest.mark.parametrize("make", [fo.masked, fo.freeze])
def test_what_is_refused_at_once(make):
    with pytest.raises(TypeError, match=f"{make.__name__}: inner must be a GradientTransformation, got inner=True"):
        make(True, fo.adam(0.1))
    with pytest.raises(TypeError, match=f"{make.__name__}: a mask is a tree of bools, got 'yes' for mask at "):
        make(fo.adam(0.1), {"a*": True, "*": "yes"})


def test_the_state_of_another_transformation_is_refused():
    optimizer, params = fo.masked(fo.adam(0.1), True), draw(1)
    with pytest.raises(ValueError, match="masked: the state must be a MaskedState, got a tuple of 2"):
        optimizer.update(draw(2), fo.adam(0.1).init(params), params)


def test_optax_hands_extra_arguments_on_unmasked():
    """https://github.com/google-deepmind/optax/issues/1649"""

    def by_grad(library, mapped, transformation):
        def update(updates, state, params=None, *, grad, **extra):
            return mapped(lambda u, g: u * g, updates, grad), state

        return library.masked(transformation(lambda params: (), update), {"a": True, "b": False})

    ours = by_grad(fo, tree.map, fo.GradientTransformation)
    values = {"a": torch.full((1,), 3.0), "b": torch.ones(1)}
    assert ours.update(values, ours.init(values), values, grad=values)[0] == {
        "a": torch.tensor([9.0]),
        "b": values["b"],
    }
    theirs = by_grad(optax, jax.tree.map, optax.GradientTransformationExtraArgs)
    values = {"a": jnp.full((1,), 3.0), "b": jnp.ones(1)}
    with pytest.raises(ValueError):
        theirs.update(values, theirs.init(values), values, grad=values)
