"""A learning rate that falls when the loss stops to fall."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcopt import tree
from funcopt.checks import check_integer, check_within
from funcopt.numerics import realise
from funcopt.transform import GradientTransformation, Params, Updates, factory, scalar, zero_count


class ReduceLROnPlateauState(NamedTuple):
    scale: Tensor  # factor of the updates
    best_value: Tensor  # lowest mean so far
    plateau_count: Tensor  # means since then, or since the last reduction
    cooldown_count: Tensor  # means that still do not count
    count: Tensor  # type: ignore[assignment]  # values in avg_value
    avg_value: Tensor  # mean of the values since the last evaluation


@factory
def reduce_on_plateau(
    factor: float | Tensor = 0.1,
    patience: int = 10,
    rtol: float | Tensor = 1e-4,
    atol: float | Tensor = 0.0,
    cooldown: int = 0,
    accumulation_size: int = 1,
    min_scale: float | Tensor = 0.0,
) -> GradientTransformation:
    """Scale the updates down when the loss has stopped to fall; the last link of a chain.

        m = mean of `accumulation_size` values;    improved: m < best - rtol |best| - atol
        scale ← max(scale * factor, min_scale)     after `patience` means without improvement
        u = scale * g                              the new scale from the same step on

    `update` needs the extra argument `value`, the loss: a number or a 0-d tensor. For `cooldown` means after a
    reduction none counts as a failure. A NaN is no improvement, and neither is a mean with a NaN in it: a run that
    diverges is slowed down, and `best_value` and `scale` stay numbers.

    As optax, but for a negative best value (a log-likelihood): there optax takes a mean that is worse by less than
    `rtol` for an improvement, and so never reduces. Where torch.optim.lr_scheduler.ReduceLROnPlateau has a patience of
    n, this one has n + 1.

    Raises:
        ValueError: an argument is out of range, `rtol` and `atol` are both 0, or `value` has axes.

    >>> optimizer = chain(adam(1e-3), reduce_on_plateau(factor=0.5, patience=5))
    >>> params = {"w": torch.ones(2)}
    >>> grads, value = torch.func.grad_and_value(lambda params: params["w"].square().sum())(params)
    >>> updates, state = optimizer.update(grads, optimizer.init(params), params, value=value)
    """
    _check(factor, patience, rtol, atol, cooldown, accumulation_size, min_scale)

    def init(params: Params) -> ReduceLROnPlateauState:
        return ReduceLROnPlateauState(
            scale=scalar(params, 1.0),
            best_value=scalar(params, torch.inf),
            plateau_count=zero_count(params),
            cooldown_count=zero_count(params),
            count=zero_count(params),
            avg_value=scalar(params),
        )

    def evaluate(state: ReduceLROnPlateauState) -> ReduceLROnPlateauState:
        """The state once `avg_value` is the mean of enough values; the dtypes are for `tree.where` to restore."""
        mean, best = state.avg_value, state.best_value
        known = best.isfinite()  # inf - inf would be NaN, below which is nothing
        finite = torch.where(known, best, 0)
        improved = mean < torch.where(known, finite - rtol * finite.abs() - atol, best)
        failures = torch.where(improved, 0, state.plateau_count + 1)
        cooling = state.cooldown_count > 0
        reduced = ~cooling & (failures == patience)
        scale = torch.where(reduced, state.scale * factor, state.scale)
        floor = torch.as_tensor(min_scale, dtype=scale.dtype, device=scale.device)
        return ReduceLROnPlateauState(
            scale=torch.where(cooling, state.scale, torch.maximum(scale, floor)),
            best_value=torch.where(improved, mean, best),
            plateau_count=torch.where(cooling | reduced, 0, failures),
            cooldown_count=torch.where(cooling, state.cooldown_count - 1, torch.where(reduced, cooldown, 0)),
            count=torch.zeros_like(state.count),
            avg_value=torch.zeros_like(mean),
        )

    def update(
        updates: Updates, state: ReduceLROnPlateauState, params: Params | None = None, *, value: Any, **extra: Any
    ) -> tuple[Updates, ReduceLROnPlateauState]:
        value = torch.as_tensor(value, dtype=state.avg_value.dtype, device=state.avg_value.device)
        if value.ndim > 0:
            raise ValueError(
                f"reduce_on_plateau: value must be a number or a 0-d tensor, got shape {tuple(value.shape)}."
            )
        count = state.count + 1
        avg_value = (state.count * state.avg_value + value) / count
        state = state._replace(count=count, avg_value=avg_value)
        state = tree.where(count == accumulation_size, evaluate(state), state)
        scale = realise(state.scale)
        return tree.map_rule(lambda g: scale * g, updates, elementwise=True), state

    return GradientTransformation(init, update)


def _check(
    factor: float | Tensor,
    patience: int,
    rtol: float | Tensor,
    atol: float | Tensor,
    cooldown: int,
    accumulation_size: int,
    min_scale: float | Tensor,
) -> None:
    name = "reduce_on_plateau"
    check_within(name, "(0, 1)", factor=factor)
    check_within(name, "[0, 1]", rtol=rtol, min_scale=min_scale)
    check_within(name, "[0, inf)", atol=atol)
    check_integer(name, 1, patience=patience, accumulation_size=accumulation_size)
    check_integer(name, 0, cooldown=cooldown)
    numbers = not isinstance(rtol, Tensor) and not isinstance(atol, Tensor)
    if numbers and rtol == 0 and atol == 0:
        raise ValueError(
            f"{name}: rtol or atol must be positive, got rtol=0 and atol=0; rounding alone is no progress."
        )
