"""funcopt.sweep: many runs at once are the single runs, to rounding, in one graph."""

import sys

import pytest
import torch
from torch._inductor.utils import run_and_get_code
from torch.func import grad_and_value

import funcopt as fo
from funcopt import tree
from funcopt.testing import problems
from tests.trees import assert_close

EAGER = {"backend": "eager"}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def single_run(optimizer, loss, params, steps, batches=None):
    state, losses = optimizer.init(params), []
    for i in range(steps):
        batch = () if batches is None else (tree.map(lambda leaf, i=i: leaf[i], batches),)
        grads, value = grad_and_value(loss)(params, *batch)
        updates, state = optimizer.update(grads, state, params, value=value, grad=grads)
        params = fo.apply_updates(params, updates)
        losses.append(value)
    return params, torch.stack(losses)


def check(make, loss, params, hyperparams, steps, batches=None, **options):
    result = fo.sweep(make, loss, steps=steps, **options)(params, hyperparams, batches)
    for i in range(len(result.losses)):
        optimizer = make(**{name: values[i] for name, values in hyperparams.items()})
        final, losses = single_run(optimizer, loss, params, steps, batches)
        assert_close(tree.map(lambda leaf, i=i: leaf[i], result.params), final, rtol=1e-12)
        assert_close(result.losses[i], losses, rtol=1e-12)
    return result


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_sweep_is_the_single_runs(backend):
    problem = problems.beale()
    rates = {"learning_rate": numbers(1e-3, 1e-2, 1e-1), "weight_decay": numbers(0.0, 1e-3, 1e-2)}
    result = check(fo.adamw, problem.loss, problem.params, rates, steps=10, backend=backend)
    assert result.params.shape == (3, 2) and result.losses.shape == (3, 10)


@pytest.mark.slow
def test_it_is_so_in_the_compiled_loop():
    problem = problems.beale()
    check(fo.adamw, problem.loss, problem.params, {"learning_rate": numbers(1e-3, 1e-2, 1e-1)}, steps=3)


def test_batches_trees_and_a_hyperparameter_that_moves_the_state():
    """Matrices keep the configurations first, vectors have them last; b1 makes the bias correction differ."""
    generator = torch.Generator().manual_seed(0)
    params = {
        "w": torch.randn(3, 2, generator=generator, dtype=torch.float64),
        "parts": (torch.zeros(2, dtype=torch.float64), numbers(1.0)[0]),
    }
    batches = {"x": torch.randn(6, 4, 3, generator=generator, dtype=torch.float64)}

    def loss(params, batch):
        return ((batch["x"] @ params["w"] + params["parts"][0]).tanh() - params["parts"][1]).square().mean()

    def make(b1, rate):
        return fo.chain(fo.clip_by_global_norm(0.1), fo.adam(fo.cosine_decay_schedule(1.0, 10), b1=b1), fo.scale(rate))

    check(make, loss, params, {"b1": numbers(0.0, 0.9), "rate": numbers(0.1, 0.2)}, 6, batches, **EAGER)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_any_number_of_steps_and_of_configurations(steps):
    problem = problems.quadratic()
    check(fo.sgd, problem.loss, problem.params, {"learning_rate": numbers(0.1)}, steps, **EAGER)


def test_losses_are_recorded_at_every_kth_step():
    problem = problems.quadratic()
    rates = {"learning_rate": numbers(0.1, 0.2)}
    every = fo.sweep(fo.sgd, problem.loss, steps=8, **EAGER)(problem.params, rates)
    third = fo.sweep(fo.sgd, problem.loss, steps=8, record_every=3, **EAGER)(problem.params, rates)
    assert torch.equal(third.losses, every.losses[:, [0, 3, 6]])


def test_what_stays_the_same_has_no_axis_of_configurations():
    """Also at a state that no step changes, and at parameters that do not move."""
    problem = problems.quadratic()
    rates = {"learning_rate": numbers(0.1, 0.2), "scale": numbers(1.0, 2.0)}
    still = fo.sweep(lambda learning_rate, scale: fo.set_to_zero(), problem.loss, steps=4, **EAGER)
    assert torch.equal(still(problem.params, rates).params, problem.params.expand(2, -1))


def test_one_graph_serves_all_calls_and_nothing_is_written():
    problem, graphs = problems.quadratic(), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    train = fo.sweep(fo.adam, problem.loss, steps=8, backend=backend)
    rates = {"learning_rate": numbers(0.1, 0.2)}
    before = tree.clone((problem.params, rates))
    first = train(problem.params, rates)
    kept = tree.clone(first)
    second = train(problem.params + 1, {"learning_rate": numbers(0.3, 0.4)})
    assert len(graphs) == 1
    assert torch.equal(problem.params, before[0]) and torch.equal(rates["learning_rate"], before[1]["learning_rate"])
    assert torch.equal(first.params, kept.params) and not torch.equal(first.params, second.params)
    train(problem.params, {"learning_rate": numbers(0.1, 0.2, 0.3)})
    assert len(graphs) == 2, "another number of configurations has a graph of its own"


@pytest.mark.parametrize("loss", [lambda x: x.square().sum(), lambda x: x.sort().values.square().sum()])
def test_the_graph_does_not_grow_with_the_steps(loss):
    """Neither that of some steps written out in their elements, nor that of the loop over leaves."""
    sizes = []

    def backend(graph, inputs):
        sizes.append(sum(len(part.graph.nodes) for part in graph.modules() if hasattr(part, "graph")))
        return graph

    for steps in (20, 200):
        fo.sweep(fo.sgd, loss, steps=steps, backend=backend)(torch.ones(3), {"learning_rate": numbers(0.1)})
    assert len(sizes) == 2 and sizes[0] == sizes[1]


def small_losses():
    data = torch.tensor([[1.0, 2.0], [0.5, -1.0], [3.0, 0.0]], dtype=torch.float64)

    def regression(params):
        return (data @ params["w"] - params["b"]).square().mean()

    params = {"w": numbers(0.1, -0.2), "b": numbers(0.3)[0]}
    return [(problems.beale().loss, problems.beale().params), (regression, params)]


MAKERS = {
    "adamw": (fo.adamw, {"learning_rate": numbers(1e-3, 1e-1), "weight_decay": numbers(0.0, 1e-2)}),
    "decay of the moments": (lambda b1: fo.nadam(fo.cosine_decay_schedule(0.1, 10), b1=b1), {"b1": numbers(0.0, 0.9)}),
    "clipping": (lambda rate: fo.chain(fo.clip_by_global_norm(0.1), fo.rmsprop(rate)), {"rate": numbers(0.1, 0.2)}),
    "rate in the state": (fo.inject_hyperparams(fo.adam), {"learning_rate": numbers(0.1, 0.2)}),
    "rates of coordinates": (lambda rates: fo.chain(fo.adam(0.1), fo.scale(rates.sum())), {"rates": torch.rand(2, 3)}),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("loss, params", small_losses(), ids=["beale", "regression"])
def test_steps_written_out_in_their_elements_are_the_single_runs(name, loss, params, monkeypatch):
    """11 steps: a turn of ten, and a rest of one."""
    make, hyperparams = MAKERS[name]
    monkeypatch.setattr(sys.modules["funcopt.sweep"], "_looped", None)  # it would be the loop over leaves
    check(make, loss, params, hyperparams, 11, **EAGER)


def test_a_tensor_that_the_loss_refers_to_may_be_written():
    target = numbers(1.0, 2.0)
    train = fo.sweep(fo.sgd, lambda x: (x - target).square().sum(), steps=2, **EAGER)
    rates = {"learning_rate": numbers(0.5)}
    assert torch.equal(train(torch.zeros_like(target), rates).params[0], numbers(1.0, 2.0))
    target.copy_(numbers(3.0, 4.0))
    assert torch.equal(train(torch.zeros_like(target), rates).params[0], numbers(3.0, 4.0))


def test_a_name_that_the_loss_refers_to_may_be_bound_anew():
    scale = 1.0

    def loss(x):
        return (x - scale).square().sum()

    train = fo.sweep(fo.sgd, loss, steps=2, **EAGER)
    assert train(torch.zeros(1), {"learning_rate": numbers(0.5)}).params == 1.0
    scale = 2.0
    assert train(torch.zeros(1), {"learning_rate": numbers(0.5)}).params == 2.0


@pytest.mark.slow
def test_ten_steps_of_a_small_problem_are_one_kernel():
    """With all arithmetic in one loop over the configurations; a second one copies."""
    options = {"options": {"cpp.threads": 1, "max_fusion_size": 10_000, "realize_opcount_threshold": 8}}
    problem = problems.rosenbrock()
    train = fo.sweep(fo.adamw, problem.loss, steps=10, **options)
    _, (code,) = run_and_get_code(train, problem.params.float(), {"learning_rate": torch.logspace(-4, -1, 1000)})
    kernels = code.split("async_compile.cpp_pybinding")[1:]
    assert len(kernels) == 1 and kernels[0].count("< static_cast<int64_t>(1000L)") <= 2


ERRORS = {
    "make must be a function": (TypeError, lambda: fo.sweep(0.1, lambda x: x, steps=1)),
    "loss must be a function": (TypeError, lambda: fo.sweep(fo.sgd, None, steps=1)),
    "steps must be an int, got steps=1.5": (TypeError, lambda: fo.sweep(fo.sgd, torch.sum, steps=1.5)),
    "steps must be at least 1": (ValueError, lambda: fo.sweep(fo.sgd, torch.sum, steps=0)),
    "record_every must be at least 1": (ValueError, lambda: fo.sweep(fo.sgd, torch.sum, steps=1, record_every=0)),
    "at least one tensor": (ValueError, lambda: trained({})),
    "hyperparams must be a tree of tensors, got 0.1 at 'learning_rate'": (
        TypeError,
        lambda: trained({"learning_rate": 0.1}),
    ),
    "hyperparams must have a leading axis": (ValueError, lambda: trained({"learning_rate": torch.tensor(0.1)})),
    "one leading size, of at least 1, got the sizes {'a': 2, 'b': 3}": (
        ValueError,
        lambda: trained({"a": torch.ones(2), "b": torch.ones(3)}),
    ),
    "got the sizes {'a': 0}": (ValueError, lambda: trained({"a": torch.ones(0)})),
    "params must be a tree of tensors, got None at 'w'": (TypeError, lambda: trained(params={"w": None})),
    "a leading axis of steps=4, got 3 at 'x'": (ValueError, lambda: trained(batches={"x": torch.ones(3, 2)})),
    "batches must have a leading axis": (ValueError, lambda: trained(batches=torch.tensor(1.0))),
}


def trained(hyperparams=None, params=None, batches=None):
    hyperparams = {"learning_rate": torch.ones(2)} if hyperparams is None else hyperparams
    params = {"w": torch.ones(2)} if params is None else params
    return fo.sweep(fo.sgd, lambda params, *batch: params["w"].sum(), steps=4)(params, hyperparams, batches)


@pytest.mark.parametrize("message", ERRORS)
def test_errors_are_told_by_name(message):
    error, call = ERRORS[message]
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value) and str(caught.value).startswith("sweep: ")


def test_an_error_of_the_loss_is_its_own():
    def loss(params):
        raise ArithmeticError("no such loss")

    with pytest.raises(ArithmeticError, match="no such loss"):
        fo.sweep(fo.sgd, loss, steps=2)(torch.ones(2), {"learning_rate": torch.ones(2)})
