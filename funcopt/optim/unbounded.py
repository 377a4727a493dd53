"""Numbers that torch.optim takes, and our factories refuse."""

from typing import Any

import torch
from torch import Tensor


def unbounded(value: Any, bound: float) -> Any:
    """The value; from `bound` on as a 0-d tensor, of which no factory asks in which range it lies."""
    return value if isinstance(value, Tensor) or value < bound else torch.tensor(value, dtype=torch.float64)
