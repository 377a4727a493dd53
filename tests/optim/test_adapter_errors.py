"""What the adapter refuses, and what it says."""

import re

import pytest
import torch

import funcopt as fo
from funcopt.optim import Optimizer, as_optimizer
from tests.trees import assert_identical

AdamW = as_optimizer(fo.adamw)


def parameter(*shape):
    return torch.nn.Parameter(torch.ones(shape))


def refuse(kind, message, call):
    with pytest.raises(kind, match=re.escape(message)):
        call()


@pytest.mark.parametrize(
    "kind, message, call",
    [
        (TypeError, "Optimizer: tx must be a GradientTransformation", lambda: Optimizer([parameter()], fo.adamw)),
        (TypeError, "Optimizer: tx must be a GradientTransformation, got 0.1", lambda: Optimizer([parameter()], 0.1)),
        (TypeError, "expected a factory, got the transformation adam(0.1)", lambda: as_optimizer(fo.adam(0.1))),
        (TypeError, "expected a factory, got 3", lambda: as_optimizer(3)),
        (TypeError, "has the name of an option", lambda: as_optimizer(lambda scope: fo.sgd(scope))),
        (TypeError, "must return a GradientTransformation", lambda: as_optimizer(lambda lr: lr)([parameter()], 0.1)),
        (
            TypeError,
            "without inject_hyperparams",
            lambda: as_optimizer(fo.inject_hyperparams(fo.sgd))([parameter()], 1),
        ),
        (TypeError, "unexpected argument 'beta'", lambda: AdamW([parameter()], beta=0.1)),
        (TypeError, "lr and learning_rate are the same", lambda: AdamW([parameter()], lr=0.1, learning_rate=0.1)),
        (TypeError, "betas and b2 are the same", lambda: AdamW([parameter()], lr=0.1, betas=(0, 0), b2=0.1)),
        (TypeError, "at most 8 hyperparameters by position", lambda: AdamW([parameter()], *range(9))),
        (ValueError, "b2 must lie in [0, 1), got b2=1.5", lambda: AdamW(None, lr=0.1, b2=1.5)),
        (ValueError, "betas must be the pair (b1, b2)", lambda: AdamW(None, lr=0.1, betas=0.9)),
        (ValueError, "Tensor lr must be 1-element", lambda: AdamW(None, lr=torch.ones(2))),
        (ValueError, "eps must lie in", lambda: AdamW([{"params": [parameter()], "eps": -1.0}], lr=0.1)),
        (ValueError, "scope must be one of 'all', 'group'", lambda: AdamW([parameter()], lr=0.1, scope="none")),
        (
            ValueError,
            "a differentiable step cannot be compiled",
            lambda: AdamW([parameter()], lr=0.1, compile=True, differentiable=True),
        ),
        (TypeError, "should be an iterable of Tensors", lambda: AdamW(parameter(), lr=0.1)),
        (ValueError, "empty parameter list", lambda: AdamW([], lr=0.1)),
        (TypeError, "can only optimize Tensors", lambda: AdamW([3.0], lr=0.1)),
        (TypeError, "ordered collections", lambda: AdamW([{"params": {parameter()}}], lr=0.1)),
        (
            ValueError,
            "two parameters have the name 'w'",
            lambda: AdamW([("w", parameter()), ("w", parameter())], lr=0.1),
        ),
    ],
)
def test_refused(kind, message, call):
    refuse(kind, message, call)


def test_a_parameter_may_occur_once():
    param = parameter()
    refuse(ValueError, "a parameter occurs twice in a group", lambda: AdamW([param, param], lr=0.1))
    groups = [{"params": [param]}, {"params": [param]}]
    refuse(ValueError, "some parameters appear in more than one parameter group", lambda: AdamW(groups, lr=0.1))


def test_misspelt_entries_are_warned_of_and_other_entries_are_kept():
    with pytest.warns(UserWarning, match="'weight_decy' is no hyperparameter.*'weight_decay'"):
        AdamW([{"params": [parameter()], "weight_decy": 0.1}], lr=0.1)
    optimizer = AdamW([{"params": [parameter()], "lr_mult": 0.1, "name": "head"}], lr=0.1)
    assert optimizer.state_dict()["param_groups"][0]["name"] == "head"


def test_a_bad_group_changes_nothing():
    optimizer = AdamW([parameter()], lr=0.1)
    refuse(ValueError, "b1 must lie", lambda: optimizer.add_param_group({"params": [parameter()], "b1": 2.0}))
    assert len(optimizer.param_groups) == 1
    optimizer.param_groups[0]["betas"] = (2.0, 0.9)
    param = optimizer.param_groups[0]["params"][0]
    param.grad = torch.ones(())
    refuse(ValueError, "b1 must lie", optimizer.step)
    assert param == 1 and not optimizer.state


def test_groups_that_act_together_may_differ_in_numbers_only():
    def clipped(learning_rate, momentum=None):
        return fo.chain(fo.clip_by_global_norm(1.0), fo.sgd(learning_rate, momentum))

    def groups():
        params = [parameter(2), parameter(2)]
        for param in params:
            param.grad = torch.ones(2)
        return [{"params": [params[0]]}, {"params": [params[1]], "momentum": 0.9}]

    optimizer = as_optimizer(clipped)(groups(), lr=0.1)
    refuse(ValueError, "may differ in numbers only, but they differ in momentum", optimizer.step)
    as_optimizer(clipped)(groups(), lr=0.1, scope="group").step()
    as_optimizer(fo.sgd)(groups(), lr=0.1).step()


def trained(make=AdamW, names=("w", "b"), shape=(2,)):
    params = [(name, parameter(*shape)) for name in names]
    optimizer = make(params, lr=0.1)
    for _, param in params:
        param.grad = torch.ones(shape)
    optimizer.step()
    return optimizer


def test_checkpoints_of_others_are_refused_and_change_nothing():
    optimizer = trained()
    before = {key: dict(state) for key, state in optimizer.state.items()}
    for other, message in (
        (trained(names=("w", "c")), "was saved with the parameter 'c' where this optimizer has 'b'"),
        (trained(names=("w",)), "has groups of [1] parameters, but this optimizer has groups of [2]"),
        (trained(shape=(3,)), "of parameter 0 has the shape (3,), where (2,) is expected"),
        (trained(as_optimizer(lambda learning_rate: fo.sgd(learning_rate, 0.9), "AdamW")), "that of another optimizer"),
    ):
        state = other.state_dict()
        state["param_groups"][0] = {**optimizer.state_dict()["param_groups"][0], **state["param_groups"][0]}
        refuse(ValueError, message, lambda state=state: optimizer.load_state_dict(state))
    state = optimizer.state_dict()
    state["param_groups"][0]["betas"] = (0.9, 3.0)
    refuse(ValueError, "b2 must lie in", lambda: optimizer.load_state_dict(state))
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    for key, kept in before.items():
        assert_identical(optimizer.state[key], kept)
    assert not optimizer._optimizer_load_state_dict_pre_hooks
