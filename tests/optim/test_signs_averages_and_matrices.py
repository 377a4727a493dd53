"""Rprop, ASGD, Adafactor and Muon: what the tests of all classes do not see."""

import pytest
import torch

import funcopt.optim
from tests.optim.classes import CASES, Case, assert_same_way, give_gradients, parameters, trajectory

OWN = [case for case in CASES if case.name in ("Rprop", "ASGD", "Adafactor", "Muon")]


@pytest.mark.parametrize("case", [case for case in OWN if not isinstance(case.kwargs.get("lr"), torch.Tensor)], ids=str)
def test_to_rounding_also_where_torch_keeps_scalars_or_matrices_in_low_precision(case: Case) -> None:
    """Over 30 steps: the float32 of ASGD and the bfloat16 of Muon are the same ones."""
    mine, _ = trajectory(case.mine, case, late=True, steps=30)
    theirs, _ = trajectory(case.theirs, case, late=True, steps=30)
    assert_same_way(mine, theirs, 1e-9)


def test_a_changed_rate_reaches_the_average_one_step_late_as_in_torch() -> None:
    histories = []
    for cls in (funcopt.optim.ASGD, torch.optim.ASGD):
        params = parameters("ASGD")
        optimizer, history = cls(params, lr=0.1, lambd=0.2, t0=2), []
        for step in range(8):
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
            give_gradients(params, step)
            optimizer.step()
            state = optimizer.state[params[1]]
            history.append([state["ax"].clone(), state["eta"].clone(), state["mu"].clone()])
        histories.append(history)
    assert_same_way(*histories, 1e-12)


@pytest.mark.parametrize("name", ["Rprop", "ASGD"])
def test_the_rate_has_a_derivative(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch raises for the one and loses it for the other. In float64, since states of ASGD are float32 otherwise."""
    monkeypatch.setattr(
        f"funcopt.optim.{name.lower()}.scalar_state", lambda param, group, value=0.0: param.new_tensor(value)
    )

    def final(rate: torch.Tensor) -> torch.Tensor:
        param = torch.linspace(0.3, 0.9, 4, dtype=torch.float64).requires_grad_().clone()
        optimizer = getattr(funcopt.optim, name)([param], lr=rate, differentiable=True)
        for step in range(3):
            param.grad = torch.cos(param * (step + 1)) + 0.1 * param
            optimizer.step()
        return param

    assert torch.autograd.gradcheck(final, torch.tensor(0.05, dtype=torch.float64, requires_grad=True))


def test_each_parameter_has_the_epsilon_of_its_own_dtype() -> None:
    """Torch takes that of the first parameter for all; here the order does not matter."""
    moved = []
    for order in (1, -1):
        params = [torch.nn.Parameter(torch.ones(4, 3, dtype=dtype)) for dtype in (torch.bfloat16, torch.float32)]
        optimizer = funcopt.optim.Adafactor(params[::order], lr=0.1)
        for param in params:
            param.grad = torch.full_like(param, 1e-5)
        optimizer.step()
        moved.append(params[1].detach() - 1)
    assert torch.equal(*moved)
    alone = torch.nn.Parameter(torch.ones(4, 3))
    alone.grad = torch.full_like(alone, 1e-5)
    torch.optim.Adafactor([alone], lr=0.1).step()
    torch.testing.assert_close(moved[0], alone.detach() - 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_adafactor_in_low_precision_has_torchs_epsilon(dtype: torch.dtype) -> None:
    """In bfloat16 it is 0.008, far above gradients of 1e-4, and decides the step."""
    results = []
    for cls in (funcopt.optim.Adafactor, torch.optim.Adafactor):
        param = torch.nn.Parameter(torch.ones(4, 3, dtype=dtype))
        optimizer = cls([param], lr=0.1)
        param.grad = torch.full_like(param, 1e-4)
        optimizer.step()
        results.append(param.detach())
    torch.testing.assert_close(*results, rtol=0.01, atol=0)


def test_momentum_of_muon_in_bfloat16_is_not_normalised() -> None:
    param = torch.nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    optimizer = funcopt.optim.Muon([param], nesterov=False)
    param.grad = torch.full_like(param, 4.0)
    optimizer.step()
    assert optimizer.state[param]["momentum_buffer"].norm().item() == pytest.approx(0.05 * 16, rel=0.01)


@pytest.mark.parametrize(
    "kwargs, message",
    [({"ns_steps": 100}, "must be less than 100"), ({"ns_coefficients": (1.0, 2.0)}, "exactly 3 values")],
)
def test_muon_refuses_at_the_step_what_torch_refuses_there(kwargs: dict, message: str) -> None:
    param = torch.nn.Parameter(torch.ones(2, 2))
    param.grad = torch.ones(2, 2)
    for cls in (funcopt.optim.Muon, torch.optim.Muon):
        with pytest.raises(ValueError, match=message):
            cls([param], **kwargs).step()


def test_muon_takes_coefficients_as_a_list_and_compiled() -> None:
    """As a checkpoint that went through JSON has them."""
    results = []
    for options in ({}, {"compile": {"backend": "aot_eager"}}):
        param = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
        optimizer = funcopt.optim.Muon([param], lr=0.1, ns_coefficients=[3.4445, -4.775, 2.0315], **options)
        param.grad = torch.linspace(-1, 1, 6).reshape(2, 3)
        optimizer.step()
        results.append(param.detach())
    torch.testing.assert_close(*results)


def test_vectors_added_to_muon_later_are_refused() -> None:
    """Torch looks at the parameters given to the constructor only."""
    param = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = funcopt.optim.Muon([param])
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))]})
    for group in optimizer.param_groups:
        group["params"][0].grad = torch.ones_like(group["params"][0])
    with pytest.raises(ValueError, match=r"Muon only supports 2D parameters, got one of the size \(3,\)"):
        optimizer.step()
