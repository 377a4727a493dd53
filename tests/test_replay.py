"""A graph run again without Dynamo: the same numbers, and never where something has changed."""

import functools
import weakref

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import funcopt as fo
from funcopt import replay, tree
from tests.trees import assert_close, assert_identical, draw

optimizer = fo.adamw(0.1)
factor = 2.0


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def step(params, state, grads):
    updates, state = optimizer.update(grads, state, params)
    return fo.apply_updates(params, updates), state, {"norm": fo.global_norm(grads), "name": "adamw", "grads": grads}


class Counted:
    """A compiled function, with the number of graphs compiled, of calls through Dynamo and of calls past it."""

    def __init__(self, fn, monkeypatch, **options):
        self.graphs = CompileCounterWithBackend("aot_eager")
        self.replayed = 0
        call = replay.Replay.__call__

        def count(replay, args, leaves):
            self.replayed += 1
            return call(replay, args, leaves)

        monkeypatch.setattr(replay.Replay, "__call__", count)
        self.fn = fo.compile(fn, backend=self.graphs, **options)

    def __call__(self, *args, **kwargs):
        return self.fn(*args, **kwargs)

    @property
    def counts(self):
        return self.graphs.frame_count, self.replayed


def problem(dtype=torch.float32, size=4):
    shapes = {"w": (size, 3), "b": (size,)}
    params = draw(1, dtype, shapes)
    return params, optimizer.init(params), draw(2, dtype, shapes)


def test_the_second_call_is_replayed(monkeypatch):
    counted = Counted(step, monkeypatch, donate_argnums=(0, 1))
    params, state, grads = problem()
    expected = step(*step(*step(params, state, grads)[:2], grads)[:2], grads)
    new = params, state
    for _ in range(3):
        *new, rest = counted(*new, grads)
    assert counted.counts == (1, 2)
    assert_close((*new, rest["norm"]), (*expected[:2], expected[2]["norm"]), rtol=2e-6)
    assert all(a is b for a, b in zip(tree.leaves(new), tree.leaves((params, state))))
    assert rest["name"] == "adamw"
    assert_identical(rest["grads"], grads)


def test_results_that_are_not_donated_are_new_each_time(monkeypatch):
    counted = Counted(step, monkeypatch)
    params, state, grads = problem()
    before = tree.clone((params, state, grads))
    results = [counted(params, state, grads) for _ in range(3)]
    assert counted.counts == (1, 2)
    assert_identical(results[1][:2], results[2][:2])
    assert results[1][0]["w"].data_ptr() != results[2][0]["w"].data_ptr()
    assert_identical((params, state, grads), before)


def test_gradients_flow_through_a_replay(monkeypatch):
    counted = Counted(lambda x: {"y": (x**2).sum()}, monkeypatch)
    for scale in (1.0, 2.0, 3.0):
        x = torch.full((2,), scale, requires_grad=True)
        counted(x)["y"].backward()
        assert x.grad.tolist() == [2 * scale] * 2
    assert counted.counts == (1, 2)


def times(x, y, flag=True):
    return {"z": x * y if flag else x + y}


@pytest.mark.parametrize(
    "change, graphs",
    [
        (lambda x, y: ((x, y), {}), 1),
        (lambda x, y: ((torch.cat([x, x]), y), {}), 2),
        (lambda x, y: ((x.double(), y), {}), 2),
        (lambda x, y: ((torch.stack([x, x], 1)[:, 0], y), {}), 2),
        (lambda x, y: ((torch.nn.Parameter(x), y), {}), 2),
        (lambda x, y: ((x.clone().requires_grad_(), y), {}), 2),
        (lambda x, y: ((x, y), {"flag": False}), 2),
        (lambda x, y: ((x,), {"y": y}), 2),
        (lambda x, y: ((x, 2.0), {}), 2),
    ],
)
def test_what_changes_compiles_again(monkeypatch, change, graphs):
    counted = Counted(times, monkeypatch)
    x, y = torch.arange(3.0), torch.tensor(2.0)
    for _ in range(2):
        counted(x, y)
    args, kwargs = change(x, y)
    for _ in range(2):
        assert_identical(counted(*args, **kwargs), times(*args, **kwargs))
    assert counted.graphs.frame_count == graphs
    assert_identical(counted(x, y), times(x, y))
    assert counted.graphs.frame_count == graphs


def test_an_object_argument_is_left_to_dynamo(monkeypatch):
    counted = Counted(lambda x, f: f(x), monkeypatch)
    for f in (torch.sin, torch.cos, torch.sin):
        assert_identical(counted(torch.ones(2), f), f(torch.ones(2)))
    assert counted.counts == (2, 0)


def scaled(x):
    return x * factor


def test_a_changed_global_is_seen(monkeypatch):
    counted = Counted(scaled, monkeypatch)
    assert [counted(torch.ones(())) for _ in range(2)] == [2, 2]
    monkeypatch.setitem(globals(), "factor", 3.0)
    assert [counted(torch.ones(())) for _ in range(2)] == [3, 3]


def test_another_optimizer_in_the_same_variable_is_seen(monkeypatch):
    counted = Counted(step, monkeypatch)
    arguments = problem()
    for _ in range(2):
        counted(*arguments)
    monkeypatch.setitem(globals(), "optimizer", fo.adamw(0.7))
    assert_close(counted(*arguments)[0], step(*arguments)[0], rtol=2e-6)


class Settings:
    factor = 2.0


def test_a_changed_attribute_module_mode_or_closure_is_seen(monkeypatch):
    settings, model, held = Settings(), torch.nn.Dropout(1.0), [2.0]

    def fn(x):
        return settings.factor * model(x) + held[0]

    counted = Counted(fn, monkeypatch)
    assert [counted(torch.ones(())) for _ in range(2)] == [2, 2]
    held[0] = 5.0
    assert counted(torch.ones(())) == 5
    model.eval()
    settings.factor = 3.0
    assert counted(torch.ones(())) == 8


def test_a_tensor_that_is_no_argument_is_read_anew(monkeypatch):
    rate = torch.tensor(1.0)
    counted = Counted(lambda x: x * rate, monkeypatch)
    assert [counted(torch.ones(())) for _ in range(2)] == [1, 1]
    rate = torch.tensor(2.0)
    assert counted(torch.ones(())) == 2


def test_donated_leaves_that_share_memory_are_never_replayed(monkeypatch):
    counted = Counted(lambda x, y: (x + 1, y.sum()), monkeypatch, donate_argnums=0)
    memory = torch.arange(6.0)
    for _ in range(2):
        counted(memory[:3].clone(), memory[3:].clone())
    replayed = counted.replayed
    x, total = counted(memory[:4], memory[2:])
    assert counted.replayed == replayed
    assert x.tolist() == [1, 2, 3, 4]
    assert total == 14


@pytest.mark.parametrize(
    "context",
    [
        torch.no_grad,
        functools.partial(torch.autocast, "cpu"),
        functools.partial(torch.compiler.set_stance, "force_eager"),
        functools.partial(torch.device, "cpu"),
    ],
)
def test_modes_are_not_overlooked(monkeypatch, context):
    counted = Counted(lambda x: x @ x, monkeypatch)
    x = torch.eye(2, requires_grad=True)
    for _ in range(2):
        counted(x)
    replayed = counted.replayed
    with context():
        inside, expected = counted(x), x @ x
    assert counted.replayed == replayed
    assert (inside.requires_grad, inside.dtype) == (expected.requires_grad, expected.dtype)


def test_under_vmap_and_within_another_compiled_function(monkeypatch):
    counted = Counted(lambda x: x * 2, monkeypatch)
    x = torch.arange(3.0)
    for _ in range(2):
        counted(x)
    replayed = counted.replayed
    outer = torch.compile(lambda x: counted.fn(x) + 1, backend="eager", fullgraph=True)
    assert outer(x).tolist() == [1, 3, 5]
    assert counted.replayed == replayed


def test_nothing_is_kept_alive():
    compiled = fo.compile(lambda x, f, n=0: {"y": f(x) if f else x + 1}, backend="aot_eager")
    for arguments in ((torch.sin,), (None,), (None, 1), (None, 2)):
        x = torch.ones(3)
        results = [compiled(x, *arguments) for _ in range(2)]
        references = [weakref.ref(x), *(weakref.ref(result["y"]) for result in results)]
        del x, results
        assert not any(reference() is not None for reference in references)


def test_a_graph_that_is_never_replayed_is_not_looked_at_again_and_again(monkeypatch):
    attempts, learn = [], replay.learn
    monkeypatch.setattr(replay, "learn", lambda *args: attempts.append(learn(*args)))
    model = torch.nn.Linear(2, 1)
    counted = Counted(lambda x: model(x), monkeypatch)
    for _ in range(20):
        counted(torch.ones(3, 2))
    assert counted.counts == (1, 0)
    assert attempts == [None] * replay._MOST_REFUSALS
    for _ in range(5):
        counted(torch.ones(4, 2))  # another graph, which has its own attempts
    assert counted.counts == (2, 0)
    assert len(attempts) == 2 * replay._MOST_REFUSALS
