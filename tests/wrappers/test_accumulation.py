"""Accumulation: the mean of the micro-batches, the inner step once per k, in every mode; where optax goes wrong."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import grad, jvp, vmap

import funcopt as fo
from funcopt import tree
from tests.trees import all_finite, assert_close, assert_identical, draw, stack

INF, NAN = float("inf"), float("nan")


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def history(library, transformation, values):
    """The updates that a sequence of one-number gradients gives."""
    array = torch.tensor if library is fo else jnp.array
    state, updates = transformation.init(array([1.0])), []
    for value in values:
        update, state = transformation.update(array([value]), state, array([1.0]))
        updates.append(float(update[0]))
    return updates


def multi_steps(library, *args, **kwargs):
    made = library.MultiSteps(*args, **kwargs)
    return made if library is fo else made.gradient_transformation()


KNOWN = {
    "k = 2": (lambda lib: multi_steps(lib, lib.sgd(1.0), 2), [1.0, 2.0, 3.0, 4.0, 5.0], [0.0, -1.5, 0.0, -3.5, 0.0]),
    "the sum": (lambda lib: multi_steps(lib, lib.sgd(1.0), 2, False), [1.0, 2.0, 3.0, 4.0], [0.0, -3.0, 0.0, -7.0]),
    "a growing k": (
        lambda lib: multi_steps(lib, lib.sgd(1.0), lambda step: 1 + step),
        [1.0, 2.0, 4.0, 1.0, 2.0, 6.0, 1.0],
        [-1.0, 0.0, -3.0, 0.0, 0.0, -3.0, 0.0],
    ),
    "a schedule counts steps": (
        lambda lib: multi_steps(lib, lib.sgd(lambda count: 1.0 + count), 2),
        [1.0] * 6,
        [0.0, -1.0, 0.0, -2.0, 0.0, -3.0],
    ),
    "skipped micro-batches do not count": (
        lambda lib: multi_steps(lib, lib.sgd(1.0), 2, True, lib.skip_not_finite),
        [1.0, NAN, INF, 2.0, NAN, 3.0, 4.0],
        [0.0, 0.0, 0.0, -1.5, 0.0, 0.0, -3.5],
    ),
    "large ones are skipped": (
        lambda lib: multi_steps(
            lib, lib.sgd(1.0), 2, True, functools.partial(lib.skip_large_updates, max_squared_norm=9.0)
        ),
        [1.0, 3.0, 2.0, -4.0, 2.5, 0.5],
        [0.0, 0.0, -1.5, 0.0, 0.0, -1.5],
    ),
    "apply_every": (lambda lib: lib.apply_every(3), [1.0, 2.0, 4.0, 8.0, 16.0, 1.0], [0.0, 0.0, 7.0, 0.0, 0.0, 25.0]),
}
"""A transformation, gradients, and the updates, on which the libraries agree."""


@pytest.mark.parametrize("name", KNOWN)
def test_reference_numbers(name):
    make, values, expected = KNOWN[name]
    assert history(fo, make(fo), values) == expected
    assert history(optax, make(optax), values) == expected


KNOWN_DIFFERENCES = {
    "an infinite micro-batch does not leak into calls that take no step": (
        lambda lib: multi_steps(lib, lib.sgd(1.0), 3),
        [1.0, INF, 2.0, 1.0],
        [0.0, 0.0, -INF, 0.0],
        [0.0, NAN, NAN, NAN],
    ),
    "nor a NaN out of the inner": (
        lambda lib: multi_steps(lib, lib.normalize_by_update_norm(eps=0.0), 2, False),
        [0.0, 1.0, 0.0, 2.0],
        [0.0, 1.0, 0.0, 1.0],
        [NAN, 1.0, NAN, 1.0],
    ),
    "nor into the next sum": (
        lambda lib: multi_steps(lib, lib.sgd(1.0), 2),
        [1.0, NAN, 2.0, 4.0],
        [0.0, NAN, 0.0, -3.0],
        [0.0, NAN, NAN, NAN],
    ),
    "apply_every": (
        lambda lib: lib.apply_every(2),
        [INF, 1.0, 2.0, 4.0],
        [0.0, INF, 0.0, 6.0],
        [NAN, INF, NAN, NAN],
    ),
}
"""A transformation and gradients; the right updates, and optax's."""


@pytest.mark.parametrize("name", KNOWN_DIFFERENCES)
def test_known_differences(name):
    make, values, right, theirs = KNOWN_DIFFERENCES[name]
    assert history(fo, make(fo), values) == pytest.approx(right, nan_ok=True)
    assert history(optax, make(optax), values) == pytest.approx(theirs, nan_ok=True)


def test_extra_arguments_reach_the_inner_through_a_chain():
    """In optax a chain takes `MultiSteps` for a transformation without extra arguments, and keeps them from it."""

    def ours(updates, state, params=None, *, value, **extra):
        return tree.map(lambda g: -value * g, updates), state

    made = fo.chain(fo.scale(2.0), fo.MultiSteps(fo.GradientTransformation(lambda params: (), ours), 2))
    state = made.init(torch.ones(1))
    for expected in (0.0, -6.0):
        updates, state = made.update(torch.ones(1), state, value=torch.tensor(3.0))
        assert updates.item() == expected

    def theirs(updates, state, params=None, *, value, **extra):
        return jax.tree.map(lambda g: -value * g, updates), state

    inner = optax.GradientTransformationExtraArgs(lambda params: (), theirs)
    lost = optax.chain(optax.scale(2.0), optax.MultiSteps(inner, 2).gradient_transformation())
    with pytest.raises(TypeError, match="value"):
        lost.update(jnp.ones(1), lost.init(jnp.ones(1)), value=3.0)


def test_the_update_flag_after_a_skipped_micro_batch():
    ours, theirs = (
        fo.MultiSteps(fo.sgd(1.0), 1, True, fo.skip_not_finite),
        optax.MultiSteps(optax.sgd(1.0), 1, True, optax.skip_not_finite),
    )
    state, reference = ours.init(torch.ones(1)), theirs.init(jnp.ones(1))
    assert not fo.has_updated(state) and not theirs.has_updated(reference)
    for value, right, wrong in ((1.0, True, True), (NAN, False, True), (2.0, True, True)):
        _, state = ours.update(torch.tensor([value]), state)
        _, reference = theirs.update(jnp.array([value]), reference)
        assert fo.has_updated(state) == right
        assert theirs.has_updated(reference) == wrong


def test_the_update_flag_is_a_copy():
    state = fo.MultiSteps(fo.sgd(1.0), 1).init(torch.ones(1))
    fo.has_updated(state).fill_(True)
    assert not state.emitted


class Spy:
    """A transformation that counts the runs of its update."""

    def __init__(self):
        self.runs = 0
        self.transformation = fo.GradientTransformation(fo.adam(0.1).init, self.update)

    def update(self, updates, state, params=None, **extra):
        self.runs += 1
        return fo.adam(0.1).update(updates, state, params)


@pytest.mark.parametrize("transform", ["none", "grad", "jvp"])
def test_eagerly_the_inner_runs_once_for_k_micro_batches(transform):
    spy = Spy()
    made = fo.accumulate_gradients(spy.transformation, 4, should_skip_update_fn=fo.skip_not_finite)
    params = draw(1)

    def train(params):
        state = made.init(params)
        for seed in range(10):
            updates, state = made.update(tree.map(lambda g, p: g + 0 * p, draw(seed), params), state, params)
            params = fo.apply_updates(params, updates)
        return sum(leaf.sum() for leaf in tree.leaves(params))

    if transform == "none":
        train(params)
    elif transform == "grad":
        assert all_finite(grad(train)(params))
    else:
        jvp(train, (params,), (params,))
    assert spy.runs == 2


def test_under_vmap_of_the_state_the_inner_runs_at_every_call():
    spy = Spy()
    made = fo.accumulate_gradients(spy.transformation, 2)
    params = stack([draw(1), draw(2)])
    state = vmap(made.init)(params)
    for seed in range(4):
        _, state = vmap(made.update)(stack([draw(seed), draw(9 + seed)]), state, params)
    assert spy.runs == 4
    assert state.gradient_step.tolist() == [2, 2]


def train(update, params, state, gradients, **flags):
    for step, grads in enumerate(gradients):
        extra = {name: flag(step) for name, flag in flags.items()}
        updates, state = update(grads, state, params, **extra)
        params = fo.apply_updates(params, updates)
    return params, state


SMALL = {"a": (3,), "b": ()}
GRADIENTS = [draw(20 + step, torch.float32, SMALL) for step in range(12)]


def test_a_static_flag_makes_two_graphs_and_the_one_for_no_step_knows_nothing_of_the_inner():
    made = fo.accumulate_gradients(fo.adamw(0.1), 3)
    params = draw(1, torch.float32, SMALL)
    graphs = []

    def backend(graph_module, example_inputs):
        graphs.append({str(node.target) for node in graph_module.graph.nodes if node.op.startswith("call")})
        return graph_module.forward

    update = torch.compile(made.update, fullgraph=True, backend=backend)
    result = train(update, params, made.init(params), GRADIENTS, emit=lambda step: step % 3 == 2)
    assert len(graphs) == 2
    sums, full = graphs
    assert any("sqrt" in target for target in full)
    assert not any(word in target for target in sums for word in ("sqrt", "pow", "mul", "div", "square", "expm1"))
    expected = train(made.update, params, made.init(params), GRADIENTS)
    assert_close(result, expected, rtol=2e-6)


@pytest.mark.slow
def test_one_graph_without_a_flag_donated():
    made = fo.accumulate_gradients(fo.adamw(0.1), 3)
    params = draw(1, torch.float32, SMALL)

    def step(params, state, grads, emit=None):
        updates, state = made.update(grads, state, params, emit=emit)
        return fo.apply_updates(params, updates), state

    expected = train(made.update, params, made.init(params), GRADIENTS)
    for flag, graphs in ((lambda n: None, 1), (lambda n: n % 3 == 2, 2)):
        counter = CompileCounterWithBackend("aot_eager")
        compiled = fo.compile(step, donate_argnums=(0, 1), backend=counter)
        result = tree.clone((params, made.init(params)))
        for number, grads in enumerate(GRADIENTS):
            result = compiled(*result, grads, emit=flag(number))
        assert counter.frame_count == graphs
        assert_close(result, expected, rtol=2e-6)


@pytest.mark.parametrize("skip", [None, fo.skip_not_finite])
def test_all_modes_give_the_same_derivatives(skip):
    """Eager with the step read, vmapped and compiled with a select, and told by the flag."""
    params, second = draw(1, shapes=SMALL), draw(2, shapes=SMALL)

    def loss(rate, first, flags):
        made = fo.accumulate_gradients(fo.adamw(rate, weight_decay=0.1), 2, should_skip_update_fn=skip)
        start = tree.map(lambda p, g: p + 0 * g, params, first)  # so that vmap sees a state for each model
        result = train(made.update, start, made.init(start), [first, second], **flags)
        return sum((leaf**2).sum() for leaf in tree.leaves(result) if leaf.is_floating_point())

    told = {"emit": lambda step: step == 1}
    at = torch.tensor(0.1, dtype=torch.float64), draw(3, shapes=SMALL)
    expected = grad(functools.partial(loss, flags={}), argnums=(0, 1))(*at)
    for flags in ({}, told):
        fn = grad(functools.partial(loss, flags=flags), argnums=(0, 1))
        batched = vmap(fn)(*tree.map(lambda leaf: leaf[None], at))
        assert_close(tree.map(lambda leaf: leaf[0], batched), expected, rtol=1e-12)
    compiled = torch.compile(grad(functools.partial(loss, flags={}), argnums=(0, 1)), fullgraph=True, backend="eager")
    assert_close(compiled(*at), expected, rtol=1e-12)


def test_vmapped_and_compiled():
    made = fo.accumulate_gradients(fo.adam(0.1), 2)
    params = stack([draw(seed, shapes=SMALL) for seed in range(2)])
    update = torch.compile(vmap(made.update), fullgraph=True, backend="aot_eager")
    gradients = [stack([draw(5 + step, shapes=SMALL), draw(50 + step, shapes=SMALL)]) for step in range(4)]
    result = train(update, params, vmap(made.init)(params), gradients)
    assert_close(result, train(vmap(made.update), params, vmap(made.init)(params), gradients), rtol=1e-12)


def test_a_nan_leaks_into_no_derivative_of_a_call_without_a_step():
    """Where the inner runs nonetheless, on a sum that is NaN already."""
    made = fo.accumulate_gradients(fo.adamw(0.1), 3)
    params = torch.ones(2)

    def total(params, grads):
        updates, state = made.update(grads, made.init(params), params)
        again, state = made.update(torch.full_like(grads, NAN), state, params)
        return (params + updates + again).sum()

    result = vmap(grad(total, argnums=(0, 1)))(params[None], params[None])
    assert_identical(list(result), [torch.ones(1, 2), torch.zeros(1, 2)])


NUMBERS = st.floats(-100, 100, allow_subnormal=False)
INNER = {"sgd": fo.sgd(0.1, momentum=0.9), "adam": fo.adam(0.1), "clipped": fo.clip_by_global_norm(1.0)}


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    inner=st.sampled_from(list(INNER)),
    batches=st.lists(st.lists(NUMBERS, min_size=2, max_size=2), min_size=1, max_size=5),
    weights=st.lists(st.integers(0, 9), min_size=5, max_size=5),
)
def test_micro_batches_make_the_step_of_their_mean(inner, batches, weights):
    gradients = torch.tensor(batches, dtype=torch.float64)
    weights = torch.tensor(weights[: len(batches)], dtype=torch.float64)
    means = {
        "mean": (gradients.mean(0), lambda step: None),
        "weighted": ((weights @ gradients) / weights.sum().clamp(min=1), lambda step: weights[step]),
    }
    params = torch.tensor([1.0, -2.0], dtype=torch.float64)
    for mean, weight in means.values():
        made = fo.accumulate_gradients(INNER[inner], len(batches))
        result, state = train(made.update, params, made.init(params), gradients, weight=weight)
        updates, inner_state = INNER[inner].update(mean, INNER[inner].init(params), params)
        assert_close((result, state.inner_state), (params + updates, inner_state), rtol=1e-9, atol=1e-9)


def test_equal_micro_batches_make_the_step_of_one():
    params, grads = draw(1), draw(2)
    made = fo.accumulate_gradients(fo.adam(0.1), 4)
    result, _ = train(made.update, params, made.init(params), [grads] * 4)
    once = fo.apply_updates(params, fo.adam(0.1).update(grads, fo.adam(0.1).init(params))[0])
    assert_close(result, once, rtol=1e-15)


def test_weights_of_tokens():
    """Micro-batches with 3, 1 and 0 tokens; the mean over no token is NaN."""
    made = fo.accumulate_gradients(fo.sgd(1.0), 3)
    tokens = torch.tensor([2.0, 4.0, 6.0, 20.0])
    state = made.init(torch.ones(1))
    for part in tokens.split([3, 1, 0]):
        updates, state = made.update(part.mean(0, keepdim=True), state, weight=torch.tensor(len(part)))
    assert updates.item() == -tokens.mean()
    assert state.weight_sum == 0 and state.acc_grads == 0


def test_weights_of_a_sum_and_of_nothing():
    summed = fo.accumulate_gradients(fo.sgd(1.0), 2, use_grad_mean=False)
    state = summed.init(torch.ones(1))
    for weight, expected in ((0.5, 0.0), (2.0, -5.0)):
        updates, state = summed.update(torch.full((1,), 2.0), state, weight=weight)
        assert updates.item() == expected
    empty = fo.accumulate_gradients(fo.sgd(1.0), 1)
    assert empty.update(torch.full((1,), NAN), empty.init(torch.ones(1)), weight=0.0)[0].item() == 0


def test_weights_are_differentiated():
    def update_for(weights, values=(1.0, 5.0)):
        made = fo.accumulate_gradients(fo.sgd(1.0), 2)
        state = made.init(torch.ones((), dtype=torch.float64))
        for value, weight in zip(values, weights.unbind()):
            updates, state = made.update(torch.tensor(value, dtype=torch.float64), state, weight=weight)
        return updates

    weights = torch.tensor([3.0, 1.0], dtype=torch.float64)
    assert_close(grad(update_for)(weights), torch.tensor([0.25, -0.75], dtype=torch.float64), rtol=1e-14)
    empty = torch.tensor([3.0, 0.0], dtype=torch.float64)
    assert grad(update_for)(empty, (1.0, NAN)).tolist() == [0.0, pytest.approx(1 / 3)]


def test_a_step_before_its_time_and_a_late_one():
    """The last, incomplete batch of an epoch; `emit` stands in place of k."""
    made = fo.accumulate_gradients(fo.sgd(1.0), 3)
    state, updates = made.init(torch.ones(1)), []
    told = [False, True, False, False, False, False, True, None, None, None]
    for value, emit in enumerate(told):
        update, state = made.update(torch.tensor([float(value)]), state, emit=emit)
        updates.append(update.item())
    assert updates == [0.0, -0.5, 0.0, 0.0, 0.0, 0.0, -4.0, 0.0, 0.0, -8.0]
    assert state.gradient_step == 3


def test_a_step_that_is_asked_for_with_a_micro_batch_that_is_skipped():
    """It is taken with the others; if there are none, it is not taken."""
    made = fo.accumulate_gradients(fo.sgd(1.0), 9, should_skip_update_fn=fo.skip_not_finite)
    state, taken = made.init(torch.ones(1)), []
    for value, emit in ((1.0, False), (3.0, False), (NAN, True), (NAN, False), (INF, True), (5.0, True)):
        update, state = made.update(torch.tensor([value]), state, emit=emit)
        taken.append((update.item(), fo.has_updated(state).item()))
    assert taken == [(0, False), (0, False), (-2, True), (0, False), (0, False), (-5, True)]


def test_an_absent_gradient_adds_nothing_and_none_is_lost():
    made = fo.accumulate_gradients(fo.sgd(1.0), 2)
    params = {"a": torch.ones(1), "b": torch.ones(1)}
    calls = [
        (None, 0.0),
        (4.0, -2.0),  # None first: half of 4, as of 0 and 4
        (4.0, 0.0),
        (None, None),  # None at the step: the leaf is skipped, and its 4 waits
        (2.0, 0.0),
        (6.0, -6.0),  # half of 4 + 2 + 6
    ]
    state = made.init(params)
    for value, expected in calls:
        grads = {"a": None if value is None else torch.tensor([value]), "b": torch.ones(1)}
        updates, state = made.update(grads, state, params)
        assert updates["a"] is None if value is None else updates["a"].item() == expected
    assert state.gradient_step == 3 and state.acc_grads["a"] == 0


def test_the_accumulator_is_wide_and_the_inner_sees_the_dtype_of_the_gradients():
    seen = []

    def look(updates, params):
        seen.append(updates.dtype)
        return updates.neg()

    params = torch.ones(1, dtype=torch.bfloat16)
    for dtype, expected in ((None, -1.0), (torch.bfloat16, -0.255859375)):
        made = fo.accumulate_gradients(fo.stateless(look), 1000, accumulator_dtype=dtype)
        state = made.init(params)
        assert state.acc_grads.dtype == (dtype or torch.float32)
        for _ in range(1000):
            updates, state = made.update(params, state)
        assert updates.item() == pytest.approx(expected, rel=1e-2)  # a sum in bfloat16 stops at 256
    assert seen == [torch.bfloat16] * 2
    assert (
        fo.accumulate_gradients(fo.sgd(0.1), 2).init(torch.ones(1, dtype=torch.float64)).acc_grads.dtype
        == torch.float64
    )


def test_names_coupling_and_printing():
    assert fo.MultiSteps is fo.accumulate_gradients
    assert fo.MultiSteps(fo.adam(0.1), 2).coupling == "elementwise"
    assert fo.MultiSteps(fo.clip_by_block_rms(0.1), 2).coupling == "leafwise"
    assert fo.MultiSteps(fo.adam(0.1), 2, should_skip_update_fn=fo.skip_not_finite).coupling == "treewise"
    assert repr(fo.MultiSteps(fo.sgd(0.1), 4)) == "accumulate_gradients(sgd(0.1), 4)"


BAD_ARGUMENTS = {
    "k of 0": (
        lambda: fo.MultiSteps(fo.sgd(0.1), 0),
        ValueError,
        "accumulate_gradients: every_k_schedule must be at least 1",
    ),
    "a float": (lambda: fo.MultiSteps(fo.sgd(0.1), 2.0), TypeError, "every_k_schedule must be an int"),
    "no transformation": (lambda: fo.MultiSteps(fo.sgd, 2), TypeError, "inner must be a GradientTransformation"),
    "no function": (
        lambda: fo.MultiSteps(fo.sgd(0.1), 2, True, True),
        TypeError,
        "should_skip_update_fn must be a function",
    ),
    "apply_every of 0": (lambda: fo.apply_every(0), ValueError, "apply_every: k must be at least 1"),
}


@pytest.mark.parametrize("make, kind, message", BAD_ARGUMENTS.values(), ids=list(BAD_ARGUMENTS))
def test_bad_arguments(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


@pytest.mark.parametrize(
    "extra, kind, message",
    [
        ({"emit": torch.tensor(True)}, TypeError, "accumulate_gradients: emit must be a bool, known before the call"),
        ({"weight": torch.ones(2)}, ValueError, r"accumulate_gradients: weight must be .* got the shape \(2,\)"),
    ],
)
def test_bad_extra_arguments(extra, kind, message):
    made = fo.MultiSteps(fo.sgd(0.1), 2)
    with pytest.raises(kind, match=message):
        made.update(torch.ones(1), made.init(torch.ones(1)), **extra)
