"""Schedule-free gradient descent and AdamW."""

import torch
from torch import Tensor

from funcopt.rules.rmsprop import scale_by_rms
from funcopt.rules.sgd import sgd
from funcopt.schedules.warmup import warmup_constant_schedule
from funcopt.transform import GradientTransformation, ScalarOrSchedule, chain, factory
from funcopt.transforms.scaling import scale_by_learning_rate
from funcopt.transforms.weight_decay import add_decayed_weights
from funcopt.wrappers.schedule_free import schedule_free


@factory
def schedule_free_sgd(
    learning_rate: ScalarOrSchedule = 1.0,
    warmup_steps: int | None = None,
    b1: float | Tensor = 0.9,
    weight_decay: ScalarOrSchedule | None = None,
    weight_lr_power: float | Tensor = 2.0,
    state_dtype: torch.dtype | None = None,
) -> GradientTransformation:
    """Gradient descent without momentum, made `schedule_free`: `u = -α (g + λ y)`.

    α rises linearly from 0 over `warmup_steps`. The arguments are those of optax; the authors' own
    `schedulefree.SGDScheduleFree` calls β `momentum`, and starts its warm-up at α / `warmup_steps`.

    >>> optimizer = schedule_free_sgd(learning_rate=1.0)
    """
    rate = _warmed_up("schedule_free_sgd", learning_rate, warmup_steps)
    base = sgd(rate) if weight_decay is None else chain(add_decayed_weights(weight_decay), sgd(rate))
    return schedule_free(base, rate, b1, weight_lr_power, state_dtype)


@factory
def schedule_free_adamw(
    learning_rate: ScalarOrSchedule = 0.0025,
    warmup_steps: int | None = None,
    b1: float | Tensor = 0.9,
    b2: float | Tensor = 0.999,
    eps: float | Tensor = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_lr_power: float | Tensor = 2.0,
    state_dtype: torch.dtype | None = None,
) -> GradientTransformation:
    """AdamW without its first moment, made `schedule_free`: `u = -α (g / (√(ν / (1 - β₂ᵗ)) + ε) + λ y)`.

    α rises linearly from 0 over `warmup_steps`. The arguments are those of optax; the authors' own
    `schedulefree.AdamWScheduleFree` starts its warm-up at α / `warmup_steps`.

    >>> optimizer = schedule_free_adamw(learning_rate=2.5e-3, warmup_steps=100)
    """
    rate = _warmed_up("schedule_free_adamw", learning_rate, warmup_steps)
    base = chain(
        scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(rate),
    )
    return schedule_free(base, rate, b1, weight_lr_power, state_dtype)


def _warmed_up(function: str, learning_rate: ScalarOrSchedule, warmup_steps: int | None) -> ScalarOrSchedule:
    if warmup_steps is None:
        return learning_rate
    if callable(learning_rate):
        raise TypeError(
            f"{function}: warmup_steps={warmup_steps!r} makes a schedule of its own; give a number as learning_rate, "
            "or a schedule that warms up and no warmup_steps."
        )
    return warmup_constant_schedule(0.0, learning_rate, warmup_steps)
