"""The compiled step: one graph, the numbers of the eager one, and writes in place."""

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager
from torch.optim import lr_scheduler

import funcopt as fo
from funcopt.optim import Optimizer, as_optimizer
from tests.trees import assert_close, assert_identical


class Graphs:
    """A backend that counts the graphs it compiles."""

    def __init__(self):
        self.count = 0

    def __call__(self, module, inputs):
        self.count += 1
        return aot_eager(module, inputs)


def clipped(learning_rate, weight_decay=0.1, b1=0.9, b2=0.99):
    return fo.chain(fo.clip_by_global_norm(0.5), fo.adamw(learning_rate, b1, b2, weight_decay=weight_decay))


def injected(params, **options):
    tx = fo.chain(fo.clip_by_global_norm(0.5), fo.inject_hyperparams(fo.adamw)(0.1, weight_decay=0.1))
    return Optimizer(params, tx, **options)


MAKERS = {
    "adamw": lambda params, **options: as_optimizer(fo.adamw)(params, lr=0.1, **options),
    "all groups together": lambda params, **options: as_optimizer(clipped)(params, lr=0.1, **options),
    "injected": injected,
}


def pair(make, backend):
    """An eager optimizer and a compiled one, of two groups each."""
    made = []
    for options in ({}, {"compile": {"backend": backend}}):
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(shape)) for shape in ((3, 2), (4,))]
        groups = [{"params": params[:1]}, {"params": params[1:], "weight_decay": 0.3}]
        made.append((params, make(groups, **options)))
    return made


def step_both(made, step, absent=()):
    for params, optimizer in made:
        for i, param in enumerate(params):
            generator = torch.Generator().manual_seed(10 * step + i)
            param.grad = None if i in absent else torch.randn(param.shape, generator=generator)
        optimizer.step()


SLOW = [pytest.mark.slow]


@pytest.mark.parametrize(
    "name", ["all groups together", pytest.param("adamw", marks=SLOW), pytest.param("injected", marks=SLOW)]
)
def test_changed_numbers_compile_nothing_and_absent_gradients_once(name):
    graphs = Graphs()
    made = pair(MAKERS[name], graphs)
    step_both(made, 0)
    places = [leaf.data_ptr() for state in made[1][1].state.values() for leaf in state.values()]
    places += [param.data_ptr() for param in made[1][0]]
    assert graphs.count == 1
    for step in range(1, 20):
        for _, optimizer in made:
            for k, group in enumerate(optimizer.param_groups):
                group["lr"] = 0.1 / (step + k)
                group["betas"] = (0.9 - 0.01 * step, 0.99 - 0.001 * step)
                group["weight_decay"] = 0.01 * step
        step_both(made, step, absent=(1,) if step in (5, 6, 9) else ())
        assert graphs.count == (1 if step < 5 else 2)
    (eager_params, eager), (params, compiled) = made
    assert_close([p.detach() for p in params], [p.detach() for p in eager_params], 1e-5)
    assert_close(compiled.functional_state(), eager.functional_state(), 1e-5)
    assert places == [leaf.data_ptr() for state in compiled.state.values() for leaf in state.values()] + [
        param.data_ptr() for param in params
    ]
    assert type(compiled).step.__name__ == compiled.step.__func__.__name__ == "step"


def test_schedulers_wrap_the_compiled_step_and_momentum_is_cycled():
    graphs = Graphs()
    made = pair(lambda params, **options: as_optimizer(fo.sgd)(params, lr=0.1, momentum=0.9, **options), graphs)
    schedulers = [lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10) for _, optimizer in made]
    for step in range(6):
        step_both(made, step)
        for scheduler in schedulers:
            scheduler.step()
    assert graphs.count == 1
    assert_close([p.detach() for p in made[1][0]], [p.detach() for p in made[0][0]], 1e-5)


@pytest.mark.slow
def test_checkpoints_go_from_compiled_to_eager_and_back():
    graphs = Graphs()
    (eager_params, eager), (params, compiled) = made = pair(MAKERS["adamw"], graphs)
    step_both(made, 0)
    for _ in range(2):
        states = eager.state_dict(), compiled.state_dict()
        eager.load_state_dict(states[1])
        compiled.load_state_dict(states[0])
        step_both(made, 1)
    assert graphs.count == 1
    assert_close([p.detach() for p in params], [p.detach() for p in eager_params], 1e-5)


def test_tensor_rates_and_extra_arguments():
    graphs = Graphs()
    rate = torch.tensor(0.1)

    def plateau(learning_rate):
        return fo.chain(fo.sgd(learning_rate), fo.reduce_on_plateau(factor=0.5, patience=1))

    params = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    make = as_optimizer(plateau)
    optimizers = make([params[0]], lr=rate), make([params[1]], lr=rate, compile={"backend": graphs})
    for step in range(4):
        rate.fill_(0.1 / (step + 1))
        for param, optimizer in zip(params, optimizers):
            param.grad = torch.ones(2)
            optimizer.step(value=1.0 + step)
    assert graphs.count == 1
    assert params[0][0] > 0.8
    torch.testing.assert_close(params[1].detach(), params[0].detach())


def test_failures_leave_everything_as_it_was():
    param = torch.nn.Parameter(torch.ones(2))
    optimizer = as_optimizer(fo.sgd)([param], lr=0.1, momentum=0.9, compile={"backend": "eager"})
    param.grad = torch.ones(2)
    optimizer.step()
    before = [param.detach().clone(), *(leaf.clone() for leaf in optimizer.state[param].values())]
    for value, kind in (("much", TypeError), (-0.5, ValueError)):
        optimizer.param_groups[0]["momentum"] = value
        with pytest.raises(kind, match="trace: decay must"):
            optimizer.step()
    assert_identical([param.detach(), *optimizer.state[param].values()], before)


def test_flags_that_are_extra_arguments_choose_the_graph():
    graphs = Graphs()
    param = torch.nn.Parameter(torch.ones(2))
    tx = fo.accumulate_gradients(fo.sgd(0.1), 2)
    optimizer = Optimizer([param], tx, compile={"backend": graphs})
    history = []
    for emit in (False, True, False, True):
        param.grad = torch.ones(2)
        optimizer.step(emit=emit)
        history.append(param[0].item())
    assert graphs.count == 2
    assert history == pytest.approx([1.0, 0.9, 0.9, 0.8])


@pytest.mark.slow
def test_inductor():
    made = pair(MAKERS["all groups together"], "inductor")
    for step in range(3):
        step_both(made, step)
    assert_close([p.detach() for p in made[1][0]], [p.detach() for p in made[0][0]], 1e-5)
