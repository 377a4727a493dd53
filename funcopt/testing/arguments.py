"""Hypothesis strategies for the arguments of factories: hyperparameters and schedules."""

import functools
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor

from funcopt.schedules.cyclic import cosine_onecycle_schedule, linear_onecycle_schedule, sgdr_schedule
from funcopt.schedules.decay import (
    constant_schedule,
    cosine_decay_schedule,
    exponential_decay,
    linear_schedule,
    polynomial_schedule,
)
from funcopt.schedules.join import join_schedules, piecewise_constant_schedule, piecewise_interpolate_schedule
from funcopt.schedules.warmup import (
    inverse_sqrt_schedule,
    warmup_constant_schedule,
    warmup_cosine_decay_schedule,
    warmup_exponential_decay_schedule,
    warmup_stable_decay_schedule,
)
from funcopt.testing.trees import Choice, choice
from funcopt.transform import GradientTransformation, Schedule, identity


class Range(NamedTuple):
    """Where a hyperparameter is drawn: from `simple`, the first of which it shrinks to, and from [low, high]."""

    low: float
    high: float
    simple: tuple[float, ...]


_RATE = Range(1e-4, 1.0, (0.1, 1.0, 0.01))
_DECAY = Range(0.0, 0.999, (0.5, 0.9, 0.0, 0.99))
_EPSILON = Range(1e-8, 0.1, (1e-3, 1e-8))
_BOUND = Range(0.01, 10.0, (1.0, 0.1))
_PART = Range(0.0, 1.0, (0.5, 0.0, 1.0))

STANDARD: Mapping[str, Range] = {
    **dict.fromkeys(("learning_rate", "lr"), _RATE),
    **dict.fromkeys(("b1", "b2", "b3", "beta1", "beta2", "beta3", "decay", "momentum", "decay_rate", "rho"), _DECAY),
    **dict.fromkeys(("eps", "epsilon", "eps_root"), _EPSILON),
    **dict.fromkeys(("max_norm", "max_delta", "threshold", "clipping"), _BOUND),
    **dict.fromkeys(("initial_scale", "initial_accumulator_value", "eta", "gamma"), _PART),
    "weight_decay": Range(0.0, 0.1, (0.01, 0.0, 0.1)),
    "step_size": Range(-2.0, 2.0, (1.0, -1.0, 0.5)),
    "scale_factor": Range(-2.0, 2.0, (1.0, 0.5)),
}
"""Usual ranges by name. They stay away from where correct rules differ: `eps = 0` divides zero gradients by zero."""

_DTYPES = (torch.float32, torch.bfloat16)


@st.composite
def hyperparameters(
    draw: DrawFn,
    factory: Callable[..., Any],
    *,
    overrides: Mapping[str, Choice[Any]] | None = None,
    as_tensors: bool = False,
    scheduled: bool = True,
) -> dict[str, Any]:
    """Keyword arguments for `factory`, from its signature, annotations and bounds.

    A number comes from the usual range of its name (`STANDARD`; else near its default, else [0, 1]), within the
    interval that the factory accepts: this one is asked for with a NaN, and its ValueError read, in the words of
    funcopt ("must lie in [0, 1)"). So are bools, ints, dtypes and Literals. What is annotated `ScalarOrSchedule` may be
    a schedule, unless `scheduled=False`. Optional arguments are left out half the time, and always where neither
    annotation nor name tells what they are (a mask, say), or where the factory refuses them together.

    Args:
        overrides: what to draw an argument from instead; it is then always passed.
        as_tensors: pass numbers as 0-d float64 tensors wherever the annotation admits a tensor, or there is none.

    Raises:
        ValueError: a required argument cannot be drawn, or `overrides` names an argument that the factory has not.
    """
    given = {name: choice(options) for name, options in (overrides or {}).items()}
    _check_names(factory, given)
    plan = _plan(factory, frozenset(given), as_tensors, scheduled)
    arguments = {
        name: draw(given[name] if strategy is None else strategy)
        for name, strategy, optional in plan
        if not optional or draw(st.booleans())
    }
    if _accepts(factory, arguments):
        return arguments
    return {name: arguments[name] for name, _, optional in plan if not optional}


def _accepts(factory: Callable[..., Any], arguments: Mapping[str, Any]) -> bool:
    try:
        factory(**arguments)
    except (TypeError, ValueError):
        return False
    return True


def drawable(factory: Callable[..., Any], overrides: Collection[str] = ()) -> bool:
    """Whether `hyperparameters` knows how to draw every argument that `factory` requires, but for `overrides`."""
    try:
        _plan(factory, frozenset(overrides), False, True)
    except ValueError:
        return False
    return True


def _check_names(factory: Callable[..., Any], overrides: Collection[str]) -> None:
    parameters = _signature(factory).values()
    names = {parameter.name for parameter in parameters}
    unknown = sorted(set(overrides) - names)
    if unknown and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        raise ValueError(f"hyperparameters: {_name(factory)} has no argument {unknown[0]!r}, but overrides name it.")


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _name(factory: Callable[..., Any]) -> str:
    return getattr(factory, "__name__", repr(factory))


@functools.lru_cache(maxsize=1024)
def _signature(factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(factory, eval_str=True).parameters
    except NameError:  # annotations that only a type checker can look up
        return inspect.signature(factory).parameters


@functools.lru_cache(maxsize=1024)
def _plan(
    factory: Callable[..., Any], overridden: frozenset[str], as_tensors: bool, scheduled: bool
) -> tuple[tuple[str, SearchStrategy[Any] | None, bool], ...]:
    """Name, strategy (None where it is overridden) and whether it may be left out, of every argument that is drawn."""
    plan: list[tuple[str, SearchStrategy[Any] | None, bool]] = [(name, None, False) for name in sorted(overridden)]
    for name, parameter in _signature(factory).items():
        if name in overridden or parameter.kind in _VARIADIC:
            continue
        optional = parameter.default is not parameter.empty
        strategy = _strategy(factory, parameter, as_tensors, scheduled)
        if strategy is not None:
            plan.append((name, strategy, optional))
        elif not optional:
            raise ValueError(
                f"hyperparameters: nothing tells how to draw the argument {name!r} of {_name(factory)}; "
                f"pass overrides={{{name!r}: strategy}}."
            )
    return tuple(plan)


def _strategy(
    factory: Callable[..., Any], parameter: inspect.Parameter, as_tensors: bool, scheduled: bool
) -> SearchStrategy[Any] | None:
    kinds = _kinds(parameter)
    if bool in kinds:
        return st.booleans()
    if float in kinds:
        numbers: SearchStrategy[Any] = _numbers(_range(parameter), accepted(factory, parameter.name))
        if as_tensors and Tensor in kinds:
            numbers = numbers.map(lambda number: torch.tensor(number, dtype=torch.float64))
        return st.one_of(numbers, schedules()) if scheduled and Schedule in kinds else numbers
    if int in kinds and kinds <= {int, Tensor, type(None)}:
        return _integers(parameter.name, accepted(factory, parameter.name))
    if Schedule in kinds and kinds <= {Schedule, type(None)}:
        return schedules()
    if torch.dtype in kinds:
        return st.sampled_from(_DTYPES)
    choices = [value for kind in kinds if typing.get_origin(kind) is Literal for value in typing.get_args(kind)]
    return st.sampled_from(choices) if choices else None


def _kinds(parameter: inspect.Parameter) -> set[Any]:
    """The members of the annotated union; without an annotation, what the name tells, or else the default."""
    annotation, default = parameter.annotation, parameter.default
    if annotation not in (parameter.empty, Any):
        union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
        return set(typing.get_args(annotation)) if union else {annotation}
    if parameter.name in STANDARD or type(default) is float:
        return {float, Tensor}
    return {type(default)} if isinstance(default, (bool, int)) else set()


def _range(parameter: inspect.Parameter) -> Range:
    default = parameter.default
    if parameter.name in STANDARD or isinstance(default, bool) or not isinstance(default, (int, float)):
        return STANDARD.get(parameter.name, _PART)
    if default == 0 or not math.isfinite(default):
        return _PART
    low, high = sorted((default / 4, default * 4))
    return Range(low, high, (float(default),))


@dataclass(frozen=True)
class Interval:
    """The numbers that a factory accepts for an argument."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, number: float) -> bool:
        above = number > self.low if self.open_low else number >= self.low
        return above and (number < self.high if self.open_high else number <= self.high)


_REFUSED_NAN = re.compile(r"must lie in ([\[(])(\S+), (\S+)([\])]), got \w+=nan")
_REFUSED_INT = re.compile(r"must be at least (-?\d+), got \w+=-2147483648")


@functools.lru_cache(maxsize=4096)
def accepted(factory: Callable[..., Any], name: str) -> Interval:
    """The interval that `factory` accepts for a numeric argument, or all numbers if it does not tell.

    It is called with a NaN there, then with -2³¹ for an int: what `funcopt.checks` raises holds the interval. The
    other required arguments are the simplest of their usual ranges.

    >>> accepted(adam, "b1")
    Interval(low=0.0, high=1.0, open_low=False, open_high=True)
    """
    return _asked(factory, name, _required(factory))


def _asked(factory: Callable[..., Any], name: str, others: Mapping[str, Any]) -> Interval:
    if found := _REFUSED_NAN.search(_refusal(factory, {**others, name: math.nan})):
        return Interval(float(found[2]), float(found[3]), found[1] == "(", found[4] == ")")
    if found := _REFUSED_INT.search(_refusal(factory, {**others, name: -(2**31)})):
        return Interval(float(found[1]))
    return Interval()


def _refusal(factory: Callable[..., Any], arguments: Mapping[str, Any]) -> str:
    """What the error says with which `factory` refuses these arguments; nothing if it accepts them."""
    try:
        factory(**arguments)
    except Exception as error:  # a factory of anyone's, called with what it should refuse
        return str(error)
    return ""


@functools.lru_cache(maxsize=1024)
def _required(factory: Callable[..., Any]) -> Mapping[str, Any]:
    """Simple values, which the factory is likely to accept, for the arguments that have no default."""
    of_kind = {GradientTransformation: identity(), int: 1, Schedule: constant_schedule(0.1)}
    required = [p for p in _signature(factory).values() if p.default is p.empty and p.kind not in _VARIADIC]
    values = {
        parameter.name: next((of_kind[kind] for kind in of_kind if _kinds(parameter) == {kind}), None)
        for parameter in required
    }
    numeric = [parameter for parameter in required if values[parameter.name] is None]
    values.update({parameter.name: _range(parameter).simple[0] for parameter in numeric})
    for parameter in numeric:  # in the order in which they are likely to be checked
        usual, interval = _range(parameter), _asked(factory, parameter.name, values)
        low, high = _overlap(usual, interval)
        candidates = (*usual.simple, low, high, (low + high) / 2)
        values[parameter.name] = next((number for number in candidates if number in interval), low)
    return values


def _overlap(usual: Range, interval: Interval) -> tuple[float, float]:
    """The ends of what lies in both the usual range and the interval, or where these are disjoint, in the interval."""
    low, high = max(usual.low, interval.low), min(usual.high, interval.high)
    if low > high:
        low = interval.low if math.isfinite(interval.low) else interval.high - 1
        high = min(interval.high, low + 1)
    return low, high


def _numbers(usual: Range, interval: Interval) -> SearchStrategy[float]:
    low, high = _overlap(usual, interval)
    simple = tuple(number for number in usual.simple if number in interval)
    between = st.floats(low, high, allow_subnormal=False).filter(lambda number: number in interval)
    return st.one_of(st.sampled_from(simple), between) if simple else between


def _integers(name: str, interval: Interval) -> SearchStrategy[int]:
    if name in ("key", "seed"):
        return st.integers(0, 2**31 - 1)
    low = math.ceil(interval.low) if math.isfinite(interval.low) else 1
    return st.integers(low, low + 7)


_VALUES = st.one_of(st.sampled_from((0.1, 1.0, 0.0)), st.floats(0.0, 1.0, allow_subnormal=False))
_FACTORS = st.one_of(st.sampled_from((0.5, 1.0, 0.0, 2.0)), st.floats(0.0, 2.0, allow_subnormal=False))
_POSITIVE_FACTORS = st.sampled_from((2.0, 1.0, 10.0, 0.5))
_STEPS = st.integers(1, 12)
_BEGINNINGS = st.integers(0, 4)
_SCALES = st.dictionaries(st.integers(0, 12), _FACTORS, max_size=3)


@functools.cache
def _plain_schedules() -> SearchStrategy[Schedule]:
    values = {"init_value": _VALUES, "peak_value": _VALUES}
    ends = {"init_value": _VALUES, "end_value": _VALUES, "transition_steps": _STEPS, "transition_begin": _BEGINNINGS}
    decays = {
        "transition_steps": _STEPS,
        "decay_rate": _FACTORS,
        "transition_begin": _BEGINNINGS,
        "staircase": st.booleans(),
        "end_value": st.none() | _VALUES,
    }
    cycle = {
        "transition_steps": st.integers(10, 20),
        "peak_value": _VALUES,
        "pct_start": st.sampled_from((0.3, 0.0, 0.5)),
    }
    factors = {"div_factor": _POSITIVE_FACTORS, "final_div_factor": _POSITIVE_FACTORS}
    lengths = {"stable_steps": _BEGINNINGS, "decay_steps": _STEPS}
    arguments: dict[Callable[..., Schedule], dict[str, SearchStrategy[Any]]] = {
        constant_schedule: {"value": _VALUES},
        linear_schedule: ends,
        polynomial_schedule: {**ends, "power": _FACTORS},
        exponential_decay: {"init_value": _VALUES, **decays},
        cosine_decay_schedule: {"init_value": _VALUES, "decay_steps": _STEPS, "alpha": _VALUES, "exponent": _FACTORS},
        piecewise_constant_schedule: {"init_value": _VALUES, "boundaries_and_scales": _SCALES},
        piecewise_interpolate_schedule: {
            "interpolate_type": st.sampled_from(("linear", "cosine")),
            "init_value": _VALUES,
            "boundaries_and_scales": _SCALES,
        },
        warmup_constant_schedule: {**values, "warmup_steps": _BEGINNINGS},
        warmup_cosine_decay_schedule: _WARMUP_COSINE,
        warmup_exponential_decay_schedule: {**values, "warmup_steps": _BEGINNINGS, **decays},
        warmup_stable_decay_schedule: {
            **values,
            "warmup_steps": _BEGINNINGS,
            **lengths,
            "end_value": _VALUES,
            "decay_shape": st.sampled_from(("linear", "cosine", "1-sqrt")),
        },
        inverse_sqrt_schedule: {
            "peak_value": _VALUES,
            "warmup_steps": _BEGINNINGS,
            "init_value": _VALUES,
            "timescale": st.none() | _POSITIVE_FACTORS,
        },
        linear_onecycle_schedule: {**cycle, **factors, "pct_final": st.sampled_from((0.85, 0.7))},
        cosine_onecycle_schedule: {**cycle, **factors},
        sgdr_schedule: {"cosine_kwargs": st.lists(st.fixed_dictionaries(_WARMUP_COSINE), min_size=1, max_size=3)},
    }
    return st.one_of([st.builds(make, **drawn) for make, drawn in arguments.items()])


_WARMUP_COSINE: dict[str, SearchStrategy[Any]] = {
    "init_value": _VALUES,
    "peak_value": _VALUES,
    "warmup_steps": _BEGINNINGS,
    "decay_steps": st.integers(5, 12),
    "end_value": _VALUES,
    "exponent": _FACTORS,
}


@functools.cache
def schedules() -> SearchStrategy[Schedule]:
    """Every schedule of funcopt, with random valid arguments; values in [0, 1], or up to some growth, in tens of steps.

    Shrinks to `constant_schedule(value=0.1)`.
    """
    plain = _plain_schedules()
    return st.one_of(plain, st.integers(1, 3).flatmap(functools.partial(_joined, plain)))


def _joined(pieces: SearchStrategy[Schedule], count: int) -> SearchStrategy[Schedule]:
    boundaries = st.lists(st.integers(0, 12), min_size=count - 1, max_size=count - 1).map(sorted)
    return st.builds(join_schedules, st.lists(pieces, min_size=count, max_size=count), boundaries)
