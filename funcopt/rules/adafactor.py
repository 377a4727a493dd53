"""Adafactor: the second moment of a matrix as the product of a column and a row."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from funcopt import tree
from funcopt.checks import check_choice, check_integer, check_within
from funcopt.numerics import (
    EpsMode,
    abs_square,
    compute_dtype,
    ema,
    increment,
    real_dtype,
    realise,
    root,
    safe_divide,
    scalar_dtype,
)
from funcopt.transform import (
    GradientTransformation,
    Mask,
    Params,
    ScalarOrSchedule,
    Schedule,
    Updates,
    chain,
    factory,
    require_params,
    value_at,
    zero_count,
)
from funcopt.transforms.clipping import clip_by_block_rms
from funcopt.transforms.momentum import ema as ema_of_updates
from funcopt.transforms.scaling import scale, scale_by_learning_rate, scale_by_param_block_rms
from funcopt.transforms.weight_decay import add_decayed_weights

FactoredDims: TypeAlias = Literal["largest", "last"]


class FactoredState(NamedTuple):
    count: Tensor  # type: ignore[assignment]  # steps taken
    v_row: tree.Tree  # running mean of |g|² over the columns, with an axis of size one for them; empty if not factored
    v_col: tree.Tree  # the same over the rows
    v: tree.Tree  # running mean of |g|²; empty if factored


def power_decay(step: Tensor, exponent: float | Tensor) -> Tensor:
    """The decay of the second moment in Adafactor: `1 - (step + 1)^-exponent`, so 0 at the first step."""
    return 1 - (step.to(scalar_dtype(step.device)) + 1) ** -exponent


def factored_axes(shape: torch.Size, dims: FactoredDims, min_dim_size: int) -> tuple[int, int] | None:
    """The axes of rows and of columns, or None for a leaf that is not factored."""
    if len(shape) < 2:
        return None
    order = sorted(range(len(shape)), key=shape.__getitem__) if dims == "largest" else range(len(shape))
    rows, columns = order[-2], order[-1]
    return (rows, columns) if min(shape[rows], shape[columns]) >= min_dim_size else None


def _mean(x: Tensor, axis: int) -> Tensor:
    return x.sum(axis, keepdim=True) / max(x.shape[axis], 1)


def _factored_root(row: Tensor, col: Tensor, rows: int, eps: float | Tensor, eps_mode: EpsMode) -> Tensor:
    """`√(R C / mean(R))`."""
    mean = _mean(row, rows)
    if eps_mode == "add":
        return root(safe_divide(row, mean)) * root(col)  # the product before the root may underflow
    return root((safe_divide(row, mean.clamp(min=eps)) * col).clamp(min=eps**2))


@factory
def scale_by_factored_rms(
    factored: bool = True,
    decay_rate: float | Tensor = 0.8,
    step_offset: int = 0,
    min_dim_size_to_factor: int = 128,
    epsilon: float | Tensor | None = 1e-30,
    decay_rate_fn: Callable[[Tensor, float | Tensor], Tensor] = power_decay,
    *,
    factored_dims: FactoredDims = "largest",
    eps_mode: EpsMode = "add",
) -> GradientTransformation:
    """Divide by the root of a factored running mean of `|g|²`: the direction of `adafactor`.

        β = decay_rate_fn(t - 1 - step_offset, decay_rate)        R, C ← means of q over columns and over rows, by β
        u = g / √(R C / mean(R))        q = |g|² + ε

    A leaf is factored along `factored_dims`, its two "largest" axes or its "last" two, if both have at least
    `min_dim_size_to_factor` numbers; other axes are a batch. Else it keeps the mean of q as it is. With
    `eps_mode="floor"` (torch.optim.Adafactor), q is |g|², mean(R) at least ε, and the quotient at least ε²; an
    `epsilon` of None is then the machine epsilon of each parameter's own dtype, and `update` needs params.

    As optax, where R and C have no axis of size one, β is rounded to float32, and a `step_offset` above the count
    gives NaN (here β = 0).
    """
    _check_factored_rms(decay_rate, step_offset, min_dim_size_to_factor, epsilon, factored_dims, eps_mode)

    def axes_of(leaf: Tensor) -> tuple[int, int] | None:
        return factored_axes(leaf.shape, factored_dims, min_dim_size_to_factor) if factored else None

    def init(params: Params) -> FactoredState:
        def zeros(axis: int | None) -> tree.Tree:
            return tree.map_leafwise(lambda leaf: _zeros(leaf, axes_of(leaf), axis), params)

        return FactoredState(zero_count(params), zeros(1), zeros(0), zeros(None))

    def update(
        updates: Updates, state: FactoredState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, FactoredState]:
        beta = realise(decay_rate_fn((state.count - step_offset).clamp(min=0), decay_rate))
        eps = tree.map(lambda leaf: epsilon, updates) if epsilon is not None else _machine_epsilon(params)

        def rule(g: Tensor, row: Tensor, col: Tensor, v: Tensor, eps: float | Tensor) -> tuple[Tensor, ...]:
            axes = axes_of(g)
            square = abs_square(g) + eps if eps_mode == "add" else abs_square(g)
            if axes is None:
                v = ema(v, square, beta)
                return g / root(v if eps_mode == "add" else v.clamp(min=eps**2)), row, col, v
            row, col = (ema(m, _mean(square, axis), beta) for m, axis in zip((row, col), reversed(axes)))
            return g / _factored_root(row, col, axes[0], eps, eps_mode), row, col, v

        updates, row, col, v = tree.map_rule(rule, updates, state.v_row, state.v_col, state.v, reads=(eps,))
        return updates, FactoredState(increment(state.count), row, col, v)

    return GradientTransformation(init, update, "leafwise")


def _check_factored_rms(
    decay_rate: float | Tensor,
    step_offset: int,
    min_dim_size_to_factor: int,
    epsilon: float | Tensor | None,
    factored_dims: FactoredDims,
    eps_mode: EpsMode,
) -> None:
    name = "scale_by_factored_rms"
    check_within(name, "[0, inf)", decay_rate=decay_rate, epsilon=epsilon)
    check_integer(name, None, step_offset=step_offset)
    check_integer(name, 0, min_dim_size_to_factor=min_dim_size_to_factor)
    check_choice(name, ("largest", "last"), factored_dims=factored_dims)
    check_choice(name, ("add", "floor"), eps_mode=eps_mode)
    if epsilon is None and eps_mode == "add":
        raise ValueError(f"{name}: epsilon must be a number with eps_mode='add', got epsilon=None.")


def _machine_epsilon(params: Params | None) -> tree.Tree:
    return tree.map(lambda leaf: torch.finfo(leaf.dtype).eps, require_params(params, "scale_by_factored_rms"))


def _zeros(leaf: Tensor, axes: tuple[int, int] | None, axis: int | None) -> Tensor:
    """Zeros of the leaf's shape, with size one along the axis of rows (0) or columns (1); none if not of use."""
    shape: list[int] = list(leaf.shape) if (axes is None) == (axis is None) else [0]
    if axes is not None and axis is not None:
        shape[axes[axis]] = 1
    return leaf.new_zeros(shape, dtype=real_dtype(compute_dtype(leaf.dtype)))


@factory
def adafactor(
    learning_rate: ScalarOrSchedule | None = None,
    min_dim_size_to_factor: int = 128,
    decay_rate: float | Tensor = 0.8,
    decay_offset: int = 0,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: float | Tensor | None = 1.0,
    momentum: float | Tensor | None = None,
    dtype_momentum: torch.dtype | None = None,
    weight_decay_rate: ScalarOrSchedule | None = None,
    eps: float | Tensor | None = 1e-30,
    factored: bool = True,
    weight_decay_mask: Mask | None = None,
    *,
    factored_dims: FactoredDims = "largest",
    eps_mode: EpsMode = "add",
    relative_cap: bool = False,
    min_scale: float | Tensor = 1e-3,
) -> GradientTransformation:
    """Adafactor (Shazeer & Stern 2018, https://arxiv.org/abs/1804.04235): Adam's memory without its size.

        d = g / √(R C / mean(R))        R, C the running means of |g|² + ε over columns and rows, β = 1 - t^-decay_rate
        u = -(α max(RMS(p), min_scale) d / max(1, RMS(d) / clipping_threshold) + λ p)

    λ is `weight_decay_rate`, which is not multiplied by α. `momentum` makes an average of the first term, without
    correction, in `dtype_momentum`: the parameters' own unless given, at least float32 (always that in optax). A
    `learning_rate` of None is 1. What is factored, and what ε is: see `scale_by_factored_rms`. With
    `relative_cap`, α is at most 1/√t. `update` needs params for RMS(p) and λ.

    The defaults are those of optax. torch.optim.Adafactor(lr=α, eps=(ε, min_scale), d=clipping_threshold) is
    `adafactor(α, 0, eps=ε, factored_dims="last", eps_mode="floor", relative_cap=True)`, with λ = α `weight_decay`; its
    ε of None is that of the first leaf for all others of the call, here of each leaf.

    >>> optimizer = adafactor(learning_rate=1e-2)
    """
    rate = _capped(learning_rate) if relative_cap else learning_rate
    links = [
        scale_by_factored_rms(
            factored,
            decay_rate,
            decay_offset,
            min_dim_size_to_factor,
            eps,
            factored_dims=factored_dims,
            eps_mode=eps_mode,
        ),
        *([] if clipping_threshold is None else [clip_by_block_rms(clipping_threshold)]),
        *([] if rate is None else [scale_by_learning_rate(rate, flip_sign=False)]),
        *([scale_by_param_block_rms(min_scale)] if multiply_by_parameter_scale else []),
        *([] if momentum is None else [ema_of_updates(momentum, debias=False, accumulator_dtype=dtype_momentum)]),
        *([] if weight_decay_rate is None else [add_decayed_weights(weight_decay_rate, weight_decay_mask)]),
        scale(-1.0),
    ]
    return chain(*links)


def _capped(learning_rate: ScalarOrSchedule | None) -> Schedule:
    """The rate, and at most `1/√t`."""
    check_within("adafactor", "[0, inf)", learning_rate=learning_rate)

    def rate(count: Tensor) -> Tensor:
        cap = (count.to(scalar_dtype(count.device)) + 1).rsqrt()
        return cap if learning_rate is None else cap.clamp(max=value_at(learning_rate, count))

    return rate
