"""What schedules are made of: counts and hyperparameters as scalars, and the way from one value to the next.

Nothing is computed with tensors while a schedule is built, so that each of its values has a graph of its own.
"""

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

from funcopt.numerics import scalar_dtype
from funcopt.transform import Schedule

Shape: TypeAlias = Callable[[Tensor], Tensor]
"""The weight of the old value, from 1 to 0, as a function of the part of the way that is behind, from 0 to 1."""


def as_count(count: int | Tensor) -> Tensor:
    """A count as an int64 tensor, whose range no boundary exceeds; a float stays one. Python numbers go to the CPU."""
    if isinstance(count, Tensor):
        return count if count.is_floating_point() else count.to(torch.int64)
    return torch.tensor(count, dtype=torch.int64 if isinstance(count, int) else torch.float64, device="cpu")


def as_steps(count: int | Tensor) -> Tensor:
    """A count as a tensor of the scalar dtype."""
    steps = as_count(count)
    return steps.to(scalar_dtype(steps.device))


def as_scalar(value: float | Tensor, steps: Tensor) -> Tensor:
    """A hyperparameter as a scalar of the dtype and on the device of `steps`."""
    if isinstance(value, Tensor):
        return value.to(dtype=steps.dtype, device=steps.device)
    return torch.full_like(steps, value)


def linear(fraction: Tensor) -> Tensor:
    """A straight line."""
    return 1 - fraction


def cosine(fraction: Tensor) -> Tensor:
    """Half a period of a cosine, level at both ends."""
    return 0.5 * (1 + torch.cos(math.pi * fraction))


def one_minus_sqrt(fraction: Tensor) -> Tensor:
    """A steep start and a slow end."""
    return 1 - fraction.sqrt()


def raised(shape: Shape, exponent: float | Tensor) -> Shape:
    """`shape` to the power of `exponent >= 0`; its derivatives in the exponent exist where the shape is 0 as well."""

    def raised_shape(fraction: Tensor) -> Tensor:
        weight = shape(fraction)
        if not isinstance(exponent, Tensor):
            return weight**exponent
        power = as_scalar(exponent, weight)
        zero = weight == 0
        return torch.where(zero, (power == 0).to(weight.dtype), torch.where(zero, 1, weight) ** power)

    return raised_shape


def transition(
    init_value: float | Tensor,
    end_value: float | Tensor,
    transition_steps: int,
    transition_begin: int = 0,
    shape: Shape = linear,
) -> Schedule:
    """The schedule `end + (init - end) * shape(f)`, with `f = (t - begin) / transition_steps` within [0, 1]."""

    def schedule(count: int | Tensor) -> Tensor:
        steps = as_steps(count)
        fraction = ((steps - transition_begin) / transition_steps).clamp(0, 1)
        return torch.lerp(as_scalar(end_value, steps), as_scalar(init_value, steps), shape(fraction))

    return schedule


def through_knots(steps: Tensor, knots: Mapping[int, Tensor], shape: Shape) -> Tensor:
    """The value at `steps` of the curve through `knots`, values by step in ascending order; constant outside."""
    value = next(iter(knots.values()))
    for (start, left), (end, right) in pairwise(knots.items()):
        fraction = ((steps - start) / (end - start)).clamp(0, 1)
        value = torch.where(steps < start, value, torch.lerp(right, left, shape(fraction)))
    return value
