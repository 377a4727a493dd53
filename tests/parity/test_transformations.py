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
from tests.catalogue import CASES, case_id, decaying, storage_tolerance
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
    """Updates and params of every step; the gradients of each step are used in float64.

    `transformation` is a pair of init and of an update that may have been jitted before.
    """
    params, state = to_jax(params), transformation[0](to_jax(params))
    update = jax.jit(transformation[1])
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
        for step, expected in enumerate(optax_trajectory(theirs, params, gradients)):
            updates, state = ours.update(gradients[step], state, params)
            params = fo.apply_updates(params, updates)
            largest = tree.map(lambda leaf, scale: torch.maximum(leaf.abs().sum(), scale), expected, largest)
            for (path, a), b, scale in zip(
                tree.leaves_with_path((updates, params)), tree.leaves(expected), tree.leaves(largest)
            ):
                assert a.shape == b.shape
                deviation = (a.to(b.dtype) - b).abs().sum().item()
                assert deviation <= tolerance * scale, f"step {step} at {path}: {a}, expected {b}"


@pytest.mark.parametrize("entry, case", COMPARED, ids=case_id)
def test_trajectories(entry, case):
    with jax.enable_x64(True):
        theirs = counterpart(entry, case)
        theirs = theirs.init, jax.jit(theirs.update)  # compiled once, for both
    for dtype, granted in ((torch.float64, 1e-12), (torch.float32, entry.float32_tolerance)):
        check_trajectory(entry.make(**case), theirs, dtype, max(granted, storage_tolerance(case)))


def test_every_optimizer_has_a_counterpart():
    missing = {entry.name for entry, case in CASES} - {entry.name for entry, case in COMPARED}
    assert missing == {"add_noise", "asgd", "dozat_nadam", "scale_by_nadam", "stateless", "stateless_with_tree_map"}


NAN = float("nan")


def updates_from(library, make, values, dtype):
    """The last of the updates that a library gives for a sequence of one-number gradients, with params 1."""
    array = torch.tensor if library is fo else jnp.array
    dtype = getattr(torch if library is fo else jnp, dtype)
    transformation, params = make(library), {"w": array([1.0], dtype=dtype)}
    state = transformation.init(params)
    for value in values:
        updates, state = transformation.update({"w": array([value], dtype=dtype)}, state, params)
    return float(updates["w"][0])


KNOWN_DIFFERENCES = {
    "zero updates stay zero when clipped to a norm of 0": (
        lambda lib: lib.clip_by_global_norm(0.0),
        ([0.0], "float64"),
        (0.0, NAN),
    ),
    "a rate of None is 1, downhill": (lambda lib: lib.scale_by_learning_rate(None), ([1.0], "float64"), (-1.0, 1.0)),
    "adam in float16: 1e-8 is not zero": (lambda lib: lib.adam(0.1), ([0.0], "float16"), (0.0, NAN)),
    "rmsprop in float16: 1e-8 is not zero": (lambda lib: lib.rmsprop(0.1), ([0.0], "float16"), (0.0, NAN)),
    "a scheduled rate is not rounded to bfloat16": (
        lambda lib: lib.scale_by_schedule(lambda count: 1e-3 + 0.0 * count),
        ([292.0], "bfloat16"),
        (0.29296875, 0.291015625),
    ),
    "a second moment in bfloat16 does not stall": (
        lambda lib: lib.adam(1.0, b1=0.0, eps=0.0),
        ([1.0] * 2000, "bfloat16"),
        (-1.0, -1.3125),
    ),
    "the bias correction in float32 is exact": (
        lambda lib: lib.adam(1.0, b2=0.9999, eps=0.0),
        ([1.0], "float32"),
        (-1.0, -1.0000827),
    ),
}
"""What optax does and funcopt does not copy: a transformation, gradients; the right last update, and optax's."""


LONG = {"a second moment in bfloat16 does not stall"}  # 2000 steps of optax


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LONG)) for n in KNOWN_DIFFERENCES])
def test_known_differences(name):
    make, (values, dtype), (right, theirs) = KNOWN_DIFFERENCES[name]
    with jax.enable_x64(dtype == "float64"):
        assert updates_from(fo, make, values, dtype) == pytest.approx(right, rel=2e-7, nan_ok=True)
        assert updates_from(optax, make, values, dtype) == pytest.approx(theirs, rel=2e-7, nan_ok=True)


def test_an_empty_chain():
    assert fo.chain().update({"w": torch.ones(1)}, ())[0] == {"w": torch.ones(1)}
    with pytest.raises(ValueError):
        optax.chain()


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
    grads = {"w": torch.ones(1)}
    assert fo.adamw(0.1, weight_decay=0.0).update(grads, fo.adamw(0.1).init(grads))[0]["w"].item() < 0
    theirs = optax.adamw(0.1, weight_decay=0.0)
    with pytest.raises(ValueError):
        theirs.update(to_jax(grads), theirs.init(to_jax(grads)))


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
