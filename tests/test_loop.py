"""loop: the numbers of the steps one by one, in one graph whatever their number."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import grad_and_value

import funcopt as fo
from funcopt import tree
from tests.trees import assert_close, draw


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def make_step(optimizer):
    def step(params, state, batch):
        def loss(params):
            return ((batch["x"] @ params["w"] - batch["y"]) ** 2).mean()

        grads, value = grad_and_value(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        return fo.apply_updates(params, updates), state, {"loss": value, "norm": fo.global_norm(grads)}

    return step


def problem(optimizer, steps):
    params = draw(1, torch.float32, {"w": (3,)})
    return params, optimizer.init(params), draw(2, torch.float32, {"x": (steps, 5, 3), "y": (steps, 5)})


def by_hand(step, params, state, batches, steps):
    losses = []
    for i in range(steps):
        params, state, result = step(params, state, tree.map(lambda leaf, i=i: leaf[i], batches))
        losses.append(result["loss"])
    return params, state, torch.stack(losses)


@pytest.mark.parametrize("backend", [None, "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_steps_in_a_loop(backend):
    optimizer = fo.inject_hyperparams(fo.adamw)(fo.cosine_decay_schedule(0.1, 20))
    step = make_step(optimizer)
    params, state, batches = problem(optimizer, 6)
    expected = by_hand(step, params, state, batches, 6)
    looped = fo.loop(step)
    if backend:
        looped = fo.compile(looped, donate_argnums=(0, 1), backend=backend)
    given = tree.clone((params, state))
    *new, results = looped(*given, batches)
    assert_close((*new, results["loss"]), expected, rtol=4e-6)
    assert results["norm"].shape == (6,)
    if backend:
        assert all(a is b for a, b in zip(tree.leaves(new), tree.leaves(given)))


def test_what_scan_refuses_by_itself():
    """A leaf that is None, a part that is carried on unchanged, a result that is carried or given, stride 0."""

    def step(params, state, batch):
        params = {"none": None, "w": params["w"] - state["rate"] * batch}
        return params, {"rate": state["rate"], "count": state["count"] + 1}, [params["w"], batch]

    start = {"none": None, "w": torch.ones(3)}, {"rate": torch.tensor(0.5), "count": torch.zeros(()).expand(3)}
    batches = torch.arange(6.0).reshape(2, 3)
    expected = fo.loop(step)(*start, batches)
    params, state, results = fo.compile(fo.loop(step), backend="aot_eager")(*start, batches)
    assert params["none"] is None
    assert_close((params["w"], state, results), (expected[0]["w"], *expected[1:]), rtol=0)


def test_the_graph_does_not_grow_with_the_steps():
    nodes = []

    def backend(graph, inputs):
        nodes.append(sum(len(part.graph.nodes) for part in graph.modules() if isinstance(part, torch.fx.GraphModule)))
        return graph.forward

    optimizer = fo.sgd(0.1, momentum=0.9)
    for steps in (3, 30):
        fo.compile(fo.loop(make_step(optimizer)), backend=backend)(*problem(optimizer, steps))
    assert nodes[0] == nodes[1]


def test_one_graph_for_all_calls():
    optimizer = fo.adam(0.1)
    counter = CompileCounterWithBackend("aot_eager")
    looped = fo.compile(fo.loop(make_step(optimizer)), donate_argnums=(0, 1), backend=counter)
    params, state, batches = problem(optimizer, 4)
    for _ in range(3):
        params, state, _ = looped(params, state, batches)
    assert counter.frame_count == 1
    assert state[0].count == 12


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: fo.loop("step"), TypeError, "loop: step must be a function, got 'step'"),
        (lambda: fo.loop(print)({}, {}, {}), ValueError, "loop: the leaves of batches must have a first axis"),
        (lambda: fo.loop(print)({}, {}, [torch.ones(2), torch.ones(3)]), ValueError, r"got \[2, 3\]"),
        (lambda: fo.loop(print)({}, {}, torch.ones(())), ValueError, r"got \[0\]"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
