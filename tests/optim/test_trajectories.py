"""The drop-in classes take the steps of torch's classes, in every configuration that torch tests."""

import pytest
import torch
from torch import Tensor

from tests.optim.classes import CASES, FIRST, TOLERANCE, Case, assert_same_way, trajectory

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_class = pytest.mark.parametrize("case", FIRST, ids=lambda case: case.name)


@every_case
@pytest.mark.parametrize("late", [False, True], ids=["", "late"])
def test_float64(case: Case, late: bool) -> None:
    mine, own = trajectory(case.mine, case, late=late)
    theirs, reference = trajectory(case.theirs, case, late=late)
    tolerance = 3e-6 if isinstance(case.kwargs.get("lr"), Tensor) else TOLERANCE.get(case.name, 1e-9)
    assert_same_way(mine, theirs, tolerance)
    assert_same_state(own.state_dict(), reference.state_dict(), tolerance)


@every_case
def test_complex(case: Case) -> None:
    if not case.info.supports_complex:
        with pytest.raises(Exception, match="does not support complex"):
            trajectory(case.mine, case, dtype=torch.complex128)
        return
    mine, own = trajectory(case.mine, case, dtype=torch.complex128, steps=4)
    theirs, reference = trajectory(case.theirs, case, dtype=torch.complex128, steps=4)
    tolerance = 3e-6 if isinstance(case.kwargs.get("lr"), Tensor) else TOLERANCE.get(case.name, 1e-9)
    assert_same_way(mine, theirs, tolerance)
    assert_same_state(own.state_dict(), reference.state_dict(), tolerance)


@every_class
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_stays_near(case: Case, dtype: torch.dtype) -> None:
    """Torch rounds after every operation, we once per step; both stay near the exact way."""
    kwargs = {"eps": 1e-3} if case.name not in ("SGD", "Rprop", "ASGD", "Muon", "Adafactor") else {}
    case = Case(case.info, {**case.kwargs, **kwargs})
    mine, own = trajectory(case.mine, case, dtype=dtype, steps=5)
    exact, _ = trajectory(case.theirs, case, dtype=torch.float32, steps=5)
    for ours, reference in zip(mine[-1], exact[-1]):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.float(), reference, rtol=0.05, atol=0.05)
    _, reference = trajectory(case.theirs, case, dtype=dtype, steps=1)
    assert_same_layout(own.state_dict(), reference.state_dict())


@every_case
def test_large_and_small_parameters_are_taken_alike(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taking small tensors together and cutting long ones changes no number."""
    whole, _ = trajectory(case.mine, case, late=True)
    monkeypatch.setattr("funcopt.optim.in_place.SMALL", 4)
    monkeypatch.setattr("funcopt.optim.in_place.PART", 7)
    parts, _ = trajectory(case.mine, case, late=True)
    assert_same_way(parts, whole, 1e-12)


@every_class
def test_strides_of_parameters_do_not_matter(case: Case) -> None:
    params = [torch.nn.Parameter(torch.arange(20.0, dtype=torch.float64).view(4, 5).t()) for _ in range(2)]
    optimizers = [case.mine([params[0]], **case.kwargs), case.theirs([params[1]], **case.kwargs)]
    for param, optimizer in zip(params, optimizers):
        for _ in range(3):
            param.grad = torch.linspace(-1, 1, 20, dtype=torch.float64).view(5, 4)
            optimizer.step()
    assert params[0].stride() == (1, 5)
    torch.testing.assert_close(*params, rtol=TOLERANCE.get(case.name, 1e-9), atol=1e-9)


@every_class
def test_gradients_are_not_written(case: Case) -> None:
    params = [torch.nn.Parameter(torch.ones(3, 3)), torch.nn.Parameter(torch.ones(40, 1000))]
    optimizer = case.mine(params, **case.kwargs)
    for param in params:
        param.grad = torch.rand(param.shape)
    versions = [param.grad._version for param in params]
    addresses = [param.data_ptr() for param in params]
    for _ in range(2):
        optimizer.step()
    assert [param.grad._version for param in params] == versions
    assert [param.data_ptr() for param in params] == addresses


def assert_same_layout(mine: dict, theirs: dict) -> None:
    """The same groups, and states of the same keys, order, shapes and dtypes."""
    assert list(mine) == list(theirs)
    for ours, reference in zip(mine["param_groups"], theirs["param_groups"]):
        assert list(ours) == list(reference)
        assert str(ours) == str(reference)
    assert {key: list(value) for key, value in mine["state"].items()} == {
        key: list(value) for key, value in theirs["state"].items()
    }
    for number, state in theirs["state"].items():
        for key, value in state.items():
            ours = mine["state"][number][key]
            assert type(ours) is type(value), key
            if isinstance(value, Tensor):
                assert (ours.shape, ours.dtype, ours.stride()) == (value.shape, value.dtype, value.stride()), key


def assert_same_state(mine: dict, theirs: dict, tolerance: float) -> None:
    """The same layout, and the same numbers."""
    assert_same_layout(mine, theirs)
    for number, state in theirs["state"].items():
        for key, value in state.items():
            ours = mine["state"][number][key]
            torch.testing.assert_close(
                ours, value, rtol=10 * tolerance, atol=10 * tolerance, msg=lambda m, k=key: f"{k}: {m}"
            )
