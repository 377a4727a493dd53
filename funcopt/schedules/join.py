"""Schedules made of pieces."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from funcopt.checks import check_choice, check_integer, check_within
from funcopt.schedules.decay import constant_schedule
from funcopt.schedules.interpolation import as_count, as_scalar, as_steps, cosine, linear, through_knots
from funcopt.transform import Schedule, schedule_factory


@schedule_factory
def join_schedules(schedules: Sequence[Schedule], boundaries: Sequence[int]) -> Schedule:
    """One schedule after the other: from `boundaries[i - 1]` on schedule i holds, which counts from there.

    All pieces are evaluated at each call, and one value is selected. A piece is only given counts from 0 to its own
    length, so that neither its value nor a derivative overflows where it is not used.

    >>> schedule = join_schedules([linear_schedule(0.0, 1.0, 10), cosine_decay_schedule(1.0, 90)], boundaries=[10])

    Raises:
        TypeError: a schedule is not callable, or a boundary is no int.
        ValueError: there is not one boundary less than schedules, or the boundaries are negative or descend.
    """
    pieces, starts = tuple(schedules), (0, *boundaries)
    _check_pieces(pieces, boundaries)
    lengths = [end - start for start, end in pairwise(starts)]

    def schedule(count: int | Tensor) -> Tensor:
        count, steps = as_count(count), as_steps(count)
        counts = [(count - start).clamp(0, length) for start, length in zip(starts, [*lengths, None])]
        values = [as_scalar(piece(own), steps) for piece, own in zip(pieces, counts)]
        value = values[0]
        for start, later in zip(starts[1:], values[1:]):
            value = torch.where(count < start, value, later)
        return value

    return schedule


def _check_pieces(pieces: tuple[Schedule, ...], boundaries: Sequence[int]) -> None:
    if not pieces:
        raise ValueError("join_schedules: schedules must hold at least one schedule, got schedules=().")
    for piece in pieces:
        if not callable(piece):
            raise TypeError(f"join_schedules: schedules must be functions of the count, got {piece!r}.")
    if len(boundaries) != len(pieces) - 1:
        raise ValueError(
            f"join_schedules: {len(pieces)} schedules need {len(pieces) - 1} boundaries, got boundaries={boundaries}."
        )
    for boundary in boundaries:
        check_integer("join_schedules", 0, boundary=boundary)
    if any(end < start for start, end in pairwise(boundaries)):
        raise ValueError(f"join_schedules: boundaries must ascend, got boundaries={boundaries}.")


@schedule_factory
def piecewise_constant_schedule(
    init_value: float | Tensor, boundaries_and_scales: Mapping[int, float | Tensor] | None = None
) -> Schedule:
    """Steps: the value is multiplied by a scale at each boundary, `init * Π scaleᵢ` over `boundaryᵢ <= t`.

    >>> schedule = piecewise_constant_schedule(1.0, {2: 0.5, 5: 0.1})
    >>> [round(float(schedule(count)), 6) for count in (1, 2, 5)]
    [1.0, 0.5, 0.05]

    Raises:
        TypeError, ValueError: `init_value` is no finite number, a boundary no int >= 0, or a scale no number >= 0.
    """
    check_within("piecewise_constant_schedule", "(-inf, inf)", init_value=init_value)
    scales = _sorted_scales("piecewise_constant_schedule", boundaries_and_scales)
    if not scales:
        return constant_schedule(init_value)

    def schedule(count: int | Tensor) -> Tensor:
        steps = as_steps(count)
        value = as_scalar(init_value, steps)
        for boundary, scale in scales:
            value = torch.where(steps < boundary, value, value * as_scalar(scale, steps))
        return value

    return schedule


@schedule_factory
def piecewise_interpolate_schedule(
    interpolate_type: str,
    init_value: float | Tensor,
    boundaries_and_scales: Mapping[int, float | Tensor] | None = None,
) -> Schedule:
    """Through knots: at each boundary the value of the knot before times a scale, between knots 'linear' or 'cosine'.

        v₀ = init, vᵢ = scaleᵢ vᵢ₋₁        f = (t - boundaryᵢ₋₁) / (boundaryᵢ - boundaryᵢ₋₁)
        linear: vᵢ₋₁ + (vᵢ - vᵢ₋₁) f        cosine: vᵢ + (vᵢ₋₁ - vᵢ) (1 + cos πf) / 2

    Knot 0 is at count 0, where a boundary 0 takes its place; from the last one on the value is constant.

    >>> schedule = piecewise_interpolate_schedule("linear", 1.0, {2: 0.5, 6: 0.1})
    >>> [round(float(schedule(count)), 6) for count in (0, 1, 2, 4, 6, 7)]
    [1.0, 0.75, 0.5, 0.275, 0.05, 0.05]

    Raises:
        TypeError, ValueError: another `interpolate_type`; `init_value` is no finite number, a boundary is no int >= 0,
            or a scale no number >= 0.
    """
    check_choice("piecewise_interpolate_schedule", ("linear", "cosine"), interpolate_type=interpolate_type)
    check_within("piecewise_interpolate_schedule", "(-inf, inf)", init_value=init_value)
    scales = _sorted_scales("piecewise_interpolate_schedule", boundaries_and_scales)
    if not scales:
        return constant_schedule(init_value)

    def schedule(count: int | Tensor) -> Tensor:
        steps = as_steps(count)
        value = as_scalar(init_value, steps)
        knots = {0: value}
        for boundary, scale in scales:
            value = value * as_scalar(scale, steps)
            knots[boundary] = value
        return through_knots(steps, knots, linear if interpolate_type == "linear" else cosine)

    return schedule


def _sorted_scales(
    function: str, boundaries_and_scales: Mapping[int, float | Tensor] | None
) -> list[tuple[int, float | Tensor]]:
    scales = dict(boundaries_and_scales or {})
    for boundary, scale in scales.items():
        check_integer(function, 0, boundary=boundary)
        check_within(function, "[0, inf)", scale=scale)
    return sorted(scales.items(), key=lambda item: item[0])
