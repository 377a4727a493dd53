"""Training sessions: right for optimizers, and a finding for what only a session shows."""

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

import funcopt as fo
from funcopt import tree
from funcopt.testing import LawViolation, session

QUICK = settings(
    max_examples=8,
    stateful_step_count=16,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
FACTORIES = {
    "sgd": lambda rate: fo.sgd(rate, 0.9),
    "adam": fo.adam,
    "clipped adamw": lambda rate: fo.chain(fo.clip_by_global_norm(1.0), fo.adamw(rate, weight_decay=0.1)),
}


@pytest.fixture(autouse=True)
def fresh_compiler():
    yield
    torch.compiler.reset()


LAST = "clipped adamw"


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n == LAST else []) for n in FACTORIES])
def test_sessions(name):
    run_state_machine_as_test(session(FACTORIES[name]), settings=QUICK)


def hidden_buffer():
    """Momentum that lives beside the state."""
    buffers = {}

    def make(rate):
        def update(updates, state, params=None, **extra):
            for path, g in tree.leaves_with_path(updates):
                if g is not None:
                    buffers[path] = 0.9 * buffers.get(path, torch.zeros_like(g)) + g
            new = [None if g is None else -rate * buffers[path] for path, g in tree.leaves_with_path(updates)]
            return tree.unflatten(new, tree.flatten(updates)[1]), state

        return fo.GradientTransformation(fo.identity().init, update)

    return make


def rate_at_first_use():
    """The learning rate of the first step stays (torch.optim.Rprop: lr changes are ignored after the first step)."""

    def make(rate):
        def init(params):
            return torch.full((), -1.0)

        def update(updates, kept, params=None, **extra):
            kept = torch.where(kept < 0, torch.as_tensor(rate, dtype=torch.float32), kept)
            return tree.map_rule(lambda g: -kept * g, updates), kept

        return fo.GradientTransformation(init, update)

    return make


def test_a_session_finds_momentum_beside_the_state():
    with pytest.raises(LawViolation, match="session: Whatever happens in between"):
        run_state_machine_as_test(session(hidden_buffer()), settings=settings(QUICK, phases=[Phase.generate]))


def none_as_zero(rate):
    """A leaf without a gradient goes on by its momentum."""

    def update(updates, state, params=None, **extra):
        dense = {name: torch.zeros_like(params[name]) if g is None else g for name, g in updates.items()}
        return fo.sgd(rate, 0.9).update(dense, state, params)

    return fo.GradientTransformation(fo.sgd(rate, 0.9).init, update)


def share_of_leaves(rate):
    """Divided by the number of leaves, those without a gradient included: a group that enters slows down the others."""

    def update(updates, state, params=None, **extra):
        count = len(tree.flatten(updates)[0])
        return tree.map_rule(lambda g: -rate / count * g, updates), state

    return fo.GradientTransformation(fo.identity().init, update)


def keeps_its_parameters(rate):
    """The parameters themselves are the state: written in place, they take it along."""

    def update(updates, state, params=None, **extra):
        return tree.map_rule(lambda g, p, start: -rate * (g + p - start), updates, reads=(params, state)), state

    return fo.GradientTransformation(lambda params: params, update)


@pytest.mark.parametrize(
    "factory, told",
    [(none_as_zero, "a frozen leaf at"), (share_of_leaves, "values at"), (keeps_its_parameters, "adapter: values at")],
)
def test_a_session_finds(factory, told):
    found = settings(QUICK, max_examples=30, phases=[Phase.generate], report_multiple_bugs=False)
    with pytest.raises(LawViolation, match=told):
        run_state_machine_as_test(session(factory, backend="eager"), settings=found)


def test_a_rate_that_is_kept_is_no_difference_between_sessions():
    """Both runs keep it: a session compares ways to run, not formulas. The laws of agreement are for those."""
    run_state_machine_as_test(session(rate_at_first_use()), settings=settings(QUICK, max_examples=3))


def test_a_group_may_be_added_after_a_change_of_the_rate():
    """The state tells the rate of the last step, and before the first one the rate that it was made for."""
    machine = session(fo.sgd, grows=True)()
    machine.change_learning_rate(rate=0.5)
    machine.add_group()
    machine.is_the_plain_run()
