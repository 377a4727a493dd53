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


@pytest.mark.parametrize("name", FACTORIES)
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


def test_a_rate_that_is_kept_is_no_difference_between_sessions():
    """Both runs keep it: a session compares ways to run, not formulas. The laws of agreement are for those."""
    run_state_machine_as_test(session(rate_at_first_use()), settings=settings(QUICK, max_examples=3))
