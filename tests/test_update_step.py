"""compile_update: the numbers of `update` and `apply_updates`, in graphs that do not grow with the leaves."""

import re
import weakref

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.profiler import ProfilerActivity, profile

import funcopt as fo
from funcopt import replay, tree
from tests.catalogue import OPTIMIZERS, case_id, storage_tolerance
from tests.trees import assert_close, assert_identical, draw

SHAPES = {"a": {"bias": (3,), "weight": (2, 3)}, "b": (), "c": (0, 2), "large": [(6, 5), (5, 6), (7, 4), (40,)]}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def eager(transformation, params, state, steps, dtype=torch.float32):
    for step in range(steps):
        updates, state = transformation.update(draw(10 + step, dtype, SHAPES), state, params)
        params = fo.apply_updates(params, updates)
    return params, state


def compiled(step, params, state, steps, dtype=torch.float32):
    for i in range(steps):
        params, state = step(params, state, draw(10 + i, dtype, SHAPES))
    return params, state


def compile_update(transformation, **options):
    counter = CompileCounterWithBackend("aot_eager")
    return fo.compile_update(transformation, alone=28, **{"backend": counter, **options}), counter


PACKABLE = [(entry, entry.cases[-1]) for entry in OPTIMIZERS if entry.make(**entry.cases[-1]).coupling != "leafwise"]
QUICK = ("sgd", "adamw")


@pytest.mark.parametrize(
    "entry, case",
    [pytest.param(*both, marks=[] if both[0].name in QUICK else pytest.mark.slow) for both in PACKABLE],
    ids=case_id,
)
def test_every_optimizer(entry, case):
    transformation = entry.make(**{name: value for name, value in case.items() if name != "mask"})
    params = draw(1, torch.float32, SHAPES)
    state = transformation.init(params)
    step, counter = compile_update(transformation)
    expected = eager(transformation, params, state, 4)
    assert_close(compiled(step, *tree.clone((params, state)), 4), expected, rtol=max(4e-6, storage_tolerance(case)))
    assert counter.frame_count <= 2


@pytest.mark.parametrize(
    "transformation, graphs",
    [
        (fo.adamw(fo.cosine_decay_schedule(0.1, 10)), 2),
        (fo.chain(fo.clip_by_global_norm(0.1), fo.adamw(0.1)), 1),
        (fo.chain(fo.accumulate_gradients(fo.adam(0.1), 2)), 2),
        (fo.adamw(0.1, weight_decay=0.5, mask=fo.by_path({"large*": True, "*": False})), 1),
        (fo.partition({"x": fo.adam(0.1), "y": fo.sgd(0.1)}, {"a*": "x", "b": "x", "c": "x", "*": "y"}), 1),
        (fo.freeze(fo.adam(0.1), {"large*": True, "*": False}), 1),
    ],
)
def test_schedules_masks_and_norms(transformation, graphs):
    params = draw(1, torch.float32, SHAPES)
    state = transformation.init(params)
    step, counter = compile_update(transformation)
    expected = eager(transformation, params, state, 4)
    assert_close(compiled(step, *tree.clone((params, state)), 4), expected, rtol=4e-6)
    assert counter.frame_count == graphs


@pytest.mark.parametrize("name", ["adamw", "rmsprop"])
def test_inductor(name):
    transformation = getattr(fo, name)(0.1)
    params = draw(1, torch.float32, SHAPES)
    state = transformation.init(params)
    step, _ = compile_update(transformation, backend="inductor")
    expected = eager(transformation, params, state, 4)
    assert_close(compiled(step, *tree.clone((params, state)), 4), expected, rtol=4e-6)


@pytest.mark.parametrize("copies", [1, 10, 100])
def test_graphs_do_not_grow_with_the_leaves(copies):
    graphs = []

    def backend(graph, inputs):
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    params = [draw(i, torch.float32, SHAPES) for i in range(copies)]
    transformation = fo.adamw(0.1)
    step = fo.compile_update(transformation, alone=28, backend=backend)
    step(params, transformation.init(params), tree.clone(params))
    assert len(graphs) <= 3, "small leaves, large ones by fours, and those that are left over"
    assert sum(graphs) < 500


def test_large_leaves_stay_and_small_ones_come_back_as_views():
    params = draw(1, torch.float32, SHAPES)
    transformation = fo.adamw(0.1)
    step, _ = compile_update(transformation)
    state = transformation.init(params)
    new, new_state = compiled(step, params, state, 1)
    assert new["large"][0] is params["large"][0]
    assert new_state[0].mu["large"][3] is state[0].mu["large"][3]
    assert new["a"]["bias"].untyped_storage().data_ptr() == new["b"].untyped_storage().data_ptr()
    again, again_state = compiled(step, new, new_state, 1)
    assert all(a is b for a, b in zip(tree.leaves((again, again_state)), tree.leaves((new, new_state))))


def test_gradients_are_only_read():
    params = draw(1, torch.float32, SHAPES)
    transformation = fo.adamw(0.1)
    step, _ = compile_update(transformation)
    grads = draw(2, torch.float32, SHAPES)
    before = tree.clone(grads)
    step(params, transformation.init(params), grads)
    assert_identical(grads, before)


def test_another_tree_and_back_again():
    """Trees by turns, a state that was saved and loaded, gradients in another order: the numbers stay right."""
    transformation = fo.adam(0.1)
    step, counter = compile_update(transformation)
    trees = [draw(seed, torch.float32, SHAPES) for seed in (1, 2)]
    states = [transformation.init(params) for params in trees]
    expected = [eager(transformation, params, state, 3) for params, state in zip(trees, states)]
    carried = [tree.clone(pair) for pair in zip(trees, states)]
    for i in range(3):
        for which in range(2):
            grads = draw(10 + i, torch.float32, SHAPES)
            grads = dict(reversed(grads.items()))
            carried[which] = tree.clone(step(*carried[which], grads))
    assert_close(carried, expected, rtol=4e-6)
    assert counter.frame_count == 2


@pytest.mark.parametrize("clipped", [False, True])
def test_in_place(clipped):
    base = fo.adamw(0.1)
    transformation = fo.chain(fo.clip_by_global_norm(0.1), base) if clipped else base
    params = draw(1, torch.float32, SHAPES)
    model = tree.map(lambda leaf: torch.nn.Parameter(leaf.clone()), params)
    model["large"][0] = torch.nn.Parameter(params["large"][0].t().contiguous().t())
    parameters = tree.leaves(model)
    step, _ = compile_update(transformation, in_place=True)
    state, mine = transformation.init(params), transformation.init(model)
    for i in range(4):
        grads = draw(10 + i, torch.float32, SHAPES)
        updates, state = transformation.update(grads, state, params)
        params = fo.apply_updates(params, updates)
        returned, mine = step(model, mine, grads)
        if i == 1:  # what others write into the parameters counts
            params = tree.map(lambda leaf: leaf * 0.5, params)
            with torch.no_grad():
                for parameter in parameters:
                    parameter.mul_(0.5)
        if i == 2:
            model["large"][1].data = model["large"][1].data.clone()
    assert all(a is b for a, b in zip(tree.leaves(returned), parameters))
    assert_close(tree.map(torch.Tensor.detach, model), params, rtol=4e-6)
    assert_close(mine, state, rtol=4e-6)


MOMENTUM = fo.sgd(0.1, momentum=0.9)
ALIKE = {"small": (3,), "other": (40,), "alike": [(6, 7)] * 9}


def by_turns(make_grads, optimizer, shapes=ALIKE, dtype=torch.float32, steps=4, between=lambda step, state: None):
    """Steps of `compile_update` and of `update`, each with gradients made from its own parameters."""
    params = draw(1, dtype, shapes)
    state = optimizer.init(params)
    given, step = tree.clone((params, state)), fo.compile_update(optimizer, alone=28, backend="eager")
    for i in range(steps):
        updates, state = optimizer.update(make_grads(i, params), state, params)
        params = fo.apply_updates(params, updates)
        given = step(*given, make_grads(i, given[0]))
        between(i, state)
        between(i, given[1])
    assert_close(given, (params, state), rtol=4e-6)
    return step


def crossed(i, params):
    return {**params, "alike": params["alike"][::-1]}


@pytest.mark.parametrize("make_grads", [lambda i, params: params, crossed], ids=["themselves", "crossed"])
def test_gradients_that_are_parameters(make_grads):
    """A block that is stepped later does not see what an earlier one has written."""
    by_turns(make_grads, MOMENTUM)


def test_gradients_change_their_layout_and_dtype():
    def make_grads(i, params):
        grads = draw(10 + i, torch.float64 if i == 3 else torch.float32, ALIKE)
        if i in (1, 4):
            grads["alike"][0] = grads["alike"][0].t().contiguous().t()
        return grads

    by_turns(make_grads, MOMENTUM, steps=6)


def test_gradients_are_no_less_precise_than_given():
    params = {"small": torch.ones(3, dtype=torch.bfloat16), "large": torch.ones(40, dtype=torch.bfloat16)}
    grads = tree.map(lambda leaf: torch.full(leaf.shape, 1.001), params)
    optimizer = fo.sgd(0.1, momentum=0.9)
    state = optimizer.init(params)
    expected = optimizer.update(grads, state, params)[1]
    given = compile_update(optimizer)[0](*tree.clone((params, state)), grads)[1]
    assert_close(given, expected, rtol=1e-6)


def test_lazily_conjugated_gradients():
    def make_grads(i, params):
        return tree.map(torch.Tensor.conj, draw(10 + i, torch.complex64, ALIKE))

    by_turns(make_grads, MOMENTUM, dtype=torch.complex64)


def draw_grads(i, params):
    return draw(10 + i, torch.float32, ALIKE)


def test_a_count_that_is_set_counts_everywhere():
    def reset(step, state):
        if step == 1:
            state[0].count.fill_(0)

    by_turns(draw_grads, fo.adamw(0.1), between=reset)


def test_a_state_leaf_that_is_replaced_or_written_counts():
    def change(step, state):
        if step == 1:
            state[0].trace["alike"][4].mul_(3)
            state[0].trace["small"].mul_(3)
        if step == 2:
            state[0].trace["alike"][1] = state[0].trace["alike"][1] * 5

    by_turns(draw_grads, MOMENTUM, between=change)


def test_steps_run_again_without_the_checks_of_compile(monkeypatch):
    """But not once something has changed that they depend on."""
    calls = []
    run = replay.Bound.__call__
    monkeypatch.setattr(replay.Bound, "__call__", lambda bound, free: calls.append(len(free)) or run(bound, free))
    step = by_turns(draw_grads, MOMENTUM)
    assert len(calls) == 3 * 5, "the small leaves, one alone, twice four at a time, and one that is left over"
    with torch.compiler.set_stance("force_eager"):
        step(*(step.home.params, step.home.state), draw_grads(0, None))
    assert len(calls) == 15


def test_no_gradient_is_kept_alive():
    params = draw(1, torch.float32, ALIKE)
    step, pair = compile_update(MOMENTUM, backend="eager")[0], (params, MOMENTUM.init(params))
    for i in range(3):
        grads = draw_grads(i, None)
        references = [weakref.ref(leaf) for leaf in tree.leaves(grads)]
        pair = step(*pair, grads)
        del grads
        assert not any(reference() is not None for reference in references)


@pytest.mark.slow
def test_a_step_allocates_nothing_of_the_size_of_a_leaf():
    size, optimizer = 4096, fo.adamw(0.1)
    params = {"small": [torch.ones(size) for _ in range(3)], "large": [torch.ones(2 * size) for _ in range(5)]}
    step, pair = fo.compile_update(optimizer, alone=2 * size), (params, optimizer.init(params))
    for _ in range(2):
        pair = step(*pair, params)
    grads = tree.map(torch.ones_like, params)
    step(*pair, grads)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        step(*pair, grads)
    events = [event for event in trace.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert sum(event.nbytes() for event in events if event.nbytes() > 0) < size


def test_a_wrong_shape_is_seen_at_every_step():
    params = {"a": torch.ones(3)}
    step, pair = compile_update(MOMENTUM, backend="eager")[0], (params, MOMENTUM.init(params))
    for _ in range(2):
        pair = step(*pair, {"a": torch.ones(3)})
    with pytest.raises(ValueError, match=re.escape("must have the shape (3,), got (1,)")):
        step(*pair, {"a": torch.ones(1)})


def test_an_extra_argument_now_and_then():
    optimizer = fo.accumulate_gradients(MOMENTUM, 3)
    params = draw(1, torch.float32, ALIKE)
    state = optimizer.init(params)
    given, step = tree.clone((params, state)), compile_update(optimizer, backend="eager")[0]
    for i, extra in enumerate(({}, {}, {}, {"emit": True}, {})):
        updates, state = optimizer.update(draw_grads(i, None), state, params, **extra)
        params = fo.apply_updates(params, updates)
        given = step(*given, draw_grads(i, None), **extra)
        assert_close(given, (params, state), rtol=4e-6)
    assert step.home.bound


def test_no_leaves():
    optimizer = fo.adamw(0.1)
    params, state = compile_update(optimizer)[0]({}, optimizer.init({}), {})
    assert params == {}
    assert state[0].count == 1


def test_mixed_dtypes():
    params = {
        "half": torch.randn(30, dtype=torch.bfloat16),
        "small": torch.randn(3, dtype=torch.bfloat16),
        "x": torch.randn(4),
    }
    grads = tree.map(torch.ones_like, params)
    transformation = fo.adamw(0.1)
    state = transformation.init(params)
    step, _ = compile_update(transformation)
    updates, expected = transformation.update(grads, state, params)
    result = step(*tree.clone((params, state)), grads)
    assert_close(result, (fo.apply_updates(params, updates), expected), rtol=4e-6)
    assert result[1][0].mu["half"].dtype == torch.float32


def test_extra_arguments():
    transformation = fo.chain(fo.sgd(0.1), fo.reduce_on_plateau(patience=1))
    params, grads = draw(1, torch.float32, SHAPES), draw(2, torch.float32, SHAPES)
    state = transformation.init(params)
    step, _ = compile_update(transformation)
    expected, given = (params, state), tree.clone((params, state))
    for _ in range(3):
        updates, new_state = transformation.update(grads, expected[1], expected[0], value=torch.tensor(1.0))
        expected = fo.apply_updates(expected[0], updates), new_state
        given = step(*given, grads, value=torch.tensor(1.0))
    assert_close(given, expected, rtol=4e-6)


def tied():
    x = torch.ones(3)
    return {"a": x, "b": x}


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: fo.compile_update("adam"), TypeError, "compile_update: transformation must be a Grad"),
        (
            lambda: compile_update(fo.sgd(0.1))[0](tied(), fo.sgd(0.1).init(tied()), tied()),
            ValueError,
            "compile_update: two parameters share memory",
        ),
        (
            lambda: compile_update(fo.sgd(0.1))[0](
                {"a": torch.ones(2)}, fo.sgd(0.1).init({"a": torch.ones(2)}), {"a": None}
            ),
            ValueError,
            "the leaf 'a' is None, but it has a place",
        ),
        (
            lambda: compile_update(fo.sgd(0.1))[0](
                {"a": torch.ones(2)}, fo.sgd(0.1).init({"a": torch.ones(2)}), {"a": torch.ones(3)}
            ),
            ValueError,
            re.escape("the leaf 'a' must have the shape (2,), got (3,)"),
        ),
        (
            lambda: compile_update(fo.adaptive_grad_clip(0.1))[0]({"a": torch.ones(2)}, (), {"a": torch.ones(2)}),
            ValueError,
            "looks at each leaf as a whole",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
