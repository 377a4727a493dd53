"""LBFGS beside torch's: the same way, closure calls and state; torch's own configurations; what torch's cannot do."""

import copy
import io
import pickle

import pytest
import torch
from torch.distributed.checkpoint.state_dict import _init_optim_state
from torch.testing._internal.common_optimizers import optim_db

from funcopt.optim import LBFGS, swap_in_optimizer_params_and_state
from funcopt.optim.lbfgs import _search

(INFO,) = [info for info in optim_db if info.optim_cls is torch.optim.LBFGS]
SEARCH = {"line_search_fn": "strong_wolfe"}
INPUTS = [given.kwargs for given in INFO.optim_inputs_func("cpu")]
INPUTS += [
    {"lr": 0.1, "max_iter": 6, "history_size": 2},
    {"lr": 1e3, "max_iter": 3},  # diverges
    {"max_eval": 5},
    {"max_iter": 1},
    {"max_iter": 0},
    {"tolerance_change": 0.1},
    SEARCH | {"history_size": 1},
    SEARCH | {"max_iter": 7, "history_size": 3},
    SEARCH | {"lr": 100.0, "max_iter": 8},  # zooms
    SEARCH | {"lr": 30.0, "max_iter": 8, "tolerance_change": 1e-2},  # ends with brackets that are too narrow
    SEARCH | {"lr": 1e-3, "max_iter": 5},  # extrapolates
    SEARCH | {"max_eval": 3},
    SEARCH | {"max_eval": 1},
    SEARCH | {"lr": 1e-3, "max_eval": 4, "max_iter": 3},
]


class Model(torch.nn.Module):
    """A loss with a curved valley, complex numbers, a matrix, a parameter without gradient, and an embedding."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        complex_dtype = {torch.float64: torch.complex128, torch.float32: torch.complex64}[dtype]
        self.valley = torch.nn.Parameter(torch.tensor([-1.2, 1.0, 0.5], dtype=dtype))
        self.idle = torch.nn.Parameter(torch.ones(2, dtype=dtype))
        self.waves = torch.nn.Parameter(torch.tensor([1 + 2j, -0.5j], dtype=complex_dtype))
        self.matrix = torch.nn.Parameter(torch.linspace(-1, 1, 6, dtype=dtype).view(3, 2))
        self.table = torch.nn.Embedding(4, 2, sparse=True, dtype=dtype)
        with torch.no_grad():
            self.table.weight.copy_(torch.linspace(0, 1, 8, dtype=dtype).view(4, 2))

    def forward(self):
        x, y, z = self.valley
        valley = (1 - x) ** 2 + 20 * (y - x**2) ** 2 + (z - y) ** 4
        waves = (self.waves - self.waves.real.cos()).abs().square().sum()
        rows = self.table(torch.tensor([0, 2, 2]))
        return (
            valley
            + waves * (1 + self.matrix.square().sum())
            + (self.matrix[:, 0] - 2).square().sum()
            + rows.cosh().sum()
        )


def closure_of(model, optimizer, calls):
    def closure():
        calls.append(1)
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = model()
        loss.backward()
        return loss

    return closure


def walk(model, optimizer, steps=3):
    """After every step: loss returned, closure calls so far, parameters."""
    calls, way = [], []
    for _ in range(steps):
        loss = optimizer.step(closure_of(model, optimizer, calls))
        way.append((loss.item(), len(calls), [param.detach().clone() for param in model.parameters()]))
    return way


def pair(**kwargs):
    models = Model(), Model()
    return [(model, cls(model.parameters(), **kwargs)) for model, cls in zip(models, (LBFGS, torch.optim.LBFGS))]


def assert_same_way(mine, theirs, rtol=1e-9):
    for (loss, calls, params), (their_loss, their_calls, their_params) in zip(mine, theirs, strict=True):
        assert calls == their_calls
        torch.testing.assert_close(loss, their_loss, rtol=rtol, atol=rtol)
        torch.testing.assert_close(params, their_params, rtol=rtol, atol=rtol, equal_nan=True)


def assert_same_state(mine, theirs):
    theirs = {key: value for key, value in theirs.items() if value is not None}  # which torch stores without iterations
    assert set(mine) == set(theirs)
    for key, value in theirs.items():
        if isinstance(value, (int, float, torch.Tensor)):
            torch.testing.assert_close(
                torch.as_tensor(mine[key]), torch.as_tensor(value), rtol=1e-8, atol=1e-8, check_dtype=False
            )
        else:
            assert [type(each) for each in mine[key]] == [type(each) for each in value]
            for found, expected in zip(mine[key], value):
                torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kwargs", INPUTS, ids=str)
def test_the_way_of_torch(kwargs):
    (model, mine), (their_model, theirs) = pair(**kwargs)
    for _ in range(2):
        assert_same_way(
            walk(model, mine, 1), walk(their_model, theirs, 1), rtol=1e-6 if torch.is_tensor(kwargs.get("lr")) else 1e-9
        )
        (state,), (their_state,) = (each.state_dict()["state"].values() for each in (mine, theirs))
        if not torch.is_tensor(kwargs.get("lr")) and kwargs.get("lr") != 1e3:
            assert_same_state(state, their_state)


def test_float32_takes_as_many_evaluations():
    for kwargs in ({"lr": 0.1}, SEARCH):
        runs = []
        for cls in (LBFGS, torch.optim.LBFGS):
            model = Model(torch.float32)
            runs.append(walk(model, cls(model.parameters(), max_iter=4, **kwargs), 2))
        assert_same_way(*runs, rtol=1e-4)


@pytest.mark.parametrize("first, second", [(LBFGS, torch.optim.LBFGS), (torch.optim.LBFGS, LBFGS)])
@pytest.mark.parametrize("kwargs", [{"lr": 0.1, "max_iter": 4}, SEARCH | {"max_iter": 4}], ids=["fixed", "search"])
def test_checkpoints_pass_both_ways(first, second, kwargs):
    model = Model()
    reference = walk(model, torch.optim.LBFGS(model.parameters(), **kwargs), 2)[1:]
    model = Model()
    before = first(model.parameters(), **kwargs)
    walk(model, before, 1)
    file = io.BytesIO()
    torch.save(before.state_dict(), file)
    file.seek(0)
    after = second(model.parameters())
    after.load_state_dict(torch.load(file, weights_only=True))
    way = [(loss, reference[0][1] - 0, params) for loss, _, params in walk(model, after, 1)]
    assert_same_way(way, reference)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=["copy", "pickle"]
)
def test_copies_step_on(duplicate):
    model = Model()
    optimizer = LBFGS(model.parameters(), max_iter=3, **SEARCH)
    walk(model, optimizer, 1)
    twin_model, twin = duplicate((model, optimizer))
    assert_same_way(walk(twin_model, twin, 1), walk(model, optimizer, 1), rtol=1e-15)


def test_a_replaced_parameter_moves():
    model, other = Model(), Model()
    optimizer = LBFGS(model.parameters(), lr=0.1, max_iter=2)
    optimizer.param_groups[0]["params"] = list(other.parameters())
    assert not hasattr(optimizer, "_params")
    before = [param.detach().clone() for param in model.parameters()]
    reference_model = Model()
    reference = walk(reference_model, LBFGS(reference_model.parameters(), lr=0.1, max_iter=2))
    assert_same_way(walk(other, optimizer), reference, rtol=1e-15)
    assert all(map(torch.equal, before, model.parameters()))


def test_swapped_in_parameters_move_and_the_live_ones_stay():
    model = Model()
    optimizer = LBFGS(model.parameters(), lr=0.1, max_iter=2)
    walk(model, optimizer, 1)
    live = [param.detach().clone() for param in model.parameters()]
    swapped = Model()
    with swap_in_optimizer_params_and_state(optimizer, dict(swapped.named_parameters()), optimizer.state_dict()):
        walk(swapped, optimizer, 1)
    assert all(map(torch.equal, live, model.parameters()))
    assert not torch.equal(swapped.valley, Model().valley)


@pytest.mark.parametrize("max_trials, expected", [(0, 0.0), (25, 1.0)])
def test_the_search_returns_the_gradient_of_the_step_that_it_returns(max_trials, expected):
    """Which need not be the last that it has tried."""
    x = torch.tensor([1.0], dtype=torch.float64)

    def evaluate():
        return float(x.square().sum()), 2 * x

    direction = torch.tensor([-1.0], dtype=torch.float64)
    step, loss, gradient, calls = _search(
        [x], 50.0, direction, evaluate(), evaluate, tolerance=1e-9, max_trials=max_trials
    )
    assert x.item() == 1.0 and (calls == 1) == (max_trials == 0)
    assert step == pytest.approx(expected, abs=0.5)
    assert loss == pytest.approx((1 - step) ** 2) and gradient.item() == pytest.approx(2 * (1 - step))


def test_strides_do_not_matter():
    """Torch refuses gradients that are not contiguous."""
    ends = []
    for matrix in (torch.arange(6.0).view(2, 3), torch.arange(6.0).view(2, 3).t().contiguous().t()):
        param = torch.nn.Parameter(matrix.clone(memory_format=torch.preserve_format))
        optimizer = LBFGS([param], **SEARCH)

        def closure(param=param, optimizer=optimizer):
            optimizer.zero_grad()
            loss = (param * torch.tensor([1.0, 2.0, 3.0]) - 1).square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        ends.append((param.detach(), optimizer.state_dict()["state"][0]["func_evals"]))
        assert param.stride() == matrix.stride()
    torch.testing.assert_close(*ends)


def test_the_loss_may_be_a_number_and_the_first_one_is_returned():
    param = torch.nn.Parameter(torch.tensor([3.0]))

    def closure():
        param.grad = 2 * param.detach()
        return param.square().sum().item()

    assert LBFGS([param]).step(closure) == 9.0
    assert abs(param.item()) < 1e-3


@pytest.mark.parametrize("case", INFO.optim_error_inputs_func("cpu", torch.float32), ids=lambda case: case.error_regex)
def test_errors_as_torch(case):
    given = case.optimizer_error_input
    expect = pytest.warns if issubclass(case.error_type, Warning) else pytest.raises
    with expect(case.error_type, match=case.error_regex):
        LBFGS(given.params, **given.kwargs)


def test_errors_come_before_anything_has_changed():
    param = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="LBFGS doesn't support per-parameter options"):
        LBFGS([{"params": [param]}, {"params": [torch.nn.Parameter(torch.ones(2))]}])
    with pytest.raises(TypeError):
        LBFGS([param]).step()
    with pytest.raises(TypeError, match=r"LBFGS.step: needs a closure"):
        LBFGS([param]).step(None)
    with pytest.raises(ValueError, match=r"Invalid learning rate: -1.0"):
        LBFGS([{"params": [param], "lr": -1.0}])
    optimizer = LBFGS([param], line_search_fn="armijo")
    with pytest.raises(RuntimeError, match="only 'strong_wolfe' is supported, got 'armijo'"):
        optimizer.step(lambda: pytest.fail("called"))
    assert not optimizer.state
    model = Model()
    optimizer = LBFGS(model.parameters(), max_iter=2)
    walk(model, optimizer, 1)
    with pytest.raises(ValueError, match="the direction that was saved has 23 numbers, but the parameters have 2"):
        saved = optimizer.state_dict()
        saved["param_groups"][0]["params"] = [0]
        LBFGS([param]).load_state_dict(saved)


def test_state_before_the_first_step():
    model, plain_model = Model(), Model()
    optimizer, plain = LBFGS(model.parameters(), max_iter=3), LBFGS(plain_model.parameters(), max_iter=3)
    optimizer.init_state()
    (state,) = optimizer.state_dict()["state"].values()
    assert state == {"func_evals": 0, "n_iter": 0}
    assert_same_way(walk(model, optimizer, 2), walk(plain_model, plain, 2), rtol=0)
    counts = {key: optimizer.state[model.valley][key] for key in ("func_evals", "n_iter")}
    optimizer.init_state()
    assert counts == {key: optimizer.state[model.valley][key] for key in ("func_evals", "n_iter")}


def test_a_checkpoint_reader_makes_the_state_only():
    """It steps without a closure, which torch's class calls."""
    model = torch.nn.Linear(2, 1)
    before = model.weight.detach().clone()
    optimizer = LBFGS(model.parameters())
    _init_optim_state(optimizer)
    assert optimizer.state[model.weight] == {"func_evals": 0, "n_iter": 0} and torch.equal(model.weight, before)
    with pytest.raises(TypeError, match=r"LBFGS.step: needs a closure"):
        optimizer.step(None)


def test_compile_is_refused_with_a_reason():
    LBFGS(Model().parameters(), compile=False)
    for given in (True, {"backend": "eager"}):
        with pytest.raises(
            TypeError, match=r"LBFGS: compile must be False, .* compile the model that the closure calls"
        ):
            LBFGS(Model().parameters(), compile=given)
