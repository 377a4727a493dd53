"""torch's own consumers, with one process: distributed checkpoints, ZeroRedundancyOptimizer, FSDP2."""

import copy

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor

from tests.interop.runs import assert_moved, assert_same, every_pair, network, train
from tests.optim.classes import FIRST, TOLERANCE

every_class = pytest.mark.parametrize("case", FIRST, ids=lambda case: case.name)


def without_biases(name: str) -> torch.nn.Module:
    """The network, without biases for Muon, which takes matrices only."""
    model = network()
    if name == "Muon":
        for module in model:
            module.register_parameter("bias", None) if isinstance(module, torch.nn.Linear) else None
    return model


# ----------------------------------------------------------------------------------------- distributed checkpoints


@every_pair
def test_states_by_names(pair):
    mine, theirs = network(), network()
    optimizers = [make(model.parameters()) for make, model in zip(pair.makers(), (mine, theirs))]
    for model, optimizer in zip((mine, theirs), optimizers):
        train(model, optimizer, range(3))
    saved = copy.deepcopy(get_optimizer_state_dict(mine, optimizers[0]))
    assert set(saved["state"]) == {name for name, _ in mine.named_parameters()}

    resumed = copy.deepcopy(mine)
    optimizer = pair.makers()[0](resumed.parameters())
    set_optimizer_state_dict(resumed, optimizer, saved)
    train(resumed, optimizer, range(3, 6))
    train(theirs, optimizers[1], range(3, 6))
    assert_same(resumed, theirs)
    assert_moved(resumed, network())


@every_class
def test_reading_changes_nothing(case):
    """A step that is made to see the states does not count; in torch `step` is 1 then, and Rprop loses its rate."""
    models = []
    for read in (True, False):
        model = without_biases(case.name)
        optimizer = case.mine(model.parameters(), lr=0.02)
        if read:
            saved = get_optimizer_state_dict(model, optimizer)
            assert all(state["step"] == 0 for state in saved["state"].values() if "step" in state)
            assert [group["lr"] for group in optimizer.param_groups] == [0.02]
            assert all(param.grad is None for param in model.parameters())
        train(model, optimizer, range(4))
        models.append(model)
    assert_same(*models, tolerance=0)


@every_class
def test_states_made_before_the_first_step(case):
    models = []
    for early in (True, False):
        model = without_biases(case.name)
        optimizer = case.mine(model.parameters(), lr=0.02)
        if early:
            optimizer.init_state()
            kept = {param: list(state.values()) for param, state in optimizer.state.items()}
            optimizer.init_state()
            for param, values in kept.items():
                assert all(a is b for a, b in zip(values, optimizer.state[param].values(), strict=True))
            assert all(param.grad is None for param in model.parameters())
        train(model, optimizer, range(4))
        models.append(model)
    assert_same(*models, tolerance=0)


@pytest.mark.slow
@every_pair
def test_saved_to_a_folder_and_loaded(pair, tmp_path, one_rank):
    mine = network()
    optimizer = pair.makers()[0](mine.parameters())
    train(mine, optimizer, range(3))
    dcp.save({"optimizer": get_optimizer_state_dict(mine, optimizer)}, checkpoint_id=tmp_path / "saved")

    resumed = copy.deepcopy(mine)
    other = pair.makers()[0](resumed.parameters())
    template = {"optimizer": get_optimizer_state_dict(resumed, other)}
    dcp.load(template, checkpoint_id=tmp_path / "saved")
    set_optimizer_state_dict(resumed, other, template["optimizer"])
    for model, its_optimizer in ((mine, optimizer), (resumed, other)):
        train(model, its_optimizer, range(3, 6))
    assert_same(resumed, mine, tolerance=0)


# -------------------------------------------------------------------------------------------------- sharded training


@pytest.mark.slow
@every_pair
def test_zero_redundancy_optimizer(pair, one_rank):
    models, states = [], []
    for cls in (pair.mine, pair.theirs):
        model = network()
        optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=cls, **pair.kwargs)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        for step in range(6):
            train(model, optimizer, [step])
            scheduler.step()
        optimizer.consolidate_state_dict()
        saved = copy.deepcopy(optimizer.state_dict())
        resumed = copy.deepcopy(model)
        other = ZeroRedundancyOptimizer(resumed.parameters(), optimizer_class=cls, **pair.kwargs)
        other.load_state_dict(saved)
        train(model, optimizer, range(6, 9))
        train(resumed, other, range(6, 9))
        assert_same(resumed, model, tolerance=1e-12)
        models.append(model)
        states.append(saved)
    assert_same(*models)
    assert_moved(models[0], network())


def sharded(model: torch.nn.Module) -> torch.nn.Module:
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    assert all(isinstance(param, DTensor) for param in model.parameters())
    return model


def gathered(model: torch.nn.Module, like: torch.nn.Module) -> torch.nn.Module:
    like.load_state_dict({name: value.full_tensor() for name, value in model.state_dict().items()})
    return like


@pytest.mark.slow
@every_pair
def test_fully_sharded_pairs(pair, one_rank):
    mine, theirs = sharded(network()), network()
    optimizers = [make(model.parameters()) for make, model in zip(pair.makers(), (mine, theirs))]
    train(mine, optimizers[0], range(6))
    train(theirs, optimizers[1], range(6))
    assert_same(gathered(mine, network()), theirs)


@pytest.mark.slow
@every_class
def test_fully_sharded(case, one_rank):
    """Every class; torch's own Adafactor and Rprop fail on sharded parameters."""
    models = [sharded(without_biases(case.name)), without_biases(case.name)]
    for model in models:
        optimizer = case.mine(model.parameters(), lr=0.02)
        train(model, optimizer, range(3))
        if model is models[0]:
            saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
            optimizer = case.mine(model.parameters())
            set_optimizer_state_dict(model, optimizer, saved)
        train(model, optimizer, range(3, 6))
    assert_same(gathered(models[0], without_biases(case.name)), models[1], TOLERANCE.get(case.name, 1e-12))
