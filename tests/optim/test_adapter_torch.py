"""The adapter is a torch.optim.Optimizer to all that torch does with one."""

import copy
import gc
import inspect
import io
import math
import pickle
import weakref

import pytest
import torch
from torch.optim import lr_scheduler, swa_utils

import funcopt as fo
from funcopt import tree
from funcopt.optim import Optimizer, as_optimizer
from tests.trees import assert_identical

AdamW = as_optimizer(fo.adamw)
SGD = as_optimizer(fo.sgd)


def network(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).to(dtype)


def two_groups(net, **overrides):
    return [{"params": [*net[0].parameters()]}, {"params": [*net[2].parameters()], **overrides}]


def train(net, optimizer, steps=3, start=0, after=lambda: None):
    dtype = next(net.parameters()).dtype
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        net(torch.randn(5, 3, generator=generator).to(dtype)).square().sum().backward()
        optimizer.step()
        after()


def numbers(net):
    return [p.detach().clone() for p in net.parameters()]


def clipped(learning_rate, weight_decay=0.1, b1=0.9, b2=0.99):
    return fo.chain(fo.clip_by_global_norm(0.5), fo.adamw(learning_rate, b1, b2, weight_decay=weight_decay))


# ------------------------------------------------------------------------------------------------ hyperparameters


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


# ---------------------------------------------------------------------------------------------------------- schedulers


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


# ------------------------------------------------------------------------------------------------------------- step


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


# --------------------------------------------------------------------------------------------------------- copies


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
