"""Strategies for gradients, hyperparameters, schedules, transformations and states; and the reproducer."""

import contextlib
import io
import math
from typing import Literal

import pytest
import torch
from hypothesis import Phase, find, given, settings, strategies as st
from hypothesis.vendor.pretty import pretty

import funcopt as fo
from funcopt import tree
from funcopt.checks import check_within
from funcopt.testing import strategies as kit
from funcopt.testing.arguments import Interval, accepted
from funcopt.testing.printing import reproducer, source
from funcopt.testing.strategies import (
    gradient_sequences_for,
    gradients_for,
    hyperparameters,
    params,
    schedules,
    states,
    transformations,
)
from tests.catalogue import OPTIMIZERS, SCHEDULES, TRANSFORMATIONS

settings.register_profile("strategies", derandomize=True, database=None, max_examples=100, deadline=None)
PROFILE = settings.get_profile("strategies")
PARAMS = {"a": {"weight": torch.ones(2, 3), "bias": torch.ones(3, dtype=torch.bfloat16)}, "b": [torch.ones(()), None]}
ALL_DTYPES = (*kit.FLOATING, *kit.COMPLEX)


def simplest(strategy, condition=lambda value: True):
    return find(strategy, condition, settings=settings(PROFILE, max_examples=2000))


def examples(strategy, count=200):
    drawn = []

    @settings(PROFILE, max_examples=count)
    @given(strategy)
    def run(value):
        drawn.append(value)

    run()
    return drawn


def structure(values):
    return tree.flatten(values)[1]


def assert_fits(gradient, parameters, absent=False):
    assert structure(gradient) == structure(parameters)
    for g, p in zip(tree.flatten(gradient)[0], tree.flatten(parameters)[0]):
        if g is None:
            assert p is None or absent
        else:
            assert (g.dtype, g.shape) == (p.dtype, p.shape) and bool(g.isfinite().all())


# Gradients


@settings(PROFILE)
@given(params(ALL_DTYPES, min_leaves=0).flatmap(lambda p: st.tuples(st.just(p), gradients_for(p, absent=True))))
def test_gradients_fit_the_parameters(drawn):
    assert_fits(drawn[1], drawn[0], absent=True)


@settings(PROFILE)
@given(params(ALL_DTYPES, min_leaves=0).flatmap(lambda p: st.tuples(st.just(p), gradient_sequences_for(p))))
def test_sequences_of_gradients_fit_the_parameters(drawn):
    assert 1 <= len(drawn[1]) <= 5
    for gradient in drawn[1]:
        assert_fits(gradient, drawn[0], absent=True)


def wide(gradients):
    """Each step's numbers in one float64 tensor."""
    return [torch.cat([leaf.flatten().to(torch.float64) for leaf in tree.leaves(step)]) for step in gradients]


def ratio(gradients):
    first, *later = wide(gradients)
    return [step.abs().sum() / first.abs().sum() for step in later]


FACTS = {
    "zero": lambda steps: not any(step.any() for step in wide(steps)),
    "constant": lambda steps: all(torch.equal(step, wide(steps)[0]) for step in wide(steps)),
    "alternating": lambda steps: all(
        torch.equal(step, wide(steps)[0] * (-1) ** i) for i, step in enumerate(wide(steps))
    ),
    "vanishing": lambda steps: all(r <= 0.11 ** (i + 1) for i, r in enumerate(ratio(steps)) if r == r),
    "exploding": lambda steps: all(r >= 9.9 ** (i + 1) for i, r in enumerate(ratio(steps)) if r == r),
    "sparse": lambda steps: all(int((step != 0).sum()) <= 6 for step in wide(steps)),
    "absent": lambda steps: len({i for s in steps for i, g in enumerate(tree.flatten(s)[0]) if g is None} - {3}) <= 1,
    "normal": lambda steps: True,
}


@pytest.mark.parametrize("kind", kit.SEQUENCES)
def test_a_sequence_is_of_its_kind(kind):
    drawn = examples(gradient_sequences_for(PARAMS, 4, kinds=[kind]), 60)
    assert all(len(steps) == 4 and FACTS[kind](steps) for steps in drawn)
    assert kind == "zero" or any(step.any() for steps in drawn for step in wide(steps))


def test_exploding_gradients_stay_finite_in_half_precision():
    half = torch.ones(3, dtype=torch.float16)
    drawn = examples(gradient_sequences_for(half, 8, kinds=["exploding"]), 50)
    assert all(bool(step.isfinite().all()) for steps in drawn for step in steps)
    assert any(bool((steps[-1].abs() == torch.finfo(torch.float16).max).any()) for steps in drawn)


def test_a_leaf_is_absent_in_some_steps_and_present_in_others():
    drawn = examples(gradient_sequences_for(PARAMS, 4, kinds=["absent"]), 60)
    counts = {sum(leaf is None for step in steps for leaf in tree.flatten(step)[0]) - 4 for steps in drawn}
    assert counts >= {1, 2, 3, 4}


def test_no_two_steps_share_a_tensor():
    for steps in examples(gradient_sequences_for(PARAMS, 3), 60):
        addresses = [leaf.data_ptr() for step in steps for leaf in tree.leaves(step)]
        assert len(set(addresses)) == len(addresses)


def test_an_unknown_kind_of_sequence_is_an_error():
    with pytest.raises(ValueError, match=r"gradient_sequences_for: kinds must hold some of .*got kinds=\('noisy',\)"):
        simplest(gradient_sequences_for(PARAMS, kinds=["noisy"]))


ZEROS = {
    "a": {"weight": torch.zeros(2, 3), "bias": torch.zeros(3, dtype=torch.bfloat16)},
    "b": [torch.zeros(()), None],
}


def test_gradients_shrink_to_one_step_of_zeros():
    assert source(simplest(gradients_for(PARAMS))) == source(ZEROS)
    assert source(simplest(gradient_sequences_for(PARAMS))) == source([ZEROS])


def test_a_false_property_of_gradients_fails_with_the_fewest_steps_and_one_number():
    found = simplest(
        gradient_sequences_for(torch.ones(3)), lambda steps: len(steps) > 2 and any(s.any() for s in steps)
    )
    assert source(found) == source([torch.ones(3)] * 3)


def test_parameters_and_gradients_shrink_together():
    """The failing example of a wrong rule: one that loses its sign in the second step."""

    def fails(drawn):
        steps = drawn[1]
        return len(steps) > 1 and any(bool((leaf < 0).any()) for leaf in tree.leaves(steps[1]))

    both = params().flatmap(lambda p: st.tuples(st.just(p), gradient_sequences_for(p)))
    parameters, steps = simplest(both, fails)
    assert source(parameters) == "torch.tensor(0.0, dtype=torch.float32)"
    assert len(steps) == 2 and steps[1].numel() == 1 and steps[1].item() == -1


# Hyperparameters


@pytest.mark.parametrize("entry", [e for e in (*OPTIMIZERS, *TRANSFORMATIONS) if e.build is None], ids=str)
@pytest.mark.parametrize("as_tensors", (False, True), ids=("numbers", "tensors"))
def test_every_factory_accepts_its_hyperparameters(entry, as_tensors):
    make = getattr(fo, entry.name)
    drawn = examples(hyperparameters(make, as_tensors=as_tensors), 40)
    for arguments in drawn:
        make(**arguments)
    scalars = {name: [a[name] for a in drawn if name in a] for name in entry.scalars}
    kind = torch.Tensor if as_tensors else float
    assert all(any(isinstance(value, kind) for value in values) for values in scalars.values())


@pytest.mark.parametrize(
    "make, name, expected",
    [
        (fo.adam, "b1", Interval(0.0, 1.0, open_high=True)),
        (fo.adam, "eps", Interval(0.0, math.inf, open_high=True)),
        (fo.sgd, "momentum", Interval(0.0, 1.0)),  # the check is of `trace`, whose argument is called `decay`
        (fo.clip_by_block_rms, "threshold", Interval(0.0, math.inf, open_low=True)),
        (fo.cosine_decay_schedule, "decay_steps", Interval(1.0)),
        (fo.adam, "nesterov", Interval()),
    ],
)
def test_bounds_are_read_off_the_factory(make, name, expected):
    assert accepted(make, name) == expected


def between(sharpness: float, width: float = 20.0, *, twist: float | torch.Tensor = -3.0) -> str:
    """A factory of a user's, whose bounds are unusual."""
    check_within("between", "(5, 7)", sharpness=sharpness)
    check_within("between", "[10, 30)", width=width)
    return "made"


def test_numbers_stay_within_unusual_bounds():
    drawn = examples(hyperparameters(between), 100)
    assert all(5 < a["sharpness"] < 7 and 10 <= a.get("width", 20) < 30 for a in drawn)
    assert all(-12 <= a.get("twist", -3) <= -0.75 for a in drawn)
    assert {len(a) for a in drawn} == {1, 2, 3}


def user_factory(learning_rate, b1=0.9, smoothing=0.25, steps=3, flag=False, mode: Literal["x", "y"] = "x", mask=None):
    """Without annotations."""
    return learning_rate


def test_a_factory_without_annotations_is_read_by_names_and_defaults():
    drawn = examples(hyperparameters(user_factory), 200)
    kinds = {"learning_rate": float, "b1": float, "smoothing": float, "steps": int, "flag": bool, "mode": str}
    assert {name for a in drawn for name in a} == set(kinds)
    assert all(isinstance(value, kinds[name]) for a in drawn for name, value in a.items())
    assert all(0.0625 <= a.get("smoothing", 0.25) <= 1.0 and 0 <= a.get("b1", 0) < 1 for a in drawn)
    assert {a["mode"] for a in drawn if "mode" in a} == {"x", "y"}


def test_schedules_are_drawn_where_they_are_accepted():
    drawn = examples(hyperparameters(fo.adamw), 100)
    for name in ("learning_rate", "weight_decay"):
        assert {callable(a[name]) for a in drawn if name in a} == {True, False}
    assert not any(callable(a["b1"]) for a in drawn if "b1" in a)
    fixed = examples(hyperparameters(fo.adamw, scheduled=False), 100)
    assert not any(callable(value) for a in fixed for value in a.values())


def test_overrides_take_a_collection_or_a_strategy_and_are_always_passed():
    drawn = examples(hyperparameters(fo.adam, overrides={"b1": [0.25], "eps": st.floats(0.5, 0.75)}), 40)
    assert all(a["b1"] == 0.25 and 0.5 <= a["eps"] <= 0.75 for a in drawn)


def unreadable(inner, strength=1.0):
    """An argument that nothing describes."""


@pytest.mark.parametrize(
    "make, overrides, message",
    [
        (
            unreadable,
            {},
            r"nothing tells how to draw the argument 'inner' of unreadable; pass overrides=\{'inner': str",
        ),
        (fo.adam, {"beta1": [0.9]}, "adam has no argument 'beta1', but overrides name it"),
    ],
)
def test_what_cannot_be_drawn_is_an_error(make, overrides, message):
    with pytest.raises(ValueError, match=f"hyperparameters: {message}"):
        simplest(hyperparameters(make, overrides=overrides))


def test_hyperparameters_shrink_to_the_required_ones():
    assert simplest(hyperparameters(fo.adamw)) == {"learning_rate": 0.1}
    assert simplest(hyperparameters(fo.adamw), lambda a: a.get("b1", 0) > 0.95) == {"learning_rate": 0.1, "b1": 0.99}
    found = simplest(hyperparameters(fo.sgd), lambda a: callable(a["learning_rate"]))
    assert source(found) == "{'learning_rate': constant_schedule(value=0.1)}"


# Schedules and transformations


def test_every_schedule_of_the_library_is_drawn_and_finite():
    drawn = examples(schedules(), 400)
    assert {schedule.call.name for schedule in drawn} == {entry.name for entry in SCHEDULES}
    for schedule in drawn:
        assert all(math.isfinite(schedule(count)) for count in (0, 1, 5, 40))


def members(transformation):
    """The names in the call of a transformation, its own first."""
    if isinstance(transformation, tuple):  # the member of a named chain
        transformation = transformation[1]
    call = transformation.call
    inner = [
        name for part in call.args if isinstance(part, (fo.GradientTransformation, tuple)) for name in members(part)
    ]
    return [call.name, *inner]


def test_every_factory_of_the_library_is_composed():
    listed = {entry.name for entry in (*OPTIMIZERS, *TRANSFORMATIONS) if entry.build is None}
    drawn = {name for transformation in examples(transformations(2), 400) for name in members(transformation)}
    assert drawn == listed | {"chain", "named_chain"}


def test_depth_bounds_the_nesting():
    assert not {"chain", "named_chain"} & {name for t in examples(transformations(1), 60) for name in members(t)}
    deep = [t for t in examples(transformations(3), 200) if "chain" in t.call.name]
    assert any("chain(" in repr(t)[6:] for t in deep)
    with pytest.raises(ValueError, match="transformations: max_depth must be at least 1, got max_depth=0"):
        transformations(0)


@settings(PROFILE, max_examples=150)
@given(st.data())
def test_transformations_run_on_drawn_parameters_and_gradients(data):
    complex = data.draw(st.booleans())
    tx = data.draw(transformations(3, complex=complex, as_tensors=data.draw(st.booleans())))
    parameters = data.draw(params(ALL_DTYPES if complex else kit.FLOATING, min_leaves=0))
    state = data.draw(states(tx, parameters))
    updates, after = tx.update(data.draw(gradients_for(parameters, absent=True)), state, parameters)
    assert structure(updates) == structure(parameters) and structure(after) == structure(tx.init(parameters))


def test_transformations_shrink_to_the_identity_and_to_one_member():
    assert repr(simplest(transformations(3))) == "identity()"
    assert repr(simplest(transformations(3), lambda t: "sgd" in repr(t))) == "sgd(learning_rate=0.1)"
    assert repr(simplest(transformations(3), lambda t: "chain" in repr(t))) == "chain(identity())"
    found = simplest(transformations(2), lambda t: "adagrad" in repr(t) and "chain" in repr(t))
    assert repr(found) == "chain(adagrad(learning_rate=0.1))"


@settings(PROFILE, max_examples=150)
@given(transformations(2, as_tensors=True))
def test_transformations_print_as_source_that_makes_them_again(tx):
    names = {**vars(fo), "torch": torch}
    assert source(eval(pretty(tx), names)) == source(tx)


@settings(PROFILE, max_examples=60)
@given(schedules())
def test_schedules_have_a_source_that_makes_them_again(schedule):
    again = eval(source(schedule), {**vars(fo), "torch": torch})
    assert all(torch.equal(again(count), schedule(count)) for count in (0, 3, 20))


def test_a_falsified_test_shows_what_can_be_pasted():
    @settings(PROFILE, phases=(Phase.generate, Phase.shrink))
    @given(params(), schedules(), transformations())
    def run(parameters, schedule, tx):
        raise AssertionError

    with pytest.raises(AssertionError) as caught:
        run()
    shown = " ".join("\n".join(caught.value.__notes__).split())
    assert "parameters=torch.tensor(0.0, dtype=torch.float32)," in shown
    assert "schedule=constant_schedule(value=0.1)," in shown
    assert "tx=identity()," in shown


def test_states_come_after_some_steps_and_shrink_to_the_first():
    tx = fo.adam(0.1)
    assert {int(state[0].count) for state in examples(states(tx, PARAMS), 60)} == {0, 1, 2, 3}
    assert source(simplest(states(tx, PARAMS))) == source(tx.init(PARAMS))


@settings(PROFILE, max_examples=30)
@given(states(fo.chain(fo.adam(0.1), fo.clip(1.0)), {"a": torch.ones(2)}))
def test_states_print_as_source_that_makes_them_again(state):
    again = eval(pretty(state), {**vars(fo), "torch": torch})
    assert structure(again) == structure(state)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(tree.leaves(again), tree.leaves(state)))


# The reproducer


def run_script(script):
    names: dict = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(script, names)
    return names, printed.getvalue()


@settings(PROFILE, max_examples=60)
@given(st.data())
def test_a_reproducer_runs_and_arrives_at_the_same_values(data):
    tx = data.draw(transformations(2, as_tensors=data.draw(st.booleans())))
    parameters = data.draw(params(min_leaves=0))
    gradients = data.draw(gradient_sequences_for(parameters))
    names, printed = run_script(reproducer(parameters, gradients, tx))
    state = tx.init(parameters)
    for gradient in gradients:
        updates, state = tx.update(gradient, state, parameters)
        parameters = fo.apply_updates(parameters, updates)
    assert source(names["params"]) == source(parameters) and source(names["state"]) == source(state)
    assert printed.count("step ") == len(gradients)


def test_a_reproducer_imports_what_it_needs_and_no_more():
    script = reproducer(
        kit.tensors and {"a": torch.ones(2)}, [{"a": torch.zeros(2)}], fo.chain(fo.clip(1.0), fo.sgd(0.1))
    )
    assert script.startswith(
        "import torch\nfrom funcopt import apply_updates, chain, clip, sgd\n\nparams = {'a': torch."
    )


@fo.factory
def halved(strength: float = 0.5) -> fo.GradientTransformation:
    """A factory of a user's, at the top of a module."""
    return fo.scale(strength)


def test_a_reproducer_imports_the_factory_of_a_user_from_its_module():
    script = reproducer({}, [{}], fo.chain(halved(), fo.scale_by_schedule(fo.constant_schedule(0.1))))
    assert f"from {__name__} import halved" in script and "constant_schedule, scale_by_schedule" in script


def test_a_reproducer_says_what_it_cannot_import():
    @fo.factory
    def local() -> fo.GradientTransformation:
        return fo.identity()

    script = reproducer({}, [{}], local())
    assert "# define here: test_a_reproducer_says_what_it_cannot_import.<locals>.local" in script
