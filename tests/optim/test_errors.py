"""What torch's classes refuse, ours refuse with the same words; and what torch accepts and should not."""

import pytest
import torch
from torch.testing._internal.common_optimizers import OptimizerErrorEnum

from tests.optim.classes import INFOS, Case, parameters, retargeted


def _errors() -> list:
    return [
        pytest.param(name, case, id=f"{name}-{case.error_regex}")
        for name in INFOS
        for case in INFOS[name].optim_error_inputs_func("cpu", torch.float32)
    ]


@pytest.mark.parametrize(("name", "case"), _errors())
def test_as_torch(name: str, case) -> None:
    given = case.optimizer_error_input
    cls = retargeted(name).optim_cls
    if case.error_on == OptimizerErrorEnum.CONSTRUCTION_ERROR:
        if issubclass(case.error_type, Warning):
            with pytest.warns(case.error_type, match=case.error_regex):
                cls(given.params, **given.kwargs)
            return
        with pytest.raises(case.error_type, match=case.error_regex):
            cls(given.params, **given.kwargs)
        return
    optimizer = cls(given.params, **given.kwargs)
    with pytest.raises(case.error_type, match=case.error_regex):
        optimizer.step()


@pytest.mark.parametrize("name", INFOS)
def test_values_of_groups_are_checked(name: str) -> None:
    first, second = parameters(name)[:2]
    cls = retargeted(name).optim_cls
    if name == "LBFGS":
        return
    with pytest.raises(ValueError, match="earning rate"):
        cls([{"params": [first]}, {"params": [second], "lr": -1.0}])
    optimizer = cls([first])
    with pytest.raises(ValueError, match="earning rate"):
        optimizer.add_param_group({"params": [second], "lr": -1.0})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("name", INFOS)
def test_a_misspelt_hyperparameter_gives_a_warning(name: str) -> None:
    first = parameters(name)[-1]
    with pytest.warns(UserWarning, match="'lrr' is no hyperparameter .* did you mean 'lr'"):
        retargeted(name).optim_cls([{"params": [first], "lrr": 0.1, "lr_mult": 2.0, "name": "all"}])


def test_sparse_gradients_are_refused_where_torch_refuses_them() -> None:
    for name, info in INFOS.items():
        if info.supports_sparse or name == "LBFGS" or name == "Muon":
            continue
        param = torch.nn.Parameter(torch.ones(3, 2))
        optimizer = retargeted(name).optim_cls([param])
        param.grad = torch.ones(3, 2).to_sparse()
        with pytest.raises(RuntimeError, match="does not support sparse gradients"):
            optimizer.step()
        torch.testing.assert_close(param.detach(), torch.ones(3, 2))


def test_compile_takes_a_bool_or_options() -> None:
    import funcopt.optim

    with pytest.raises(TypeError, match="SGD: compile must be a bool or a dict of options, got 'yes'"):
        funcopt.optim.SGD(parameters("SGD"), compile="yes")


def test_case_prints_as_a_call() -> None:
    assert str(Case(INFOS["SGD"], {"lr": 0.1})) == "SGD(lr=0.1)"
