"""SparseAdam beside torch's: the same numbers, state and errors; torch's own configurations."""

import copy
import io
import pickle

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager
from torch._dynamo.backends.registry import lookup_backend
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.testing._internal.common_optimizers import optim_db

from funcopt.optim import SparseAdam, lr_scheduler

(INFO,) = [info for info in optim_db if info.optim_cls is torch.optim.SparseAdam]
INPUTS = [given.kwargs for given in INFO.optim_inputs_func("cpu")]
INPUTS += [{"lr": 0.1, "betas": (0, 0.5), "eps": 1e-2}, {"lr": 0.1, "betas": (0.5, 0.9), "maximize": True}]


def sparse(index, values, size):
    return torch.sparse_coo_tensor(
        torch.tensor(index), torch.tensor(values, dtype=torch.float64), size, check_invariants=True
    )


GRADIENTS = [
    [sparse([[0, 2, 2]], [[1.0, -2.0], [0.5, 0.0], [0.25, 3.0]], (4, 2)), None],  # rows, one of them twice
    [None, sparse([[0, 1], [2, 0]], [4.0, -1.0], (2, 3))],  # single numbers
    [sparse([[3]], [[0.0, 1e-3]], (4, 2)), torch.zeros(2, 3, dtype=torch.float64).to_sparse()],  # and none at all
    [sparse([[2, 1]], [[1.0, 1.0], [2.0, -2.0]], (4, 2)), sparse([[1], [0]], [-7.0], (2, 3))],
]


def parameters(dtype=torch.float64):
    start = [torch.linspace(-1, 1, 8).view(4, 2), torch.linspace(2, 3, 6).view(3, 2).t()]
    return [torch.nn.Parameter(leaf.to(dtype)) for leaf in start]


def walk(optimizer, gradients):
    params = optimizer.param_groups[0]["params"]
    for grads in gradients:
        for param, grad in zip(params, grads):
            param.grad = None if grad is None else grad.to(param.dtype)
        optimizer.step()
    return [param.detach() for param in params]


def assert_same_state(mine, theirs):
    assert list(mine["state"]) == list(theirs["state"])
    for state, expected in zip(mine["state"].values(), theirs["state"].values()):
        assert list(state) == list(expected)
        assert type(state["step"]) is int and state["step"] == expected["step"]
        for key in ("exp_avg", "exp_avg_sq"):
            assert state[key].dtype == expected[key].dtype and state[key].stride() == expected[key].stride()
            torch.testing.assert_close(state[key], expected[key], rtol=1e-12, atol=1e-15)
    assert [list(group) for group in mine["param_groups"]] == [list(group) for group in theirs["param_groups"]]


@pytest.mark.parametrize("kwargs", INPUTS, ids=str)
def test_steps_as_torch(kwargs):
    mine, theirs = SparseAdam(parameters(), **kwargs), torch.optim.SparseAdam(parameters(), **kwargs)
    rtol = 1e-6 if isinstance(kwargs.get("lr"), torch.Tensor) else 1e-12  # torch multiplies a float32 rate
    torch.testing.assert_close(walk(mine, GRADIENTS * 2), walk(theirs, GRADIENTS * 2), rtol=rtol, atol=1e-14)
    assert_same_state(mine.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision(dtype):
    mine = walk(SparseAdam(parameters(dtype), lr=0.1), GRADIENTS)
    exact = walk(torch.optim.SparseAdam(parameters(), lr=0.1), GRADIENTS)
    tolerance = 4 * torch.finfo(dtype).eps
    for found, expected in zip(mine, exact):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


def test_gradients_of_all_axes_stored_densely():
    params = [torch.nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2)]
    for param, cls in zip(params, (SparseAdam, torch.optim.Adam)):
        dense = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
        stored = torch.sparse_coo_tensor(torch.zeros(0, 1, dtype=torch.int64), dense[None], (3,), check_invariants=True)
        param.grad = stored if cls is SparseAdam else dense
        cls([param], lr=0.1, eps=1e-12).step()
    torch.testing.assert_close(*params, rtol=1e-9, atol=0)


@pytest.mark.parametrize("first, second", [(SparseAdam, torch.optim.SparseAdam), (torch.optim.SparseAdam, SparseAdam)])
def test_checkpoints_pass_both_ways(first, second):
    reference = walk(torch.optim.SparseAdam(parameters(), lr=0.1), GRADIENTS * 2)
    before = first(parameters(), lr=0.1)
    halfway = walk(before, GRADIENTS)
    file = io.BytesIO()
    torch.save(before.state_dict(), file)
    file.seek(0)
    after = second([torch.nn.Parameter(leaf.clone()) for leaf in halfway])
    after.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(walk(after, GRADIENTS), reference, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=["copy", "pickle"]
)
def test_copies_step_on(duplicate):
    optimizer = SparseAdam(parameters(), lr=0.1)
    walk(optimizer, GRADIENTS)
    twin = duplicate(optimizer)
    torch.testing.assert_close(walk(twin, GRADIENTS), walk(optimizer, GRADIENTS), rtol=0, atol=0)


def test_gradients_are_kept_and_tensors_written_in_place():
    optimizer = SparseAdam(parameters(), lr=0.1)
    walk(optimizer, GRADIENTS[:2])
    param = optimizer.param_groups[0]["params"][0]
    addresses = [param.data_ptr(), *(optimizer.state[param][key].data_ptr() for key in ("exp_avg", "exp_avg_sq"))]
    param.grad = given = GRADIENTS[0][0].clone()
    before = given.to_dense().clone()
    optimizer.step()
    assert param.grad is given and not given.is_coalesced()
    torch.testing.assert_close(given.to_dense(), before)
    state = optimizer.state[param]
    assert addresses == [param.data_ptr(), state["exp_avg"].data_ptr(), state["exp_avg_sq"].data_ptr()]


def test_an_embedding_with_closure_and_scheduler():
    losses = {}
    for cls in (SparseAdam, torch.optim.SparseAdam):
        torch.manual_seed(0)
        embedding = torch.nn.Embedding(10, 3, sparse=True, dtype=torch.float64)
        optimizer = cls(embedding.parameters(), lr=torch.tensor(0.1, dtype=torch.float64))
        scheduler = lr_scheduler.ExponentialLR(optimizer, 0.5)

        def closure(embedding=embedding, optimizer=optimizer):
            optimizer.zero_grad()
            loss = embedding(torch.tensor([1, 4, 4])).square().sum()
            loss.backward()
            return loss

        losses[cls] = []
        for _ in range(4):
            losses[cls].append(optimizer.step(closure).item())
            scheduler.step()
    torch.testing.assert_close(*losses.values(), rtol=1e-12, atol=0)


def test_a_dense_gradient_is_refused_before_anything_moves():
    optimizer = SparseAdam(parameters(), lr=0.1)
    first, second = optimizer.param_groups[0]["params"]
    first.grad, second.grad = GRADIENTS[0][0].clone(), torch.ones_like(second)
    with pytest.raises(RuntimeError, match="SparseAdam does not support dense gradients, please consider Adam instead"):
        optimizer.step()
    assert torch.equal(first, parameters()[0]) and not optimizer.state


@pytest.mark.parametrize("case", INFO.optim_error_inputs_func("cpu", torch.float32), ids=lambda case: case.error_regex)
def test_errors_as_torch(case):
    given = case.optimizer_error_input
    expect = pytest.warns if issubclass(case.error_type, Warning) else pytest.raises
    with expect(case.error_type, match=case.error_regex):
        SparseAdam(given.params, **given.kwargs)


def test_values_of_groups_are_checked():
    with pytest.raises(ValueError, match="Invalid learning rate: 0"):
        SparseAdam([{"params": parameters(), "lr": 0.0}])


@pytest.mark.parametrize(
    "kwargs", [{"lr": 0.1}, {"lr": torch.tensor([0.1]), "betas": (0.5, 0.9), "maximize": True}], ids=str
)
def test_compiled_steps(kwargs):
    mine = SparseAdam(parameters(), compile={"backend": "aot_eager"}, **kwargs)
    plain = SparseAdam(parameters(), **kwargs)
    torch.testing.assert_close(walk(mine, GRADIENTS * 2), walk(plain, GRADIENTS * 2), rtol=1e-12, atol=1e-14)
    assert_same_state(mine.state_dict(), plain.state_dict())


def table_gradient(step, rows):
    generator = torch.Generator().manual_seed(step)
    places = torch.randperm(40, generator=generator)[None, :rows]
    return torch.sparse_coo_tensor(places, torch.randn(rows, 3, generator=generator), (40, 3), check_invariants=True)


@pytest.mark.parametrize("backend", [aot_eager, pytest.param("inductor", marks=pytest.mark.slow)])
def test_one_graph_for_any_number_of_rows_and_any_rate(backend):
    graphs = []

    def counting(module, inputs):
        graphs.append(module)
        return lookup_backend(backend)(module, inputs) if isinstance(backend, str) else backend(module, inputs)

    tables = [torch.nn.Parameter(torch.ones(40, 3)) for _ in range(2)]
    optimizers = SparseAdam(tables[:1], compile={"backend": counting}), torch.optim.SparseAdam(tables[1:])
    addresses = None
    for step, rows in enumerate((5, 1, 0, 7, 40, 2)):
        for table, optimizer in zip(tables, optimizers):
            optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
            optimizer.param_groups[0]["betas"] = (0.9 - 0.01 * step, 0.99)
            table.grad = table_gradient(step, rows)
            optimizer.step()
        (state,) = optimizers[0].state.values()
        addresses = addresses or [tables[0].data_ptr(), state["exp_avg"].data_ptr(), state["exp_avg_sq"].data_ptr()]
    assert len(graphs) == 1
    torch.testing.assert_close(*[table.detach() for table in tables], rtol=1e-5, atol=1e-6)
    assert addresses == [tables[0].data_ptr(), state["exp_avg"].data_ptr(), state["exp_avg_sq"].data_ptr()]


def test_a_compiled_step_is_seen_by_autograd():
    """The graph of a loss that needs the old numbers must fail."""
    param = torch.nn.Parameter(torch.ones(4, 2))
    optimizer = SparseAdam([param], lr=0.1, compile={"backend": "eager"})
    loss = param.square().sum()
    param.grad = sparse([[0, 2]], [[1.0, 2.0], [3.0, 4.0]], (4, 2)).float()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_compile_is_kept_by_copies_and_takes_a_bool_or_options():
    optimizer = SparseAdam(parameters(), compile={"backend": "eager"})
    assert pickle.loads(pickle.dumps(optimizer))._compile == copy.deepcopy(optimizer)._compile == {"backend": "eager"}
    with pytest.raises(TypeError, match="SparseAdam: compile must be a bool or a dict of options, got 'yes'"):
        SparseAdam(parameters(), compile="yes")


def test_states_before_the_first_step():
    frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    optimizer, plain = SparseAdam([*parameters(), frozen], lr=0.1), SparseAdam(parameters(), lr=0.1)
    optimizer.init_state()
    assert frozen not in optimizer.state
    for state in optimizer.state.values():
        assert state["step"] == 0 and not state["exp_avg"].any() and not state["exp_avg"].requires_grad
    torch.testing.assert_close(walk(optimizer, GRADIENTS)[:2], walk(plain, GRADIENTS), rtol=0, atol=0)
    count = [state["step"] for state in optimizer.state.values()]
    optimizer.init_state()
    assert count == [state["step"] for state in optimizer.state.values()]


def test_a_checkpoint_reader_makes_states_only():
    """Torch's class refuses the dense gradient that the reader gives it."""
    net = torch.nn.Embedding(4, 2, sparse=True)
    before = net.weight.detach().clone()
    saved = get_optimizer_state_dict(net, SparseAdam(net.parameters(), lr=0.1))
    assert saved["state"]["weight"]["step"] == 0 and torch.equal(net.weight, before)
