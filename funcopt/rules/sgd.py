"""Gradient descent, with or without momentum."""

import torch
from torch import Tensor

from funcopt.transform import GradientTransformation, ScalarOrSchedule, chain, factory
from funcopt.transforms.momentum import trace
from funcopt.transforms.scaling import scale_by_learning_rate


@factory
def sgd(
    learning_rate: ScalarOrSchedule,
    momentum: float | Tensor | None = None,
    nesterov: bool = False,
    accumulator_dtype: torch.dtype | None = None,
) -> GradientTransformation:
    """Stochastic gradient descent (Robbins & Monro 1951), with momentum (Polyak 1964) or Nesterov's (1983).

        m ← g + momentum * m        u = -α m, or -α (g + momentum * m) with `nesterov`; -α g without momentum

    As torch.optim.SGD without dampening. `nesterov` has no meaning without `momentum`.

    >>> optimizer = sgd(learning_rate=0.1, momentum=0.9)
    """
    if momentum is None:
        return chain(scale_by_learning_rate(learning_rate))
    return chain(trace(momentum, nesterov, accumulator_dtype), scale_by_learning_rate(learning_rate))
