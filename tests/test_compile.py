"""funcopt.compile: what is donated comes back in the same buffers, with the same numbers, and nothing is allocated."""

import io
import re

import pytest
import torch
from torch._inductor.utils import run_and_get_code
from torch.func import grad_and_value
from torch.profiler import ProfilerActivity, profile

import funcopt as fo
from funcopt import tree
from tests.catalogue import LATER_OPTIMIZERS, MOMENTS, OPTIMIZERS
from tests.trees import assert_close, assert_identical, draw

EAGER = {"backend": "aot_eager"}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def make_step(optimizer):
    def step(params, state, batch):
        def loss(params):
            return ((params["w"] @ batch - params["b"]) ** 2).mean()

        grads, value = grad_and_value(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        return fo.apply_updates(params, updates), state, {"loss": value, "norm": fo.global_norm(grads)}

    return step


def problem(size=4):
    params = draw(1, torch.float32, {"w": (size, 3), "b": (size,)})
    return params, draw(2, torch.float32, (3,)), fo.chain(fo.clip_by_global_norm(1.0), fo.adamw(0.1))


def same_tensors(a, b):
    return all(x is y for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_donated_trees_come_back_in_their_buffers(backend):
    params, batch, optimizer = problem()
    state = optimizer.init(params)
    step = make_step(optimizer)
    expected = step(*step(params, state, batch)[:2], batch)
    donated = tree.clone((params, state))
    compiled = fo.compile(step, donate_argnums=(0, 1), backend=backend)
    first = compiled(*donated, batch)
    loss = first[2]["loss"].clone()
    second = compiled(*first[:2], batch)
    assert same_tensors(second[:2], donated)
    assert_close(second, expected, rtol=2e-6)
    assert first[2]["loss"] == loss, "a result that is not donated was overwritten by the next step"


def test_many_functions_may_be_compiled():
    """They share code, but not torch's limit of eight graphs for one code."""
    compiled = [fo.compile(lambda x, i=i: x * i, backend="eager") for i in range(10)]
    assert [int(fn(torch.ones(()))) for fn in compiled] == list(range(10))


def test_nothing_else_is_written():
    params, batch, optimizer = problem()
    state = optimizer.init(params)
    before = tree.clone((params, batch))
    fo.compile(make_step(optimizer), donate_argnums=1, **EAGER)(params, state, batch)
    assert_identical((params, batch), before)


LATER = [entry for entry in (*MOMENTS, *LATER_OPTIMIZERS) if not entry.name.startswith("scale_by")]
DONATING = [*OPTIMIZERS, *(pytest.param(entry, marks=pytest.mark.slow) for entry in LATER)]


@pytest.mark.parametrize("entry", DONATING, ids=str)
def test_a_donated_step_allocates_nothing_of_the_size_of_a_leaf(entry):
    size = 64 * 1024
    optimizer = entry.make(learning_rate=0.1)
    params, grads = ({"w": torch.randn(size)} for _ in range(2))
    state = optimizer.init(params)

    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return fo.apply_updates(params, updates), state

    compiled = fo.compile(step, donate_argnums=(0, 1))
    for _ in range(2):
        params, state = compiled(params, state, grads)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        compiled(params, state, grads)
    allocated = [event.nbytes() for event in memory_events(trace) if event.nbytes() > 0]
    assert sum(allocated) < size, allocated

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        step(params, state, grads)
    assert sum(event.nbytes() for event in memory_events(trace) if event.nbytes() > 0) >= 4 * size, "nothing was seen"


def memory_events(trace):
    return [event for event in trace.profiler.kineto_results.events() if event.name() == "[memory]"]


def test_freed_memory_is_kept_for_the_next_step():
    """By one block of nearly 32 MiB, allocated and freed as the function is made, and not again as it is called."""

    def largest(run):
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            result = run()
        return result, max((abs(event.nbytes()) for event in memory_events(recorded)), default=0)

    double, block = largest(lambda: fo.compile(lambda x: 2 * x, **EAGER))
    assert 2**24 < block < 2**25
    double(torch.ones(3))
    assert largest(lambda: double(torch.ones(3)))[1] < 2**10


def test_step_scalars_are_computed_before_the_elementwise_kernel():
    """A bias correction or a schedule inlined into the loop over the numbers doubles its time."""
    assert_scalars_outside_of_the_loop(fo.adamw(fo.cosine_decay_schedule(0.1, 100)))


def assert_scalars_outside_of_the_loop(optimizer):
    params, grads = ({"w": torch.randn(4096)} for _ in range(2))

    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return fo.apply_updates(params, updates), state

    compiled = fo.compile(step, donate_argnums=(0, 1))
    _, sources = run_and_get_code(compiled, params, optimizer.init(params), grads)
    kernels = "".join(re.findall(r"r'''(.*?)'''", "".join(sources), flags=re.DOTALL))
    loops = [loop for loop in kernels.split("for(") if "<static_cast<int64_t>(4096L)" in loop]
    assert loops
    assert not any(word in loop for loop in loops for word in ("expm1", "std::pow", "std::cos"))
    assert "expm1" in kernels or "std::pow" in kernels


def test_results_that_are_or_view_a_donated_argument():
    """Swapped, kept, viewed: the values are those of the function, whatever is written where."""

    def fn(a, b):
        return {"x": b["x"]}, {"x": a["x"] + 0}, a["x"][:2], b["x"]

    a, b = {"x": torch.arange(3.0)}, {"x": torch.arange(3.0) + 10}
    expected = tree.clone(fn(a, b))
    result = fo.compile(fn, donate_argnums=(0, 1))(a, b)
    assert_identical(result, expected)
    assert same_tensors(result[:2], (a, b))


def test_a_donated_argument_may_be_nested_in_the_result_or_be_the_result():
    def nested(x, y):
        return [y, {"new": tree.map(lambda leaf: leaf + y, x)}]

    x, y = {"x": torch.ones(2)}, torch.ones(())
    assert same_tensors(fo.compile(nested, donate_argnums=0, **EAGER)(x, y)[1]["new"], x)
    assert x["x"].tolist() == [2, 2]
    assert same_tensors(fo.compile(lambda x: nested(x, y)[1]["new"], donate_argnums=0, **EAGER)(x), x)
    assert x["x"].tolist() == [3, 3]


def test_parameters_that_require_grad():
    params, batch, optimizer = problem()
    params = tree.map(torch.nn.Parameter, params)
    state = optimizer.init(params)
    assert not any(leaf.requires_grad for leaf in tree.leaves(state))
    new, _, _ = fo.compile(make_step(optimizer), donate_argnums=(0, 1), **EAGER)(params, state, batch)
    assert same_tensors(new, params)


def test_keyword_arguments_and_none():
    def fn(state, *, factor):
        return tree.map(lambda leaf: factor * leaf, state)

    state = {"x": torch.ones(2), "n": None}
    result = fo.compile(fn, donate_argnums=0, **EAGER)(state, factor=torch.tensor(3.0))
    assert result["n"] is None
    assert result["x"] is state["x"]
    assert state["x"].tolist() == [3, 3]


def test_without_donation_it_is_torch_compile():
    x = torch.ones(2)
    assert fo.compile(lambda x: x + 1, **EAGER)(x).tolist() == [2, 2]
    assert x.tolist() == [1, 1]


def test_no_recompile_as_values_change():
    params, batch, optimizer = problem()
    state = optimizer.init(params)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    step = fo.compile(make_step(optimizer), donate_argnums=(0, 1), backend=counter)
    for _ in range(5):
        params, state, _ = step(params, state, batch)
    assert counter.frame_count == 1


def test_no_recompile_over_a_hundred_steps():
    """With a schedule that moves, a hyperparameter that is set, and a state that was saved and loaded."""
    params, batch, _ = problem()
    optimizer = fo.inject_hyperparams(fo.adamw)(fo.cosine_decay_schedule(0.1, 100), weight_decay=0.1)
    state = optimizer.init(params)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    step = fo.compile(make_step(optimizer), donate_argnums=(0, 1), backend=counter)
    for i in range(100):
        params, state, _ = step(params, state, batch)
        if i == 30:
            state = fo.set_hyperparams(state, weight_decay=0.2)
        if i == 60:
            file = io.BytesIO()
            torch.save([params, tree.leaves(state)], file)
            file.seek(0)
            params, leaves = torch.load(file)
            state = tree.unflatten(leaves, tree.flatten(state)[1])
    assert counter.frame_count == 1
    assert state.count == 100


WITH_SCALARS = {
    "nadamw": lambda: fo.nadamw(0.1, eps_root=1e-8),
    "amsgrad": lambda: fo.amsgrad(0.1),
    "rmsprop": lambda: fo.rmsprop(fo.cosine_decay_schedule(0.1, 100), bias_correction=True, centered=True),
    "schedule_free": lambda: fo.schedule_free_adamw(0.1, warmup_steps=10),
    "ema_params": lambda: fo.ema_params(fo.adam(0.1), 0.9, debias=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_SCALARS)
def test_no_optimizer_computes_step_scalars_in_its_loop(name):
    assert_scalars_outside_of_the_loop(WITH_SCALARS[name]())


def needs_params(grads):
    optimizer = fo.adamw(0.1)
    return optimizer.update(grads, optimizer.init(grads))


def shared():
    x = torch.ones(4)
    return {"a": x[:2], "b": x}


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: fo.compile("step"), TypeError, "compile: fn must be a function, got 'step'"),
        (lambda: fo.compile(print, donate_argnums=(0.5,)), TypeError, "compile: donate_argnums must be ints"),
        (
            lambda: fo.compile(lambda x: x, donate_argnums=1)(torch.ones(1)),
            ValueError,
            "names argument 1, but",
        ),
        (lambda: fo.compile(lambda x: x, donate_argnums=0)(x=torch.ones(1)), ValueError, "pass donated arguments by"),
        (lambda: fo.compile(lambda x: x, donate_argnums=0)({"a": 0.5}), TypeError, "only tensors can be donated"),
        (lambda: fo.compile(needs_params, **EAGER)(torch.ones(2)), ValueError, "add_decayed_weights: update needs the"),
        (lambda: fo.compile(lambda x: x, donate_argnums=0)(shared()), ValueError, "two donated leaves share memory"),
        (
            lambda: fo.compile(lambda x: x.sum(), donate_argnums=0, **EAGER)(torch.ones(2)),
            ValueError,
            "no part of the result has the structure, shapes and dtypes of the donated argument 0",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_refused_call_has_changed_nothing():
    x = torch.ones(2)
    with pytest.raises(ValueError):
        fo.compile(lambda x: (x + 1).sum(), donate_argnums=0, **EAGER)(x)
    assert x.tolist() == [1, 1]
