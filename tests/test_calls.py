"""How transformations print, and what their errors say: the name, the path, what was expected and given."""

import ast
import inspect

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import funcopt as fo
from tests.catalogue import CASES, SCHEDULE_CASES, case_id
from tests.trees import draw


@pytest.mark.parametrize(
    "build, text",
    [
        (
            lambda: fo.chain(fo.clip_by_global_norm(1.0), fo.adamw(0.001)),
            "chain(clip_by_global_norm(1.0), adamw(0.001))",
        ),
        (
            lambda: fo.adam(fo.linear_schedule(0.1, 0.0, transition_steps=3), b1=0.8),
            "adam(linear_schedule(0.1, 0.0, transition_steps=3), b1=0.8)",
        ),
        (lambda: fo.named_chain(("a", fo.sgd(0.1))), "named_chain(('a', sgd(0.1)))"),
        (lambda: fo.chain(), "chain()"),
        (lambda: fo.sgd(torch.tensor(0.5), momentum=None), "sgd(tensor(0.5000), momentum=None)"),
        (lambda: fo.scale(torch.ones(2)), "scale(<tensor of shape (2,)>)"),
        (lambda: fo.scale_by_adam(mu_dtype=torch.bfloat16), "scale_by_adam(mu_dtype=torch.bfloat16)"),
        (lambda: fo.adamw(0.1, mask={"a": True, "b": [False]}), "adamw(0.1, mask={'a': True, 'b': [False]})"),
        (lambda: fo.stateless(halve), "stateless(halve)"),
        (lambda: fo.stateless_with_tree_map(lambda u, p: u), "stateless_with_tree_map(<lambda>)"),
        (lambda: mine(0.3, fo.identity()), "mine(0.3, identity())"),
        (lambda: fo.GradientTransformation(len, len), "GradientTransformation(init, update)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_repr(build, text):
    assert repr(build()) == text


def halve(updates, params):
    return updates


@fo.factory
def mine(rate, inner):
    return fo.chain(inner, fo.scale(rate))


PLAIN = [
    (entry, case)
    for entry, case in CASES
    if entry.build is None and not any(callable(v) or isinstance(v, torch.dtype) for v in case.values())
]


@pytest.mark.parametrize("entry, case", PLAIN, ids=case_id)
def test_the_repr_is_the_call_that_makes_it(entry, case):
    text = repr(entry.make(**case))
    assert eval(text, vars(fo)).call.kwargs == case
    assert ast.parse(text)


@pytest.mark.parametrize("entry, case", SCHEDULE_CASES, ids=case_id)
def test_schedules_know_their_call(entry, case):
    assert repr(entry.make(**case.arguments).call).startswith(f"{entry.name}(")


def test_a_decorated_factory_keeps_its_signature():
    assert list(inspect.signature(fo.adam).parameters)[:3] == ["learning_rate", "b1", "b2"]
    assert fo.adam.__doc__.startswith("Adam (Kingma")


def test_a_schedule_of_ones_own_prints_as_its_call():
    @fo.schedule_factory
    def halving(start):
        return lambda count: start * 0.5**count

    assert repr(fo.sgd(halving(0.1))) == "sgd(halving(0.1))"


def test_recording_costs_no_graph():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")

    def step(rate, grads):
        optimizer = mine(0.3, fo.adam(rate))
        return optimizer.update(grads, optimizer.init(grads))[0]

    compiled = torch.compile(step, backend=counter, fullgraph=True)
    for rate in (0.1, 0.2):
        compiled(torch.tensor(rate), torch.ones(2))
    assert counter.frame_count == 1


# ----------------------------------------------------------------------------------------------------- errors

OPTIMIZER = fo.chain(fo.clip_by_global_norm(1.0), fo.adamw(0.1))


def without(values, *path):
    values = {**values, "a": dict(values["a"])}
    parent = values
    for key in path[:-1]:
        parent = parent[key]
    del parent[path[-1]]
    return values


def replaced(values, leaf):
    return {**values, "a": {**values["a"], "weight": leaf}}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (lambda g, s, p: (without(g, "a", "bias"), s, p), r"scale_by_adam: updates: 'a\.bias' is missing"),
        (lambda g, s, p: ({**g, "d": g["c"]}, s, p), r"scale_by_adam: updates: 'd' is not expected"),
        (
            lambda g, s, p: (replaced(g, torch.ones(3)), s, p),
            r"scale_by_adam: updates at 'a\.weight' must be a tensor of shape \(4, 3\), got a tensor of shape \(3,\)",
        ),
        (
            lambda g, s, p: (replaced(g, torch.ones(())), s, p),
            r"scale_by_adam: updates at 'a\.weight' must be a tensor of shape \(4, 3\), got a tensor of shape \(\)",
        ),
        (
            lambda g, s, p: (g, OPTIMIZER.init(replaced(p, torch.ones(5, 3))), p),
            r"scale_by_adam: the state at 'mu\.a\.weight' must be a tensor of shape \(4, 3\), got .* \(5, 3\)",
        ),
        (
            lambda g, s, p: (g, OPTIMIZER.init(without(p, "a", "bias")), p),
            r"scale_by_adam: the state: 'mu\.a\.bias' is missing",
        ),
        (lambda g, s, p: (g, s[0], p), "chain: update expects a tuple of 2 states, got a ClipByGlobalNormState of 2"),
        (lambda g, s, p: (g, s[1], p), "chain: update expects a tuple of 2 states, got a tuple of 3"),
        (
            lambda g, s, p: (g, (s[0], fo.rmsprop(0.1, momentum=0.9).init(p)), p),
            "scale_by_adam: the state must be a ScaleByAdamState, got a ScaleByRmsState",
        ),
        (
            lambda g, s, p: ([g["a"], g["b"], g["c"]], s, p),
            r"scale_by_adam: updates must be a dict, got a list of 3",
        ),
        (lambda g, s, p: (g, s), r"add_decayed_weights: update needs the parameters"),
        (lambda g, s, p: (g, s, without(p, "a", "bias")), r": updates: 'a\.bias' is not expected"),
    ],
)
def test_what_does_not_belong_together_is_told_by_name_and_path(arguments, message):
    params, grads = draw(1), draw(2)
    with pytest.raises(ValueError, match=message):
        OPTIMIZER.update(*arguments(grads, OPTIMIZER.init(params), params))


@fo.factory
def scale_by_loss():
    def update(updates, state, params=None, *, value, **extra):
        return fo.tree.map_rule(lambda g: value * g, updates), state

    return fo.GradientTransformation(lambda params: fo.EmptyState(), update)


def test_a_missing_extra_argument_is_told_by_name():
    optimizer = fo.chain(fo.clip(1.0), fo.named_chain(("inner", fo.chain(scale_by_loss(), fo.sgd(0.1)))))
    params = torch.ones(2)
    state = optimizer.init(params)
    with pytest.raises(TypeError, match=r"scale_by_loss: update needs the extra argument 'value'; .*value=\.\.\."):
        optimizer.update(params, state, params, other=1)
    updates, _ = optimizer.update(params, state, params, value=2.0, other=1)
    assert updates.tolist() == pytest.approx([-0.2, -0.2])


def test_an_error_of_another_kind_is_kept():
    def broken(updates, params):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fo.chain(fo.stateless(broken)).update(torch.ones(1), (fo.EmptyState(),))


def test_errors_name_the_factory_that_uses_stateless():
    with pytest.raises(ValueError, match="clip_by_block_rms: updates: 'b' is missing"):
        fo.clip_by_block_rms(1.0).update({"a": torch.ones(1), "c": None}, None, {"a": torch.ones(1), "b": None})
