"""Monitors: optax's measurements, one structure from init on, measures that remember, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch.func import vmap

import funcopt as fo
from funcopt import tree
from tests.trees import assert_close, assert_identical, draw, stack


def to_jax(values):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf.numpy()), values, is_leaf=lambda x: isinstance(x, torch.Tensor))


def measures(library, norm):
    return {
        "norm": norm,
        "long_lately": library.measure_with_ema(lambda updates: norm(updates) > 6.0, 0.7),
        "mean_norm": library.measure_with_ema(norm, 0.7, debias=False),
        "momentum": library.trace(0.7),
    }


def test_measurements_are_those_of_optax():
    params = draw(1)
    ours, theirs = fo.monitor(measures(fo, fo.global_norm)), optax.monitor(measures(optax, optax.tree.norm))
    with jax.enable_x64(True):
        state, reference = ours.init(params), theirs.init(to_jax(params))
        for step in range(5):
            _, state = ours.update(draw(step), state)
            _, reference = theirs.update(to_jax(draw(step)), reference)
            expected = tree.map(lambda ours, theirs: np.array(theirs), state.measurements, reference.measurements)
            # A bool is averaged in float32.
            assert state.measurements["long_lately"].item() == pytest.approx(expected.pop("long_lately"), rel=1e-6)
            actual = {name: state.measurements[name] for name in expected}
            assert_close(actual, tree.map(torch.from_numpy, expected), rtol=1e-13)


def test_how_often_a_condition_held():
    """Of two steps one was longer than 1; the last weighs 1 / (1 + 0.9)."""
    optimizer = fo.monitor({"long": fo.measure_with_ema(lambda updates: fo.global_norm(updates) > 1.0, decay=0.9)})
    params = torch.zeros(1)
    state = optimizer.init(params)
    for value in (0.748, 1.27):
        _, state = optimizer.update(torch.tensor([value]), state)
    assert state.measurements["long"].item() == pytest.approx(1 / 1.9)


STRUCTURED = {
    "snapshot": lambda: fo.snapshot("updates", lambda updates: updates),
    "monitor": lambda: fo.monitor(measures(fo, fo.global_norm)),
}


@pytest.mark.parametrize("name", STRUCTURED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_one_structure_from_init_on(name, dtype):
    """Also where gradients come in float32 for parameters in bfloat16, and where one is absent."""
    transformation, params = STRUCTURED[name](), draw(1, dtype)
    first = transformation.init(params)
    assert all(bool((leaf == 0).all()) for leaf in tree.leaves(first))
    grads = draw(2, torch.float32)
    grads["c"] = None
    _, second = transformation.update(grads, first, params)
    assert tree.flatten(first)[1] == tree.flatten(second)[1]
    for before, after in zip(tree.leaves(first), tree.leaves(second)):
        assert (before.dtype, before.shape) == (after.dtype, after.shape)
        assert before.dtype not in (torch.bfloat16, torch.float16)


def test_optax_fills_the_structure_at_the_first_update():
    params = jnp.zeros(2)
    assert optax.monitor({"norm": optax.tree.norm}).init(params).measurements == {}


def test_what_was_not_measured_keeps_its_last_value():
    transformation, params = fo.snapshot("updates", lambda updates: updates), draw(1)
    _, first = transformation.update(draw(2), transformation.init(params))
    grads = draw(3)
    grads["a"]["weight"] = None
    updates, second = transformation.update(grads, first)
    assert updates["a"]["weight"] is None
    assert_identical(second.measurement["updates"]["a"]["weight"], draw(2)["a"]["weight"])
    assert_identical(second.measurement["updates"]["c"], grads["c"])


@pytest.mark.parametrize("measure", [lambda u: 3, lambda u: 0.5, lambda u: True, lambda u: torch.arange(2)])
def test_a_measure_may_give_numbers(measure):
    transformation, params = fo.snapshot("constant", measure), draw(1)
    state = transformation.init(params)
    _, state = transformation.update(draw(2), state)
    assert_identical(state.measurement["constant"], torch.as_tensor(measure(None)))
    batched = vmap(transformation.init)(stack([params, params]))
    assert batched.measurement["constant"].is_contiguous()
    assert vmap(transformation.update)(stack([params, params]), batched)[1].measurement["constant"].shape[0] == 2


def test_a_measure_receives_params_and_extra_arguments():
    def update(updates, state, params=None, *, value=0.0, **extra):
        return {"value": value, "params": fo.global_norm(params)}, state

    measure = fo.GradientTransformation(lambda params: fo.EmptyState(), update)
    transformation = fo.chain(fo.monitor({"seen": measure}), fo.sgd(0.1))
    params = torch.tensor([3.0, 4.0])
    state = transformation.init(params)
    _, state = transformation.update(params, state, params, value=torch.tensor(7.0))
    assert state[0].measurements["seen"] == {"value": torch.tensor(7.0), "params": torch.tensor(5.0)}


def test_a_place_in_the_chain():
    optimizer = fo.chain(
        fo.snapshot("before", fo.global_norm), fo.clip_by_global_norm(1.0), fo.snapshot("after", fo.global_norm)
    )
    grads = torch.tensor([3.0, 4.0])
    _, state = optimizer.update(grads, optimizer.init(grads))
    assert fo.metrics(state) == {"before": torch.tensor(5.0), "after": torch.tensor(1.0)}


BAD = {
    "a name that is none": (lambda: fo.snapshot(3, fo.global_norm), "snapshot: measure_name must be a str, got"),
    "no function": (lambda: fo.snapshot("norm", 3), "snapshot: measure must be a function of the updates, got"),
    "a transformation": (lambda: fo.snapshot("norm", fo.trace(0.9)), "snapshot: measure must be a function"),
    "no dict": (lambda: fo.monitor([fo.global_norm]), "monitor: measures must be a dict"),
    "names that are none": (lambda: fo.monitor({1: fo.global_norm}), "monitor: the names of measures must be strs"),
    "a number": (lambda: fo.monitor({"norm": 3}), "monitor: measure 'norm' must be a function of the updates or a Gra"),
    "the mean of a number": (lambda: fo.measure_with_ema(3, 0.9), "measure_with_ema: measure must be a function"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors(name):
    make, message = BAD[name]
    with pytest.raises(TypeError, match=message):
        make()


def test_a_decay_out_of_range():
    with pytest.raises(ValueError, match=r"ema: decay must lie in \[0, 1\), got decay=1.0"):
        fo.measure_with_ema(fo.global_norm, 1.0)


def test_a_measurement_that_changes_its_shape():
    transformation = fo.snapshot("positive", lambda updates: updates["w"][updates["w"] > 0])
    state = transformation.init({"w": torch.ones(3)})
    with pytest.raises(ValueError, match=r"snapshot: the measurement 'positive' had the shape \(3,\) at init"):
        transformation.update({"w": torch.tensor([1.0, -1.0, 1.0])}, state)


def test_a_measure_that_needs_an_extra_argument():
    @fo.factory
    def loss():
        def update(updates, state, params=None, *, value, **extra):
            return value, state

        return fo.GradientTransformation(lambda params: fo.EmptyState(), update)

    with pytest.raises(TypeError, match="loss: update needs the extra argument 'value'"):
        fo.monitor({"loss": loss()}).init(torch.ones(2))
