"""eval_params and train_params: views are found through any nesting, and act on their own leaves."""

from typing import Any, NamedTuple

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import grad, jvp, vmap

import funcopt as fo
from funcopt import tree
from tests.trees import assert_close, assert_identical, draw, finite_difference, stack


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()


class Inner(NamedTuple):
    """The state of a wrapper that is no view."""

    inner_state: Any
    count: torch.Tensor


class Doubled(NamedTuple):
    """A view of a user's own: it evaluates with twice the values that it keeps."""

    kept: Any

    def eval_params(self, params):
        return tree.map(lambda leaf: 2 * leaf, self.kept)


COUNT = torch.zeros((), dtype=torch.int32)
KEPT = {"a": torch.full((2,), 3.0), "b": [torch.ones(())]}
PARAMS = {"a": torch.zeros(2), "b": [torch.tensor(5.0)]}
ONLY_A = {"a": KEPT["a"], "b": [tree.MaskedNode()]}
ONLY_B = {"a": tree.MaskedNode(), "b": KEPT["b"]}
EMPTY = fo.EmptyState()

STATES = {
    "itself": (Doubled(KEPT), ([6, 6], 2)),
    "in a chain": ((EMPTY, (Doubled(KEPT), {"count": COUNT})), ([6, 6], 2)),
    "in a named chain": ({"clip": EMPTY, "average": Doubled(KEPT)}, ([6, 6], 2)),
    "in a wrapper, in a list": ([Inner(Inner(Doubled(KEPT), COUNT), COUNT)], ([6, 6], 2)),
    "masked": (Inner(Doubled(ONLY_A), COUNT), ([6, 6], 5)),
    "two of a partition": ({"x": Inner(Doubled(ONLY_A), COUNT), "y": Inner(Doubled(ONLY_B), COUNT)}, ([6, 6], 2)),
    "masked out altogether": (Doubled(tree.mask(KEPT, {"a": False, "b": False})), ([0, 0], 5)),
    "one that gives what it keeps": ((fo.LookaheadState(EMPTY, COUNT, KEPT),), ([3, 3], 1)),
    "none": ((EMPTY, {"mu": KEPT}, None), ([0, 0], 5)),
}


@pytest.mark.parametrize("name", STATES)
def test_views_are_found(name):
    state, (a, b) = STATES[name]
    evaluated = fo.eval_params(state, PARAMS)
    assert evaluated["a"].tolist() == a and evaluated["b"][0].item() == b


@pytest.mark.parametrize("name", STATES)
def test_nothing_is_shared(name):
    state, _ = STATES[name]
    before = tree.clone((tree.leaves(state), PARAMS))
    for leaf in tree.leaves(fo.eval_params(state, PARAMS)):
        leaf.fill_(77)
    assert_identical((tree.leaves(state), PARAMS), before)


def test_of_nested_views_the_outermost_is_asked():
    params = {"w": torch.ones(2)}
    optimizer = fo.swa(fo.ema_params(fo.sgd(1.0), 0.5), start_step=0)
    state = optimizer.init(params)
    for _ in range(3):
        updates, state = optimizer.update({"w": torch.ones(2)}, state, params)
        params = fo.apply_updates(params, updates)
    assert fo.eval_params(state, params)["w"].tolist() == [-1.0, -1.0]  # the mean of 0, -1, -2
    inner = fo.eval_params(state.inner_state, params)["w"]
    assert inner == pytest.approx((0 - 2 * 1 - 4 * 2) / 7)


def test_two_views_of_one_leaf_are_refused_by_path():
    state = ({"x": Doubled(ONLY_B)}, Inner(Doubled(KEPT), COUNT))
    with pytest.raises(ValueError, match=r"both Doubled at '0.x' and Doubled at '1.inner_state' .* the leaf 'b.0'"):
        fo.eval_params(state, PARAMS)


def test_a_state_of_other_params_is_refused():
    with pytest.raises(ValueError, match=r"eval_params: the Doubled is the state of other params.*'c' is missing"):
        fo.eval_params(Doubled(KEPT), {**PARAMS, "c": torch.ones(1)})
    with pytest.raises(ValueError, match=r"Doubled at '0' is the state of other params: a leaf of shape \(2,\)"):
        fo.eval_params((Doubled(KEPT),), {**PARAMS, "a": torch.ones(3)})
    state = fo.schedule_free_sgd().init(PARAMS)
    with pytest.raises(ValueError, match=r"the ScheduleFreeState is the state of other params.*'b.0' is not expected"):
        fo.eval_params(state, {"a": PARAMS["a"]})


def test_averages_have_no_way_back():
    for wrap in (lambda inner: fo.lookahead(inner, 2, 0.5), lambda inner: fo.ema_params(inner, 0.9)):
        state = fo.chain(fo.clip(1.0), wrap(fo.sgd(0.1))).init(PARAMS)
        with pytest.raises(ValueError, match=r"State at '1' evaluates with; keep the params of the training loop"):
            fo.train_params(state, PARAMS)
    assert_identical(fo.train_params(fo.adam(0.1).init(PARAMS), PARAMS), PARAMS)


WRAPPERS = {
    "lookahead": lambda: fo.lookahead(fo.adam(0.1), 3, 0.5),
    "ema_params": lambda: fo.ema_params(fo.adam(0.1), 0.9),
    "swa": lambda: fo.swa(fo.adam(0.1), 1),
    "schedule_free": lambda: fo.schedule_free_adamw(0.1),
}


def check_derivative(fn, at):
    expected = finite_difference(fn, at)
    assert grad(fn)(at) == pytest.approx(expected.item(), rel=1e-7)
    assert jvp(fn, (at,), (torch.ones_like(at),))[1] == pytest.approx(expected.item(), rel=1e-7)


def trained(optimizer, seed):
    params = draw(seed, torch.float32)
    state = optimizer.init(params)
    for step in range(4):
        updates, state = optimizer.update(draw(20 + step, torch.float32), state, params)
        params = fo.apply_updates(params, updates)
    return state, params


@pytest.mark.parametrize("name", WRAPPERS)
def test_before_the_first_step_both_are_the_same(name):
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.complex64):
        params = draw(1, dtype)
        assert_identical(fo.eval_params((WRAPPERS[name]().init(params),), params), params)


@pytest.mark.parametrize("name", WRAPPERS)
def test_vmapped_and_compiled(name):
    optimizer = WRAPPERS[name]()
    models = [trained(optimizer, seed) for seed in (1, 2)]
    expected = [fo.eval_params((state,), params) for state, params in models]
    states, params = stack(models)
    assert_close(vmap(fo.eval_params)((states,), params), stack(expected), rtol=1e-6)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = fo.compile(fo.eval_params, backend=counter)
    for (state, params), result in zip(models, expected):
        assert_close(compiled((state,), params), result, rtol=1e-6)
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", WRAPPERS)
def test_differentiated(name):
    optimizer = WRAPPERS[name]()

    def evaluated(start):
        params = {"w": start, "v": start**2}
        state = optimizer.init(params)
        for _ in range(2):
            updates, state = optimizer.update(params, state, params)
            params = fo.apply_updates(params, updates)
        return fo.eval_params(state, params)["v"]

    check_derivative(evaluated, torch.tensor(0.7, dtype=torch.float64))


@pytest.mark.parametrize("name", WRAPPERS)
def test_leaves_without_params_and_of_half_precision(name):
    params = {"w": torch.ones(3, dtype=torch.bfloat16), "none": None, "empty": torch.zeros(0, 2)}
    optimizer = WRAPPERS[name]()
    _, state = optimizer.update(params, optimizer.init(params), params)
    evaluated = fo.eval_params(state, params)
    assert evaluated["none"] is None and evaluated["w"].dtype == torch.bfloat16 and evaluated["empty"].shape == (0, 2)
