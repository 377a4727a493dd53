"""Hyperparameters in the state: which arguments they are, when their values count, how they are read and set."""

import collections.abc
import functools
import typing
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import grad, jvp, vmap

import funcopt as fo
from funcopt import tree
from tests.trees import all_finite, assert_close, assert_identical, draw, finite_difference, stack, weighted_sum

PARAMS = {"w": torch.tensor([1.0, 2.0]), "b": torch.tensor(0.5)}
GRADS = {"w": torch.tensor([0.3, -0.7]), "b": torch.tensor(-0.2)}
ADAMW = ["learning_rate", "b1", "b2", "eps", "eps_root", "weight_decay"]


def names(transformation):
    return list(transformation.init(PARAMS).hyperparams)


def counted(count):
    return 1.0 + count


def steps(optimizer, state, n, params=PARAMS, grads=GRADS, **extra):
    """The updates of n steps, and the state after them."""
    history = []
    for _ in range(n):
        updates, state = optimizer.update(grads, state, params, **extra)
        history.append(updates)
    return history, state


# ------------------------------------------------------------------------------------ which arguments they are


@pytest.mark.parametrize(
    "factory, arguments, expected",
    [
        (fo.adamw, {"learning_rate": 1}, ADAMW),
        (fo.adamw, {"learning_rate": counted, "mask": lambda params: True, "mu_dtype": torch.bfloat16}, ADAMW),
        (fo.sgd, {"learning_rate": 0.1}, ["learning_rate"]),
        (fo.sgd, {"learning_rate": torch.tensor(1), "momentum": 0.9, "nesterov": True}, ["learning_rate", "momentum"]),
        (fo.rmsprop, {"learning_rate": 0.1}, ["learning_rate", "decay", "eps", "initial_scale"]),
        (fo.scale_by_schedule, {"step_size_fn": counted}, []),
        (fo.scale_by_learning_rate, {}, []),
        (fo.add_noise, {"eta": 0.1, "gamma": 0.5, "key": 3}, ["eta", "gamma"]),
        (fo.add_noise, {"eta": 0.1, "gamma": 0.5, "key": fo.random.key(3)}, ["eta", "gamma"]),
        (fo.adaptive_grad_clip, {"clipping": 0.1, "layout": "jax"}, ["clipping", "eps"]),
        (functools.partial(fo.sgd, momentum=0.9), {"learning_rate": 0.1}, ["learning_rate", "momentum"]),
    ],
)
def test_of_the_factories_of_the_library(factory, arguments, expected):
    assert names(fo.inject_hyperparams(factory)(**arguments)) == expected


class Plateau(NamedTuple):
    """The rate halves while the loss is above 1; a schedule with a state, in the form that optax has too."""

    one: Any

    def init(self):
        return {"rate": self.one, "steps": 0 * self.one}

    def update(self, state, value=None, **extra):
        high = 1.0 if value is None else 1.0 - 0.5 * (value > 1)
        return {"rate": state["rate"] * high, "steps": state["steps"] + 1}

    def __call__(self, state, value=None, **extra):
        return 0.1 * state["rate"] * (1.0 if value is None else value)


def defined(source):
    """The function `make` of a module with this source."""
    module = {**vars(fo), **vars(typing), "Tensor": Tensor, "torch": torch, "Callable": collections.abc.Callable}
    exec(source, module)
    return module["make"]


UNANNOTATED = {
    "a float": (0.1, True),
    "an int": (3, False),
    "a bool": (True, False),
    "a 0-d tensor": (torch.tensor(0.1), True),
    "an integer tensor": (torch.tensor(3), False),
    "a function": (counted, False),
    "a schedule of the library": (fo.linear_schedule(1.0, 0.0, 10), True),
    "a stateful schedule": (Plateau(torch.ones(())), True),
    "a string": ("sum", False),
    "a tuple": ((0.9, 0.999), False),
    "nothing": (None, False),
}


@pytest.mark.parametrize("name", UNANNOTATED)
@pytest.mark.parametrize("annotation", ["", ": Any", ": object", ": 'Unheard'", ": 'Unheard | float'", ": AnyStr"])
def test_without_an_annotation_the_value_decides(name, annotation):
    value, expected = UNANNOTATED[name]
    make = defined(f"def make(argument{annotation}): return sgd(0.1)")
    assert names(fo.inject_hyperparams(make)(value)) == (["argument"] if expected else [])


@pytest.mark.parametrize("value, expected", [(3, True), (counted, True), (True, False), (None, False)])
def test_without_an_annotation_the_default_says_that_it_is_a_float(value, expected):
    make = defined("def make(argument=0.5): return sgd(0.1)")
    assert names(fo.inject_hyperparams(make)(value)) == (["argument"] if expected else [])
    assert names(fo.inject_hyperparams(make)()) == ["argument"]


FLOATS = ["float", "'float'", "float | None", "Optional[float]", "Union[int, 'float', None]", "int | float"]
FLOATS += ["float | Tensor", "'float | torch.Tensor'", "Annotated[float, 'rate']", "ScalarOrSchedule"]
FLOATS += ["'ScalarOrSchedule | None'", "float | Callable[[int], float]"]


@pytest.mark.parametrize("annotation", FLOATS)
def test_an_annotation_with_float(annotation):
    make = fo.inject_hyperparams(defined(f"def make(argument: {annotation} = 1): return sgd(0.1)"))
    for value in (1, 0.5, torch.tensor(0.5), torch.tensor(2), counted, Plateau(torch.ones(()))):
        assert names(make(value)) == ["argument"]
    for value in (None, True, "sum"):
        assert names(make(value)) == []


@pytest.mark.parametrize(
    "annotation", ["int", "int | None", "bool", "str", "Mask", "Mask | None", "Schedule", "tuple[float, float]"]
)
def test_an_annotation_without_float_or_tensor(annotation):
    make = fo.inject_hyperparams(defined(f"def make(argument: {annotation} = None): return sgd(0.1)"))
    for value in (1, 0.5, torch.tensor(0.5), counted, (0.1, 0.2), None, {"a": True}):
        assert names(make(value)) == []


@pytest.mark.parametrize("annotation", ["Tensor", "Tensor | int", "'Tensor | None'"])
def test_an_annotation_with_tensor_alone(annotation):
    make = fo.inject_hyperparams(defined(f"def make(argument: {annotation} = None): return sgd(0.1)"))
    assert names(make(torch.tensor(0.5))) == ["argument"]
    for value in (3, torch.tensor(3), torch.ones(2), None):
        assert names(make(value)) == []


def test_factories_with_every_kind_of_argument():
    source = "from __future__ import annotations\n"
    source += "def make(a: float, /, b: float, *links, c: float = 0.3, **rest): return chain(scale(a * b * c), *links)"
    optimizer = fo.inject_hyperparams(defined(source))(0.1, 2.0, fo.scale(10.0), tag=3)
    assert names(optimizer) == ["a", "b", "c"]
    assert steps(optimizer, optimizer.init(PARAMS), 1)[0][0]["b"].item() == pytest.approx(-0.2 * 0.6)


def test_as_a_decorator_and_of_an_object():
    @fo.inject_hyperparams
    def mine(rate: float, layers: int = 2):
        return fo.chain(*[fo.scale(rate)] * layers)

    class Made:
        def __call__(self, rate: float):
            return fo.scale(rate)

    assert names(mine(0.5)) == ["rate"] and repr(mine(0.5)) == "inject_hyperparams(mine)(0.5)"
    assert names(fo.inject_hyperparams(Made())(0.5)) == ["rate"]


def test_static_arguments_can_be_named():
    """For a factory that computes with the number itself."""

    def make(rate: float, power: float):
        return fo.scale(rate * 10 if power > 1 else rate)

    assert names(fo.inject_hyperparams(make, "power")(0.1, 2.0)) == ["rate"]
    assert names(fo.inject_hyperparams(make, static_args=("power", "rate"))(0.1, 2.0)) == []


# ------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: fo.inject_hyperparams(fo.adamw)(0.1, b2=1.5), ValueError, r"scale_by_adam: b2 must lie in \[0, 1\)"),
        (lambda: fo.inject_hyperparams(fo.adamw)(True), TypeError, "scale_by_learning_rate: .* got learning_rate=True"),
        (lambda: fo.inject_hyperparams(fo.adamw)("0.1"), TypeError, "learning_rate must be a number or a 0-d tensor"),
        (lambda: fo.inject_hyperparams(fo.sgd)(0.1, momentum=7), ValueError, "trace: decay must lie"),
        (lambda: fo.inject_hyperparams(fo.sgd)(), TypeError, r"inject_hyperparams\(sgd\): missing a required argument"),
        (lambda: fo.inject_hyperparams(fo.sgd)(0.1, lr=1), TypeError, r"inject_hyperparams\(sgd\): .*unexpected"),
        (
            lambda: fo.inject_hyperparams(fo.sgd)(torch.ones(2)),
            ValueError,
            r"inject_hyperparams\(sgd\): learning_rate must be a number, .* shape \(2,\)\. For several .* under vmap",
        ),
        (lambda: fo.inject_hyperparams(fo.sgd, "rate"), ValueError, "inject_hyperparams: sgd has no argument rate"),
        (lambda: fo.inject_hyperparams(fo.sgd(0.1)), TypeError, r"expected a factory, .* inject_hyperparams\(sgd\)\("),
        (lambda: fo.inject_hyperparams(3), TypeError, "expected a factory, got 3"),
        (lambda: fo.inject_hyperparams(fo.clip)(1.0).update(GRADS, (), PARAMS), ValueError, "must be a InjectHyper"),
        (
            lambda: fo.inject_hyperparams(lambda rate: rate)(0.1),
            TypeError,
            "the factory must return a GradientTransformation, got 0.1",
        ),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_state_that_does_not_belong_is_told_by_name_and_path():
    ours, theirs = fo.inject_hyperparams(fo.adamw)(0.1), fo.inject_hyperparams(fo.sgd)(0.1)
    with pytest.raises(ValueError, match=r"inject_hyperparams\(adamw\): the state: 'hyperparams\.b1' is missing"):
        ours.update(GRADS, theirs.init(PARAMS), PARAMS)
    state = ours.init(PARAMS)
    state.hyperparams["b1"] = 0.9
    with pytest.raises(ValueError, match=r"'hyperparams\.b1' must be a tensor of shape \(\), got a float"):
        ours.update(GRADS, state, PARAMS)
    with pytest.raises(ValueError, match="add_decayed_weights: update needs the parameters"):
        ours.update(GRADS, ours.init(PARAMS))


# ------------------------------------------------------------------------------------------- when values count


def test_the_state_shows_the_values_used():
    optimizer = fo.inject_hyperparams(fo.sgd)(counted)
    state = optimizer.init(PARAMS)
    shown, moved = [state.hyperparams["learning_rate"].item()], []
    for _ in range(3):
        updates, state = optimizer.update(GRADS, state, PARAMS)
        shown.append(state.hyperparams["learning_rate"].item())
        moved.append(-updates["w"][0].item() / 0.3)
    assert shown == [1, 1, 2, 3] and moved == pytest.approx([1, 2, 3])
    assert state.count == tree.get(state.inner_state, "count") == 3
    assert tree.get(state, "last_rate") == 3


def test_a_value_set_holds_from_the_next_step():
    optimizer = fo.inject_hyperparams(fo.sgd)(0.1)
    _, state = steps(optimizer, optimizer.init(PARAMS), 2)
    updates, state = optimizer.update(GRADS, fo.set_hyperparams(state, learning_rate=10), PARAMS)
    assert updates["b"].item() == 2.0 and state.hyperparams["learning_rate"] == 10
    assert optimizer.update(GRADS, state, PARAMS)[0]["b"].item() == 2.0


def test_every_argument_can_be_scheduled():
    """Also those that the factory takes as numbers only."""
    schedules = {
        "learning_rate": counted,
        "b1": lambda count: 0.5 / (1 + count),
        "eps": lambda count: 0.1 * counted(count),
    }
    optimizer = fo.inject_hyperparams(fo.adam)(**schedules)
    state, manual = optimizer.init(PARAMS), None
    for count in range(3):
        values = {name: torch.tensor(schedule(count)) for name, schedule in schedules.items()}
        fixed = fo.adam(**values)
        manual = fixed.init(PARAMS) if manual is None else manual
        expected, manual = fixed.update(GRADS, manual, PARAMS)
        updates, state = optimizer.update(GRADS, state, PARAMS)
        assert_close(updates, expected, rtol=1e-6)
        assert_close(dict(list(state.hyperparams.items())[:1]), {"learning_rate": values["learning_rate"]}, rtol=1e-7)


def test_stateful_schedules_as_in_optax():
    """The value comes from the state before the step and the extra arguments of this step."""
    values = [0.5, 2.0, 3.0, 0.25, 1.5, 1.0]
    ours = fo.chain(fo.clip(1.0), fo.inject_hyperparams(fo.adam)(Plateau(torch.ones((), dtype=torch.float64)), b1=0.8))
    with jax.enable_x64(True):
        grads = {"w": jnp.array([0.3, -0.7])}
        theirs = optax.inject_hyperparams(optax.adam)(Plateau(jnp.ones(())), b1=0.8)
        expected_state = theirs.init(grads)
        params = {"w": torch.tensor([0.3, -0.7], dtype=torch.float64)}
        state = ours.init(params)
        for value in values:
            updates, state = ours.update(params, state, params, value=torch.tensor(value), unused=1)
            expected, expected_state = theirs.update(grads, expected_state, grads, value=value)
            assert updates["w"].tolist() == pytest.approx(expected["w"].tolist(), rel=1e-12)
            rate = expected_state.hyperparams["learning_rate"]
            assert fo.get_hyperparams(state)["learning_rate"].item() == pytest.approx(float(rate), rel=1e-12)
    assert state[1].schedule_states == {"learning_rate_schedule": {"rate": torch.tensor(0.125), "steps": 6}}


def test_stateful_schedules_compiled_pure_and_vmapped():
    optimizer = fo.inject_hyperparams(fo.sgd)(Plateau(torch.ones(())))
    state = vmap(optimizer.init)(stack([PARAMS] * 3))
    assert all(0 not in leaf.stride() for leaf in tree.leaves(state) if leaf.numel()), "an expanded state"
    losses = torch.tensor([0.5, 2.0, 3.0])

    def update(grads, state, params, value):
        return optimizer.update(grads, state, params, value=value)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = fo.compile(vmap(update, in_dims=(None, 0, None, 0)), backend=counter)
    eager = state
    for _ in range(3):
        before = tree.clone(eager)
        _, new = vmap(update, in_dims=(None, 0, None, 0))(GRADS, eager, PARAMS, losses)
        assert_identical(eager, before)
        eager = new
        _, state = compiled(GRADS, state, PARAMS, losses)
    assert_close(state, eager, rtol=1e-6)
    assert counter.frame_count == 1
    assert state.hyperparams["learning_rate"].tolist() == pytest.approx([0.05, 0.05, 0.075])


def test_extra_arguments_reach_the_inner_transformation():
    @fo.factory
    def scale_by_loss(rate: float):
        def update(updates, state, params=None, *, value, **extra):
            return tree.map_rule(lambda g: rate * value * g, updates), state

        return fo.GradientTransformation(lambda params: fo.EmptyState(), update)

    optimizer = fo.chain(fo.inject_hyperparams(scale_by_loss)(0.5))
    updates, _ = optimizer.update(GRADS, optimizer.init(PARAMS), PARAMS, value=4.0, other=1)
    assert updates["b"].item() == pytest.approx(-0.4)
    with pytest.raises(TypeError, match="scale_by_loss: update needs the extra argument 'value'"):
        optimizer.update(GRADS, optimizer.init(PARAMS), PARAMS)


def test_replacing_a_constant_by_a_schedule_keeps_the_paths_and_the_state():
    constant = fo.inject_hyperparams(fo.adamw)(0.1, weight_decay=0.2)
    scheduled = fo.inject_hyperparams(fo.adamw)(lambda count: 0.1, weight_decay=lambda count: 0.2)
    shape = [(path, leaf.shape, leaf.dtype) for path, leaf in tree.leaves_with_path(constant.init(PARAMS))]
    assert shape == [(path, leaf.shape, leaf.dtype) for path, leaf in tree.leaves_with_path(scheduled.init(PARAMS))]
    _, state = steps(constant, constant.init(PARAMS), 2)
    straight = steps(constant, state, 2)
    exchanged = steps(scheduled, state, 2)
    assert_close(exchanged[0], straight[0], rtol=1e-6)
    assert tree.flatten(exchanged[1])[1] == tree.flatten(scheduled.init(PARAMS))[1]
    assert tree.flatten(steps(constant, exchanged[1], 1)[1])[1] == tree.flatten(constant.init(PARAMS))[1]


# --------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.complex64])
def test_values_are_at_least_float32(dtype):
    optimizer = fo.inject_hyperparams(fo.adamw)(
        lambda count: 0.1, b2=torch.tensor(0.999, dtype=torch.bfloat16).double()
    )
    state = optimizer.init({"a": torch.ones(2, dtype=dtype), "b": torch.ones(2, dtype=torch.bfloat16)})
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert {value.dtype for value in state.hyperparams.values()} == {wide}
    assert state.hyperparams["b1"] == torch.tensor(0.9, dtype=wide)


def test_values_are_on_the_device_of_the_params():
    state = fo.inject_hyperparams(fo.adamw)(0.1, b1=torch.tensor(0.9)).init({"w": torch.ones(2, device="meta")})
    assert {leaf.device.type for leaf in tree.leaves(state)} == {"meta"}


@pytest.mark.parametrize("b2", [0.999, 0.9999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bias_correction_fits_the_rounded_average(b2, dtype):
    """With a constant gradient and eps = 0 Adam moves by the learning rate, to rounding, in every step."""
    optimizer = fo.inject_hyperparams(fo.adam)(1.0, b2=b2, eps=0.0)
    grads = {"w": torch.ones(4, dtype=dtype)}
    history, _ = steps(optimizer, optimizer.init(grads), 100, grads, {"w": torch.ones(4)})
    assert max((updates["w"] + 1).abs().max().item() for updates in history) < 5e-7


# -------------------------------------------------------------------------------------------------- five modes


@fo.factory
def mine(rate: float | Tensor, decay: float | Tensor = 0.01):
    return fo.chain(fo.clip_by_global_norm(10.0), fo.inject_hyperparams(fo.adamw)(rate, weight_decay=decay))


@pytest.mark.parametrize(
    "optimizer, name",
    [
        (fo.inject_hyperparams(fo.adamw)(0.1, weight_decay=lambda count: 0.1 / (1 + count)), "learning_rate"),
        (fo.named_chain(("a", fo.clip(1.0)), ("b", fo.inject_hyperparams(fo.sgd)(0.1, 0.9))), "momentum"),
        (fo.inject_hyperparams(mine)(0.1), "learning_rate"),
    ],
    ids=["alone", "in a chain", "made anew in each step"],
)
def test_one_graph_while_values_change(optimizer, name):
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return fo.apply_updates(params, updates), state

    counter = CompileCounterWithBackend("aot_eager")
    compiled = fo.compile(step, backend=counter)
    first = second = PARAMS, optimizer.init(PARAMS)
    for count in range(20):
        first, second = (
            (params, fo.set_hyperparams(state, {name: 0.9 / (1 + count)})) for params, state in (first, second)
        )
        first, second = compiled(*first, GRADS), step(*second, GRADS)
    assert counter.frame_count == 1
    assert_close(first, second, rtol=2e-6)


def test_values_can_be_set_within_the_compiled_step():
    optimizer = fo.chain(fo.clip(1.0), fo.inject_hyperparams(fo.sgd)(0.1))

    def step(state, rate):
        return optimizer.update(GRADS, fo.set_hyperparams(state, learning_rate=rate), PARAMS)

    counter = CompileCounterWithBackend("aot_eager")
    compiled, state = fo.compile(step, backend=counter), optimizer.init(PARAMS)
    for rate in torch.linspace(1.0, 2.0, 5):
        updates, state = compiled(state, rate)
        assert updates["b"] == 0.2 * rate == 0.2 * fo.get_hyperparams(state)["learning_rate"]
    assert counter.frame_count == 1


RATES = torch.tensor([0.3, 0.1, 0.01])


def sweep_by_loop(optimizer, n):
    results = []
    for rate in RATES:
        state = fo.set_hyperparams(optimizer.init(PARAMS), learning_rate=rate)
        results.append(steps(optimizer, state, n))
    return stack([updates for updates, _ in results]), stack([state for _, state in results])


def test_one_optimizer_and_several_rates():
    """The recipe: a state for each rate, made under vmap; from then on every leaf has an axis of rates."""
    optimizer = fo.chain(fo.clip(1.0), fo.inject_hyperparams(fo.adamw)(0.1))
    state = vmap(lambda rate: fo.set_hyperparams(optimizer.init(PARAMS), learning_rate=rate))(RATES)
    history = []
    for _ in range(3):
        updates, state = vmap(optimizer.update, in_dims=(None, 0, None))(GRADS, state, PARAMS)
        history.append(updates)
    assert_close((history, state), sweep_by_loop(optimizer, 3), rtol=1e-6)
    assert fo.get_hyperparams(state)["learning_rate"].tolist() == RATES.tolist()
    assert fo.set_hyperparams(state, learning_rate=2 * RATES)[1].hyperparams["learning_rate"].tolist() == pytest.approx(
        (2 * RATES).tolist()
    )
    assert fo.set_hyperparams(state, learning_rate=1.0)[1].hyperparams["learning_rate"].tolist() == [1, 1, 1]


def test_one_optimizer_and_several_rates_by_axes():
    """The same with one state and an axis for the stacked rates alone, in the first step."""
    optimizer = fo.inject_hyperparams(fo.adamw)(0.1)
    state = optimizer.init(PARAMS)
    state = state._replace(hyperparams={**state.hyperparams, "learning_rate": RATES})
    axes = fo.InjectHyperparamsState(
        count=None,
        hyperparams={name: 0 if name == "learning_rate" else None for name in state.hyperparams},
        schedule_states=None,
        inner_state=None,
    )
    first, state = vmap(optimizer.update, in_dims=(None, axes, None))(GRADS, state, PARAMS)
    second, state = vmap(optimizer.update, in_dims=(None, 0, None))(GRADS, state, PARAMS)
    assert_close(([first, second], state), sweep_by_loop(optimizer, 2), rtol=1e-6)


@pytest.mark.parametrize("name", ADAMW)
def test_derivatives_in_values_of_the_state(name):
    """Forward, reverse and by finite differences, through two steps, whatever was computed before them."""
    optimizer, params = fo.inject_hyperparams(fo.adamw)(0.1, 0.8, 0.9, 1e-2, 1e-3, weight_decay=0.1), draw(1)
    _, state = optimizer.update(draw(2), optimizer.init(params), params)

    def fn(value):
        now = fo.set_hyperparams(state, {name: value})
        first, now = optimizer.update(draw(3), now, params)
        second, now = optimizer.update(draw(4), now, params)
        return weighted_sum((first, second, now.hyperparams))

    at = state.hyperparams[name]
    expected, reverse = finite_difference(fn, at), grad(fn)(at)
    assert abs(reverse - expected) < 1e-6 * max(1, abs(expected))
    assert abs(jvp(fn, (at,), (torch.ones_like(at),))[1] - reverse) < 1e-9 * max(1, abs(reverse))


def test_a_rate_that_is_learned_by_the_state():
    """Hypergradient descent: the derivative of a loss in the hyperparameters dict, which is then descended."""
    optimizer = fo.inject_hyperparams(fo.sgd)(0.01)
    params = {"w": torch.tensor([1.0, -2.0])}
    state = optimizer.init(params)

    def loss(params):
        return (params["w"] ** 2).sum()

    def after_a_step(hyperparams):
        updates, _ = optimizer.update(grad(loss)(params), state._replace(hyperparams=hyperparams), params)
        return loss(fo.apply_updates(params, updates))

    for _ in range(50):
        slope = grad(after_a_step)(state.hyperparams)["learning_rate"]
        state = fo.set_hyperparams(state, learning_rate=state.hyperparams["learning_rate"] - 0.01 * slope)
    assert state.hyperparams["learning_rate"].item() == pytest.approx(0.5, abs=0.01)


# ------------------------------------------------------------------------------------------------------- repr


@pytest.mark.parametrize(
    "text",
    [
        "inject_hyperparams(adamw)(learning_rate=0.1)",
        "inject_hyperparams(adamw)(0.1, weight_decay=linear_schedule(0.1, 0.0, 10))",
        "chain(clip(1.0), inject_hyperparams(sgd)(0.1, momentum=0.9))",
        "inject_hyperparams(scale)(2)",
    ],
)
def test_the_repr_is_the_call_that_makes_it(text):
    assert repr(eval(text, vars(fo))) == text


def test_the_signature_and_the_coupling_are_those_of_the_factory():
    assert fo.inject_hyperparams(fo.adamw)(0.1).coupling == "elementwise"
    assert fo.inject_hyperparams(fo.clip_by_block_rms)(0.1).coupling == "leafwise"
    assert fo.inject_hyperparams(fo.clip_by_global_norm)(0.1).coupling == "treewise"
    assert fo.inject_hyperparams(fo.adamw).__doc__ == fo.adamw.__doc__


# ------------------------------------------------------------------------------------------- reading and setting


class PairState(NamedTuple):
    fast: Any
    slow: Any


def pair(fast, slow):
    """A wrapper that holds two states in fields."""
    return fo.GradientTransformation(lambda params: PairState(fast.init(params), slow.init(params)), fast.update)


def sgd(rate, **kwargs):
    return fo.inject_hyperparams(fo.sgd)(rate, **kwargs)


NESTINGS = {
    "alone": (sgd(0.5), {"learning_rate": 0.5}),
    "in a chain": (fo.chain(fo.clip(1.0), sgd(0.5, momentum=0.25)), {"learning_rate": 0.5, "momentum": 0.25}),
    "by labels": (
        fo.named_chain(("decay", sgd(0.5, momentum=0.25)), ("rest", sgd(1.5))),
        {"decay.learning_rate": 0.5, "momentum": 0.25, "rest.learning_rate": 1.5},
    ),
    "by labels, whatever the positions": (
        fo.chain(fo.clip(1.0), fo.named_chain(("a", fo.chain(fo.clip(1.0), sgd(0.5))), ("b", sgd(1.5)))),
        {"a.learning_rate": 0.5, "b.learning_rate": 1.5},
    ),
    "by positions": (
        fo.chain(sgd(0.5), fo.named_chain(("x", fo.chain(sgd(1.5))))),
        {"0.learning_rate": 0.5, "1.x.0.learning_rate": 1.5},
    ),
    "by positions in a tuple": (fo.chain(sgd(0.5), sgd(1.5)), {"0.learning_rate": 0.5, "1.learning_rate": 1.5}),
    "by positions under a label": (
        fo.named_chain(("a", fo.chain(sgd(0.5), sgd(1.5)))),
        {"a.0.learning_rate": 0.5, "a.1.learning_rate": 1.5},
    ),
    "by fields": (
        fo.chain(pair(sgd(0.5), sgd(1.5))),
        {"0.fast.hyperparams.learning_rate": 0.5, "0.slow.hyperparams.learning_rate": 1.5},
    ),
    "within each other": (fo.inject_hyperparams(mine)(0.5), None),
    "nowhere": (fo.sgd(0.1), {}),
}


@pytest.mark.parametrize("name", NESTINGS)
def test_reading_and_setting_through_any_nesting(name):
    optimizer, expected = NESTINGS[name]
    state = optimizer.init(PARAMS)
    values = fo.get_hyperparams(state)
    if expected is not None:
        assert {key: value.item() for key, value in values.items()} == expected
    before = tree.clone(state)
    for key in values:
        new = fo.set_hyperparams(state, {key: 7.0})
        assert fo.get_hyperparams(new) == {**values, key: torch.tensor(7.0)}
        changed = [path for path, leaf in tree.leaves_with_path(new) if not any(leaf is x for x in tree.leaves(state))]
        assert len(changed) == 1 and changed[0].endswith("hyperparams." + key.split(".")[-1])
        assert fo.get_hyperparams(fo.set_hyperparams(state, {changed[0]: 7.0})) == fo.get_hyperparams(new)
    assert_identical(state, before)
    assert fo.set_hyperparams(state) is state


def test_values_take_dtype_and_device_of_the_old_ones():
    state = sgd(0.5, momentum=0.25).init(tree.cast(PARAMS, torch.float64))
    rate = torch.tensor(3, dtype=torch.int64)
    new = fo.set_hyperparams(state, {"momentum": torch.tensor(0.1)}, learning_rate=rate)
    assert {value.dtype for value in fo.get_hyperparams(new).values()} == {torch.float64}
    fo.get_hyperparams(new)["learning_rate"].fill_(0)
    assert rate == 3
    new = fo.set_hyperparams(sgd(0.5).init(PARAMS), learning_rate=torch.tensor(0.1, dtype=torch.float64))
    assert new.hyperparams["learning_rate"].dtype == torch.float32
    meta = sgd(0.5).init({"w": torch.ones(2, device="meta")})
    assert fo.get_hyperparams(fo.set_hyperparams(meta, learning_rate=1.0))["learning_rate"].device.type == "meta"


SCHEDULED = fo.chain(sgd(counted, momentum=0.5), sgd(0.5))


@pytest.mark.parametrize(
    "values, error, message",
    [
        ({"lr": 1.0}, KeyError, "no hyperparameter 'lr'; it has 0.learning_rate, momentum, 1.learning_rate"),
        ({"learning_rate": 1.0}, KeyError, "'learning_rate' may be '0.learning_rate', '1.learning_rate'; call set_"),
        ({"0.learning_rate": 1.0}, ValueError, "0.learning_rate is scheduled, and its schedule would overwrite"),
        ({"momentum": "0.9"}, TypeError, "momentum must be a number or a tensor, got momentum='0.9'"),
        ({"momentum": True}, TypeError, "got momentum=True"),
        ({"momentum": None}, TypeError, "got momentum=None"),
        ({"momentum": counted}, TypeError, "momentum must be a number or a tensor"),
        ({"momentum": torch.ones(2)}, ValueError, r"momentum must be .* got shape \(2,\).*vmap\(lambda value: set_"),
    ],
)
def test_what_cannot_be_set(values, error, message):
    state = SCHEDULED.init(PARAMS)
    before = tree.clone(state)
    with pytest.raises(error, match=message):
        fo.set_hyperparams(state, values)
    assert_identical(state, before)


def test_a_state_without_hyperparameters_says_so():
    with pytest.raises(KeyError, match="no hyperparameter 'learning_rate'; it has none at all"):
        fo.set_hyperparams(fo.sgd(0.1).init(PARAMS), learning_rate=1.0)


# ----------------------------------------------------------------------------- what optax does and we do not copy


def test_bfloat16_params_do_not_round_hyperparameters():
    """optax issue 1414: b1 becomes 0.898, b2 becomes 1, and the updates are NaN."""
    theirs = optax.inject_hyperparams(optax.adam)(0.1)
    params = {"w": jnp.ones(2, jnp.bfloat16)}
    updates, state = theirs.update(params, theirs.init(params), params)
    assert float(state.hyperparams["b1"]) == 0.8984375 and float(state.hyperparams["b2"]) == 1
    assert not jnp.isfinite(updates["w"]).all()
    ours, params = fo.inject_hyperparams(fo.adam)(0.1), {"w": torch.ones(2, dtype=torch.bfloat16)}
    updates, state = ours.update(params, ours.init(params), params)
    assert state.hyperparams["b1"].item() == pytest.approx(0.9, rel=1e-7)
    assert all_finite(updates) and updates["w"].tolist() == pytest.approx([-0.1, -0.1], rel=4e-3)


def repeated(lib, annotations):
    def make(rate, layers=2):
        return lib.chain(*[lib.scale(rate)] * layers)

    make.__annotations__ = annotations
    return make


def test_sizes_are_no_hyperparameters():
    """optax issue 412: an int becomes an array, and what needs an int fails."""
    with pytest.raises(TypeError):
        optax.inject_hyperparams(repeated(optax, {}))(0.5).init(jnp.ones(2))
    for annotations in ({}, {"rate": float, "layers": int}):
        assert names(fo.inject_hyperparams(repeated(fo, annotations))(0.5)) == ["rate"]


def test_a_function_that_is_no_schedule_stays_a_function():
    """optax issue 1373: every callable is taken for a schedule. The mask of the count is False, and nothing decays."""
    zeros, ones = {"w": jnp.zeros(2)}, {"w": jnp.ones(2)}
    theirs = optax.inject_hyperparams(optax.adamw)(0.1, mask=lambda params: jax.tree.map(lambda p: p.ndim > 0, params))
    assert theirs.update(zeros, theirs.init(ones), ones)[0]["w"].tolist() == [0, 0]
    ours = fo.inject_hyperparams(fo.adamw)(0.1, mask=lambda params: tree.map(lambda p: p.ndim > 0, params))
    params = {"w": torch.ones(2)}
    updates, _ = ours.update({"w": torch.zeros(2)}, ours.init(params), params)
    assert updates["w"].tolist() == pytest.approx([-1e-5, -1e-5])


def test_a_scheduled_rate_has_one_name():
    """optax: the value and the state of its schedule have the same name, and tree.get raises."""
    theirs = optax.inject_hyperparams(optax.sgd)(lambda count: 0.5)
    with pytest.raises(KeyError):
        optax.tree.get(theirs.init(jnp.ones(2)), "learning_rate")
    for schedule in (lambda count: 0.1, Plateau(torch.ones(()))):
        state = fo.inject_hyperparams(fo.sgd)(schedule).init(PARAMS)
        assert tree.get(state, "learning_rate").item() == pytest.approx(0.1)


def test_a_scheduled_value_cannot_be_set_in_vain():
    """optax: the value that is set has no effect."""
    theirs = optax.inject_hyperparams(optax.sgd)(lambda count: 0.5)
    state = theirs.init(jnp.ones(2))
    state.hyperparams["learning_rate"] = jnp.array(100.0)
    assert theirs.update(jnp.ones(2), state)[0].tolist() == [-0.5, -0.5]
    with pytest.raises(ValueError, match="learning_rate is scheduled"):
        fo.set_hyperparams(fo.inject_hyperparams(fo.sgd)(lambda count: 0.5).init(PARAMS), learning_rate=100.0)


def test_checks_are_not_lost_by_injection():
    """optax: values are seen as arrays only, and accepted."""
    optax.inject_hyperparams(optax.adam)(0.1, b2=1.5)
    with pytest.raises(ValueError, match="b2"):
        fo.inject_hyperparams(fo.adam)(0.1, b2=1.5)


def test_setting_by_name_keeps_dtype_and_shape():
    """optax: tree.set puts a Python float, or anything, where an array was, and a compiled step is traced anew."""
    theirs = optax.tree.set(optax.inject_hyperparams(optax.sgd)(0.5).init(jnp.ones(2)), learning_rate=[1, 2])
    assert theirs.hyperparams["learning_rate"] == [1, 2]
    state = fo.inject_hyperparams(fo.sgd)(0.5).init(PARAMS)
    assert tree.set(state, learning_rate=1.0).hyperparams["learning_rate"].dtype == torch.float32
    with pytest.raises(TypeError, match=r"'hyperparams\.learning_rate' must be"):
        tree.set(state, learning_rate=[1, 2])
