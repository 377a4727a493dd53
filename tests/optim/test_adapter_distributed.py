"""Consumers in torch.distributed, with one process."""

import copy
import warnings

import pytest
import torch
from torch import distributed
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import funcopt as fo
from funcopt.optim import Optimizer, as_optimizer
from tests.trees import assert_identical

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, at import
    from torch.distributed.optim import ZeroRedundancyOptimizer

MAKERS = {
    "adamw": lambda net: as_optimizer(fo.adamw)(net.parameters(), lr=0.1, weight_decay=0.1),
    "chain": lambda net: Optimizer(net.named_parameters(), fo.chain(fo.clip_by_global_norm(1.0), fo.adamw(0.1))),
    "injected": lambda net: Optimizer(net.parameters(), fo.inject_hyperparams(fo.adamw)(0.1)),
    "schedule free": lambda net: as_optimizer(fo.schedule_free_adamw)(net.parameters(), lr=0.1),
}


@pytest.fixture(scope="module", autouse=True)
def process_group(tmp_path_factory):
    store = f"file://{tmp_path_factory.mktemp('store') / 'store'}"
    distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))


def train(net, optimizer, steps=2):
    for step in range(steps):
        optimizer.zero_grad()
        net(torch.randn(4, 3, generator=torch.Generator().manual_seed(step))).square().sum().backward()
        optimizer.step()


def numbers(net):
    return [p.detach().clone() for p in net.parameters()]


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_checkpoints_by_name(make, flat):
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    net = network()
    optimizer = make(net)
    before = numbers(net)
    assert get_optimizer_state_dict(net, optimizer, options=options)
    assert_identical(numbers(net), before)
    assert optimizer.state[net[0].weight]["step"] == 0
    train(net, optimizer)
    saved = copy.deepcopy(get_optimizer_state_dict(net, optimizer, options=options))
    other = network()
    other.load_state_dict(net.state_dict())
    twin = make(other)
    set_optimizer_state_dict(other, twin, saved, options=options)
    train(net, optimizer)
    train(other, twin)
    assert_identical(numbers(other), numbers(net))


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_sharded_parameters(make):
    net, whole = network(), network()
    mesh = init_device_mesh("cpu", (1,))
    for layer in (*net, net):
        fully_shard(layer, mesh=mesh)
    optimizer, plain = make(net), make(whole)
    train(net, optimizer)
    train(whole, plain)
    assert_identical([p.full_tensor() for p in numbers(net)], numbers(whole))
    set_optimizer_state_dict(net, optimizer, get_optimizer_state_dict(net, optimizer))
    train(net, optimizer)
    train(whole, plain)
    assert_identical([p.full_tensor() for p in numbers(net)], numbers(whole))


def test_zero_redundancy():
    net, whole = network(), network()
    optimizer = ZeroRedundancyOptimizer(net.parameters(), as_optimizer(fo.adamw), lr=0.1, weight_decay=0.1)
    plain = MAKERS["adamw"](whole)
    train(net, optimizer)
    train(whole, plain)
    assert_identical(numbers(net), numbers(whole))
    optimizer.consolidate_state_dict()
    optimizer.load_state_dict(optimizer.state_dict())
    train(net, optimizer)
    train(whole, plain)
    assert_identical(numbers(net), numbers(whole))
