"""Steps under a condition: refused whole, in value and derivative; where optax goes wrong."""

import jax.numpy as jnp
import optax
import pytest
import torch
from torch.func import grad, jvp, vmap

import funcopt as fo
from funcopt import tree
from tests.trees import all_finite, assert_close, assert_identical, draw

INF, NAN = float("inf"), float("nan")


def remembering():
    """Adds up roots: finite for positive gradients, else NaN with a NaN derivative."""

    def rule(g, total):
        total = total + g.sqrt()
        return -total, total

    def update(updates, state, params=None, **extra):
        updates, totals = tree.map_rule(rule, updates, state.trace)
        return updates, fo.TraceState(totals)

    return fo.GradientTransformation(lambda params: fo.TraceState(tree.zeros_like(params)), update)


def history(library, transformation, values):
    """The updates that a sequence of one-number gradients gives, and the last state."""
    array = torch.tensor if library is fo else jnp.array
    state = transformation.init(array([1.0]))
    updates = []
    for value in values:
        update, state = transformation.update(array([value]), state, array([1.0]))
        updates.append(float(update[0]))
    return updates, state


KNOWN_DIFFERENCES = {
    "after giving up once, refuse again": (
        lambda lib: lib.apply_if_finite(lib.sgd(1.0), 1),
        [INF, INF, INF, 1.0],
        [0.0, -INF, 0.0, -1.0],
        [0.0, -INF, -INF, -1.0],
    ),
    "a step that the inner spoils is refused": (
        lambda lib: lib.apply_if_finite(lib.scale_by_learning_rate(lambda count: 1 / (1.0 * count)), 9),
        [0.0, 1.0],
        [0.0, 0.0],
        [NAN, -1.0],
    ),
    "so is one that spoils the state": (
        lambda lib: lib.apply_if_finite(lib.adam(0.1), 9),
        [1.0, 1e30, 1.0],
        [-0.1, 0.0, -0.1],
        [-0.1, 0.0, 0.0],
    ),
}
"""A transformation and gradients; the right updates, and optax's."""


@pytest.mark.parametrize("name", KNOWN_DIFFERENCES)
def test_known_differences(name):
    make, values, right, theirs = KNOWN_DIFFERENCES[name]
    assert history(fo, make(fo), values)[0] == pytest.approx(right, rel=1e-6, nan_ok=True)
    assert history(optax, make(optax), values)[0] == pytest.approx(theirs, rel=1e-4, nan_ok=True)


def test_the_counts_of_apply_if_finite():
    made = fo.apply_if_finite(fo.sgd(1.0), 2)
    counts = []
    state = made.init(torch.ones(1))
    for value in (1.0, NAN, INF, 2.0, NAN, -INF, NAN, NAN, 1.0):
        _, state = made.update(torch.tensor([value]), state)
        counts.append((state.notfinite_count.item(), state.last_finite.item(), state.total_notfinite.item()))
    assert counts == [
        (0, True, 0),
        (1, False, 1),
        (2, False, 2),
        (0, True, 2),
        (1, False, 3),
        (2, False, 4),
        (0, False, 5),  # let through
        (1, False, 6),
        (0, True, 6),
    ]


def test_no_errors_are_ignored_if_none_are_allowed():
    assert history(fo, fo.apply_if_finite(fo.sgd(1.0), 0), [INF, 1.0, NAN])[0] == pytest.approx(
        [-INF, -1.0, NAN], nan_ok=True
    )


def test_a_state_that_starts_at_infinity_is_no_error():
    """The best loss of a run that has not had one, say."""

    def update(updates, state, params=None, *, value, **extra):
        return tree.clone(updates), fo.TraceState(torch.minimum(state.trace, value))

    least = fo.GradientTransformation(lambda params: fo.TraceState(params.new_full((), INF)), update)
    made = fo.apply_if_finite(fo.chain(least, fo.ema(0.5)), 3)
    state = made.init(torch.ones(1))
    for value in (INF, 2.0, 3.0):
        _, state = made.update(torch.ones(1), state, value=torch.tensor(value))
        assert state.last_finite
    assert state.inner_state[0].trace == 2


REFUSED = {
    "apply_if_finite": lambda inner: fo.apply_if_finite(inner, 5),
    "apply_if_finite, rehearsed": lambda inner: fo.apply_if_finite(inner, 5, rehearse=True),
    "skip_if": lambda inner: fo.skip_if(inner, fo.skip_not_finite),
    "conditionally_mask": lambda inner: fo.conditionally_mask(inner, lambda step: step != 1),
    "conditionally_transform": lambda inner: fo.conditionally_transform(inner, lambda step: step != 1),
    "accumulate_gradients": lambda inner: fo.accumulate_gradients(inner, 1, True, fo.skip_not_finite),
}
"""Wrappers that take the first step of the tests below and refuse the second."""


@pytest.mark.parametrize("name, compiled", [*((name, False) for name in REFUSED), ("apply_if_finite", True)])
def test_a_refused_step_leaves_every_bit(name, compiled):
    inner = fo.chain(fo.clip_by_global_norm(1.0), fo.adamw(0.1), fo.trace(0.9))
    made = REFUSED[name](inner)
    params, good, spoiled, later = ({"a": values["a"]["bias"], "b": values["c"]} for values in map(draw, range(4)))
    spoiled["a"][1], spoiled["b"][0] = NAN, -INF
    update = fo.compile(made.update, backend="aot_eager") if compiled else made.update
    _, state = update(good, made.init(params), params)
    updates, after = update(spoiled, state, params)
    assert_identical(after.inner_state, state.inner_state)
    expected = spoiled if name == "conditionally_transform" else tree.map(torch.zeros_like, spoiled)
    assert_identical(updates, expected)
    assert_identical(made.update(later, after, params)[0], inner.update(later, state.inner_state, params)[0])


@pytest.mark.parametrize("name", [name for name in REFUSED if name != "conditionally_transform"])
def test_the_derivative_through_a_refused_step_is_that_of_no_step(name):
    """In gradients, state, params and hyperparameters; reverse, forward, and under vmap, where nothing can be read."""
    params, spoiled = draw(1), tree.map(lambda g: torch.full_like(g, NAN), draw(3))

    def after(first, params, rate, steps):
        made = REFUSED[name](fo.chain(fo.adamw(rate, weight_decay=0.1), fo.trace(0.9)))
        state = made.init(params)
        for grads in steps(first):
            updates, state = made.update(grads, state, params)
            params = fo.apply_updates(params, updates)
        real = [leaf for leaf in tree.leaves(state.inner_state) if leaf.is_floating_point()]
        return sum((leaf**2).sum() for leaf in real + tree.leaves(params))

    def refused(first, params, rate):
        return after(first, params, rate, lambda first: [first, tree.map(lambda s, g: s + g, spoiled, first)])

    def nothing(first, params, rate):
        return after(first, params, rate, lambda first: [first])

    at = (draw(2), params, torch.tensor(0.1, dtype=torch.float64))
    expected = grad(nothing, argnums=(0, 1, 2))(*at)
    assert_close(grad(refused, argnums=(0, 1, 2))(*at), expected, rtol=1e-14)
    ones = tree.map(torch.ones_like, at)
    assert_close(jvp(refused, at, ones), jvp(nothing, at, ones), rtol=1e-13)
    batched = vmap(grad(refused, argnums=(0, 1, 2)))(*tree.map(lambda leaf: leaf[None], at))
    assert_close(batched, tree.map(lambda leaf: leaf[None], expected), rtol=1e-14)


def spoiled_by_the_inner(rehearse):
    """The second gradient is finite, but has no root."""

    def after(first, second, rate):
        made = fo.apply_if_finite(fo.chain(remembering(), fo.scale(rate)), 5, rehearse=rehearse)
        updates, state = made.update(first, made.init(first))
        refused, state = made.update(second, state)
        return (updates + refused + state.inner_state[0].trace).sum()

    return after


AT = torch.tensor([4.0]), torch.tensor([-1.0]), torch.tensor(0.5)
NO_SECOND_STEP = [torch.tensor([0.125]), torch.tensor([0.0]), torch.tensor(-2.0)]


@pytest.mark.parametrize("rehearse", [False, True])
def test_what_the_inner_spoils_does_not_reach_values_nor_forward_derivatives(rehearse):
    after = spoiled_by_the_inner(rehearse)
    for position, expected in enumerate(NO_SECOND_STEP):
        tangents = [torch.zeros_like(value) for value in AT]
        tangents[position] = torch.ones_like(AT[position])
        value, tangent = jvp(after, AT, tuple(tangents))
        assert value == 1.0
        assert tangent == expected


def test_what_the_inner_spoils_reaches_reverse_derivatives_unless_rehearsed():
    assert not all_finite(grad(spoiled_by_the_inner(False), argnums=(0, 1, 2))(*AT))
    for mode in (lambda f: f, lambda f: torch.compile(f, fullgraph=True, backend="aot_eager")):
        result = mode(grad(spoiled_by_the_inner(True), argnums=(0, 1, 2)))(*AT)
        assert_identical(list(result), NO_SECOND_STEP)


def test_rehearsing_changes_no_number():
    params, results = draw(1), []
    for rehearse in (False, True):
        made = fo.apply_if_finite(fo.adamw(0.1), 1, rehearse=rehearse)
        state = made.init(params)
        for seed in range(4):
            grads = draw(seed)
            grads["c"][0] = INF if seed in (1, 2) else 0.0
            updates, state = made.update(grads, state, params)
        results.append((updates, state))
    assert_identical(results[0], results[1])


@pytest.mark.parametrize("name", REFUSED)
def test_extra_arguments_that_are_not_finite_do_not_leak(name):
    """A NaN loss comes along with the NaN gradients of a refused step."""

    def update(updates, state, params=None, *, value, **extra):
        return tree.map(lambda g: value.log() * g, updates), fo.TraceState(state.trace + value.log())

    inner = fo.GradientTransformation(lambda params: fo.TraceState(torch.zeros(())), update)
    made = REFUSED[name](inner)
    state = made.init(torch.ones(2))
    _, state = made.update(torch.ones(2), state, value=torch.tensor(2.0))

    def total(trace, value):
        before = state._replace(inner_state=fo.TraceState(trace))
        return made.update(torch.full((2,), NAN), before, value=value)[1].inner_state.trace

    gradients = grad(total, argnums=(0, 1))(state.inner_state.trace, torch.tensor(NAN))
    assert_identical(list(gradients), [torch.ones(()), torch.zeros(())])


@pytest.mark.parametrize("name", REFUSED)
def test_an_infinite_derivative_in_the_state_does_not_leak(name):
    """A plain root of a state that is still 0 has one, whatever the gradients."""

    def update(updates, state, params=None, **extra):
        return updates * state.trace.sqrt() * params.sqrt(), fo.TraceState(state.trace + updates.square())

    made = REFUSED[name](fo.GradientTransformation(lambda params: fo.TraceState(tree.zeros_like(params)), update))
    params = torch.zeros(2)
    state = made.init(params)
    if name.startswith("conditionally"):
        state = state._replace(step=torch.ones_like(state.step))

    def total(trace, params):
        before = state._replace(inner_state=fo.TraceState(trace))
        updates, after = made.update(torch.full((2,), NAN), before, params)
        return (after.inner_state.trace + torch.nan_to_num(updates)).sum()

    gradients = vmap(grad(total, argnums=(0, 1)))(params[None], params[None])
    assert_identical(list(gradients), [torch.ones(1, 2), torch.zeros(1, 2)])


def test_the_inner_never_sees_the_nan_of_a_refused_step():
    """torch.linalg.eigh, for one, raises an error for it."""

    def whiten(updates, params):
        return tree.map(lambda g: torch.linalg.eigh(g @ g.T).eigenvectors.T @ g, updates)

    for name in ("apply_if_finite", "skip_if"):
        made = REFUSED[name](fo.stateless(whiten))
        spoiled = torch.full((2, 2), NAN)
        assert made.update(spoiled, made.init(spoiled))[0].tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_conditions_of_the_step():
    first_two = lambda step: step < 2  # noqa: E731
    params = torch.ones(1)
    masked, passed = fo.conditionally_mask(fo.sgd(0.5), first_two), fo.conditionally_transform(fo.sgd(0.5), first_two)
    assert history(fo, masked, [1.0, 2.0, 3.0, 4.0])[0] == [-0.5, -1.0, 0.0, 0.0]
    assert history(fo, passed, [1.0, 2.0, 3.0, 4.0])[0] == [-0.5, -1.0, 3.0, 4.0]
    assert history(fo, passed, [1.0, 2.0, 3.0, 4.0])[1].step == 4
    assert masked.coupling == passed.coupling == "elementwise"
    assert fo.conditionally_mask(fo.clip_by_global_norm(1.0), first_two).coupling == "treewise"
    assert masked.init(params)._fields == optax.ConditionallyMaskState._fields


def test_conditions_of_extra_arguments():
    made = fo.conditionally_mask(fo.sgd(1.0), lambda step, value, **extra: value < 3.0, forward_extra_args=True)
    params = torch.ones(1)
    state = made.init(params)
    for value, expected in ((1.0, -1.0), (4.0, 0.0), (2.0, -1.0)):
        updates, state = made.update(params, state, value=torch.tensor(value), other=None)
        assert updates.item() == expected


@pytest.mark.parametrize("wrapper, kept", [(fo.conditionally_mask, 0.0), (fo.conditionally_transform, 1.0)])
def test_a_condition_known_beforehand_runs_the_inner_only_where_it_holds(wrapper, kept):
    calls = []

    def update(updates, state, params=None, **extra):
        calls.append(1)
        return tree.map(torch.neg, updates), state

    inner = fo.GradientTransformation(lambda params: fo.TraceState(tree.zeros_like(params)), update)
    made = wrapper(inner, lambda step, refresh: refresh, forward_extra_args=True)
    params = torch.ones(1)
    state = made.init(params)
    assert made.update(params, state, refresh=False)[0].item() == kept
    assert not calls
    assert made.update(params, state, refresh=True)[0].item() == -1.0
    assert calls == [1]


BAD_ARGUMENTS = {
    "no transformation": (lambda: fo.apply_if_finite(fo.sgd, 3), r"apply_if_finite: inner must be a Gradient"),
    "a float": (lambda: fo.apply_if_finite(fo.sgd(0.1), 3.0), r"max_consecutive_errors must be an int"),
    "no condition": (lambda: fo.conditionally_mask(fo.sgd(0.1), 3), r"conditionally_mask: should_transform_fn must be"),
    "swapped": (lambda: fo.conditionally_transform(lambda step: True, fo.sgd(0.1)), r"inner must be a Gradient"),
}


@pytest.mark.parametrize("make, message", BAD_ARGUMENTS.values(), ids=list(BAD_ARGUMENTS))
def test_bad_arguments(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_a_negative_number_of_errors():
    with pytest.raises(ValueError, match="max_consecutive_errors must be at least 0"):
        fo.apply_if_finite(fo.sgd(0.1), -1)


@pytest.mark.parametrize("flag, given", [(1, "1"), (torch.ones(()), r"float32 and shape \(\)"), (None, "None")])
def test_conditions_that_are_no_bool(flag, given):
    made = fo.conditionally_mask(fo.sgd(0.1), lambda step: flag)
    with pytest.raises(
        TypeError, match=rf"conditionally_mask: should_transform_fn must return a bool .* got .*{given}"
    ):
        made.update(torch.ones(1), made.init(torch.ones(1)))
