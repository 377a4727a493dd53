"""Laws of schedules: functions of a count that are pure, finite, and, where declared, monotone."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch.func import vmap

from funcopt.testing.comparison import require, require_close, require_identical
from funcopt.testing.violation import LawViolation
from funcopt.transform import Schedule

_LAST = 2**31 - 1  # where counters saturate


def check_schedule(
    schedule: Schedule,
    *,
    monotone: Literal["increasing", "decreasing"] | None = None,
    between: tuple[float, float] | None = None,
    counts: Iterable[int] = range(50),
) -> None:
    """Check that a schedule is a pure function of the count, whatever its integer dtype, finite to the last count.

    Args:
        schedule: the schedule.
        monotone: whether its values never fall, or never rise, over `counts` and up to the last count.
        between: the smallest and the largest value allowed.
        counts: where it is evaluated.

    Raises:
        LawViolation: a law does not hold; it names the law and the count.

    >>> check_schedule(linear_schedule(0.1, 0.0, transition_steps=10), monotone="decreasing", between=(0.0, 0.1))
    """
    visited = sorted({*counts, 1000, _LAST})
    laws: tuple[Callable[..., None], ...] = (finite_values, counts_of_any_dtype, pure_values, vmap_over_counts)
    for law in laws:
        _told(law, schedule, visited)
    if monotone is not None:
        _told(monotone_values, schedule, visited, monotone)
    if between is not None:
        _told(values_between, schedule, visited, between)


def _told(law: Callable[..., None], schedule: Schedule, *arguments: Any) -> None:
    try:
        law(schedule, *arguments)
    except LawViolation as violation:
        raise _explained(violation, law, schedule) from violation.__cause__
    except Exception as error:
        raise _explained(LawViolation(f"{type(error).__name__}: {error}"), law, schedule) from error


def _explained(violation: LawViolation, law: Callable[..., None], schedule: Schedule) -> LawViolation:
    violation.law, violation.statement = law.__name__, (law.__doc__ or "").strip().splitlines()[0]
    violation.transformation = getattr(schedule, "call", schedule)
    return violation


def _value(schedule: Schedule, count: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.as_tensor(schedule(torch.tensor(count, dtype=dtype)), dtype=torch.float64)


def finite_values(schedule: Schedule, counts: list[int]) -> None:
    """Every value is one finite number, to the last count."""
    for count in counts:
        value = _value(schedule, count)
        require(value.shape == (), f"at {count}: the shape is {tuple(value.shape)}, expected a 0-d tensor.")
        require(value.isfinite(), f"at {count}: {float(value)}.")


def counts_of_any_dtype(schedule: Schedule, counts: list[int]) -> None:
    """An int and a counter of any integer dtype mean the same."""
    for count in counts:
        expected = _value(schedule, count)
        require_close(_value(schedule, count, torch.int64), expected, f"at {count}, int64: value")
        as_int = torch.as_tensor(schedule(count), dtype=torch.float64)
        require_close(as_int, expected, f"at {count}, an int: value", rtol=2e-7)  # a float32 division, at worst


def pure_values(schedule: Schedule, counts: list[int]) -> None:
    """The same count gives the same value, in any order, and stays as it is."""
    expected = {count: _value(schedule, count).clone() for count in counts}
    for count in reversed(counts):
        given = torch.tensor(count, dtype=torch.int32)
        value = torch.as_tensor(schedule(given), dtype=torch.float64)
        require_identical(value, expected[count], f"at {count}, the second time: value")
        require(given == count, f"at {count}: the count was changed to {int(given)}.")


def vmap_over_counts(schedule: Schedule, counts: list[int]) -> None:
    """vmap over counts gives what a loop over them gives."""
    expected = torch.stack([_value(schedule, count) for count in counts])
    found = vmap(lambda count: torch.as_tensor(schedule(count)))(torch.tensor(counts, dtype=torch.int32))
    require_close(found.to(torch.float64), expected, "value, by index of count,")


def monotone_values(schedule: Schedule, counts: list[int], direction: str) -> None:
    """The values never fall (increasing), or never rise (decreasing)."""
    values = [float(_value(schedule, count)) for count in counts]
    for start, (earlier, later) in enumerate(itertools.pairwise(values)):
        holds = earlier <= later if direction == "increasing" else earlier >= later
        at = f"from {counts[start]} to {counts[start + 1]}"
        require(holds, f"{at}: {earlier!r}, then {later!r}, which is not {direction}.")


def values_between(schedule: Schedule, counts: list[int], bounds: tuple[float, float]) -> None:
    """All values lie between the bounds declared."""
    for count in counts:
        value = float(_value(schedule, count))
        require(bounds[0] <= value <= bounds[1], f"at {count}: {value!r} lies outside of {bounds}.")
