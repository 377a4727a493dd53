"""Copies, pickles and checkpoints of the adapter."""

import copy
import io
import pickle

import pytest
import torch
from torch.optim import lr_scheduler

import funcopt as fo
from funcopt.optim import Optimizer
from tests.optim.networks import AdamW, network, numbers, train, two_groups
from tests.trees import assert_identical

TRANSFORMATIONS = {
    "adamw": lambda params: AdamW(params, lr=0.1),
    "schedule and mask": lambda params: AdamW(
        params, lr=fo.linear_schedule(0.1, 0.0, 10), mask=fo.by_path({"*bias": False, "*": True})
    ),
    "chain": lambda params: Optimizer(params, fo.chain(fo.clip_by_global_norm(1.0), fo.adamw(0.1))),
    "injected": lambda params: Optimizer(params, fo.inject_hyperparams(fo.sgd)(0.1, momentum=0.5)),
    "average": lambda params: Optimizer(params, fo.ema_params(fo.sgd(fo.cosine_decay_schedule(0.1, 10)), 0.9)),
}


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@pytest.mark.parametrize("make", TRANSFORMATIONS.values(), ids=TRANSFORMATIONS)
def test_copies_go_on_alike(make, how):
    net = network()
    optimizer = make(net.named_parameters())
    train(net, optimizer)
    pair = net, optimizer
    other, twin = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    assert type(twin) is type(optimizer)
    assert repr(twin)[:30] == repr(optimizer)[:30]
    train(net, optimizer, 3, 3)
    before = numbers(other)
    train(other, twin, 3, 3)
    assert not torch.equal(before[0], numbers(other)[0])
    assert_identical(numbers(other), numbers(net))
    assert_identical(twin.functional_state(), optimizer.functional_state())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", TRANSFORMATIONS.values(), ids=TRANSFORMATIONS)
def test_state_dicts_go_on_alike(make, dtype):
    net = network(dtype=dtype)
    optimizer = make(net.named_parameters())
    train(net, optimizer)
    file = io.BytesIO()
    torch.save((net.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    weights, saved = torch.load(file, weights_only=True)
    other = network(1, dtype)
    other.load_state_dict(weights)
    twin = make(other.named_parameters())
    twin.load_state_dict(saved)
    assert_identical([*twin.state.values()], [*optimizer.state.values()])
    mine = {leaf.data_ptr() for state in twin.state.values() for leaf in state.values()}
    assert not mine & {leaf.data_ptr() for state in saved["state"].values() for leaf in state.values()}
    train(net, optimizer, 3, 3)
    train(other, twin, 3, 3)
    assert_identical(numbers(other), numbers(net))


def test_load_takes_entries_of_groups_and_survives_schedulers():
    net = network()
    optimizer = AdamW(two_groups(net, lr=0.3), lr=0.1)
    scheduler = lr_scheduler.OneCycleLR(optimizer, [0.1, 0.2], total_steps=9)
    train(net, optimizer, 3, after=scheduler.step)
    other = AdamW(two_groups(network(1)), lr=0.7)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for mine, theirs in zip(other.param_groups, optimizer.param_groups):
        assert {k: v for k, v in mine.items() if k != "params"} == {k: v for k, v in theirs.items() if k != "params"}


class Derived(AdamW):
    """A class that pickle finds by its name."""


def test_derived_classes_pickle():
    net = network()
    twin = pickle.loads(pickle.dumps(Derived(net.parameters(), lr=0.1)))
    assert type(twin) is Derived
    assert repr(twin).startswith("Derived (")


def test_unpicklable_transformations_say_so():
    @fo.factory
    def local(rate):
        return fo.sgd(rate)

    optimizer = Optimizer(network().parameters(), local(0.1))
    assert copy.deepcopy(optimizer).param_groups
    with pytest.raises(pickle.PicklingError, match=r"local\(0.1\) cannot be pickled"):
        pickle.dumps(optimizer)
