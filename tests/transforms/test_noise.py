"""Annealed noise: optax's numbers, the deviation of the paper, and a draw of its own for every leaf and step."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from funcopt import random, tree
from funcopt.transforms.noise import add_noise
from tests.trees import assert_close, assert_identical, draw

ETA, GAMMA, KEY = 0.3, 0.55, 7


def steps_of(transformation, updates, steps):
    """The updates of each step, and the last state, from the same updates at every step."""
    state = transformation.init(updates)
    history = []
    for _ in range(steps):
        noisy, state = transformation.update(updates, state)
        history.append(noisy)
    return history, state


def optax_steps_of(transformation, updates, steps):
    wide = [leaf.dtype in (torch.float64, torch.complex128) for leaf in tree.leaves(updates)]
    with jax.enable_x64(any(wide)), jax.default_device(jax.devices("cpu")[0]):
        updates = jax.tree.map(lambda leaf: jnp.asarray(leaf.numpy()), updates)
        history, state = steps_of(transformation, updates, steps)
        return jax.tree.map(lambda leaf: torch.from_numpy(np.array(leaf)), history), state


@pytest.mark.parametrize(
    "dtype, rtol",
    [
        (torch.float16, 2e-3),
        (torch.float32, 2e-6),
        (torch.float64, 1e-7),  # optax's deviation is a float32 number
        (torch.complex64, 2e-6),
    ],
    ids=str,
)
def test_optax(dtype, rtol):
    updates = draw(1, dtype)
    actual, state = steps_of(add_noise(ETA, GAMMA, KEY), updates, 5)
    expected, reference = optax_steps_of(optax.add_noise(ETA, GAMMA, KEY), updates, 5)
    for noisy, wanted in zip(actual, expected):
        assert_close(noisy, wanted, rtol=rtol)
        assert all(leaf.dtype == dtype for leaf in tree.leaves(noisy))
    assert state.rng_key.tolist() == np.asarray(jax.random.key_data(reference.rng_key)).tolist()
    assert state.count == int(reference.count)


def test_optax_in_mixed_precision_without_a_leaf():
    updates = {"a": torch.ones(3), "b": None, "c": torch.ones(4, dtype=torch.float16)}
    actual, _ = steps_of(add_noise(ETA, GAMMA, KEY), updates, 3)
    expected, _ = optax_steps_of(optax.add_noise(ETA, GAMMA, KEY), updates, 3)
    for noisy, wanted in zip(actual, expected):
        assert noisy["b"] is None
        assert_close(noisy["a"], wanted["a"], rtol=1e-6)
        assert_close(noisy["c"], wanted["c"], rtol=2e-3)


@pytest.mark.parametrize("eta, gamma", [(0.01, 0.55), (1.0, 0.0), (4.0, 1.0), (0.5, -1.0)])
def test_the_deviation_is_that_of_the_paper(eta, gamma):
    history, _ = steps_of(add_noise(eta, gamma), torch.zeros(20_000, dtype=torch.float64), 5)
    for step, noise in enumerate(history, start=1):
        deviation = math.sqrt(eta / step**gamma)
        assert abs(noise.std().item() / deviation - 1) < 5 / math.sqrt(2 * 20_000)
        assert abs(noise.mean().item() / deviation) < 5 / math.sqrt(20_000)


def test_the_noise_is_added():
    updates = draw(2)
    noise = steps_of(add_noise(ETA, GAMMA), tree.map(torch.zeros_like, updates), 3)[0]
    noisy = steps_of(add_noise(ETA, GAMMA), updates, 3)[0]
    assert_close(noisy, tree.map(lambda z, g: z + g, noise, [updates] * 3), rtol=1e-15)
    assert_close(steps_of(add_noise(0.0, GAMMA), updates, 1)[0], [updates], rtol=0)


def test_leaves_and_steps_draw_independently():
    updates = {"a": torch.zeros(5000), "b": torch.zeros(5000)}
    history, _ = steps_of(add_noise(1.0, 0.0), updates, 3)
    correlation = torch.corrcoef(torch.stack(tree.leaves(history))) - torch.eye(6)
    assert correlation.abs().max() < 5 / math.sqrt(5000)


def test_the_key_decides():
    updates = draw(3)
    first = steps_of(add_noise(ETA, GAMMA, 5), updates, 2)
    for same in (5, torch.tensor(5), random.key(5)):
        assert_identical(steps_of(add_noise(ETA, GAMMA, same), updates, 2), first)
    other, _ = steps_of(add_noise(ETA, GAMMA, 6), updates, 2)
    assert not torch.equal(other[0]["c"], first[0][0]["c"])
    assert_identical(steps_of(add_noise(ETA, GAMMA), updates, 1), steps_of(add_noise(ETA, GAMMA, 0), updates, 1))


def test_purity():
    key, updates, rng = random.key(3), draw(3), torch.get_rng_state()
    transformation = add_noise(ETA, GAMMA, key)
    state = transformation.init(updates)
    copies = tree.clone((key, updates, state))
    _, new_state = transformation.update(updates, state)
    assert_identical((key, updates, state), copies)
    storages = {leaf.untyped_storage().data_ptr() for leaf in (key, *state, *new_state)}
    assert len(storages) == 5
    assert torch.equal(torch.get_rng_state(), rng)


def test_an_absent_leaf_stays_absent_and_draws_nothing():
    transformation = add_noise(ETA, GAMMA)
    present = {"a": torch.ones(2), "c": torch.ones(3)}
    with_absent = {"a": torch.ones(2), "b": None, "c": torch.ones(3)}
    state = transformation.init(with_absent)
    noisy, _ = transformation.update(with_absent, state)
    expected, _ = transformation.update(present, state)
    assert_identical(noisy, {"a": expected["a"], "b": None, "c": expected["c"]})


def test_an_empty_tree():
    noisy, state = add_noise(ETA, GAMMA).update({}, add_noise(ETA, GAMMA).init({}))
    assert noisy == {} and state.count == 1


def test_half_precision_keeps_its_dtype():
    history, _ = steps_of(add_noise(1.0, 0.0), torch.zeros(2000, dtype=torch.bfloat16), 2)
    assert all(noise.dtype == torch.bfloat16 for noise in history)
    assert abs(torch.cat(history).float().std().item() - 1) < 0.1


def test_vmap_over_states_is_a_loop():
    updates = torch.ones(3, 4)
    transformation = add_noise(ETA, GAMMA, 1)
    states = torch.func.vmap(transformation.init)(updates)
    assert all(0 not in leaf.stride() for leaf in states)
    states = states._replace(rng_key=random.split(random.key(1), 3))
    noisy, after = torch.func.vmap(transformation.update)(updates, states)
    for i in range(3):
        single = transformation.update(updates[i], type(states)(states.count[i], states.rng_key[i]))
        assert_identical((noisy[i], after.count[i], after.rng_key[i]), (single[0], *single[1]))


def test_vmap_and_grad_over_eta():
    def total(eta):
        transformation = add_noise(eta, GAMMA)
        return transformation.update(torch.zeros(3), transformation.init(torch.zeros(3)))[0].sum()

    etas = torch.tensor([0.0, 0.25, 1.0])
    unit = total(torch.tensor(1.0))
    torch.testing.assert_close(torch.func.vmap(total)(etas), etas.sqrt() * unit)
    slopes = torch.func.vmap(torch.func.grad(total))(etas)
    torch.testing.assert_close(slopes, torch.stack([0 * unit, unit, unit / 2]))  # 0 by convention where eta is 0


def test_one_graph_for_all_steps():
    torch._dynamo.reset()
    transformation = add_noise(ETA, GAMMA)
    updates = {"a": torch.ones(2), "b": None, "c": torch.ones(())}
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(transformation.update, backend=counter, fullgraph=True)
    state = expected = transformation.init(updates)
    for _ in range(4):
        noisy, state = compiled(updates, state)
        wanted, expected = transformation.update(updates, expected)
        assert_close(noisy, wanted, rtol=1e-6)
        assert_identical(state, expected)
    assert counter.frame_count == 1
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ((-0.1, GAMMA), ValueError, "add_noise: eta must lie in [0, inf), got eta=-0.1"),
        ((ETA, "x"), TypeError, "add_noise: gamma must be a number"),
        ((ETA, GAMMA, 0.5), TypeError, "add_noise: key must be an int or a 0-d integer tensor, got key=0.5"),
        ((ETA, GAMMA, torch.zeros(2)), TypeError, "add_noise: key must be an int64 tensor"),
        ((ETA, GAMMA, torch.zeros(3, dtype=torch.int64)), ValueError, "add_noise: key must have the shape (2,)"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error) as caught:
        add_noise(*arguments)
    assert str(caught.value).startswith(message)
