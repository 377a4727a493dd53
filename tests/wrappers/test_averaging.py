"""Averages beside the params: against optax and torch.optim.swa_utils, with absent gradients, in half precision."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import funcopt as fo
from funcopt import tree
from tests.trees import assert_close, assert_identical, draw


def ones(dtype=torch.float64):
    return {"w": torch.ones(1, dtype=dtype)}


def train(optimizer, params, gradients):
    """Params and state after each step."""
    state = optimizer.init(params)
    for grads in gradients:
        updates, state = optimizer.update(grads, state, params)
        params = fo.apply_updates(params, updates)
        yield params, state


def evaluations(optimizer, values, start=0.0):
    """The number to evaluate with after each step of gradient descent at a rate of 1, along params that are given."""
    params = {"w": torch.tensor([start], dtype=torch.float64)}
    positions = [start, *values]
    gradients = [{"w": torch.tensor([a - b], dtype=torch.float64)} for a, b in itertools.pairwise(positions)]
    return [fo.eval_params(state, now)["w"].item() for now, state in train(optimizer, params, gradients)]


@pytest.mark.parametrize("reset_state", [False, True])
@pytest.mark.parametrize("make", ["sgd", "adam"])
def test_lookahead_has_the_fast_and_the_slow_params_of_optax(make, reset_state):
    arguments = {"learning_rate": 0.1, **({"momentum": 0.9} if make == "sgd" else {})}
    ours = fo.lookahead(getattr(fo, make)(**arguments), 3, 0.4, reset_state)
    theirs = optax.lookahead(getattr(optax, make)(**arguments), 3, 0.4, reset_state)
    gradients = [torch.randn(4, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in range(10)]
    start = torch.linspace(-1, 1, 4, dtype=torch.float64)
    with jax.enable_x64(True):
        pair = optax.LookaheadParams.init_synced({"w": jnp.asarray(start.numpy())})
        reference = theirs.init(pair)
        steps = train(ours, {"w": start}, [{"w": g} for g in gradients])
        for g, (fast, state) in zip(gradients, steps):
            updates, reference = theirs.update({"w": jnp.asarray(g.numpy())}, reference, pair)
            pair = optax.apply_updates(pair, updates)
            np.testing.assert_allclose(fast["w"], pair.fast["w"], rtol=1e-12)
            np.testing.assert_allclose(fo.eval_params(state, fast)["w"], pair.slow["w"], rtol=1e-12)


def test_lookahead_by_hand():
    steps = train(fo.lookahead(fo.sgd(1.0), 2, 0.5), ones(), [{"w": torch.tensor([0.1], dtype=torch.float64)}] * 4)
    found = [(fast["w"].item(), state.slow_params["w"].item()) for fast, state in steps]
    assert found == [pytest.approx(pair) for pair in ((0.9, 1.0), (0.9, 0.9), (0.8, 0.9), (0.8, 0.8))]


def test_a_sync_starts_the_fast_optimizer_anew_but_for_skipped_leaves():
    optimizer = fo.lookahead(fo.adam(0.1), 2, 0.5, reset_state=True)
    params = {"a": torch.ones(2), "b": torch.ones(2)}
    _, state = optimizer.update(params, optimizer.init(params), params)
    updates, synced = optimizer.update({"a": torch.ones(2), "b": None}, state, params)
    adam, before = synced.fast_state[0], state.fast_state[0]
    assert adam.count == 0 and (adam.mu["a"] == 0).all() and (adam.nu["a"] == 0).all()
    assert_identical(
        (adam.mu["b"], adam.nu["b"], synced.slow_params["b"]), (before.mu["b"], before.nu["b"], params["b"])
    )
    assert updates["b"] is None


def test_a_reset_starts_from_the_synced_params():
    """optax starts anew from the params before the step, which is seen in states that hold params."""
    optimizer = fo.lookahead(fo.schedule_free_sgd(0.1), 1, 0.5, reset_state=True)
    params = ones()
    updates, state = optimizer.update(ones(), optimizer.init(params), params)
    assert_close(state.fast_state.z, fo.apply_updates(params, updates), rtol=1e-15)


def test_a_reset_selects():
    """optax multiplies by the condition: an infinite number or a NaN in the state outlives the reset."""

    last_seen = fo.GradientTransformation(
        lambda params: {"seen": tree.zeros_like(params)}, lambda g, state, params=None, **extra: (g, {"seen": g})
    )
    optimizer = fo.lookahead(last_seen, 2, 0.5, reset_state=True)
    params, bad = ones(), {"w": torch.tensor([torch.nan], dtype=torch.float64)}
    _, state = optimizer.update(bad, optimizer.init(params), params)
    assert state.fast_state["seen"]["w"].isnan()
    _, state = optimizer.update(bad, state, params)
    assert state.fast_state["seen"]["w"] == 0
    theirs = optax.lookahead(
        optax.GradientTransformation(lambda p: {"seen": 0 * p}, lambda g, state, params=None: (g, {"seen": g})),
        sync_period=1,
        slow_step_size=0.5,
        reset_state=True,
    )
    pair = optax.LookaheadParams.init_synced(jnp.ones(1))
    assert jnp.isnan(theirs.update(jnp.full(1, jnp.nan), theirs.init(pair), pair)[1].fast_state["seen"]).all()


def test_slow_params_of_half_precision_move_by_less_than_a_rounding():
    """Steps of 0.004 at 1, of which a tenth is taken: bfloat16 would round each sync back to 1."""
    optimizer = fo.lookahead(fo.sgd(1.0), 1, 0.1)
    grads = {"w": torch.tensor([0.00390625], dtype=torch.bfloat16)}
    *_, (params, state) = train(optimizer, ones(torch.bfloat16), [grads] * 40)
    assert state.slow_params["w"].dtype == torch.float32
    assert state.slow_params["w"].item() < 0.99 and params["w"].item() < 1.0


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    values=st.lists(st.floats(-3, 3), min_size=1, max_size=12),
    decay=st.sampled_from([0.0, 0.5, 0.9, 0.9999]),
)
def test_the_debiased_average_is_the_weighted_mean_of_all_steps(values, decay):
    found = evaluations(fo.ema_params(fo.sgd(1.0), decay), values, start=50.0)
    for count, average in enumerate(found, start=1):
        weights = [decay ** (count - 1 - i) for i in range(count)]
        mean = sum(w * v for w, v in zip(weights, values)) / sum(weights)
        assert average == pytest.approx(mean, abs=1e-10)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    values=st.lists(st.floats(-3, 3), min_size=1, max_size=12),
    start=st.integers(0, 8),
    every=st.integers(1, 4),
)
def test_the_stochastic_average_is_the_mean_of_its_steps(values, start, every):
    found = evaluations(fo.swa(fo.sgd(1.0), start, every), values)
    for step, average in enumerate(found):
        taken = values[start : step + 1 : every]
        expected = sum(taken) / len(taken) if taken else values[step]
        assert average == pytest.approx(expected, abs=1e-12)


def check_against_torch(optimizer, averaged_model, takes_start, takes):
    """Our average and that of torch's AveragedModel along one trajectory, which takes the steps that `takes` says."""
    module = torch.nn.Linear(3, 2, dtype=torch.float64)
    averaged = averaged_model(module)
    if takes_start:
        averaged.update_parameters(module)
    params = {name: param.detach().clone() for name, param in module.named_parameters()}
    gradients = [{"weight": draw(s, shapes=(2, 3)), "bias": draw(s + 50, shapes=(2,))} for s in range(12)]
    for step, (now, state) in enumerate(train(optimizer, params, gradients)):
        module.load_state_dict(now)
        if takes(step):
            averaged.update_parameters(module)
        if takes_start or averaged.n_averaged > 0:
            assert_close(fo.eval_params(state, now), dict(averaged.module.named_parameters()), rtol=1e-14)


def test_ema_params_as_in_torch():
    def averaged_model(module):
        return AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.8))

    optimizer = fo.ema_params(fo.adam(0.1), 0.8, debias=False)
    check_against_torch(optimizer, averaged_model, takes_start=True, takes=lambda step: True)


@pytest.mark.parametrize("start, every", [(0, 1), (3, 1), (4, 3)])
def test_swa_as_in_torch(start, every):
    optimizer = fo.swa(fo.adam(0.1), start, every)
    check_against_torch(optimizer, AveragedModel, False, lambda step: step >= start and (step - start) % every == 0)


def test_ema_params_as_in_optax():
    """Without debias `incremental_update` after each step, and with it optax.ema of the params."""
    gradients = [draw(s) for s in range(8)]
    params, average = draw(50), draw(50)
    ema = fo.ema(0.7)
    ema_state = ema.init(params)
    started = train(fo.ema_params(fo.adam(0.1), 0.7, debias=False), params, gradients)
    debiased = train(fo.ema_params(fo.adam(0.1), 0.7), params, gradients)
    for (now, state), (_, other) in zip(started, debiased):
        average = fo.incremental_update(now, average, 0.3)
        assert_close(fo.eval_params(state, now), average, rtol=1e-14)
        mean, ema_state = ema.update(now, ema_state)
        assert_close(fo.eval_params(other, now), mean, rtol=1e-14)


def test_a_scheduled_decay():
    """The warm-up of many EMA recipes, min(decay, (1 + t) / (10 + t)), by hand."""

    def decay(count):
        return torch.clamp((1 + count) / (10 + count), max=0.9)

    values = [1.0, -2.0, 0.5, 4.0]
    found = evaluations(fo.ema_params(fo.sgd(1.0), decay), values)
    total = weight = 0.0
    for step, (value, average) in enumerate(zip(values, found)):
        d = min(0.9, (1 + step) / (10 + step))
        total, weight = d * total + (1 - d) * value, d * weight + 1 - d
        assert average == pytest.approx(total / weight, rel=1e-6)  # the schedule above is float32


WRAPPERS = {
    "lookahead": lambda inner: fo.lookahead(inner, 2, 0.5),
    "ema_params": lambda inner: fo.ema_params(inner, 0.9),
    "ema_params from the start": lambda inner: fo.ema_params(inner, 0.9, debias=False),
    "swa": lambda inner: fo.swa(inner, 2),
    "schedule_free": lambda inner: fo.schedule_free(inner, 0.1),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_leaf_that_never_has_a_gradient_evaluates_to_itself(name):
    optimizer = WRAPPERS[name](fo.adam(0.1))
    params = {"frozen": torch.tensor([3.0]), "w": torch.ones(2)}
    *_, (params, state) = train(optimizer, params, [{"frozen": None, "w": torch.ones(2)}] * 5)
    assert fo.eval_params(state, params)["frozen"].tolist() == [3.0]


def test_a_leaf_without_gradient_at_the_start_of_swa_is_not_taken_from_init():
    grads, none = {"w": torch.ones(1)}, {"w": None}
    *_, (params, state) = train(fo.swa(fo.sgd(1.0), 2), {"w": torch.zeros(1)}, [grads, grads, none, grads])
    assert params["w"].item() == -3.0
    assert fo.eval_params(state, params)["w"].item() == -2.5  # of -2, kept at step 2, and -3


@pytest.mark.parametrize("name", ["ema_params", "swa"])
def test_averages_of_half_precision_are_float32(name):
    """The mean of what the bfloat16 params were, which is finer than bfloat16."""
    values = [1.0, 1.0078125, 1.0, 1.0078125]
    optimizer = fo.ema_params(fo.sgd(1.0), 0.999) if name == "ema_params" else fo.swa(fo.sgd(1.0), 0)
    gradients = [{"w": torch.tensor([a - b], dtype=torch.bfloat16)} for a, b in zip([1.0, *values], values)]
    *_, (params, state) = train(optimizer, ones(torch.bfloat16), gradients)
    assert params["w"].item() == 1.0078125
    assert state.average["w"].dtype == torch.float32
    assert state.average["w"].item() == pytest.approx(1.00390625, abs=1e-5)
    assert fo.eval_params(state, params)["w"].dtype == torch.bfloat16


def test_the_average_is_of_what_the_parameters_become():
    """0.001 is lost in a bfloat16 parameter at 1, and so in the average."""
    grads = {"w": torch.tensor([-1e-3], dtype=torch.bfloat16)}
    *_, (params, state) = train(fo.swa(fo.sgd(1.0), 0), ones(torch.bfloat16), [grads] * 10)
    assert params["w"].item() == state.average["w"].item() == 1.0


def test_averages_of_an_average_that_has_converged_stay():
    """a + w (p - a) does not drift; decay * a + (1 - decay) * p would, by roundings."""
    value = {"w": torch.full((100,), 1 / 3).cumsum(0)}
    zeros = tree.map(torch.zeros_like, value)
    for optimizer in (fo.ema_params(fo.sgd(1.0), 0.9), fo.swa(fo.sgd(1.0), 0)):
        *_, (params, state) = train(optimizer, value, [zeros] * 50)
        assert_identical(fo.eval_params(state, params), value)


def test_extra_arguments_reach_what_is_wrapped():
    def update(updates, state, params=None, *, value, **extra):
        return tree.map(lambda leaf: value * leaf, updates), state

    inner = fo.GradientTransformation(fo.identity().init, update)
    for wrap in WRAPPERS.values():
        optimizer = wrap(inner)
        assert optimizer.update(ones(), optimizer.init(ones()), ones(), value=0.0)[0]["w"].item() == 0.0


def test_coupling_is_that_of_what_is_wrapped():
    for wrap in WRAPPERS.values():
        assert wrap(fo.sgd(0.1)).coupling == "elementwise"
        assert wrap(fo.clip_by_block_rms(1.0)).coupling == "leafwise"
        assert wrap(fo.clip_by_global_norm(1.0)).coupling == "treewise"


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: fo.lookahead(fo.adam, 2, 0.5), TypeError, "lookahead: fast_optimizer must be a GradientTransf"),
        (lambda: fo.lookahead(fo.sgd(1.0), 0, 0.5), ValueError, "lookahead: sync_period must be at least 1, got"),
        (lambda: fo.lookahead(fo.sgd(1.0), 2.0, 0.5), TypeError, "lookahead: sync_period must be an int"),
        (lambda: fo.lookahead(fo.sgd(1.0), 2, -0.5), ValueError, "lookahead: slow_step_size must lie in"),
        (lambda: fo.ema_params(0.999, fo.sgd(1.0)), TypeError, "ema_params: inner must be a GradientTransformation"),
        (lambda: fo.ema_params(fo.sgd(1.0), 1.0), ValueError, r"ema_params: decay must lie in \[0, 1\), got decay=1"),
        (lambda: fo.swa(fo.sgd(1.0), -1), ValueError, "swa: start_step must be at least 0, got start_step=-1"),
        (lambda: fo.swa(fo.sgd(1.0), 1, 0), ValueError, "swa: every must be at least 1, got every=0"),
        (lambda: fo.swa("adam", 1), TypeError, "swa: inner must be a GradientTransformation, got inner='adam'"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("name", ["lookahead", "ema_params", "swa"])
def test_params_are_needed(name):
    optimizer = WRAPPERS[name](fo.sgd(0.1))
    with pytest.raises(ValueError, match=f"{name}: update needs the parameters"):
        optimizer.update(ones(), optimizer.init(ones()))
