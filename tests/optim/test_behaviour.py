"""What surrounds a step: closures, hooks, missing gradients, groups, schedulers, gradient scaling, averaging."""

import gc
import weakref

import pytest
import torch
from torch import Tensor
from torch.optim import lr_scheduler, swa_utils
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import funcopt.optim
from tests.optim.classes import FIRST, TOLERANCE, Case, assert_same_way, built, give_gradients, parameters

every_class = pytest.mark.parametrize("case", FIRST, ids=lambda case: case.name)


@every_class
def test_the_closure_runs_with_gradients(case: Case) -> None:
    params = parameters(case.name)
    optimizer = built(case.mine, params, case.kwargs)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = sum((param**2).sum() for param in params)
        loss.backward()
        return loss

    before = [param.detach().clone() for param in params]
    with torch.no_grad():
        loss = optimizer.step(closure)
    assert loss.requires_grad
    assert optimizer.step() is None
    assert optimizer.step(closure=None) is None
    assert any(not torch.equal(a, b) for a, b in zip(before, params))


@every_class
def test_without_gradients_nothing_happens(case: Case) -> None:
    params = parameters(case.name)
    optimizer = built(case.mine, params, case.kwargs)
    before = [param.detach().clone() for param in params]
    state = {key: list(value) for key, value in optimizer.state.items()}
    optimizer.step()
    for param, value in zip(params, before):
        torch.testing.assert_close(param.detach(), value, rtol=0, atol=0)
    assert {key: list(value) for key, value in optimizer.state.items()} == state


@pytest.mark.parametrize("compile", [False, {"backend": "aot_eager"}], ids=["eager", "compiled"])
def test_steps_of_no_numbers_count(compile: bool | dict) -> None:
    param = torch.nn.Parameter(torch.ones(0, 3))
    optimizer = funcopt.optim.Adam([param], compile=compile)
    for _ in range(2):
        param.grad = torch.zeros(0, 3)
        optimizer.step()
    assert optimizer.state[param]["step"] == 2


@every_class
def test_hooks_run_in_torchs_order(case: Case) -> None:
    params = parameters(case.name)
    give_gradients(params, 0)
    optimizer = built(case.mine, params, case.kwargs)
    calls: list[str] = []
    handles = [
        register_optimizer_step_pre_hook(lambda *args: calls.append("global pre")),
        register_optimizer_step_post_hook(lambda *args: calls.append("global post")),
        optimizer.register_step_pre_hook(lambda opt, args, kwargs: calls.append(f"pre {args[0] is optimizer}")),
        optimizer.register_step_post_hook(lambda opt, args, kwargs: calls.append("post")),
    ]
    optimizer.step()
    for handle in handles:
        handle.remove()
    optimizer.step()
    assert calls == ["global pre", "pre True", "post", "global post"]


@every_class
def test_hooks_of_checkpoints(case: Case) -> None:
    params = parameters(case.name)
    optimizer = built(case.mine, params, case.kwargs)
    calls: list[str] = []
    optimizer.register_state_dict_pre_hook(lambda opt: calls.append("save"))
    optimizer.register_state_dict_post_hook(lambda opt, saved: {**saved, "more": 1})
    optimizer.register_load_state_dict_pre_hook(lambda opt, saved: calls.append("load"))
    optimizer.register_load_state_dict_post_hook(lambda opt: calls.append("loaded"))
    saved = optimizer.state_dict()
    assert saved["more"] == 1
    optimizer.load_state_dict(saved)
    assert calls == ["save", "load", "loaded"]


@every_class
def test_groups_have_their_own_hyperparameters(case: Case) -> None:
    histories = []
    for cls in (case.mine, case.theirs):
        params = parameters(case.name)
        optimizer = cls([{"params": params[:1], "lr": 0.3}, {"params": params[1:]}], lr=0.01)
        history = []
        for step in range(4):
            give_gradients(params, step)
            optimizer.step()
            optimizer.param_groups[1]["lr"] = 0.02 * (step + 1)
            history.append([param.detach().clone() for param in params])
        histories.append(history)
    assert_same_way(*histories, TOLERANCE.get(case.name, 1e-9))


def test_freed_without_the_garbage_collector() -> None:
    gc.collect()
    gc.disable()
    try:
        optimizer = funcopt.optim.Adam(parameters("Adam"))
        give_gradients(optimizer.param_groups[0]["params"], 0)
        optimizer.step()
        scheduler = lr_scheduler.StepLR(optimizer, 1)
        gone = weakref.ref(optimizer)
        del optimizer, scheduler
        assert gone() is None
    finally:
        gc.enable()


def schedulers(name: str) -> dict:
    """Every scheduler of torch, for a class; those that cycle momentum do so where the class has one."""
    momentum = name not in ("Adadelta", "Adagrad", "Adafactor", "ASGD", "Rprop")
    return {
        "LambdaLR": lambda opt: lr_scheduler.LambdaLR(opt, lambda epoch: 0.9**epoch),
        "MultiplicativeLR": lambda opt: lr_scheduler.MultiplicativeLR(opt, lambda epoch: 0.9),
        "StepLR": lambda opt: lr_scheduler.StepLR(opt, 2, 0.5),
        "MultiStepLR": lambda opt: lr_scheduler.MultiStepLR(opt, [1, 3], 0.5),
        "ConstantLR": lambda opt: lr_scheduler.ConstantLR(opt, 0.5, 2),
        "LinearLR": lambda opt: lr_scheduler.LinearLR(opt, 0.1, total_iters=4),
        "ExponentialLR": lambda opt: lr_scheduler.ExponentialLR(opt, 0.9),
        "PolynomialLR": lambda opt: lr_scheduler.PolynomialLR(opt, 5, 2.0),
        "CosineAnnealingLR": lambda opt: lr_scheduler.CosineAnnealingLR(opt, 5),
        "CosineAnnealingWarmRestarts": lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, 3),
        "ReduceLROnPlateau": lambda opt: lr_scheduler.ReduceLROnPlateau(opt, patience=0),
        "OneCycleLR": lambda opt: lr_scheduler.OneCycleLR(opt, 0.1, total_steps=10, cycle_momentum=momentum),
        "CyclicLR": lambda opt: lr_scheduler.CyclicLR(opt, 0.01, 0.1, step_size_up=2, cycle_momentum=momentum),
        "SequentialLR": lambda opt: lr_scheduler.SequentialLR(
            opt, [lr_scheduler.ConstantLR(opt, 0.5, 2), lr_scheduler.ExponentialLR(opt, 0.9)], [2]
        ),
        "ChainedScheduler": lambda opt: lr_scheduler.ChainedScheduler(
            [lr_scheduler.ConstantLR(opt, 0.5, 2), lr_scheduler.ExponentialLR(opt, 0.9)]
        ),
        "SWALR": lambda opt: swa_utils.SWALR(opt, 0.5, anneal_epochs=3),
    }


TAKES_TENSOR_RATE = ("SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Adadelta", "Adagrad", "Muon")


@every_class
@pytest.mark.parametrize("kind", ["float", "tensor"])
def test_every_scheduler(case: Case, kind: str) -> None:
    if kind == "tensor" and case.name not in TAKES_TENSOR_RATE:
        return
    for name, make in schedulers(case.name).items():
        histories, rates = [], []
        for cls in (case.mine, case.theirs):
            params = parameters(case.name)
            rate = torch.tensor(0.05) if kind == "tensor" else 0.05
            kwargs = {"momentum": 0.9} if case.name in ("SGD", "RMSprop") else {}
            optimizer = cls(params, lr=rate, **kwargs)
            scheduler = make(optimizer)
            history, seen = [], []
            for step in range(6):
                give_gradients(params, step)
                optimizer.step()
                scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
                history.append([param.detach().clone() for param in params])
                seen.append(float(optimizer.param_groups[0]["lr"]))
            histories.append(history)
            rates.append(seen)
        assert rates[0] == rates[1], name
        tolerance = 3e-6 if kind == "tensor" else TOLERANCE.get(case.name, 1e-9)
        assert_same_way(*histories, max(tolerance, TOLERANCE.get(case.name, 0)))


FUSED = [case for case in FIRST if "cpu" in case.info.supports_fused_on]


@pytest.mark.parametrize("case", FUSED, ids=lambda case: case.name)
def test_gradient_scaling_of_fused_classes(case: Case) -> None:
    """The scaler leaves unscaling and skipping to the step, which does both as torch's kernel does."""
    histories = []
    for cls in (case.mine, case.theirs):
        params = parameters(case.name, torch.float32)
        optimizer = cls(params, lr=0.1, fused=True)
        assert optimizer._step_supports_amp_scaling
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
        history = []
        for step in range(5):
            give_gradients(params, step)
            with torch.no_grad():
                for param in params:
                    param.grad *= scaler.scale(torch.ones(())).item()
                if step == 2:
                    params[0].grad.fill_(float("inf"))
            scaler.step(optimizer)
            scaler.update()
            history.append([param.detach().clone() for param in params])
        histories.append(history)
        assert optimizer.state[params[0]].get("step", 4) == 4
    assert_same_way(*histories, 1e-5)


@every_class
def test_gradient_scaling_of_others(case: Case) -> None:
    histories = []
    for cls in (case.mine, case.theirs):
        params = parameters(case.name)
        optimizer = built(cls, params, case.kwargs)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        history = []
        for step in range(4):
            give_gradients(params, step)
            for param in params:
                param.grad *= scaler.scale(torch.ones(())).item()
            if step == 1:
                params[0].grad.fill_(float("nan"))
            scaler.unscale_(optimizer)
            scaler.step(optimizer, None)
            scaler.update()
            history.append([param.detach().clone() for param in params])
        histories.append(history)
    assert_same_way(*histories, TOLERANCE.get(case.name, 1e-9))


@pytest.mark.parametrize("case", FUSED, ids=lambda case: case.name)
def test_fused_refuses_what_torch_refuses(case: Case) -> None:
    for option in ("foreach", "differentiable"):
        with pytest.raises(RuntimeError, match=option):
            case.mine(parameters(case.name), fused=True, **{option: True})
    param = torch.nn.Parameter(torch.ones(3, device="meta"))
    optimizer = case.mine([param], fused=True)
    param.grad = torch.ones(3, device="meta")
    with pytest.raises(RuntimeError, match="requires all the params to be floating point Tensors"):
        optimizer.step()


@every_class
def test_capturable_is_refused_on_the_cpu(case: Case) -> None:
    if "capturable" not in case.mine(parameters(case.name)).defaults:
        return
    params = parameters(case.name)
    optimizer = case.mine(params, capturable=True)
    give_gradients(params, 0)
    with pytest.raises(AssertionError, match="must be on supported devices"):
        optimizer.step()


def test_averaged_model_follows() -> None:
    model = torch.nn.Linear(3, 2)
    average = swa_utils.AveragedModel(model)
    optimizer = funcopt.optim.SGD(model.parameters(), lr=0.1)
    weights = []
    for _ in range(3):
        model(torch.ones(4, 3)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)
        weights.append(model.weight.detach().clone())
    torch.testing.assert_close(average.module.weight.detach(), torch.stack(weights).mean(0))


@every_class
def test_swapping_parameters_and_state_in(case: Case) -> None:
    """torch's stateless door: the step moves the parameters and the state that were handed in."""
    params = {str(number): param for number, param in enumerate(parameters(case.name))}
    optimizer = built(case.mine, list(params.values()), case.kwargs)
    give_gradients(list(params.values()), 0)
    optimizer.step()
    if not optimizer.state:
        return
    with torch.no_grad():
        swapped = {name: param.detach().clone().requires_grad_() for name, param in params.items()}
    give_gradients(list(swapped.values()), 1)
    state = optimizer.state_dict()
    kept = {name: param.detach().clone() for name, param in params.items()}
    with funcopt.optim.swap_in_optimizer_params_and_state(optimizer, swapped, state):
        optimizer.step()
    for name, param in params.items():
        torch.testing.assert_close(param.detach(), kept[name], rtol=0, atol=0)
        assert not torch.equal(swapped[name], kept[name])


def test_momentum_switched_on_later() -> None:
    """Torch raises KeyError for RMSprop and for amsgrad."""
    for name, change in (("SGD", {"momentum": 0.9}), ("RMSprop", {"momentum": 0.9}), ("Adam", {"amsgrad": True})):
        params = parameters(name)
        optimizer = getattr(funcopt.optim, name)(params, lr=0.1)
        for step in range(4):
            if step == 2:
                optimizer.param_groups[0].update(change)
            give_gradients(params, step)
            optimizer.step()
        assert all(param.isfinite().all() for param in params)


def test_moments_made_before_the_first_step_are_kept() -> None:
    """A recipe for moments in bfloat16: they are put into the state by a hook before the first step."""
    params = parameters("AdamW", torch.float32)
    optimizer = funcopt.optim.AdamW(params, lr=0.1)

    def fill(opt: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        for param in opt.param_groups[0]["params"]:
            if not opt.state[param]:
                zeros = torch.zeros_like(param, dtype=torch.bfloat16)
                opt.state[param] = {"step": torch.zeros(()), "exp_avg": zeros, "exp_avg_sq": zeros.clone()}

    optimizer.register_step_pre_hook(fill)
    for step in range(3):
        give_gradients(params, step)
        optimizer.step()
    assert optimizer.state[params[0]]["exp_avg"].dtype == torch.bfloat16
    assert optimizer.state[params[0]]["step"] == 3


def test_replaced_parameters_can_be_saved() -> None:
    """What Accelerate does; torch's Adagrad raises KeyError."""
    params = parameters("Adagrad")
    optimizer = funcopt.optim.Adagrad(params)
    optimizer.param_groups[0]["params"] = fresh = parameters("Adagrad")
    give_gradients(fresh, 0)
    optimizer.step()
    assert list(optimizer.state_dict()["state"]) == [0, 1, 2, 3]


def test_a_group_has_its_own_initial_accumulator() -> None:
    first, second = parameters("Adagrad")[1:3]
    groups = [{"params": [first]}, {"params": [second], "initial_accumulator_value": 0.5}]
    optimizer = funcopt.optim.Adagrad(groups)
    assert (optimizer.state[second]["sum"] == 0.5).all()
    assert (optimizer.state[first]["sum"] == 0).all()
