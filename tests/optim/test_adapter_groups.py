"""Hyperparameters of the adapter in groups, and groups of parameters."""

import inspect

import pytest
import torch
from torch.optim import lr_scheduler

import funcopt as fo
from funcopt.optim import Optimizer, as_optimizer
from tests.optim.networks import SGD, AdamW, network, numbers, train, two_groups
from tests.trees import assert_identical


def clipped(learning_rate, weight_decay=0.1, b1=0.9, b2=0.99):
    return fo.chain(fo.clip_by_global_norm(0.5), fo.adamw(learning_rate, b1, b2, weight_decay=weight_decay))


def test_class_of_a_factory():
    assert AdamW.__name__ == "AdamW"
    assert as_optimizer(fo.schedule_free_adamw).__name__ == "ScheduleFreeAdamW"
    assert as_optimizer(fo.adamw) is AdamW
    assert as_optimizer(fo.sgd, "Mine").__name__ == "Mine"
    parameters = inspect.signature(AdamW).parameters
    assert [*parameters][:4] == ["params", "lr", "b1", "b2"]
    assert parameters["weight_decay"].default == 1e-4
    assert "Loshchilov" in AdamW.__doc__


def test_hyperparameters_by_position_and_by_either_name():
    net = network()
    for optimizer in (
        AdamW(net.parameters(), 0.1, 0.8),
        AdamW(net.parameters(), lr=0.1, b1=0.8),
        AdamW(net.parameters(), learning_rate=0.1, betas=(0.8, 0.999)),
    ):
        assert optimizer.param_groups[0]["lr"] == 0.1
        assert optimizer.param_groups[0]["betas"] == (0.8, 0.999)
        assert optimizer.defaults["betas"] == (0.8, 0.999)


def test_groups_override_and_factory_names_may_be_written_later():
    net = network()
    optimizer = AdamW(two_groups(net, learning_rate=0.3, b2=0.5), lr=0.1)
    assert optimizer.param_groups[1]["lr"] == 0.3
    assert optimizer.param_groups[1]["betas"] == (0.9, 0.5)
    optimizer.param_groups[0]["b1"] = 0.0
    optimizer.param_groups[0]["learning_rate"] = 0.7
    train(net, optimizer, steps=1)
    assert optimizer.param_groups[0]["betas"] == (0.0, 0.999)
    assert optimizer.param_groups[0]["lr"] == 0.7


def test_a_rate_may_be_given_by_groups_alone():
    net = network()
    optimizer = SGD([{**group, "lr": 0.1} for group in two_groups(net)])
    before = numbers(net)
    train(net, optimizer, steps=1)
    assert not any(torch.equal(a, b) for a, b in zip(before, numbers(net)))
    with pytest.raises(ValueError, match="required optimization parameter lr"):
        SGD(net.parameters())


@pytest.mark.parametrize("scope", ["all", "group"])
def test_hyperparameters_are_read_at_every_step_and_differ_between_groups(scope):
    net, plain = network(), network()
    optimizer = as_optimizer(clipped)(two_groups(net, weight_decay=0.3), 0.1, scope=scope)
    params = {str(i): p.detach() for i, p in enumerate(plain.parameters())}
    states: dict = {}
    for step in range(4):
        for k, group in enumerate(optimizer.param_groups):
            group["lr"] = 0.1 / (step + 1 + k)
            group["betas"] = (0.9 - 0.1 * step, 0.99)
        grads = {}
        for (name, p), q in zip(params.items(), net.parameters()):
            grads[name] = torch.full_like(p, 0.3 + step) * (1 + p.sin())
            q.grad = grads[name].clone()
        optimizer.step()
        moved = {}
        for k, members in enumerate((("0", "1"), ("2", "3"))):
            tx = clipped(0.1 / (step + 1 + k), [0.1, 0.3][k], 0.9 - 0.1 * step)
            seen = params.keys() if scope == "all" else members
            part = {name: params[name] for name in seen}
            state = states.get(k, tx.init(part))
            updates, states[k] = tx.update({name: grads[name] for name in seen}, state, part)
            moved.update({name: fo.apply_updates(part, updates)[name] for name in members})
        if scope == "all":
            mix_moments(states)
        params = moved
    assert_identical({str(i): p for i, p in enumerate(numbers(net))}, params)


def mix_moments(states):
    """Each group's moments come from its own run."""
    for name in ("mu", "nu"):
        trees = [getattr(states[k][1][0], name) for k in (0, 1)]
        for key in ("0", "1"):
            trees[1][key] = trees[0][key]
        for key in ("2", "3"):
            trees[0][key] = trees[1][key]


def test_equal_groups_are_one_run_until_they_differ():
    net, whole = network(), network()
    optimizer = AdamW(two_groups(net), lr=0.1)
    single = AdamW(whole.parameters(), lr=0.1)
    train(net, optimizer)
    train(whole, single)
    assert_identical(numbers(net), numbers(whole))
    assert "step" not in optimizer.state[net[2].weight]
    optimizer.param_groups[1]["lr"] = 0.2
    train(net, optimizer, steps=1)
    steps = [optimizer.state[layer.weight]["step"] for layer in (net[0], net[2])]
    assert steps[0] == steps[1] == 4
    assert steps[0].data_ptr() != steps[1].data_ptr()
    optimizer.param_groups[1]["lr"] = 0.1
    train(net, optimizer, steps=1)
    assert optimizer.state[net[2].weight]["step"] == 5


def test_noise_of_two_groups_differs():
    params = [torch.nn.Parameter(torch.zeros(4)) for _ in range(2)]
    noisy = as_optimizer(lambda learning_rate: fo.chain(fo.add_noise(0.1, 0.5, 3), fo.sgd(learning_rate)))
    optimizer = noisy([{"params": [params[0]]}, {"params": [params[1]], "lr": 0.2}], lr=0.1)
    for param in params:
        param.grad = torch.zeros(4)
    optimizer.step()
    assert not torch.allclose(2 * params[0], params[1])


@pytest.mark.parametrize("rate", [torch.tensor(0.1), torch.tensor([0.1]), torch.tensor([[0.1]])])
def test_tensor_rates_are_filled_in_place(rate):
    net, plain = network(), network()
    optimizer = AdamW(net.parameters(), lr=rate)
    other = AdamW(plain.parameters(), lr=0.1)
    schedules = [lr_scheduler.ExponentialLR(each, 0.5) for each in (optimizer, other)]
    train(net, optimizer, after=schedules[0].step)
    train(plain, other, after=schedules[1].step)
    assert optimizer.param_groups[0]["lr"] is rate
    for a, b in zip(numbers(net), numbers(plain)):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_injected_hyperparameters_are_entries():
    net = network()
    tx = fo.chain(
        fo.clip(1.0), fo.inject_hyperparams(fo.adamw)(0.1, b1=0.8, weight_decay=fo.linear_schedule(0.1, 0, 9))
    )
    optimizer = Optimizer(net.parameters(), tx)
    assert {key: optimizer.param_groups[0][key] for key in ("lr", "betas", "eps")} == {
        "lr": 0.1,
        "betas": (0.8, 0.999),
        "eps": 1e-8,
    }
    assert "weight_decay" not in optimizer.param_groups[0]
    optimizer.param_groups[0]["lr"] = 0.0
    before = numbers(net)
    train(net, optimizer)
    assert_identical(numbers(net), before)
    assert fo.get_hyperparams(optimizer.functional_state())["learning_rate"] == 0
    assert "inject_hyperparams(adamw)(0.1" in repr(optimizer)
