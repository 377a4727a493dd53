"""Transformations that rescale the updates and remember no more than a step count."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcopt import tree
from funcopt.checks import check_within
from funcopt.numerics import filled_like, increment, realise, root_mean_square, safe_divide
from funcopt.transform import (
    GradientTransformation,
    Params,
    ScalarOrSchedule,
    Schedule,
    Updates,
    factory,
    require_params,
    scalar,
    stateless,
    stateless_with_tree_map,
    value_at,
    zero_count,
)


@factory
def scale(step_size: float | Tensor) -> GradientTransformation:
    """Multiply the updates by a constant: `u = step_size * g`."""
    check_within("scale", "(-inf, inf)", step_size=step_size)
    return stateless_with_tree_map(lambda update, param: step_size * update, "elementwise")


class ScaleByScheduleState(NamedTuple):
    count: Tensor  # type: ignore[assignment]  # steps taken


@factory
def scale_by_schedule(step_size_fn: Schedule) -> GradientTransformation:
    """Multiply the updates by a scheduled value: `u = step_size_fn(count) * g`, with `count = 0` at the first step."""

    def init(params: Params) -> ScaleByScheduleState:
        return ScaleByScheduleState(zero_count(params))

    def update(
        updates: Updates, state: ScaleByScheduleState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByScheduleState]:
        factor = value_at(step_size_fn, state.count)
        updates = tree.map_rule(lambda g: factor * g, updates, elementwise=True)
        return updates, ScaleByScheduleState(increment(state.count))

    return GradientTransformation(init, update)


class ScaleByLearningRateState(NamedTuple):
    count: Tensor  # type: ignore[assignment]  # steps taken
    last_rate: Tensor  # α of the last step, to be read; at the start, that of the first

    @property
    def metrics(self) -> dict[str, Tensor]:
        """What `metrics` reads."""
        return {"learning_rate": self.last_rate}


@factory
def scale_by_learning_rate(
    learning_rate: ScalarOrSchedule | None = None, *, flip_sign: bool = True
) -> GradientTransformation:
    """Multiply by the learning rate and turn ascent into descent: `u = -α g`. It ends most optimizers.

    A scheduled α is evaluated at `count`, 0 at the first step. The state counts steps whether α is a schedule or not,
    so that it can be kept when a constant is replaced by a schedule. `learning_rate=None` means α = 1; the sign is
    flipped then too (optax passes the updates on unchanged, uphill). `flip_sign=False`: `u = α g`.
    """
    check_within("scale_by_learning_rate", "(-inf, inf)", learning_rate=learning_rate)
    rate: ScalarOrSchedule = 1.0 if learning_rate is None else learning_rate
    sign = -1 if flip_sign else 1

    def init(params: Params) -> ScaleByLearningRateState:
        count = zero_count(params)
        return ScaleByLearningRateState(count, scalar(params, value_at(rate, count)))

    def update(
        updates: Updates, state: ScaleByLearningRateState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByLearningRateState]:
        current = value_at(rate, state.count)
        factor = sign * current
        updates = tree.map_rule(lambda g: factor * g, updates, elementwise=True)
        last_rate = filled_like(state.last_rate, current)
        return updates, ScaleByLearningRateState(increment(state.count), last_rate)

    return GradientTransformation(init, update)


@factory
def scale_by_sign() -> GradientTransformation:
    """Keep the sign of every number: `u = sign(g)`, and `g / |g|` for complex leaves; 0 stays 0.

    signSGD (Bernstein et al. 2018, https://arxiv.org/abs/1802.04434).
    """
    return stateless_with_tree_map(lambda update, param: torch.sgn(update), "elementwise")


@factory
def scale_by_param_block_rms(min_scale: float | Tensor = 1e-3) -> GradientTransformation:
    """Make steps relative to the size of what they move: `u = g * max(RMS(p), min_scale)`, leaf by leaf.

    As in Adafactor (Shazeer & Stern 2018, https://arxiv.org/abs/1804.04235). `update` needs params.
    """
    check_within("scale_by_param_block_rms", "[0, inf)", min_scale=min_scale)

    def rule(g: Tensor, p: Tensor) -> Tensor:
        return g * realise(root_mean_square(p).clamp(min=min_scale))

    def rescale(updates: Updates, params: Params | None) -> Updates:
        return tree.map_rule(rule, updates, reads=(require_params(params, "scale_by_param_block_rms"),))

    return stateless(rescale, "leafwise")


@factory
def normalize_by_update_norm(scale_factor: float | Tensor = 1.0, eps: float | Tensor = 1e-6) -> GradientTransformation:
    """Give the whole tree of updates the norm `scale_factor`: `u = scale_factor * g / (‖g‖ + ε)`.

    Zero updates stay zero, also for `eps = 0` (where optax gives NaN).
    """
    check_within("normalize_by_update_norm", "(-inf, inf)", scale_factor=scale_factor)
    check_within("normalize_by_update_norm", "[0, inf)", eps=eps)

    def normalize(updates: Updates, params: Params | None) -> Updates:
        norm = tree.global_norm(updates)
        factor = realise(safe_divide(scale_factor * torch.ones_like(norm), norm + eps))
        return tree.map_rule(lambda g: factor * g, updates, elementwise=True)

    return stateless(normalize)


@factory
def normalize() -> GradientTransformation:
    """Give the whole tree of updates the norm 1: `u = g / ‖g‖`. Zero updates stay zero (optax gives NaN).

    >>> normalized_sgd = chain(normalize(), sgd(0.1))
    """
    return normalize_by_update_norm(eps=0.0)


@factory
def centralize() -> GradientTransformation:
    """Give every row of a weight a gradient of mean zero (Yong et al. 2020, https://arxiv.org/abs/2004.01461).

        u = g - mean(g over all axes but the first)        leaves of at least two axes; others are kept

    With torch's layouts a row holds the weights into one output unit, as in the paper.
    """

    def rule(update: Tensor, param: Tensor | None) -> Tensor:
        if update.ndim < 2 or update.numel() == 0:
            return update
        return update - update.mean(dim=tuple(range(1, update.ndim)), keepdim=True)

    return stateless_with_tree_map(rule, "leafwise")
