"""Schedules that begin with a linear warm-up."""

from typing import Literal

import torch
from torch import Tensor

from funcopt.checks import check_choice, check_integer, check_within
from funcopt.schedules.decay import constant_schedule, exponential_decay, linear_schedule
from funcopt.schedules.interpolation import (
    as_scalar,
    as_steps,
    cosine,
    linear,
    one_minus_sqrt,
    raised,
    transition,
)
from funcopt.schedules.join import join_schedules
from funcopt.transform import Schedule, schedule_factory

_DECAY_SHAPES = {"linear": linear, "cosine": cosine, "1-sqrt": one_minus_sqrt}


@schedule_factory
def warmup_constant_schedule(init_value: float | Tensor, peak_value: float | Tensor, warmup_steps: int) -> Schedule:
    """Linear warm-up, then constant: `init + (peak - init) * min(t / warmup_steps, 1)`.

    With `warmup_steps = 0` the value is `peak_value` from the start (optax: `init_value` forever).

    Raises:
        TypeError, ValueError: a value is no finite number, `warmup_steps` is no int >= 0.
    """
    check_within("warmup_constant_schedule", "(-inf, inf)", init_value=init_value, peak_value=peak_value)
    check_integer("warmup_constant_schedule", 0, warmup_steps=warmup_steps)
    return _after_warmup(init_value, peak_value, warmup_steps, constant_schedule(peak_value))


def _after_warmup(
    init_value: float | Tensor, peak_value: float | Tensor, warmup_steps: int, schedule: Schedule
) -> Schedule:
    return join_schedules([linear_schedule(init_value, peak_value, warmup_steps), schedule], [warmup_steps])


@schedule_factory
def warmup_cosine_decay_schedule(
    init_value: float | Tensor,
    peak_value: float | Tensor,
    warmup_steps: int,
    decay_steps: int,
    end_value: float | Tensor = 0.0,
    exponent: float | Tensor = 1.0,
) -> Schedule:
    """Linear warm-up, then cosine annealing (https://arxiv.org/abs/1608.03983) to the end of `decay_steps`.

        t < warmup:  init + (peak - init) * t / warmup        f = (t - warmup) / (decay_steps - warmup), at most 1
        t >= warmup: end + (peak - end) * ((1 + cos πf) / 2)^exponent

    `decay_steps` is the length of the whole, warm-up included. With `warmup_steps = 0` it starts at the peak.
    With `peak_value = 0` it still goes to `end_value` (optax: it stays at 0).

    Raises:
        TypeError, ValueError: a value is no finite number, `exponent` is negative, `warmup_steps` is no int >= 0,
            or `decay_steps` no larger int.
    """
    name = "warmup_cosine_decay_schedule"
    check_within(name, "(-inf, inf)", init_value=init_value, peak_value=peak_value, end_value=end_value)
    check_within(name, "[0, inf)", exponent=exponent)
    check_integer(name, 0, warmup_steps=warmup_steps)
    check_integer(name, 1, decay_steps=decay_steps)
    if decay_steps <= warmup_steps:
        raise ValueError(
            f"{name}: decay_steps must exceed warmup_steps={warmup_steps}, which it includes, "
            f"got decay_steps={decay_steps}."
        )
    shape = raised(cosine, exponent)
    decay = transition(peak_value, end_value, decay_steps - warmup_steps, shape=shape)
    return _after_warmup(init_value, peak_value, warmup_steps, decay)


@schedule_factory
def warmup_exponential_decay_schedule(
    init_value: float | Tensor,
    peak_value: float | Tensor,
    warmup_steps: int,
    transition_steps: int,
    decay_rate: float | Tensor,
    transition_begin: int = 0,
    staircase: bool = False,
    end_value: float | Tensor | None = None,
) -> Schedule:
    """Linear warm-up from `init_value` to `peak_value`, then `exponential_decay` from there.

    `transition_begin` counts from the end of the warm-up. With `warmup_steps = 0` it starts at the peak.

    Raises:
        TypeError, ValueError: as `exponential_decay`, and where `warmup_steps` is no int >= 0.
    """
    check_within("warmup_exponential_decay_schedule", "(-inf, inf)", init_value=init_value, peak_value=peak_value)
    check_integer("warmup_exponential_decay_schedule", 0, warmup_steps=warmup_steps)
    decay = exponential_decay(peak_value, transition_steps, decay_rate, transition_begin, staircase, end_value)
    return _after_warmup(init_value, peak_value, warmup_steps, decay)


@schedule_factory
def warmup_stable_decay_schedule(
    init_value: float | Tensor,
    peak_value: float | Tensor,
    warmup_steps: int,
    stable_steps: int,
    decay_steps: int,
    end_value: float | Tensor = 0.0,
    decay_shape: Literal["linear", "cosine", "1-sqrt"] = "linear",
) -> Schedule:
    """WSD: linear warm-up, constant, decay; a trapezoid (Hägele et al. 2024, https://arxiv.org/abs/2405.18392).

        decay:  end + (peak - end) * w(f)        f = (t - warmup_steps - stable_steps) / decay_steps, at most 1
        w(f) = 1 - f ("linear"), (1 + cos πf) / 2 ("cosine"), or 1 - √f ("1-sqrt", the best one in the paper)

    The three lengths add up (`decay_steps` is that of the decay alone); a run is prolonged by `stable_steps`.
    The name is of MiniCPM (Hu et al. 2024, https://arxiv.org/abs/2404.06395). optax has no counterpart.

    >>> schedule = warmup_stable_decay_schedule(0.0, 1.0, warmup_steps=2, stable_steps=6, decay_steps=4)
    >>> [float(schedule(count)) for count in (0, 1, 2, 8, 9, 12)]
    [0.0, 0.5, 1.0, 1.0, 0.75, 0.0]

    Raises:
        TypeError, ValueError: a value is no finite number, `decay_shape` is another, `warmup_steps` or `stable_steps`
            is no int >= 0, or `decay_steps` no positive int.
    """
    name = "warmup_stable_decay_schedule"
    check_within(name, "(-inf, inf)", init_value=init_value, peak_value=peak_value, end_value=end_value)
    check_integer(name, 0, warmup_steps=warmup_steps, stable_steps=stable_steps)
    check_integer(name, 1, decay_steps=decay_steps)
    check_choice(name, tuple(_DECAY_SHAPES), decay_shape=decay_shape)
    decay = transition(peak_value, end_value, decay_steps, stable_steps, _DECAY_SHAPES[decay_shape])
    return _after_warmup(init_value, peak_value, warmup_steps, decay)


@schedule_factory
def inverse_sqrt_schedule(
    peak_value: float | Tensor,
    *,
    warmup_steps: int = 0,
    init_value: float | Tensor = 0.0,
    timescale: float | Tensor | None = None,
) -> Schedule:
    """Linear warm-up, then decay with the root of time (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762).

        t < warmup:  init + (peak - init) * t / warmup
        t >= warmup: peak * √(τ / (τ + t - warmup))        τ = timescale, unless told warmup_steps, at least 1

    Hence `peak * √(warmup / t)` after a warm-up, and `peak / √(t + 1)` without one. The paper's rate at its step t,
    which starts at 1, is the value at count t with `peak_value = (d_model * warmup_steps) ** -0.5`.

    >>> schedule = inverse_sqrt_schedule(peak_value=1.0, warmup_steps=4)
    >>> [float(schedule(count)) for count in (0, 2, 4, 16)]
    [0.0, 0.5, 1.0, 0.5]

    Raises:
        TypeError, ValueError: a value is no finite number, `timescale` is not positive, `warmup_steps` no int >= 0.
    """
    check_within("inverse_sqrt_schedule", "(-inf, inf)", peak_value=peak_value, init_value=init_value)
    check_within("inverse_sqrt_schedule", "(0, inf)", timescale=timescale)
    check_integer("inverse_sqrt_schedule", 0, warmup_steps=warmup_steps)

    def decay(count: int | Tensor) -> Tensor:
        steps = as_steps(count)
        scale = as_scalar(max(warmup_steps, 1) if timescale is None else timescale, steps)
        return as_scalar(peak_value, steps) * torch.sqrt(scale / (scale + steps))

    return _after_warmup(init_value, peak_value, warmup_steps, decay)
