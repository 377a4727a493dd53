"""Every public optimizer, transformation and schedule, once: what is listed here goes through all laws and parity."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import funcopt as fo


@dataclass(frozen=True)
class Entry:
    """One public factory of a gradient transformation.

    Attributes:
        name: its name in `funcopt`.
        cases: keyword arguments, one dict for each variant that is worth a run; numbers away from their defaults.
        scalars: the arguments that are vmapped and differentiated, when given as a tensor.
        scheduled: the argument that may be a schedule, if any.
        build: makes the transformation, if not by calling the factory with the keyword arguments alone.
        optax: makes optax's counterpart from the same keyword arguments; None where optax has none.
        kinks: True where the update is not differentiable everywhere, so that finite differences need care.
        complex: whether complex leaves are accepted.
    """

    name: str
    cases: tuple[dict[str, Any], ...] = ({},)
    scalars: tuple[str, ...] = ()
    scheduled: str | None = None
    build: Callable[..., fo.GradientTransformation] | None = None
    optax: Callable[..., Any] | str | None = None
    complex: bool = True
    quirks: frozenset[str] = field(default_factory=frozenset)

    def make(self, **kwargs: Any) -> fo.GradientTransformation:
        return (self.build or getattr(fo, self.name))(**kwargs)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class ScheduleEntry:
    """One public factory of a schedule.

    Attributes:
        name: its name in `funcopt`.
        cases: keyword arguments, one dict for each variant; `boundaries` are the counts at which its shape changes.
        scalars: the float arguments that are vmapped and differentiated, when given as a tensor.
        build: makes the schedule, if not by calling the factory with the keyword arguments alone.
        optax: makes optax's counterpart from the same keyword arguments; None where optax has none.
    """

    name: str
    cases: tuple[dict[str, Any], ...]
    scalars: tuple[str, ...] = ()
    build: Callable[..., fo.Schedule] | None = None
    optax: Callable[..., Any] | str | None = None

    def make(self, **kwargs: Any) -> fo.Schedule:
        return (self.build or getattr(fo, self.name))(**kwargs)

    def __str__(self) -> str:
        return self.name


SCHEDULES: tuple[ScheduleEntry, ...] = ()
