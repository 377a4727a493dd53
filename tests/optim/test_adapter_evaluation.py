"""Parameters to evaluate with, in place."""

import copy
import pickle

import pytest
import torch

import funcopt as fo
from funcopt.optim import Optimizer, as_optimizer
from tests.trees import assert_identical

ScheduleFree = as_optimizer(fo.schedule_free_adamw)


def network():
    torch.manual_seed(0)
    return torch.nn.Linear(3, 2)


def train(net, optimizer, steps=3):
    for step in range(steps):
        for param in net.parameters():
            param.grad = torch.cos(param.detach() + step)
        optimizer.step()


def numbers(net):
    return [p.detach().clone() for p in net.parameters()]


MAKERS = {
    "schedule free": lambda params: ScheduleFree(params, lr=0.1),
    "average": lambda params: Optimizer(params, fo.ema_params(fo.sgd(0.3), 0.9)),
    "average of a part": lambda params: as_optimizer(
        lambda learning_rate: fo.masked(fo.ema_params(fo.sgd(learning_rate), 0.9), {"*weight": True, "*": False})
    )(params, lr=0.1),
    "two groups": lambda params: ScheduleFree(
        [{"params": [pair], "lr": 0.1 * (k + 1)} for k, pair in enumerate(params)]
    ),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_parameters_hold_the_values_to_evaluate_with_and_come_back(make):
    net = network()
    optimizer = make(net.named_parameters())
    train(net, optimizer)
    trained = numbers(net)
    places = [p.data_ptr() for p in net.parameters()]
    expected = fo.eval_params(optimizer.functional_state(), dict(net.named_parameters()))
    with optimizer.eval_params():
        evaluated = numbers(net)
        assert torch.equal(net.weight, expected["weight"])
        assert not torch.equal(net.weight, trained[0])
        with optimizer.train_params():
            assert_identical(numbers(net), trained)
            train(net, optimizer, 1)
            trained = numbers(net)
        assert not torch.equal(net.weight, evaluated[0])
        with pytest.raises(RuntimeError, match="the values to evaluate with"):
            optimizer.step()
    assert_identical(numbers(net), trained)
    assert [p.data_ptr() for p in net.parameters()] == places


def test_train_and_eval_are_there_where_they_mean_something():
    net = network()
    optimizer = ScheduleFree(net.parameters(), lr=0.1)
    optimizer.train()
    train(net, optimizer)
    trained = numbers(net)
    optimizer.eval()
    optimizer.eval()
    assert not torch.equal(net.weight, trained[0])
    optimizer.train()
    assert_identical(numbers(net), trained)
    plain = as_optimizer(fo.adamw)(net.parameters(), lr=0.1)
    assert not hasattr(plain, "train")
    assert not hasattr(plain, "eval")
    with plain.eval_params(), plain.train_params():
        assert_identical(numbers(net), trained)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_made_during_evaluation_come_back_too(how):
    net = network()
    optimizer = ScheduleFree(net.parameters(), lr=0.1)
    train(net, optimizer)
    trained = numbers(net)
    with optimizer.eval_params():
        pair = net, optimizer
        other, twin = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    twin.train()
    assert_identical(numbers(other), trained)


def test_evaluation_ends_with_an_error_too():
    net = network()
    optimizer = ScheduleFree(net.parameters(), lr=0.1)
    train(net, optimizer)
    trained = numbers(net)
    with pytest.raises(ZeroDivisionError), optimizer.eval_params():
        raise ZeroDivisionError
    assert_identical(numbers(net), trained)
