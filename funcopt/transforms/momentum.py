"""Running sums and means of the updates."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcopt import numerics, tree
from funcopt.checks import check_within
from funcopt.numerics import add_scaled, bias_correction, increment
from funcopt.transform import GradientTransformation, Params, Updates, factory, zero_count


class TraceState(NamedTuple):
    trace: tree.Tree  # decaying sum of g


@factory
def trace(
    decay: float | Tensor,
    nesterov: bool = False,
    accumulator_dtype: torch.dtype | None = None,
    *,
    dampening: float | Tensor = 0.0,
) -> GradientTransformation:
    """Momentum: a decaying sum of the updates (Polyak 1964; Nesterov 1983).

        m ← (1 - dampening) g + decay * m        u = m, or g + decay * m with `nesterov`

    `accumulator_dtype` is the dtype in which m is stored; unless given, the parameters' own, at least float32.
    """
    check_within("trace", "[0, 1]", decay=decay)
    check_within("trace", "(-inf, inf)", dampening=dampening)
    undamped = isinstance(dampening, (int, float)) and dampening == 0

    def init(params: Params) -> TraceState:
        return TraceState(tree.zeros_like(params, accumulator_dtype))

    def rule(g: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        m = add_scaled(g if undamped else (1 - dampening) * g, decay, m)
        return (add_scaled(g, decay, m) if nesterov else m), m

    def update(
        updates: Updates, state: TraceState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, TraceState]:
        updates, sums = tree.map_rule(rule, updates, state.trace, elementwise=True)
        return updates, TraceState(sums)

    return GradientTransformation(init, update)


class EmaState(NamedTuple):
    count: Tensor  # type: ignore[assignment]  # steps taken
    ema: tree.Tree  # running mean of g, towards zero in the first steps


@factory
def ema(
    decay: float | Tensor, debias: bool = True, accumulator_dtype: torch.dtype | None = None
) -> GradientTransformation:
    """An exponential moving average of the updates.

        m ← decay * m + (1 - decay) g        u = m / (1 - decayᵗ), or m without `debias`

    `accumulator_dtype` is the dtype in which m is stored; unless given, the parameters' own, at least float32.
    """
    check_within("ema", "[0, 1)", decay=decay)

    def init(params: Params) -> EmaState:
        return EmaState(zero_count(params), tree.zeros_like(params, accumulator_dtype))

    def update(
        updates: Updates, state: EmaState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, EmaState]:
        count = increment(state.count)
        collected = bias_correction(decay, count) if debias else 1.0

        def rule(g: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
            m = numerics.ema(m, g, decay)
            return (m / collected if debias else m), m

        updates, averages = tree.map_rule(rule, updates, state.ema, elementwise=True)
        return updates, EmaState(count, averages)

    return GradientTransformation(init, update)
