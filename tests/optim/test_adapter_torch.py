"""The adapter is a torch.optim.Optimizer to all that torch does with one."""

import copy
import gc
import math
import weakref

import pytest
import torch
from torch.optim import lr_scheduler, swa_utils

import funcopt as fo
from funcopt import tree
from funcopt.optim import Optimizer, as_optimizer
from tests.optim.networks import SGD, AdamW, network, numbers, train, two_groups
from tests.trees import assert_identical

SCHEDULERS = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda k: 0.9**k),
    "step": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "onecycle": lambda o: lr_scheduler.OneCycleLR(o, 0.2, total_steps=8),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 2, cycle_momentum=True),
    "sequential": lambda o: lr_scheduler.SequentialLR(o, [lr_scheduler.ConstantLR(o), lr_scheduler.LinearLR(o)], [2]),
    "chained": lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.LinearLR(o), lr_scheduler.ExponentialLR(o, 0.9)]),
    "swa": lambda o: swa_utils.SWALR(o, 0.05, 3),
}


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
def test_schedulers_act_as_on_torch(make):
    net, twin = network(dtype=torch.float64), network(dtype=torch.float64)
    optimizer = AdamW(net.parameters(), lr=0.1, weight_decay=0.1)
    torchs = torch.optim.AdamW(twin.parameters(), lr=0.1, weight_decay=0.1)
    mine, theirs = make(optimizer), make(torchs)
    train(net, optimizer, 6, after=mine.step)
    train(twin, torchs, 6, after=theirs.step)
    assert optimizer.param_groups[0]["lr"] == torchs.param_groups[0]["lr"]
    assert optimizer.param_groups[0]["betas"] == torchs.param_groups[0]["betas"]
    for a, b in zip(numbers(net), numbers(twin)):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_momentum_is_cycled_and_may_begin_late():
    net, twin = network(dtype=torch.float64), network(dtype=torch.float64)
    optimizer, torchs = SGD(net.parameters(), lr=0.1), torch.optim.SGD(twin.parameters(), lr=0.1)
    train(net, optimizer)
    train(twin, torchs)
    mine, theirs = (lr_scheduler.OneCycleLR(each, 0.1, total_steps=9) for each in (optimizer, torchs))
    assert optimizer.param_groups[0]["momentum"] == torchs.param_groups[0]["momentum"]
    train(net, optimizer, 4, 3, after=mine.step)
    train(twin, torchs, 4, 3, after=theirs.step)
    for a, b in zip(numbers(net), numbers(twin)):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_plateau():
    net = network()
    optimizer = AdamW(net.parameters(), lr=0.1)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    for loss in (1.0, 2.0, 3.0):
        scheduler.step(loss)
    assert math.isclose(optimizer.param_groups[0]["lr"], 1e-3)


def test_the_loss_of_the_closure_is_the_value():
    plateau = fo.chain(fo.sgd(0.1), fo.reduce_on_plateau(factor=0.5, patience=1))
    param = torch.nn.Parameter(torch.ones(()))
    optimizer = Optimizer([param], plateau)

    def closure():
        assert torch.is_grad_enabled()
        param.grad = torch.ones(())
        return torch.tensor(1.0, requires_grad=True)

    with torch.no_grad():
        for _ in range(4):
            assert optimizer.step(closure=closure).requires_grad
    state = plateau.init([torch.ones(())])
    for _ in range(4):
        _, state = plateau.update([torch.ones(())], state, [torch.ones(())], value=torch.tensor(1.0))
    assert_identical(optimizer.functional_state(), state)
    param.grad = torch.ones(())
    optimizer.step(value=torch.tensor(2.0))
    with pytest.raises(TypeError, match="needs the extra argument 'value'"):
        optimizer.step()


def test_parameters_and_states_are_written_in_place_and_gradients_are_not():
    net = network()
    optimizer = AdamW(two_groups(net, lr=0.3), lr=0.1)
    train(net, optimizer, 1)
    grads = [p.grad for p in net.parameters()]
    kept = [(g.clone(), g._version) for g in grads]
    tensors = [*net.parameters(), *(leaf for state in optimizer.state.values() for leaf in state.values())]
    places = [t.data_ptr() for t in tensors]
    optimizer.step()
    assert [t.data_ptr() for t in tensors] == places
    assert [*net.parameters(), *(leaf for state in optimizer.state.values() for leaf in state.values())][-1] is tensors[
        -1
    ]
    for grad, param, (value, version) in zip(grads, net.parameters(), kept):
        assert param.grad is grad and grad._version == version and torch.equal(grad, value)
    pointers = {leaf.data_ptr() for state in optimizer.state.values() for leaf in state.values()}
    assert not pointers & {grad.data_ptr() for grad in grads}


def test_frozen_parameters_have_no_state_until_they_are_trained():
    net, plain = network(), network()
    for each in (net, plain):
        each[0].weight.requires_grad_(False)
    optimizer = AdamW(net.named_parameters(), lr=0.1)
    train(net, optimizer, 2)
    assert net[0].weight not in optimizer.state
    assert optimizer.state[net[0].bias]["step"] == 2
    net[0].weight.requires_grad_(True)
    train(net, optimizer, 1, 2)
    assert {*optimizer.state[net[0].weight]} == {"mu", "nu"}
    assert optimizer.state[net[0].bias]["step"] == 3


def test_added_groups_get_the_state_of_init_and_the_others_keep_theirs():
    net, plain = network(), network()
    optimizer = AdamW(net[0].named_parameters(), lr=0.1)
    tx = fo.adamw(0.1)
    params = {name: p.detach().clone() for name, p in plain[0].named_parameters()}
    state = tx.init(params)
    for step in range(4):
        if step == 2:
            more = {f"second.{name}": p for name, p in net[2].named_parameters()}
            optimizer.add_param_group({"params": more.items()})
            params.update({name: p.detach().clone() for name, p in more.items()})
            fresh, structure = tree.flatten(tx.init(params))
            old = dict(tree.leaves_with_path(state))
            paths = [path for path, _ in tree.leaves_with_path(tx.init(params))]
            state = tree.unflatten([old.get(path, leaf) for path, leaf in zip(paths, fresh)], structure)
        grads = {name: torch.cos(p) for name, p in params.items()}
        for param, grad in zip((p for g in optimizer.param_groups for p in g["params"]), grads.values()):
            param.grad = grad.clone()
        optimizer.step()
        updates, state = tx.update(grads, state, params)
        params = fo.apply_updates(params, updates)
    assert_identical(numbers(net), [*params.values()])
    assert_identical(optimizer.functional_state(), state)


def test_hooks():
    net = network()
    optimizer = AdamW(net.parameters(), lr=0.1)
    calls = []
    optimizer.register_step_pre_hook(lambda opt, args, kwargs: calls.append("before"))
    optimizer.register_step_post_hook(lambda opt, args, kwargs: calls.append("after"))
    optimizer.register_state_dict_post_hook(lambda opt, state: calls.append("saved"))
    optimizer.register_load_state_dict_pre_hook(lambda opt, state: calls.append("loading"))
    optimizer.register_load_state_dict_post_hook(lambda opt: calls.append(len(opt.state)))
    train(net, optimizer, 1)
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["before", "after", "saved", "loading", 4]
    assert type(optimizer).step.hooked


def test_states_set_by_a_hook_keep_their_dtype():
    net = network()
    optimizer = AdamW(net.parameters(), lr=0.1)
    for param in net.parameters():
        optimizer.state[param]["mu"] = torch.zeros_like(param, dtype=torch.bfloat16)
    train(net, optimizer)
    assert optimizer.state[net[0].weight]["mu"].dtype == torch.bfloat16
    optimizer.state.clear()
    train(net, optimizer, 1)
    assert optimizer.state[net[0].weight]["step"] == 1


def test_grad_scaler_skips_and_unscales():
    net = network()
    optimizer = AdamW(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = numbers(net)
    for bad in (True, False):
        optimizer.zero_grad()
        scaler.scale(net(torch.ones(1, 3)).sum()).backward()
        if bad:
            net[0].bias.grad.fill_(math.inf)
        scaler.step(optimizer)
        scaler.update()
        assert bad == all(torch.equal(a, b) for a, b in zip(before, numbers(net)))


def test_swa_model_sees_the_steps():
    net = network()
    optimizer = AdamW(net.parameters(), lr=0.1)
    averaged = swa_utils.AveragedModel(net)
    history = []
    train(net, optimizer, after=lambda: (averaged.update_parameters(net), history.append(numbers(net))))
    torch.testing.assert_close(averaged.module[0].weight, torch.stack([h[0] for h in history]).mean(0))


def test_sparse_gradients_are_refused():
    table = torch.nn.Embedding(4, 2, sparse=True)
    optimizer = AdamW(table.named_parameters(), lr=0.1)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="AdamW does not support sparse gradients, and parameter 'weight'"):
        optimizer.step()


def test_an_optimizer_is_freed_without_the_collector():
    net = network()
    gc.collect()
    gc.disable()
    try:
        optimizer = AdamW(net.parameters(), lr=0.1)
        scheduler = lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10)
        train(net, optimizer, after=scheduler.step)
        alive = weakref.ref(optimizer)
        del optimizer, scheduler
        assert alive() is None
    finally:
        gc.enable()


def test_swapped_in_parameters_and_states():
    net = network()
    optimizer = AdamW(net.parameters(), lr=0.1)
    train(net, optimizer)
    expected = copy.deepcopy(net), None
    twin = AdamW(expected[0].parameters(), lr=0.1)
    twin.load_state_dict(optimizer.state_dict())
    for p, q in zip(net.parameters(), expected[0].parameters()):
        q.grad = p.grad.clone()
    twin.step()
    live = numbers(net)
    params = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}
    saved = copy.deepcopy(optimizer.state_dict())
    with torch.optim.swap_in_optimizer_params_and_state(optimizer, params, saved):
        for p, q in zip(params.values(), net.parameters()):
            p.grad = q.grad.clone()
        optimizer.step()
    assert_identical(numbers(net), live)
    assert_identical([p.detach() for p in params.values()], numbers(expected[0]))
    assert saved["state"][0]["step"] == 4
    assert optimizer.state[net[0].weight]["step"] == 3


def test_wrappers_that_take_the_class_but_not_the_attributes():
    """As Lightning's, whose methods come from the class of the optimizer and whose attributes from the optimizer."""
    net = network()
    optimizer = as_optimizer(fo.schedule_free_sgd)(net.parameters(), lr=0.1)

    class Wrapper:
        def __init__(self, wrapped):
            self.wrapped = wrapped

        def __getattr__(self, name):
            return getattr(self.wrapped, name)

        def step(self, closure=None):
            return self.wrapped.step(closure=closure)

    wrapper = object.__new__(type("Wrapped", (Wrapper, type(optimizer)), {}))
    Wrapper.__init__(wrapper, optimizer)
    train(net, wrapper)
    trained = numbers(net)
    assert wrapper.state_dict()["state"].keys() == {0, 1, 2, 3}
    assert wrapper.functional_state().step_count == 3
    with wrapper.eval_params():
        assert not torch.equal(net[0].weight, trained[0])
    wrapper.eval()
    wrapper.train()
    assert_identical(numbers(net), trained)


@pytest.mark.slow
def test_torch_compile_of_the_step():
    net, plain = network(), network()
    optimizers = [AdamW(each.parameters(), lr=0.1) for each in (net, plain)]
    step = torch.compile(optimizers[0].step, backend="eager")
    for value in (1.0, 2.0, 3.0):
        for each in (net, plain):
            for param in each.parameters():
                param.grad = torch.full_like(param, value)
        step()
        optimizers[1].step()
    assert_identical(numbers(net), numbers(plain))


def test_differentiable_through_steps():
    rate = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)

    def final(rate, start):
        param = start.clone()
        optimizer = AdamW([param], lr=rate, differentiable=True)
        for _ in range(3):
            seen = param.clone()  # the step writes into param, which the graph of the loss would need
            param.grad = torch.autograd.grad((seen**2).sum(), seen, create_graph=True)[0]
            optimizer.step()
        return param.sum()

    start = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(final, (rate, start))
