"""What a line of the catalogue says, and what several lines share."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import funcopt as fo
from funcopt import tree


@dataclass(frozen=True)
class Entry:
    """One public factory of a gradient transformation.

    Attributes:
        name: its name in `funcopt`.
        cases: keyword arguments, one dict for each variant that is worth a run; numbers away from their defaults.
        scalars: the arguments that are vmapped and differentiated, given as tensors.
        build: makes the transformation from the keyword arguments; unless given, the factory itself.
        optax: makes optax's counterpart from the same keyword arguments, or None for a case that has none; unless
            given, the factory of the same name.
        complex: whether complex leaves are accepted.
        float32_tolerance: the relative deviation from the float64 reference that parity grants in float32.
        ordered: whether the result depends on the order of the leaves, which then draw from keys in that order.
        heavy: whether tracing it takes seconds: of its cases, the default run compiles the last.
    """

    name: str
    cases: tuple[dict[str, Any], ...] = ({},)
    scalars: tuple[str, ...] = ()
    build: Callable[..., fo.GradientTransformation] | None = None
    optax: Callable[..., Any] | None = None
    complex: bool = True
    float32_tolerance: float = 1e-6
    ordered: bool = False
    heavy: bool = False

    def make(self, **kwargs: Any) -> fo.GradientTransformation:
        return (self.build or getattr(fo, self.name))(**kwargs)

    def __str__(self) -> str:
        return self.name

    def scalar_values(self, case: dict[str, Any]) -> dict[str, float]:
        """The values of `scalars` in a case, from its arguments or else from the signature; only the numbers."""
        parameters = inspect.signature(self.build or getattr(fo, self.name)).parameters
        values = {name: case.get(name, parameters[name].default) for name in self.scalars}
        return {name: value for name, value in values.items() if isinstance(value, float)}


@dataclass(frozen=True)
class ScheduleCase:
    """Arguments of a schedule, and the counts at which its shape changes."""

    arguments: dict[str, Any]
    boundaries: tuple[int, ...] = ()

    def __str__(self) -> str:
        return case_id(self.arguments)


@dataclass(frozen=True)
class ScheduleEntry:
    """One public factory of a schedule.

    Attributes:
        name: its name in `funcopt`.
        cases: one for each variant.
        scalars: the float arguments that are vmapped and differentiated, where a case gives them.
        build: makes the schedule from a library and the arguments, if not by calling the factory with them alone.
        optax: whether optax has it, under the same name and with the same arguments.
    """

    name: str
    cases: tuple[ScheduleCase, ...]
    scalars: tuple[str, ...] = ()
    build: Callable[..., Any] | None = None
    optax: bool = True

    def make(self, library: Any = fo, **arguments: Any) -> Any:
        return self.build(library, **arguments) if self.build else getattr(library, self.name)(**arguments)

    def scalar_values(self, case: ScheduleCase) -> dict[str, float]:
        return {name: case.arguments[name] for name in self.scalars if case.arguments.get(name) is not None}

    def __str__(self) -> str:
        return self.name


def storage_tolerance(case: dict[str, Any]) -> float:
    """One rounding that falls otherwise, where a case stores in a lower precision; else 0."""
    return max([0.0, *(2 * torch.finfo(v).eps for v in case.values() if isinstance(v, torch.dtype))])


def case_id(value: Any) -> str:
    """How pytest names a parameter: an entry by its name, a case by its arguments."""
    if not isinstance(value, dict):
        return str(value).removeprefix("torch.")
    short = {name: getattr(argument, "__name__", argument) for name, argument in value.items()}
    return ",".join(f"{name}={'...' if isinstance(v, dict) else v}" for name, v in short.items()) or "default"


def decaying(count: Any) -> Any:
    """A schedule that torch and jax can both evaluate."""
    count = count.to(torch.float64) if isinstance(count, torch.Tensor) else count
    return 0.05 / (1.0 + 0.25 * count)


def only_matrices(params: Any) -> Any:
    """A mask from a function: True for leaves of two axes or more."""
    return tree.map(lambda leaf: leaf.ndim >= 2, params)


def no_counterpart(**kwargs: Any) -> None:
    """For what optax does not have in this form."""


def variant_of(name: str, **default: Any) -> Callable[..., Any]:
    """optax's factory `name`, which knows of one argument the default only, and so has no counterpart to the rest."""

    def make(**kwargs: Any) -> Any:
        import optax

        if any(kwargs.pop(argument, value) != value for argument, value in default.items()):
            return None
        return getattr(optax, name)(**kwargs)

    return make


DECAY_MASK = {"a": {"bias": False, "weight": True}, "b": True, "c": False}
