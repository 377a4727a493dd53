"""Strategies for hyperparameters and schedules: what they draw, how it shrinks, and how bounds are found."""

import math
from typing import Literal

import pytest
import torch
from hypothesis import given, settings, strategies as st

import funcopt as fo
from funcopt.checks import check_within
from funcopt.testing.arguments import Interval, accepted
from funcopt.testing.printing import source
from funcopt.testing.strategies import hyperparameters, schedules
from tests.catalogue import OPTIMIZERS, SCHEDULES, TRANSFORMATIONS
from tests.testing.search import PROFILE, examples, simplest


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


def quarrelsome(learning_rate: float, warmup: int = 0, decay: float = 0.5) -> str:
    """A factory that refuses two of its arguments together."""
    if warmup and decay != 0.5:
        raise ValueError("quarrelsome: warmup and decay exclude each other.")
    return "made"


def test_a_combination_that_the_factory_refuses_is_not_drawn():
    drawn = examples(hyperparameters(quarrelsome))
    assert {frozenset(a) - {"learning_rate"} for a in drawn} >= {
        frozenset(),
        frozenset({"warmup"}),
        frozenset({"decay"}),
    }
    for arguments in drawn:
        quarrelsome(**arguments)


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


# Schedules


def test_every_schedule_of_the_library_is_drawn_and_finite():
    drawn = examples(schedules(), 400)
    assert {schedule.call.name for schedule in drawn} == {entry.name for entry in SCHEDULES}
    for schedule in drawn:
        assert all(math.isfinite(schedule(count)) for count in (0, 1, 5, 40))


@settings(PROFILE, max_examples=60)
@given(schedules())
def test_schedules_have_a_source_that_makes_them_again(schedule):
    again = eval(source(schedule), {**vars(fo), "torch": torch})
    assert all(torch.equal(again(count), schedule(count)) for count in (0, 3, 20))
