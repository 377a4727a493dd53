"""What the consumers train, and with what: our optimizers, each beside the class of torch that is its reference."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import funcopt as fo
import funcopt.optim

GenericAdamW = funcopt.optim.as_optimizer(fo.adamw)

MakeOptimizer = Callable[..., torch.optim.Optimizer]


class Pair(NamedTuple):
    """A class of ours, one of torch, and arguments that mean the same in both."""

    mine: type[torch.optim.Optimizer]
    theirs: type[torch.optim.Optimizer]
    kwargs: dict[str, Any]

    def __str__(self) -> str:
        return self.mine.__name__

    def makers(self) -> tuple[MakeOptimizer, MakeOptimizer]:
        return tuple(lambda params, cls=cls: cls(params, **self.kwargs) for cls in (self.mine, self.theirs))


PAIRS = [
    Pair(funcopt.optim.AdamW, torch.optim.AdamW, {"lr": 0.02, "weight_decay": 0.1}),
    Pair(funcopt.optim.SGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    Pair(funcopt.optim.Adagrad, torch.optim.Adagrad, {"lr": 0.1}),
    Pair(GenericAdamW, torch.optim.AdamW, {"lr": 0.02, "weight_decay": 0.1}),
]
every_pair = pytest.mark.parametrize("pair", PAIRS, ids=str)


def network() -> nn.Sequential:
    """The same small network at each call, in float64, so that the two runs agree to rounding."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def data(rows: int = 32) -> tuple[Tensor, Tensor]:
    """Inputs, (rows, 4), and targets, (rows, 1)."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    return x, x.prod(1, keepdim=True)


def loss_of(model: nn.Module, step: int) -> Tensor:
    """The loss on eight rows, other ones at each step."""
    x, y = (part[8 * (step % 4) :][:8] for part in data())
    return nn.functional.mse_loss(model(x), y)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: Iterable[int]) -> None:
    """The plain loop, which the consumers are compared with or are part of."""
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()


def assert_same(mine: nn.Module, theirs: nn.Module, tolerance: float = 1e-9) -> None:
    """Both models hold the same parameters, and not those that they started with."""
    pairs = list(zip(mine.parameters(), theirs.parameters(), strict=True))
    for ours, reference in pairs:
        torch.testing.assert_close(ours, reference, rtol=0, atol=tolerance)


def assert_moved(model: nn.Module, start: nn.Module) -> None:
    """All parameters have moved; without this, two runs that do nothing would agree."""
    for param, before in zip(model.parameters(), start.parameters(), strict=True):
        assert (param - before).abs().max() > 1e-6
