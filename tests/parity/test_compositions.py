"""Random compositions, built alike in both libraries: chains of one to five links, within masks, partitions, ..."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings, strategies as st

import funcopt as fo
from funcopt import tree
from tests.catalogue import decaying
from tests.trees import draw

STEPS = 7
LINKS = {
    "clip": {"max_delta": 0.7},
    "clip_by_global_norm": {"max_norm": 1.5},
    "clip_by_block_rms": {"threshold": 0.8},
    "normalize_by_update_norm": {"scale_factor": 2.0, "eps": 0.1},
    "scale": {"step_size": 0.3},
    "scale_by_schedule": {"step_size_fn": decaying},
    "scale_by_learning_rate": {"learning_rate": decaying},
    "trace": {"decay": 0.8, "nesterov": True},
    "ema": {"decay": 0.8},
    "scale_by_adam": {"b1": 0.8, "b2": 0.95, "eps": 1e-2},
    "scale_by_rms": {"decay": 0.8, "eps": 1e-2},
    "scale_by_amsgrad": {"b1": 0.8, "b2": 0.95, "eps": 1e-2},
    "scale_by_rss": {"initial_accumulator_value": 0.3},
    "add_decayed_weights": {"weight_decay": 0.1},
    "centralize": {},
    "zero_nans": {},
    "identity": {},
    "sgd": {"learning_rate": 0.05, "momentum": 0.8},
    "adam": {"learning_rate": 0.05, "eps": 1e-2},
    "adamw": {"learning_rate": decaying, "eps": 1e-2, "weight_decay": 0.1},
    "rmsprop": {"learning_rate": 0.05, "eps": 1e-2, "momentum": 0.7},
    "adagrad": {"learning_rate": 0.05},
}
INJECTED = {
    "sgd": {"learning_rate": decaying, "momentum": 0.8},
    "adam": {"learning_rate": 0.05, "b1": 0.8, "eps": 1e-2},
    "adamw": {"learning_rate": decaying, "eps": 1e-2, "weight_decay": 0.1},
}
LABELS = st.fixed_dictionaries(
    {
        "a": st.fixed_dictionaries({"bias": st.booleans(), "weight": st.booleans()}),
        "b": st.booleans(),  # for two leaves: a prefix
        "c": st.booleans(),
    }
)


def wrapped(inner):
    return (
        st.tuples(st.just("masked"), inner, LABELS)
        | st.tuples(st.just("partition"), inner, inner, LABELS)
        | st.tuples(st.just("multi_steps"), inner, st.integers(1, 3))
        | st.tuples(st.just("conditionally_mask"), inner, st.integers(1, 3))
        | st.tuples(st.just("chain"), st.lists(inner, min_size=1, max_size=5))
    )


LEAVES = st.tuples(st.just("link"), st.sampled_from(sorted(LINKS))) | st.tuples(
    st.just("inject"), st.sampled_from(sorted(INJECTED))
)
COMPOSITIONS = st.recursive(LEAVES, wrapped, max_leaves=5)


def build(library, part):
    """The composition that `part` describes, of the transformations of a library."""
    kind, *arguments = part
    if kind == "link":
        return getattr(library, arguments[0])(**LINKS[arguments[0]])
    if kind == "inject":
        return library.inject_hyperparams(getattr(library, arguments[0]))(**INJECTED[arguments[0]])
    if kind == "chain":
        return library.chain(*(build(library, link) for link in arguments[0]))
    inner = build(library, arguments[0])
    if kind == "masked":
        return library.masked(inner, arguments[1])
    if kind == "partition":
        labels = tree.map(lambda left: "left" if left else "right", arguments[2])
        return library.partition({"left": inner, "right": build(library, arguments[1])}, labels)
    if kind == "conditionally_mask":
        return library.conditionally_mask(inner, lambda step: step % arguments[1] == 0)
    if library is fo:
        return fo.MultiSteps(inner, arguments[1])
    return optax.MultiSteps(inner, arguments[1], accumulator_dtype=jnp.float64).gradient_transformation()


def to_jax(values):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf.numpy()), values)


def optax_steps(part, params, gradients):
    with jax.enable_x64(True):
        transformation, params = build(optax, part), to_jax(params)
        state, update = transformation.init(params), jax.jit(transformation.update)
        for grads in gradients:
            updates, state = update(to_jax(grads), state, params)
            params = optax.apply_updates(params, updates)
            yield jax.tree.map(lambda leaf: torch.from_numpy(np.array(leaf)), (updates, params))


def check(part):
    params, gradients = draw(1), [draw(100 + step) for step in range(STEPS)]
    ours = build(fo, part)
    state = ours.init(params)
    for step, expected in enumerate(optax_steps(part, params, gradients)):
        updates, state = ours.update(gradients[step], state, params)
        params = fo.apply_updates(params, updates)
        for (path, a), b in zip(tree.leaves_with_path((updates, params)), tree.leaves(expected)):
            scale = max(1.0, b.abs().max().item() if b.numel() else 0.0)
            assert (a - b).abs().sum() <= 1e-10 * scale, f"{ours}: step {step} at {path}: {a}, expected {b}"


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(COMPOSITIONS)
@example(("chain", [("link", "clip_by_global_norm"), ("multi_steps", ("link", "adamw"), 3)]))
@example(
    (
        "partition",
        ("inject", "adamw"),
        ("chain", [("link", "clip_by_global_norm"), ("link", "sgd")]),
        {
            "a": {"bias": False, "weight": True},
            "b": True,
            "c": False,
        },
    )
)
def test_random_compositions(part):
    check(part)


@pytest.mark.slow
@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(COMPOSITIONS)
def test_many_random_compositions(part):
    check(part)
