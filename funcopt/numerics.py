"""Scalars and single tensors: the arithmetic that every update rule relies on.

Step scalars (bias corrections, scheduled rates) are 0-d tensors, computed once per update, in float64 where the
device has it, and realised before the elementwise arithmetic that uses them.
"""

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor

EpsMode: TypeAlias = Literal["add", "floor"]
"""How an ε keeps a denominator away from 0: added to it, or as the least value that it takes."""


def scalar_dtype(device: torch.device) -> torch.dtype:
    """The dtype in which step scalars are computed on `device`: float64, or float32 where there is no float64 (MPS)."""
    return torch.float32 if device.type == "mps" else torch.float64


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a rule computes on leaves of `dtype`: itself, and at least float32 (or complex64)."""
    if not (dtype.is_floating_point or dtype.is_complex):
        return dtype
    return torch.promote_types(dtype, torch.float32)


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the absolute value of a number of `dtype`, which is one of `compute_dtype`."""
    return {torch.complex64: torch.float32, torch.complex128: torch.float64}.get(dtype, dtype)


def increment(count: Tensor) -> Tensor:
    """`count + 1`, staying at the largest value of its integer dtype instead of wrapping to a negative number."""
    return count + (count < torch.iinfo(count.dtype).max)


def realise(scalar: Tensor) -> Tensor:
    """Keep a computed 0-d tensor as a value of its own in compiled code.

    Inductor would otherwise compute it anew for every vector of the elementwise kernel that uses it, at two to three
    times the time of the whole step. A sum it does not inline, and fuses with other scalars into one small kernel (of
    eight terms it would write out the addition, and inline that); vmap, grad and jvp pass through. Outside of a
    compiled graph nothing happens.
    """
    if not torch.compiler.is_compiling():
        return scalar
    return torch.nn.functional.pad(scalar.reshape(1), (0, 15)).sum(dtype=scalar.dtype)


def bias_correction(decay: float | Tensor, count: Tensor) -> Tensor:
    """`1 - decayᵗ` for `t = count >= 1`: the weight that a moving average started at zero has collected after t steps.

    To full accuracy: a float decay goes through `-expm1(t log decay)`, since `1 - 0.9999**t` in float32 is off by
    1e-4. A tensor takes `pow`, whose derivative exists at `decay = 0` as well.
    """
    steps = count.to(scalar_dtype(count.device))
    if isinstance(decay, Tensor):
        return realise(1 - decay.to(steps.dtype).pow(steps))
    if decay == 0:
        return torch.ones_like(steps)
    return realise(-torch.expm1(steps * math.log(decay)))


def ema(average: Tensor, value: Tensor, decay: float | Tensor) -> Tensor:
    """Exponential moving average: `decay * average + (1 - decay) * value`."""
    if isinstance(decay, Tensor) or average.dtype != value.dtype:
        return decay * average + (1 - decay) * value
    return average.lerp(value, 1 - decay)  # the same in one pass


def add_scaled(x: Tensor, scale: float | Tensor, y: Tensor) -> Tensor:
    """`x + scale * y`; in one pass where the scale is a number."""
    return x + scale * y if isinstance(scale, Tensor) else x.add(y, alpha=scale)


def filled_like(x: Tensor, value: float | Tensor) -> Tensor:
    """A tensor like `x` that holds a number, or a 0-d tensor, everywhere."""
    if isinstance(value, Tensor):
        return (torch.zeros_like(x) + value).to(x.dtype)
    return torch.full_like(x, value)


def times(number: float | Tensor, scalar: Tensor) -> float | Tensor:
    """`number * scalar`, realised; 0.0 where that is known before the scalar is, so that `shift` may skip it."""
    return 0.0 if isinstance(number, (int, float)) and number == 0 else realise(number * scalar)


def shift(x: Tensor, by: float | Tensor) -> Tensor:
    """`x + by`; x itself where that is the number 0, as an `eps_root` usually is."""
    return x if isinstance(by, (int, float)) and by == 0 else x + by


def abs_square(x: Tensor) -> Tensor:
    """`|x|²`, real also for complex `x`."""
    return (x.conj() * x).real if x.is_complex() else x.square()


def safe_sqrt(x: Tensor) -> Tensor:
    """`√x` for `x >= 0`, with derivative 0 (instead of infinity) at 0; 0 for negative `x`, and NaN for NaN."""
    zero = x <= 0
    return torch.where(zero, torch.zeros_like(x), torch.where(zero, 1, x).sqrt())


def root(x: Tensor) -> Tensor:
    """`√x` for `x >= 0` in a denominator: of the smallest normal number where x is 0, with derivative 0 there.

    That is 1e-19 in float32, which any ε in use absorbs; and 0 / root(0) is 0. Half the passes of `safe_sqrt`.
    """
    return x.clamp(min=torch.finfo(x.dtype).tiny).sqrt_()


def safe_divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """`numerator / denominator`, and 0, with derivative 0, where the denominator is 0."""
    zero = denominator == 0
    return torch.where(zero, 0, numerator / torch.where(zero, 1, denominator))


def norm(x: Tensor) -> Tensor:
    """The 2-norm of all elements of `x`, at least in float32; its derivative is 0 at 0."""
    return safe_sqrt(abs_square(x.to(compute_dtype(x.dtype))).sum())


def root_mean_square(x: Tensor) -> Tensor:
    """`√(mean |x|²)` over all elements, at least in float32; 0, with derivative 0, for zeros and for no elements."""
    return safe_sqrt(abs_square(x.to(compute_dtype(x.dtype))).sum() / max(x.numel(), 1))
