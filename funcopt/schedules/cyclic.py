"""Schedules that rise and fall, once or in cycles."""

from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate, pairwise
from typing import Any

from torch import Tensor

from funcopt.checks import check_integer, check_within
from funcopt.schedules.interpolation import as_scalar, as_steps, cosine, linear, through_knots
from funcopt.schedules.join import join_schedules
from funcopt.schedules.warmup import warmup_cosine_decay_schedule
from funcopt.transform import Schedule, schedule_factory


@schedule_factory
def linear_onecycle_schedule(
    transition_steps: int,
    peak_value: float | Tensor,
    pct_start: float = 0.3,
    pct_final: float = 0.85,
    div_factor: float | Tensor = 25.0,
    final_div_factor: float | Tensor = 1e4,
) -> Schedule:
    """One cycle of three straight lines (Smith & Topin 2017, https://arxiv.org/abs/1708.07120).

        knots:  0 ↦ peak / div,  pct_start T ↦ peak,  pct_final T ↦ peak / div,  T ↦ peak / (div * final_div)

    T is `transition_steps`; knots are rounded down to whole steps. `pct_start = 0` starts at the peak.

    Raises:
        TypeError, ValueError: a value is no finite number, a factor is not positive, `transition_steps` no positive
            int, or two knots fall on one step (optax lets the later one win, and may leave the peak out).
    """
    name = "linear_onecycle_schedule"
    knot_steps = _knot_steps(name, transition_steps, pct_start=pct_start, pct_final=pct_final)
    values = _knot_values(name, peak_value, div_factor, final_div_factor)

    def schedule(count: int | Tensor) -> Tensor:
        steps = as_steps(count)
        low, peak, end = values(steps)
        return through_knots(steps, dict(zip(knot_steps, (low, peak, low, end))), linear)

    return schedule


@schedule_factory
def cosine_onecycle_schedule(
    transition_steps: int,
    peak_value: float | Tensor,
    pct_start: float = 0.3,
    div_factor: float | Tensor = 25.0,
    final_div_factor: float | Tensor = 1e4,
) -> Schedule:
    """One cycle of two halves of a cosine (Smith & Topin 2017, https://arxiv.org/abs/1708.07120).

        knots:  0 ↦ peak / div,  pct_start T ↦ peak,  T ↦ peak / (div * final_div)

    T is `transition_steps`; the middle knot is rounded down to a whole step. `pct_start = 0` starts at the peak.

    >>> schedule = cosine_onecycle_schedule(transition_steps=20, peak_value=1.0)
    >>> [round(float(schedule(count)), 6) for count in (0, 3, 6, 20)]
    [0.04, 0.52, 1.0, 4e-06]

    Raises:
        TypeError, ValueError: a value is no finite number, a factor is not positive, `transition_steps` no positive
            int, or two knots fall on one step.
    """
    name = "cosine_onecycle_schedule"
    knot_steps = _knot_steps(name, transition_steps, pct_start=pct_start)
    values = _knot_values(name, peak_value, div_factor, final_div_factor)

    def schedule(count: int | Tensor) -> Tensor:
        steps = as_steps(count)
        return through_knots(steps, dict(zip(knot_steps, values(steps))), cosine)

    return schedule


def _knot_steps(function: str, transition_steps: int, **parts: Any) -> tuple[int, ...]:
    """The counts of the knots; `parts` says where the inner ones lie, as parts of the whole.

    A first inner knot at 0 shares its count with the outer one: in a dict by count, the later one replaces it.
    """
    check_integer(function, 1, transition_steps=transition_steps)
    for name, part in parts.items():
        if not isinstance(part, (int, float)):
            raise TypeError(f"{function}: {name} fixes a count and must be a Python number, got {name}={part!r}.")
    check_within(function, "[0, 1]", **parts)
    steps = [0, *(int(part * transition_steps) for part in parts.values()), transition_steps]
    apart = [start < end for start, end in pairwise(steps)]
    if not (all(apart[1:]) and (apart[0] or parts["pct_start"] == 0)):
        raise ValueError(
            f"{function}: transition_steps must be enough to keep the knots apart, got "
            f"transition_steps={transition_steps}, with {parts} and so knots at {steps}."
        )
    return tuple(steps)


def _knot_values(
    function: str, peak_value: float | Tensor, div_factor: float | Tensor, final_div_factor: float | Tensor
) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
    """The function that gives the first, the highest and the last value, on the device of `steps`."""
    check_within(function, "(-inf, inf)", peak_value=peak_value)
    check_within(function, "(0, inf)", div_factor=div_factor, final_div_factor=final_div_factor)

    def values(steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        peak = as_scalar(peak_value, steps)
        low = peak / as_scalar(div_factor, steps)
        return low, peak, low / as_scalar(final_div_factor, steps)

    return values


@schedule_factory
def sgdr_schedule(cosine_kwargs: Iterable[Mapping[str, Any]]) -> Schedule:
    """SGDR, annealing with warm restarts (Loshchilov & Hutter 2016, https://arxiv.org/abs/1608.03983).

    One `warmup_cosine_decay_schedule` after the other; each dict holds the arguments of one, whose `decay_steps` is the
    length of its cycle. The last one keeps its end value.

    >>> schedule = sgdr_schedule(
    ...     dict(init_value=0.0, peak_value=peak, warmup_steps=1, decay_steps=5) for peak in (1.0, 0.5)
    ... )

    Raises:
        TypeError, ValueError: there is no cycle, or an argument is wrong for `warmup_cosine_decay_schedule`.
    """
    cycles = list(cosine_kwargs)
    if not cycles:
        raise ValueError(f"sgdr_schedule: cosine_kwargs must hold at least one cycle, got cosine_kwargs={cycles}.")
    schedules = [warmup_cosine_decay_schedule(**cycle) for cycle in cycles]
    ends = list(accumulate(cycle["decay_steps"] for cycle in cycles))
    return join_schedules(schedules, ends[:-1])
