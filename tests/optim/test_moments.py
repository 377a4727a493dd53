"""Adamax, NAdam, RAdam and Adadelta as torch.optim has them."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.optim.lr_scheduler import ExponentialLR, OneCycleLR
from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db

import funcopt.optim
from tests.optim.twins import Twins
from tests.trees import finite_difference

NAMES = ("Adadelta", "Adamax", "NAdam", "RAdam")
INFOS = [info for info in optim_db if info.optim_cls.__name__ in NAMES]
BEYOND = {
    "Adadelta": [{"rho": 0.5, "eps": 1e-3}, {"lr": torch.tensor(0.5)}, {"rho": 1.0}, {"rho": 0.0}],
    "Adamax": [
        {"betas": (0.8, 0.5), "eps": 1e-2},
        {"betas": (0, 0)},
        {"lr": torch.tensor([0.01], dtype=torch.float64)},
    ],
    "NAdam": [
        {"betas": (0.8, 0.95), "eps": 1e-3, "momentum_decay": 0.5},
        {"decoupled_weight_decay": True, "weight_decay": 0.3, "maximize": True},
        {"betas": (0, 0.9)},
        {"lr": torch.tensor(0.01, dtype=torch.float64)},
    ],
    "RAdam": [
        {"betas": (0.8, 0.9), "eps": 1e-3},
        {"betas": (0.5, 2 / 3)},
        {"betas": (0.9, 0.9), "decoupled_weight_decay": True, "weight_decay": 0.3, "maximize": True},
        {"lr": torch.tensor([[0.01]], dtype=torch.float64)},
    ],
}
"""Configurations that torch's own do not have: other betas, a rectification that begins early, rates as tensors."""
CASES = [
    (info.optim_cls.__name__, kwargs)
    for info in INFOS
    for kwargs in [*(each.kwargs for each in info.optim_inputs_func("cpu")), *BEYOND[info.optim_cls.__name__]]
]
OTHER = {
    "Adadelta": {"rho": 0.8, "eps": 1e-3, "weight_decay": 0.1},
    "Adamax": {"betas": (0.8, 0.9), "weight_decay": 0.1},
    "NAdam": {"betas": (0.8, 0.9), "momentum_decay": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": True},
    "RAdam": {"betas": (0.8, 0.9), "weight_decay": 0.1, "decoupled_weight_decay": True},
}


def made(name, **kwargs):
    return lambda module, params: getattr(module, name)(params, **copy.deepcopy(kwargs))


def test_the_four_are_there():
    assert sorted(info.optim_cls.__name__ for info in INFOS) == sorted(NAMES)
    assert all(issubclass(getattr(funcopt.optim, name), getattr(torch.optim, name)) for name in NAMES)


@pytest.mark.parametrize("name, kwargs", CASES, ids=str)
def test_trajectories_and_states(name, kwargs):
    twins = Twins(made(name, **kwargs))
    for step in range(12):
        twins.step(scale=0.0 if step == 3 else 1.0)
        twins.check()
        twins.check_states()


@pytest.mark.parametrize("scale", [1e-7, 1e5])
@pytest.mark.parametrize("name", NAMES)
def test_small_and_large_gradients(name, scale):
    """Where the place of ε decides."""
    twins = Twins(made(name, **OTHER[name]))
    for _ in range(12):
        twins.step(scale=scale)
    twins.check()


ERRORS = [
    (info.optim_cls.__name__, error)
    for info in INFOS
    for error in info.optim_error_inputs_func(device="cpu", dtype=torch.float32)
]


@pytest.mark.parametrize("name, error", ERRORS, ids=lambda value: getattr(value, "error_regex", value)[:60])
def test_bad_arguments(name, error):
    assert error.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR
    expected = pytest.warns if issubclass(error.error_type, Warning) else pytest.raises
    with expected(error.error_type, match=error.error_regex):
        given = error.optimizer_error_input
        getattr(funcopt.optim, name)(given.params, **given.kwargs)


@pytest.mark.parametrize("name", NAMES)
def test_sparse_gradients_are_refused(name):
    param = torch.nn.Parameter(torch.zeros(3))
    param.grad = torch.zeros(3).to_sparse()
    with pytest.raises(RuntimeError, match=f"{name} does not support sparse gradients"):
        getattr(funcopt.optim, name)([param]).step()


@pytest.mark.parametrize("name", NAMES)
def test_complex_parameters_are_two_reals(name):
    twins = Twins(made(name, **OTHER[name]), dtype=torch.complex128)
    for _ in range(10):
        twins.step()
    twins.check()
    twins.check_states()


@pytest.mark.parametrize("name", NAMES)
def test_gradients_that_come_late_and_stop(name):
    """Each parameter counts its own steps, and has no state before its first."""
    twins = Twins(made(name, **OTHER[name]))
    for step in range(12):
        absent = [number for number in range(4) if not number <= step < 6 + 2 * number]
        twins.step(absent)
        twins.check()
        twins.check_states()
    assert len({state["step"].item() for state in twins.optimizers[1].state.values()}) > 2


@pytest.mark.parametrize("name", NAMES)
def test_groups_and_schedulers(name):
    """A rate of its own in a group; OneCycleLR moves the first beta as well."""

    def make(module, params):
        return getattr(module, name)([{"params": params[:2], "lr": 0.5}, {"params": params[2:], "eps": 1e-2}])

    twins = Twins(make)
    schedulers = [
        ExponentialLR(optimizer, 0.7) if name == "Adadelta" else OneCycleLR(optimizer, [0.1, 0.2], total_steps=9)
        for optimizer in twins.optimizers
    ]
    for _ in range(8):
        twins.step()
        for scheduler in schedulers:
            scheduler.step()
    twins.check()
    twins.check_states()


def through_a_file(value):
    file = io.BytesIO()
    torch.save(value, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_of_torch_go_on_here(name):
    twins = Twins(made(name, **OTHER[name]))
    for step in range(7):
        twins.step(absent=[1] if step < 2 else [])
    fresh = getattr(funcopt.optim, name)(twins.ours)
    fresh.load_state_dict(through_a_file(twins.optimizers[0].state_dict()))
    twins.optimizers = twins.optimizers[0], fresh
    for _ in range(5):
        twins.check_states()
        twins.step()
    twins.check()


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_of_ours_go_on_in_torch(name):
    """As torch's own do: it casts `mu_product`, so that they do not go on as without a checkpoint."""
    twins = Twins(made(name, **OTHER[name]))
    for step in range(7):
        twins.step(absent=[1] if step < 2 else [])
    loaded = []
    for optimizer, params in zip(twins.optimizers, (twins.theirs, twins.ours)):
        loaded.append(getattr(torch.optim, name)(params))
        loaded[-1].load_state_dict(through_a_file(optimizer.state_dict()))
    twins.optimizers = loaded[0], loaded[1]
    for _ in range(5):
        twins.check_states()
        twins.step()
    twins.check()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
@pytest.mark.parametrize("name", NAMES)
def test_a_copy_goes_on_alike(name, copied):
    twins = Twins(made(name, **OTHER[name]))
    twins.step()
    optimizer = copied(twins.optimizers[1])
    copies = [param for group in optimizer.param_groups for param in group["params"]]
    twins.step()
    for param, original in zip(copies, twins.ours):
        param.grad = original.grad.clone()
    optimizer.step()
    assert all(torch.equal(*pair) for pair in zip(copies, twins.ours))


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_computed_in_float32_and_rounded_once(name):
    twins = Twins(made(name), dtype=torch.bfloat16)
    wide = [param.float().requires_grad_() for param in twins.start]
    reference = getattr(funcopt.optim, name)(wide)
    twins.step()
    for param, narrow in zip(wide, twins.ours):
        param.grad = narrow.grad.float()
    reference.step()
    assert all(torch.equal(narrow, param.bfloat16()) for narrow, param in zip(twins.ours, wide))
    twins.step()
    theirs, ours = (
        optimizer.state[params[2]] for optimizer, params in zip(twins.optimizers, (twins.theirs, twins.ours))
    )
    assert [value.dtype for value in ours.values()] == [value.dtype for value in theirs.values()]


@pytest.mark.parametrize("name", NAMES)
def test_scalars_are_wide_where_that_is_the_default(name):
    torch.set_default_dtype(torch.float64)
    try:
        twins = Twins(made(name))
        for _ in range(3):
            twins.step()
        twins.check_states()
        assert twins.optimizers[1].state[twins.ours[0]]["step"].dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", NAMES)
def test_differentiable(name):
    """Through eight steps, in the parameters before and in the rate. In torch Adamax fails in both, NAdam and Adadelta in the rate."""
    start = torch.tensor([1.0, -2.0], dtype=torch.float64)

    def end(value):
        param = start * value
        optimizer = getattr(funcopt.optim, name)([param], lr=0.1 * value, differentiable=True, **OTHER[name])
        for _ in range(8):
            param.grad = param.clone() ** 2
            optimizer.step()
        return param.sum()

    one = torch.ones((), dtype=torch.float64, requires_grad=True)
    expected = finite_difference(end, one.detach())
    assert abs(torch.autograd.grad(end(one), one)[0] - expected) < 1e-6 * abs(expected)


@pytest.mark.parametrize("name", NAMES)
def test_compiled_once_for_moving_hyperparameters(name):
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def make(module, params):
        more = {"compile": {"backend": counter}} if module is funcopt.optim else {}
        return getattr(module, name)(params, **OTHER[name], **more)

    twins = Twins(make)
    graphs = []
    for step in range(9):
        for optimizer in twins.optimizers:
            group = optimizer.param_groups[0]
            group["lr"], group["eps"] = 0.1 / (1 + step), 1e-3 / (1 + step)
            if "betas" in group:
                group["betas"] = (0.9 - 0.05 * step, 0.9 + 0.01 * step)
        twins.step()
        graphs.append(counter.frame_count)
        twins.check()
    assert graphs[0] == graphs[-1]
    twins.check_states()


def test_compiled_by_inductor():
    def make(module, params):
        more = {"compile": True} if module is funcopt.optim else {}
        return module.NAdam(params, **OTHER["NAdam"], **more)

    torch.compiler.reset()
    twins = Twins(make)
    for _ in range(8):
        twins.step()
    twins.check()
    twins.check_states()


def test_mu_product_keeps_its_dtype_when_loaded_for_bfloat16():
    """torch casts it to the dtype of the parameter."""
    twins = Twins(made("NAdam"), dtype=torch.bfloat16)
    twins.step()
    saved = twins.optimizers[1].state_dict()
    fresh = funcopt.optim.NAdam(twins.ours)
    fresh.load_state_dict(saved)
    assert fresh.state[twins.ours[0]]["mu_product"].dtype == torch.float32
    assert torch.equal(fresh.state[twins.ours[0]]["mu_product"], saved["state"][0]["mu_product"])


def test_no_warnings_of_our_own():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in NAMES:
            Twins(made(name)).step()
