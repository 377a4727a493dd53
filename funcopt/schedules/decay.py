"""Schedules that go from one value to another once."""

import math

import torch
from torch import Tensor

from funcopt.checks import check_integer, check_within
from funcopt.schedules.interpolation import as_scalar, as_steps, cosine, linear, raised, transition
from funcopt.transform import Schedule, schedule_factory


@schedule_factory
def constant_schedule(value: float | Tensor) -> Schedule:
    """The same value at every count."""
    check_within("constant_schedule", "(-inf, inf)", value=value)

    def schedule(count: int | Tensor) -> Tensor:
        steps = as_steps(count)
        return as_scalar(value, steps) + torch.zeros_like(steps)

    return schedule


@schedule_factory
def polynomial_schedule(
    init_value: float | Tensor,
    end_value: float | Tensor,
    power: float | Tensor,
    transition_steps: int,
    transition_begin: int = 0,
) -> Schedule:
    """From one value to another along a power of the remaining part of the way.

        end + (init - end) * (1 - f)^power        f = (t - transition_begin) / transition_steps, within [0, 1]

    With `transition_steps <= 0` the value stays at `init_value`; a negative `transition_begin` means 0.

    >>> schedule = polynomial_schedule(init_value=1.0, end_value=0.0, power=2, transition_steps=4)
    >>> float(schedule(2))
    0.25

    Raises:
        TypeError, ValueError: a value is no finite number, `power` is negative, a number of steps is no int.
    """
    check_within("polynomial_schedule", "(-inf, inf)", init_value=init_value, end_value=end_value)
    check_within("polynomial_schedule", "[0, inf)", power=power)
    check_integer("polynomial_schedule", None, transition_steps=transition_steps, transition_begin=transition_begin)
    if transition_steps <= 0:
        return constant_schedule(init_value)
    return transition(init_value, end_value, transition_steps, max(transition_begin, 0), raised(linear, power))


@schedule_factory
def linear_schedule(
    init_value: float | Tensor, end_value: float | Tensor, transition_steps: int, transition_begin: int = 0
) -> Schedule:
    """From one value to another along a straight line.

        init + (end - init) * f        f = (t - transition_begin) / transition_steps, within [0, 1]

    With `transition_steps <= 0` the value stays at `init_value`; a negative `transition_begin` means 0.

    >>> schedule = linear_schedule(init_value=0.0, end_value=1.0, transition_steps=4)
    >>> float(schedule(3))
    0.75

    Raises:
        TypeError, ValueError: a value is no finite number, a number of steps is no int.
    """
    check_within("linear_schedule", "(-inf, inf)", init_value=init_value, end_value=end_value)
    check_integer("linear_schedule", None, transition_steps=transition_steps, transition_begin=transition_begin)
    if transition_steps <= 0:
        return constant_schedule(init_value)
    return transition(init_value, end_value, transition_steps, max(transition_begin, 0))


@schedule_factory
def exponential_decay(
    init_value: float | Tensor,
    transition_steps: int,
    decay_rate: float | Tensor,
    transition_begin: int = 0,
    staircase: bool = False,
    end_value: float | Tensor | None = None,
) -> Schedule:
    """Decay, or growth, by the factor `decay_rate` in every `transition_steps` steps.

        init * decay_rate^p        p = max(t - transition_begin, 0) / transition_steps, rounded down with `staircase`

    `end_value` is a lower bound where `decay_rate < 1`, else an upper one. With `transition_steps <= 0` or
    `decay_rate = 0` the value stays at `init_value`, whatever `end_value`; a negative `transition_begin` means 0.
    Growth ends at the root of the largest float, so that derivatives stay finite.

    Raises:
        TypeError, ValueError: a value is no finite number, `decay_rate` is negative, a number of steps is no int.
    """
    check_within("exponential_decay", "(-inf, inf)", init_value=init_value, end_value=end_value)
    check_within("exponential_decay", "[0, inf)", decay_rate=decay_rate)
    check_integer("exponential_decay", None, transition_steps=transition_steps, transition_begin=transition_begin)
    if transition_steps <= 0:
        return constant_schedule(init_value)

    def schedule(count: int | Tensor) -> Tensor:
        steps = as_steps(count)
        periods = (steps - max(transition_begin, 0)).clamp(min=0) / transition_steps
        rate = as_scalar(decay_rate, steps)
        value = as_scalar(init_value, steps) * _power(rate, periods.floor() if staircase else periods)
        if end_value is None:
            return value
        bound = as_scalar(end_value, steps)
        bounded = torch.where(rate < 1, torch.maximum(value, bound), torch.minimum(value, bound))
        return torch.where(rate == 0, value, bounded)

    return schedule


def _power(rate: Tensor, periods: Tensor) -> Tensor:
    """`rate ** periods`, at most the root of the largest float, and 1 for `rate = 0`."""
    largest = 0.5 * math.log(torch.finfo(rate.dtype).max)
    return (periods * torch.where(rate == 0, 1, rate).log()).clamp(max=largest).exp()


@schedule_factory
def cosine_decay_schedule(
    init_value: float | Tensor, decay_steps: int, alpha: float | Tensor = 0.0, exponent: float | Tensor = 1.0
) -> Schedule:
    """Cosine annealing (Loshchilov & Hutter 2016, https://arxiv.org/abs/1608.03983) to a fraction of the first value.

        init * (alpha + (1 - alpha) * ((1 + cos πf) / 2)^exponent)        f = t / decay_steps, within [0, 1]

    >>> schedule = cosine_decay_schedule(init_value=1.0, decay_steps=10, alpha=0.1)
    >>> [round(float(schedule(count)), 6) for count in (0, 5, 10, 11)]
    [1.0, 0.55, 0.1, 0.1]

    Raises:
        TypeError, ValueError: a value is no finite number, `exponent` is negative, `decay_steps` is no positive int.
    """
    check_within("cosine_decay_schedule", "(-inf, inf)", init_value=init_value, alpha=alpha)
    check_within("cosine_decay_schedule", "[0, inf)", exponent=exponent)
    check_integer("cosine_decay_schedule", 1, decay_steps=decay_steps)
    factor = transition(1.0, alpha, decay_steps, shape=raised(cosine, exponent))

    def schedule(count: int | Tensor) -> Tensor:
        decayed = factor(count)
        return as_scalar(init_value, decayed) * decayed

    return schedule
