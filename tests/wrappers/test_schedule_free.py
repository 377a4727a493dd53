"""Schedule-free: the authors' package, optax, the definition by three sequences, and what has no division by β."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import schedulefree
import torch
from hypothesis import given, settings, strategies as st

import funcopt as fo
from funcopt import tree
from tests.trees import assert_close, assert_identical, draw

STEPS = 25


def loss(params):
    """Not quadratic, and with a curvature that differs from number to number."""
    target = torch.linspace(-1, 2, params.numel(), dtype=params.dtype).reshape(params.shape)
    scale = torch.linspace(0.2, 3.0, params.numel(), dtype=params.dtype).reshape(params.shape)
    return (scale * (params - target) ** 2).sum() + (params**4).sum() / 10


def trajectory(optimizer, params):
    """What is trained and what is evaluated, after each step."""
    state = optimizer.init(params)
    for _ in range(STEPS):
        updates, state = optimizer.update(torch.func.grad(loss)(params), state, params)
        params = fo.apply_updates(params, updates)
        yield params, fo.eval_params(state, params), state


def warmed_up(rate, steps):
    """The authors' warm-up: the first step is taken at `rate / steps`."""
    return lambda count: rate * torch.clamp((count + 1) / steps, max=1.0).double()


AUTHORS = {
    "sgd": (
        lambda p: schedulefree.SGDScheduleFree(p, lr=0.05, momentum=0.8),
        lambda: fo.schedule_free_sgd(0.05, b1=0.8),
    ),
    "sgd, decayed": (
        lambda p: schedulefree.SGDScheduleFree(p, lr=0.05, weight_decay=0.1, weight_lr_power=1.0),
        lambda: fo.schedule_free_sgd(0.05, weight_decay=0.1, weight_lr_power=1.0),
    ),
    "sgd, warmed up": (
        lambda p: schedulefree.SGDScheduleFree(p, lr=0.05, warmup_steps=8),
        lambda: fo.schedule_free_sgd(warmed_up(0.05, 8)),
    ),
    "adamw": (
        lambda p: schedulefree.AdamWScheduleFree(p, lr=0.1, betas=(0.85, 0.9), eps=1e-4, foreach=False),
        lambda: fo.schedule_free_adamw(0.1, b1=0.85, b2=0.9, eps=1e-4),
    ),
    "adamw, decayed and warmed up": (
        lambda p: schedulefree.AdamWScheduleFree(p, lr=0.1, weight_decay=0.1, warmup_steps=8),
        lambda: fo.schedule_free_adamw(warmed_up(0.1, 8), weight_decay=0.1),
    ),
}


@pytest.mark.parametrize("name", AUTHORS)
def test_as_the_authors(name):
    make, ours = AUTHORS[name]
    start = draw(3, shapes=(2, 3))
    module = torch.nn.Parameter(start.clone())
    theirs = make([module])
    for trained, evaluated, _ in trajectory(ours(), start):
        theirs.train()
        module.grad = torch.func.grad(loss)(module.detach())
        theirs.step()
        assert_close(trained, module.detach(), rtol=1e-12)
        theirs.eval()
        assert_close(evaluated, module.detach(), rtol=1e-12)


@pytest.mark.parametrize("name", ["schedule_free_sgd", "schedule_free_adamw"])
def test_evaluated_as_in_optax(name):
    arguments = {"learning_rate": 0.05, "b1": 0.8, "weight_decay": 0.1}
    start = draw(3, shapes=(2, 3))
    with jax.enable_x64(True):
        theirs, params = getattr(optax.contrib, name)(**arguments), jnp.asarray(start.numpy())
        state, update = theirs.init(params), jax.jit(theirs.update)
        before = start
        for trained, evaluated, our_state in trajectory(getattr(fo, name)(**arguments), start):
            updates, state = update(jnp.asarray(torch.func.grad(loss)(before).numpy()), state, params)
            params, before = optax.apply_updates(params, updates), trained
            expected = optax.contrib.schedule_free_eval_params(state, params)
            np.testing.assert_allclose(evaluated, expected, rtol=1e-12)
            assert_identical(fo.schedule_free_eval_params((our_state,), trained), evaluated)


def test_the_first_value_of_a_schedule_has_its_weight():
    """Rates 3, 1, 1 ...: the largest so far is 3 from the first step on. optax does not see it in the weights."""

    def rate(count):
        return 3.0 - 2.0 * (count > 0)

    gradients = [1.0, 2.0, -1.0]
    z, x = [0.0], 0.0
    for count, g in enumerate(gradients):
        z.append(z[-1] - rate(count) * g)
        x += (z[-1] - x) / (count + 1)  # equal weights
    state, params = run(fo.schedule_free(fo.sgd(rate), rate), gradients)
    assert state.max_lr.item() == 3.0 and state.weight_sum.item() == 27.0
    assert fo.eval_params(state, params).item() == pytest.approx(x)

    theirs = optax.contrib.schedule_free(optax.sgd(rate), rate)
    params = jnp.zeros(1)
    state = theirs.init(params)
    for g in gradients:
        updates, state = theirs.update(jnp.full(1, g), state, params)
        params = optax.apply_updates(params, updates)
    assert state.max_lr == 1.0


def run(optimizer, gradients):
    params = torch.zeros(1, dtype=torch.float64)
    state = optimizer.init(params)
    for g in gradients:
        updates, state = optimizer.update(torch.full((1,), g, dtype=torch.float64), state, params)
        params = fo.apply_updates(params, updates)
    return state, params


@pytest.mark.parametrize("name", ["schedule_free_sgd", "schedule_free_adamw"])
def test_a_warmup_from_zero_starts_at_rest(name):
    """The first rate is 0: nothing moves, no weight is given, and nothing is divided by zero."""
    optimizer = getattr(fo, name)(0.1, warmup_steps=4)
    start = draw(3, shapes=(2, 3))
    steps = trajectory(optimizer, start)
    trained, evaluated, state = next(steps)
    assert_identical((trained, evaluated), (start, start))
    assert state.weight_sum == 0 and state.max_lr == 0
    trained, evaluated, state = next(steps)
    assert state.max_lr.item() == pytest.approx(0.025)
    assert_close(evaluated, state.z, rtol=1e-14)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    gradients=st.lists(st.floats(-2, 2), min_size=1, max_size=10),
    rates=st.lists(st.floats(0.01, 1.0), min_size=10, max_size=10),
    b1=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    power=st.sampled_from([0.0, 1.0, 2.0]),
)
def test_x_is_the_weighted_mean_of_z(gradients, rates, b1, power):
    """The definition: z, and weights from the largest rate so far; y between x and z."""

    def rate(count):
        return torch.tensor(rates, dtype=torch.float64)[count]

    z = -np.cumsum([r * g for r, g in zip(rates, gradients)])
    weights = np.maximum.accumulate(rates[: len(gradients)]) ** power
    x = (weights * z).sum() / weights.sum()
    state, params = run(fo.schedule_free(fo.sgd(rate), rate, b1, power), gradients)
    assert state.z.item() == pytest.approx(z[-1], abs=1e-12)
    assert params.item() == pytest.approx(b1 * x + (1 - b1) * z[-1], abs=1e-12)
    assert fo.eval_params(state, params).item() == pytest.approx(x, abs=1e-11)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.complex64])
def test_training_goes_on_where_it_was(dtype):
    optimizer = fo.chain(fo.clip_by_global_norm(1.0), fo.schedule_free_adamw(0.1))
    params = draw(1, dtype)
    state = optimizer.init(params)
    for step in range(5):
        updates, state = optimizer.update(draw(10 + step, dtype), state, params)
        params = fo.apply_updates(params, updates)
    evaluated = fo.eval_params(state, params)
    assert not torch.allclose(evaluated["c"], params["c"])
    assert_close(fo.train_params(state, evaluated), params, rtol=4 * torch.finfo(dtype).eps)


def test_b1_may_change_between_steps():
    """As with hyperparameters that live in the state: y is then between x and z with the new β."""
    first, second = (fo.schedule_free(fo.sgd(0.1), 0.1, b1=b1) for b1 in (torch.tensor(0.9), torch.tensor(0.6)))
    params = draw(1, shapes=(3,))
    updates, state = first.update(draw(2, shapes=(3,)), first.init(params), params)
    params = fo.apply_updates(params, updates)
    _, state = second.update(draw(3, shapes=(3,)), state, params)
    assert state.b1.item() == pytest.approx(0.6)


def test_z_in_another_dtype():
    params = draw(1, torch.float32)
    for dtype in (torch.bfloat16, torch.float64):
        optimizer = fo.schedule_free_sgd(0.1, state_dtype=dtype)
        _, state = optimizer.update(draw(2, torch.float32), optimizer.init(params), params)
        assert {leaf.dtype for leaf in tree.leaves(state.z)} == {dtype}
        assert state.weight_sum.dtype == torch.float32
    state = fo.schedule_free_sgd(0.1, state_dtype=torch.bfloat16).init({"w": torch.ones(2, dtype=torch.complex64)})
    assert state.z["w"].dtype == torch.complex64


def test_half_precision_keeps_its_scalars():
    """In optax β = 0.9 of bfloat16 params is 0.8984, and a sum of weights in bfloat16 stops growing."""
    params = {"w": torch.ones(2, dtype=torch.bfloat16)}
    optimizer = fo.schedule_free_sgd(1.0)
    state = optimizer.init(params)
    for _ in range(300):
        _, state = optimizer.update(tree.map(torch.zeros_like, params), state, params)
    assert state.b1.item() == pytest.approx(0.9) and state.weight_sum.item() == 300.0
    theirs = optax.contrib.schedule_free_sgd(1.0).init(jnp.ones(2, dtype=jnp.bfloat16))
    assert float(theirs.b1) == 0.8984375 and theirs.weight_sum.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: fo.schedule_free(0.1, 0.1), TypeError, "schedule_free: base_optimizer must be a GradientTransf"),
        (lambda: fo.schedule_free(fo.sgd(0.1), -0.1), ValueError, r"schedule_free: learning_rate must lie in \[0, inf"),
        (lambda: fo.schedule_free(fo.sgd(0.1), 0.1, 0.0), ValueError, r"schedule_free: b1 must lie in \(0, 1\], got"),
        (lambda: fo.schedule_free_sgd(weight_lr_power=-1.0), ValueError, "schedule_free: weight_lr_power must lie"),
        (lambda: fo.schedule_free_adamw(b2=1.0), ValueError, "scale_by_rms: decay must lie"),
        (lambda: fo.schedule_free_sgd(lambda count: 0.1, 5), TypeError, "schedule_free_sgd: warmup_steps=5 makes a"),
        (lambda: fo.schedule_free_adamw(0.1, -1), ValueError, "warmup_steps must be at least 0"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_params_are_needed():
    optimizer = fo.schedule_free_sgd()
    with pytest.raises(ValueError, match="schedule_free: update needs the parameters"):
        optimizer.update(torch.ones(1), optimizer.init(torch.ones(1)))
