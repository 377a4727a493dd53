"""Two optimizers, torch's and ours, that are given the same gradients."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import funcopt.optim

Optimizer = torch.optim.Optimizer
SHAPES = ((), (3,), (4, 3), (2, 1, 5), (0, 2))
TOLERANCE = 1e-9


class Twins:
    """Equal parameters under torch's optimizer and under ours, which `step` gives the same gradients.

    `make(module, params)` makes the optimizer of a module, `torch.optim` or `funcopt.optim`.
    """

    def __init__(
        self,
        make: Callable[[Any, list[Tensor]], Optimizer],
        shapes: Sequence[tuple[int, ...]] = SHAPES,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.start = [self.draw(shape, dtype) for shape in shapes]
        self.theirs = [param.clone().requires_grad_() for param in self.start]
        self.ours = [param.clone().requires_grad_() for param in self.start]
        self.optimizers = make(torch.optim, self.theirs), make(funcopt.optim, self.ours)

    def draw(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        wide = torch.complex128 if dtype.is_complex else torch.float64
        return torch.randn(shape, generator=self.generator, dtype=wide).to(dtype)

    def step(self, absent: Sequence[int] = (), scale: float = 1.0) -> None:
        """One step of both, without gradients for the parameters of the numbers `absent`."""
        for number, (first, second) in enumerate(zip(self.theirs, self.ours)):
            gradient = None if number in absent else scale * self.draw(first.shape, first.dtype)
            first.grad, second.grad = gradient, None if gradient is None else gradient.clone()
        for optimizer in self.optimizers:
            optimizer.step()

    def check(self, rtol: float = TOLERANCE) -> None:
        """Every parameter is within `rtol` of the way that it has gone."""
        for theirs, ours, start in zip(self.theirs, self.ours, self.start):
            way, deviation = (theirs - start).abs().sum().item(), (ours - theirs).abs().sum().item()
            assert deviation <= rtol * way, f"off by {deviation:.3g} of {way:.3g}:\n{ours}\n{theirs}"

    def check_states(self) -> None:
        """The same keys in the same order, the same dtypes, shapes and devices, and the same numbers."""
        theirs, ours = (optimizer.state_dict() for optimizer in self.optimizers)
        assert theirs["param_groups"] == ours["param_groups"]
        assert list(theirs["state"]) == list(ours["state"])
        for number, state in theirs["state"].items():
            own = ours["state"][number]
            assert list(state) == list(own)
            for key, value in state.items():
                torch.testing.assert_close(own[key], value, rtol=1e-6, atol=1e-9, msg=lambda text, key=key: key + text)
