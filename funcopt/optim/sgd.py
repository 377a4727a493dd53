"""torch.optim.SGD on the pure core."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from funcopt.optim.drop_in import DropIn, drop_in
from funcopt.optim.rule import Definition, Hyper, Rule
from funcopt.optim.unbounded import unbounded
from funcopt.transform import EmptyState, identity
from funcopt.transforms.momentum import TraceState, trace


def _rule(hyper: Hyper) -> Rule:
    momentum = hyper["momentum"]
    if not isinstance(momentum, Tensor) and momentum == 0:
        return Rule(identity(), EmptyState())
    dampening = 0.0 if hyper.get("fresh") else hyper["dampening"]  # the buffer starts as the whole first gradient
    return Rule(trace(unbounded(momentum, 1.0), hyper["nesterov"], dampening=dampening), TraceState("momentum_buffer"))


@drop_in
class SGD(DropIn, torch.optim.SGD):
    """`torch.optim.SGD`: the same arguments, groups, state and numbers; `compile=True` besides.

    b ← g at the first step, else μ b + (1 - τ) g        θ ← θ - γ b, or θ - γ (g + μ b) with `nesterov`
    """

    definition = Definition(_rule, scalars=(), switches=("weight_decay", "momentum", "dampening"), fresh=True)

    def __init__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self._unused: set[Tensor] = set()  # parameters with a buffer that no gradient has entered yet
        super().__init__(params, *args, **kwargs)

    def new_state(self, param: Tensor, group: Hyper) -> dict[str, Any]:
        """A momentum buffer, if there is momentum."""
        assert param.grad is not None
        return {"momentum_buffer": torch.zeros_like(param.grad)} if group["momentum"] != 0 else {}

    def check_gradient(self, param: Tensor, group: Hyper) -> None:
        """Sparse gradients are welcome."""
        if param.grad is not None and not param.grad.is_sparse:
            super().check_gradient(param, group)

    def _init_state(self, groups: Iterable[Hyper]) -> None:
        before = {param for param, state in self.state.items() if state.get("momentum_buffer") is not None}
        super()._init_state(groups)
        self._unused |= {param for param, state in self.state.items() if state and param not in before}

    def _is_complete(self, param: Tensor, state: dict[str, Any], keys: frozenset[str]) -> bool:
        if param in self._unused or state.get("momentum_buffer", param) is None:  # as torch leaves it without gradients
            return False
        return super()._is_complete(param, state, keys)

    def _complete_state(self, param: Tensor, group: Hyper, keys: frozenset[str]) -> bool:
        if "momentum_buffer" in (state := self.state.get(param, {})) and state["momentum_buffer"] is None:
            del state["momentum_buffer"]
        unused = param in self._unused
        self._unused.discard(param)
        return super()._complete_state(param, group, keys) or unused

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_unused": self._unused}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._unused = set()  # what is loaded has been used
        super().__setstate__(state)  # type: ignore[no-untyped-call]
