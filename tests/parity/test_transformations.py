"""Trajectories against optax: 50 steps on random trees, in float64 to rounding, in float32 to a few roundings.

The reference runs in float64 for both: optax in float32 is itself further from its own formula than the tolerance
(its bias corrections, `1 - b**t` in float32, are off by 1e-5 in the first steps; see KNOWN_DIFFERENCES).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from hypothesis import given, settings, strategies as st

import funcopt as fo
from funcopt import tree
from tests.catalogue import CASES, case_id, decaying
from tests.trees import assert_close, draw

STEPS = 50
DTYPES = {torch.bfloat16: jnp.bfloat16, torch.float32: jnp.float32}


def to_jax(values):
    if isinstance(values, torch.Tensor):
        return jnp.asarray(values.to(torch.float64).numpy())
    return jax.tree.map(to_jax, values, is_leaf=lambda leaf: isinstance(leaf, torch.Tensor))


def to_torch(values):
    return jax.tree.map(lambda leaf: torch.from_numpy(np.array(leaf)), values)


def counterpart(entry, case):
    """optax's transformation for a case of the catalogue, or None where it has none."""
    make = entry.optax or getattr(optax, entry.name)
    arguments = {name: DTYPES[v] if isinstance(v, torch.dtype) else v for name, v in case.items()}
    if callable(case.get("mask")):
        arguments["mask"] = lambda params: jax.tree.map(lambda leaf: leaf.ndim >= 2, params)
    return make(**arguments)


COMPARED = [(entry, case) for entry, case in CASES if counterpart(entry, case) is not None]


def optax_trajectory(transformation, params, gradients):
    """Updates and params of every step; the gradients of each step are used in float64."""
    params, state = to_jax(params), transformation.init(to_jax(params))
    update = jax.jit(transformation.update)
    for grads in gradients:
        updates, state = update(to_jax(grads), state, params)
        params = optax.apply_updates(params, updates)
        yield to_torch(updates), to_torch(params)


def check_trajectory(ours, theirs, dtype, tolerance):
    """Every number within `tolerance` of the largest one that its leaf has had so far.

    Not of itself: a sum of gradients that happens to cancel has no more digits than its terms.
    """
    params, gradients = draw(1, dtype), [draw(100 + step, dtype) for step in range(STEPS)]
    with jax.enable_x64(True):
        state = ours.init(params)
        largest = tree.map(lambda leaf: torch.zeros((), dtype=torch.float64), (params, params))
        for step, expected in enumerate(optax_trajectory(theirs(), params, gradients)):
            updates, state = ours.update(gradients[step], state, params)
            params = fo.apply_updates(params, updates)
            largest = tree.map(lambda leaf, scale: torch.maximum(leaf.abs().sum(), scale), expected, largest)
            for (path, a), b, scale in zip(
                tree.leaves_with_path((updates, params)), tree.leaves(expected), tree.leaves(largest)
            ):
                assert a.shape == b.shape
                deviation = (a.to(b.dtype) - b).abs().sum().item()
                assert deviation <= tolerance * scale, f"step {step} at {path}: {a}, expected {b}"


def storage_tolerance(case):
    """One rounding that falls otherwise, where a case stores in a lower precision."""
    return max([0.0, *(2 * torch.finfo(v).eps for v in case.values() if isinstance(v, torch.dtype))])


@pytest.mark.parametrize("entry, case", COMPARED, ids=case_id)
def test_float64(entry, case):
    tolerance = max(1e-12, storage_tolerance(case))
    check_trajectory(entry.make(**case), lambda: counterpart(entry, case), torch.float64, tolerance)


@pytest.mark.parametrize("entry, case", COMPARED, ids=case_id)
def test_float32(entry, case):
    tolerance = max(entry.float32_tolerance, storage_tolerance(case))
    check_trajectory(entry.make(**case), lambda: counterpart(entry, case), torch.float32, tolerance)


def test_every_optimizer_has_a_counterpart():
    missing = {entry.name for entry, case in CASES} - {entry.name for entry, case in COMPARED}
    assert missing == {"stateless", "stateless_with_tree_map"}


# What funcopt does otherwise than optax, on purpose: a name, what the first update is here, and there.
def first_update(make, grads, params):
    transformation = make(fo)
    return transformation.update(grads, transformation.init(params), params)[0]


def optax_first_update(make, grads, params):
    transformation = make(optax)
    return to_torch(transformation.update(to_jax(grads), transformation.init(to_jax(params)), to_jax(params))[0])


ONES = {"w": torch.ones(2, dtype=torch.float64)}
ZEROS = {"w": torch.zeros(2, dtype=torch.float64)}
NAN = float("nan")
KNOWN_DIFFERENCES = {
    "clip_by_global_norm: zero updates stay zero for max_norm = 0": (
        lambda lib: lib.clip_by_global_norm(0.0),
        ZEROS,
        0.0,
        NAN,
    ),
    "scale_by_learning_rate: None means a rate of 1, downhill": (
        lambda lib: lib.scale_by_learning_rate(None),
        ONES,
        -1.0,
        1.0,
    ),
}


@pytest.mark.parametrize("name", KNOWN_DIFFERENCES)
def test_known_differences(name):
    make, grads, right, theirs = KNOWN_DIFFERENCES[name]
    with jax.enable_x64(True):
        assert_all(first_update(make, grads, ONES), right)
        assert_all(optax_first_update(make, grads, ONES), theirs)


def assert_all(updates, value):
    expected = torch.full_like(updates["w"], value)
    assert torch.allclose(updates["w"], expected, equal_nan=True), updates


def test_a_variance_rounded_below_zero_is_zero():
    """optax takes the root of the negative number that a constant gradient leaves, and gives NaN."""
    theirs = optax.scale_by_stddev(decay=0.99, eps=0.0, bias_correction=True)
    ours = fo.scale_by_stddev(decay=0.99, eps=1e-30, bias_correction=True)
    found = []
    with jax.enable_x64(True):
        for value in (0.1, 0.3, 0.7, 1e-3, 1.1):
            grads = {"w": torch.full((1,), value, dtype=torch.float64)}
            state, reference = ours.init(grads), theirs.init(to_jax(grads))
            for _ in range(3):
                updates, state = ours.update(grads, state)
                expected, reference = theirs.update(to_jax(grads), reference)
                assert torch.isfinite(updates["w"]).all()
                found.append(bool(jnp.isfinite(expected["w"]).all()))
    assert not all(found)


def test_weight_decay_of_zero_needs_no_params():
    """optax asks for params although it does nothing with them."""
    assert tree.leaves(fo.add_decayed_weights(0.0).update(ONES, fo.add_decayed_weights(0.0).init(ONES))[0])
    with pytest.raises((ValueError, TypeError)):
        optax.chain(optax.add_decayed_weights(0.0)).update(to_jax(ONES), (optax.EmptyState(),))


def test_bias_correction_of_optax_in_float32():
    """Why float32 is compared with float64: a constant gradient must move Adam by exactly the rate."""
    theirs = optax.scale_by_adam(b2=0.9999, eps=0.0)
    g = jnp.ones(1, jnp.float32)
    update, _ = theirs.update(g, theirs.init(g))
    assert abs(float(update[0]) - 1) > 1e-5
    ours = fo.scale_by_adam(b2=0.9999, eps=0.0)
    g = torch.ones(1)
    for _ in range(100):
        update, _ = ours.update(g, ours.init(g))
        assert abs(update.item() - 1) < 1e-6


def test_the_same_structure_for_constant_and_scheduled_rates():
    params = draw(1)
    for make in (fo.sgd, fo.adam, fo.adamw, fo.rmsprop):
        constant, scheduled = make(0.1).init(params), make(lambda count: 0.1 / (1 + count)).init(params)
        assert tree.flatten(constant)[1] == tree.flatten(scheduled)[1]


def test_half_precision_moments_are_not_lost():
    """3000 constant gradients: a second moment in bfloat16 would stall at 0.50 (torch reference: 0.950)."""
    params = {"w": torch.ones(1, dtype=torch.bfloat16)}
    optimizer = fo.scale_by_adam()
    state = optimizer.init(params)
    for _ in range(3000):
        _, state = optimizer.update(params, state)
    assert abs(state.nu["w"].item() - (1 - 0.999**3000)) < 1e-5


LEAF_SHAPES = st.sampled_from([(), (0,), (3,), (2, 3), (1, 4), (2, 1, 3)])
STRUCTURES = st.recursive(
    LEAF_SHAPES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=6,
)
COMPOSITIONS = {
    "clipped adamw with a mask": lambda lib: lib.chain(
        lib.clip_by_global_norm(1.0), lib.adamw(decaying, 0.8, 0.95, 1e-3, weight_decay=0.1, mask=matrices_of[lib])
    ),
    "centred rmsprop with momentum": lambda lib: lib.rmsprop(0.1, 0.8, 1e-2, centered=True, momentum=0.7),
    "normalised nesterov": lambda lib: lib.chain(
        lib.clip(0.7), lib.normalize_by_update_norm(2.0), lib.sgd(decaying, momentum=0.8, nesterov=True)
    ),
}
matrices_of = {
    fo: lambda params: tree.map(lambda leaf: leaf.ndim >= 2, params),
    optax: lambda params: jax.tree.map(lambda leaf: leaf.ndim >= 2, params),
}


def draw_structure(shapes, seed):
    """Like `draw`, for any nesting: leaves are tuples of sizes."""
    generator = torch.Generator().manual_seed(seed)

    def fill(part):
        if isinstance(part, tuple):
            return torch.randn(part, generator=generator, dtype=torch.float64)
        return {k: fill(part[k]) for k in sorted(part)} if isinstance(part, dict) else [fill(each) for each in part]

    return fill(shapes)


@pytest.mark.parametrize("name", COMPOSITIONS)
@settings(max_examples=4, deadline=None, derandomize=True)
@given(shapes=STRUCTURES)
def test_random_structures(name, shapes):
    params = draw_structure(shapes, 1)
    ours = COMPOSITIONS[name](fo)
    state = ours.init(params)
    gradients = [draw_structure(shapes, 2 + step) for step in range(STEPS)]
    with jax.enable_x64(True):
        for grads, (expected, _) in zip(gradients, optax_trajectory(COMPOSITIONS[name](optax), params, gradients)):
            updates, state = ours.update(grads, state, params)
            params = fo.apply_updates(params, updates)
            assert_close(updates, expected, rtol=1e-10, atol=1e-12)
