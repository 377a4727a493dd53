"""The parameters of a model switched to those to evaluate with, and back."""

from collections.abc import Mapping, MutableMapping
from typing import TypeAlias

import torch
from torch import Tensor

Held: TypeAlias = MutableMapping[Tensor, Tensor]
"""The values to train with, by parameter, while the parameters hold those to evaluate with; empty in training."""


@torch.no_grad()
def switch_to_evaluation(held: Held, evaluated: Mapping[Tensor, Tensor]) -> None:
    """Put the values to evaluate with into the parameters, and keep those to train with."""
    for param, value in evaluated.items():
        held[param] = param.detach().clone()
        param.copy_(value)


@torch.no_grad()
def switch_to_training(held: Held) -> None:
    """Put the values to train with back, bit by bit."""
    for param, value in held.items():
        param.copy_(value)
    held.clear()
