"""Optimizers behind the interface of torch.optim."""

from funcopt.optim.adapter import Optimizer as Optimizer
from funcopt.optim.classes import as_optimizer as as_optimizer
