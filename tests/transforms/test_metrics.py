"""Metrics: their values, their names, and reading them eagerly, compiled, donated and vmapped."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import grad, vmap

import funcopt as fo
from funcopt import tree
from tests.catalogue import decaying
from tests.trees import assert_close, assert_identical, draw, stack

ALWAYS = ["gradient_norm", "update_norm", "param_norm", "update_to_param_ratio", "nonfinite_count"]
NAN, INF = float("nan"), float("inf")


def numbers(state):
    return {name: pytest.approx(value.item(), nan_ok=True) for name, value in fo.metrics(state).items()}


def after(optimizer, params, *gradients):
    state = optimizer.init(params)
    for grads in gradients:
        _, state = optimizer.update(grads, state, params)
    return state


def of(*values):
    return {"w": torch.tensor(values)}


def test_values():
    optimizer = fo.with_metrics(fo.chain(fo.clip_by_global_norm(1.0), fo.sgd(lambda count: 0.5 / (1 + count))))
    params = {"w": torch.tensor([6.0]), "b": torch.tensor([8.0])}
    state = after(optimizer, params, {"w": torch.tensor([3.0]), "b": torch.tensor([4.0])})
    expected = {
        "gradient_norm": 5.0,
        "update_norm": 0.5,
        "param_norm": 10.0,
        "update_to_param_ratio": 0.05,
        "nonfinite_count": 0.0,
        "clip_fraction": 1.0,
        "learning_rate": 0.5,
    }
    assert list(fo.metrics(state)) == list(expected)
    assert numbers(state) == expected
    _, state = optimizer.update({"w": torch.tensor([0.3]), "b": torch.tensor([0.4])}, state, params)
    changed = {"gradient_norm": 0.5, "update_norm": 0.125, "update_to_param_ratio": 0.0125}
    assert numbers(state) == {**expected, **changed, "clip_fraction": 0.5, "learning_rate": 0.25}


def test_the_share_of_clipped_steps():
    optimizer = fo.with_metrics(fo.clip_by_global_norm(1.0))
    state = optimizer.init(of(1.0))
    clipped = 0
    for step in range(1, 101):
        large = step % 3 == 0
        clipped += large
        _, state = optimizer.update(of(2.0 if large else 0.5), state, of(1.0))
        assert state.metrics["clip_fraction"].item() == pytest.approx(clipped / step, rel=1e-6)


def test_steps_that_were_not_finite():
    optimizer = fo.with_metrics(fo.sgd(0.1))
    state = after(optimizer, of(1.0, 2.0), of(1.0, NAN), of(INF, -INF), of(1.0, 1.0), of(1.0, -INF))
    assert state.metrics["nonfinite_count"].item() == 3
    assert state.metrics["gradient_norm"].item() == INF
    state = after(optimizer, of(1.0, 2.0), of(1.0, NAN))
    assert state.metrics["gradient_norm"].isnan(), "a norm of 0 would hide it"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.complex64])
def test_all_are_scalars_of_one_dtype(dtype):
    params = draw(1, dtype)
    optimizer = fo.with_metrics(fo.chain(fo.clip_by_global_norm(1.0), fo.sgd(decaying)))
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    for state in (optimizer.init(params), after(optimizer, params, draw(2, dtype))):
        assert [(value.shape, value.dtype) for value in fo.metrics(state).values()] == [((), expected)] * 7
    assert torch.stack(list(fo.metrics(state).values())).shape == (7,)


def test_params_of_zero():
    assert numbers(after(fo.with_metrics(fo.sgd(0.5)), of(0.0), of(2.0))) == {
        **{"gradient_norm": 2.0, "update_norm": 1.0, "param_norm": 0.0, "update_to_param_ratio": 0.0},
        **{"nonfinite_count": 0.0, "learning_rate": 0.5},
    }


def test_params_are_needed():
    optimizer = fo.with_metrics(fo.sgd(0.5))
    with pytest.raises(ValueError, match="with_metrics: update needs the parameters"):
        optimizer.update(of(2.0), optimizer.init(of(1.0)))


def test_without_any_gradient():
    state = after(fo.with_metrics(fo.sgd(0.5)), of(1.0), {"w": None})
    assert state.metrics["gradient_norm"].item() == 0
    assert state.metrics["param_norm"].item() == 1


def test_the_inner_transformation_does_not_notice():
    inner = fo.chain(fo.clip_by_global_norm(1.0), fo.adamw(0.1))
    optimizer, params = fo.with_metrics(inner), draw(1)
    state, expected = optimizer.init(params), inner.init(params)
    for step in range(3):
        updates, state = optimizer.update(draw(step), state, params)
        expected_updates, expected = inner.update(draw(step), expected, params)
        assert_identical((updates, state.inner_state), (expected_updates, expected))


def test_what_an_inner_transformation_needs_reaches_it():
    def update(updates, state, params=None, *, value, **extra):
        return tree.map(lambda g: value * g, updates), state

    optimizer = fo.with_metrics(fo.GradientTransformation(fo.chain().init, update))
    updates, _ = optimizer.update(of(2.0), optimizer.init(of(1.0)), of(1.0), value=torch.tensor(3.0))
    assert updates["w"].item() == 6
    with pytest.raises(TypeError, match="inner must be a GradientTransformation"):
        fo.with_metrics(fo.adam)


class PartState(NamedTuple):
    inner_states: dict[str, Any]


class PairState(NamedTuple):
    fast_state: Any
    slow_state: Any


def rate(value):
    return fo.ScaleByLearningRateState(torch.tensor(0), torch.tensor(value))


NAMES = {
    "one is called as it is, however deep": (
        ((), PartState({"encoder": (PairState(rate(1.0), ()),)})),
        {"learning_rate": 1.0},
    ),
    "labels tell parts apart": (
        PartState({"encoder": (fo.EmptyState(), rate(1.0)), "head": (rate(2.0),)}),
        {"encoder.learning_rate": 1.0, "head.learning_rate": 2.0},
    ),
    "nested labels": (
        {"a": PartState({"x": rate(1.0), "y": rate(2.0)}), "b": PartState({"x": rate(3.0)})},
        {"a.x.learning_rate": 1.0, "a.y.learning_rate": 2.0, "b.x.learning_rate": 3.0},
    ),
    "positions only where labels do not": (
        {"a": (rate(1.0), rate(2.0)), "b": (rate(3.0),)},
        {"a.0.learning_rate": 1.0, "a.1.learning_rate": 2.0, "b.learning_rate": 3.0},
    ),
    "a chain": ((rate(1.0), (rate(2.0),)), {"0.learning_rate": 1.0, "1.0.learning_rate": 2.0}),
    "fields only where positions do not": (
        ({"a": PairState(rate(1.0), rate(2.0))},),
        {"0.a.fast_state.learning_rate": 1.0, "0.a.slow_state.learning_rate": 2.0},
    ),
    "the outer one needs no label": (
        fo.SnapshotState({"norm": torch.tensor(1.0)}),
        {"norm": 1.0},
    ),
    "inside and outside": (
        PairState(fo.SnapshotState({"norm": torch.tensor(1.0)}), {"a": fo.SnapshotState({"norm": torch.tensor(2.0)})}),
        {"norm": 1.0, "a.norm": 2.0},
    ),
    "trees by leaf, without what is absent": (
        fo.SnapshotState({"seen": {"w": torch.tensor(1.0), "layers": [torch.tensor(2.0), None]}}),
        {"seen.w": 1.0, "seen.layers.0": 2.0},
    ),
    "a name that looks like a label": (
        (fo.SnapshotState({"a.learning_rate": torch.tensor(0.0)}), {"a": rate(1.0), "b": rate(2.0)}),
        {"a.learning_rate": 0.0, "1.a.learning_rate": 1.0, "b.learning_rate": 2.0},
    ),
    "a name that looks like a label, under a label": (
        ({"k": fo.SnapshotState({"a.learning_rate": torch.tensor(0.0)})}, {"a": rate(1.0), "b": rate(2.0)}),
        {"0.k.a.learning_rate": 0.0, "1.a.learning_rate": 1.0, "1.b.learning_rate": 2.0},
    ),
    "nothing to show": ((fo.EmptyState(), {"w": torch.ones(2), "b": None}), {}),
}


@pytest.mark.parametrize("name", NAMES)
def test_names(name):
    state, expected = NAMES[name]
    assert {name: value.item() for name, value in fo.metrics(state).items()} == expected


def test_clips_in_several_places():
    def part(max_norm):
        return fo.chain(fo.clip_by_global_norm(max_norm), fo.scale(-1.0))

    optimizer = fo.with_metrics(fo.named_chain(("loose", part(9.0)), ("tight", part(1.0))))
    state = after(optimizer, of(0.0), of(5.0))
    assert list(state.metrics) == [*ALWAYS, "loose.clip_fraction", "tight.clip_fraction"]
    assert [state.metrics[f"{name}.clip_fraction"].item() for name in ("loose", "tight")] == [0.0, 1.0]


def test_wrapped_within_what_is_wrapped():
    inner = fo.with_metrics(fo.clip_by_global_norm(1.0))
    state = after(fo.with_metrics(fo.named_chain(("part", inner), ("step", fo.sgd(0.5)))), of(0.0), of(4.0))
    found = fo.metrics(state)
    assert found["update_norm"].item() == 0.5
    assert found["part.update_norm"].item() == 1.0
    assert found["part.clip_fraction"].item() == found["clip_fraction"].item() == 1.0
    assert len(found) == 2 * len(ALWAYS) + 3


class LengthState(NamedTuple):
    metrics: dict[str, Tensor]


class SizeState(NamedTuple):
    size: Tensor

    @property
    def metrics(self) -> dict[str, Tensor]:
        return {"size": self.size}


def test_states_of_your_own():
    state = fo.with_metrics(fo.sgd(0.5)).init(of(1.0))
    state = (state, LengthState({"length": torch.tensor(3.0)}), SizeState(torch.tensor(2)))
    found = fo.metrics(state)
    assert (found["length"].item(), found["size"].item()) == (3, 2)
    shown: fo.HasMetrics = state[2]
    assert shown.metrics == {"size": torch.tensor(2)}


OPTIMIZER = fo.with_metrics(
    fo.named_chain(
        ("clip", fo.clip_by_global_norm(1.0)),
        ("seen", fo.snapshot("norm", fo.global_norm)),
        ("adam", fo.adam(decaying)),
    )
)


def step(params, state, target):
    grads = grad(lambda params: ((params["w"] - target) ** 2).sum())(params)
    updates, state = OPTIMIZER.update(grads, state, params)
    return fo.apply_updates(params, updates), state, fo.metrics(state)


def trained(step, params, state, steps=4):
    seen = []
    for number in range(steps):
        params, state, shown = step(params, state, torch.full((2,), float(number)))
        seen.append(shown)
    return seen


def test_read_in_a_compiled_step():
    torch._dynamo.reset()
    counter, params = CompileCounterWithBackend("aot_eager"), of(1.0, -2.0)
    seen = trained(fo.compile(step, backend=counter), params, OPTIMIZER.init(params))
    assert_close(seen, trained(step, params, OPTIMIZER.init(params)), rtol=2e-6)
    assert counter.frame_count == 1
    torch._dynamo.reset()


def test_what_was_read_outlives_a_donated_state():
    torch._dynamo.reset()
    params = of(1.0, -2.0)
    expected = trained(step, params, OPTIMIZER.init(params))
    compiled = fo.compile(step, donate_argnums=(0, 1), backend="aot_eager")
    assert_close(trained(compiled, tree.clone(params), OPTIMIZER.init(params)), expected, rtol=2e-6)
    torch._dynamo.reset()


def test_copies():
    state = after(OPTIMIZER, of(1.0, 2.0), of(3.0, 4.0))
    before = tree.clone(state)
    for value in fo.metrics(state).values():
        value.fill_(77)
    assert_identical(state, before)


def test_read_in_a_vmapped_step():
    models = [of(float(seed), -2.0) for seed in range(3)]
    target = torch.tensor([0.5, 1.0])
    stacked = stack(models)
    _, _, shown = vmap(step, (0, 0, None))(stacked, vmap(OPTIMIZER.init)(stacked), target)
    expected = [step(params, OPTIMIZER.init(params), target)[2] for params in models]
    assert_close(shown, stack(expected), rtol=1e-6)


def test_learning_from_a_metric():
    """A metric is a number like others: it may be differentiated."""

    def update_norm(learning_rate):
        optimizer = fo.with_metrics(fo.sgd(learning_rate))
        _, state = optimizer.update(of(3.0, 4.0), optimizer.init(of(1.0, 1.0)), of(1.0, 1.0))
        return fo.metrics(state)["update_norm"]

    assert grad(update_norm)(torch.tensor(0.1)).item() == pytest.approx(5.0)
