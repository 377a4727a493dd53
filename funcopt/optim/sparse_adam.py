"""torch.optim.SparseAdam on the pure core."""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from funcopt import tree
from funcopt.compile import compile as compile_donating
from funcopt.numerics import compute_dtype, scalar_dtype
from funcopt.optim.drop_in import drop_in
from funcopt.optim.optimizer import Optimizer
from funcopt.optim.readers import is_called_for_states
from funcopt.rules.adam import sparse_adam_rule

Row: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""A parameter and its two moments."""
Places: TypeAlias = tuple[Tensor, ...]
"""Where a gradient stores numbers: an index for each of its sparse axes; no place twice."""


def _moved(row: Row, places: Places, values: Tensor, count: Tensor, *numbers: Any) -> Row:
    """The numbers of `row` at the places, after a step with the gradient's `values` there. Pure."""
    rate, b1, b2, eps = numbers
    wide = compute_dtype(row[0].dtype)
    param, mu, nu = (tensor[places].view_as(values).to(wide) for tensor in row)
    direction, mu, nu = sparse_adam_rule(values.to(wide), mu, nu, count, b1, b2, eps)
    return param - rate * direction, mu, nu


def _put(tensor: Tensor, places: Places, values: Tensor) -> Tensor:
    return tensor.index_put(places, values.to(tensor.dtype))


def _moved_rows(row: Row, places: Places, values: Tensor, numbers: Tensor) -> Row:
    """All numbers of `row` after a step; `numbers` are the count and the hyperparameters."""
    param, mu, nu = _moved(row, places, values, *numbers.unbind())
    return _put(row[0], places, param), _put(row[1], places, mu), _put(row[2], places, nu)


@functools.lru_cache(maxsize=64)
def _compiled(options: tuple[tuple[str, Any], ...]) -> Callable[..., Row]:
    return compile_donating(_moved_rows, donate_argnums=0, **{"dynamic": True, **dict(options)})


def _no_view(tensor: Tensor) -> Tensor:
    """The tensor as none of a view, in the same memory: of a view, as stored values are, Dynamo compiles the base."""
    if not tensor._is_view():
        return tensor
    memory, start = tensor.untyped_storage(), tensor.storage_offset()
    return tensor.new_empty(0).set_(memory, start, tensor.shape, tensor.stride())


@drop_in
class SparseAdam(Optimizer, torch.optim.SparseAdam):
    """`torch.optim.SparseAdam`: Adam on the numbers that sparse gradients store, all others staying as they are.

        m ← β₁ m + (1 - β₁) g        v ← β₂ v + (1 - β₂) g²        θ ← θ - γ √(1 - β₂ᵗ) / (1 - β₁ᵗ) m / (√v + ε)

    The same arguments, groups, state (dense moments, `step` a Python int) and numbers. A dense gradient is refused
    before any parameter has moved or counted, the values of a group as those of the constructor.

    `compile=True`, or a dict of options for `torch.compile`, compiles the whole step of a parameter, which then reads
    and writes the stored numbers where they are: one graph for any number of them, and for all parameters of a dtype
    and a number of axes.

    >>> embedding = torch.nn.Embedding(1000, 16, sparse=True)
    >>> optimizer = SparseAdam(embedding.parameters(), lr=0.1)
    """

    def __init__(self, params: Any, *args: Any, compile: bool | dict[str, Any] = False, **kwargs: Any) -> None:
        if not isinstance(compile, (bool, dict)):
            raise TypeError(f"SparseAdam: compile must be a bool or a dict of options, got {compile!r}.")
        self._compile = compile
        super().__init__(params, *args, **kwargs)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Perform one step. A `closure` is evaluated before, with gradients enabled, and its value returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not self.state and is_called_for_states():
            self.init_state()
            return loss
        moving = [(param, group) for group in self.param_groups for param in group["params"] if param.grad is not None]
        if not all(param.grad.is_sparse for param, _ in moving):
            raise RuntimeError("SparseAdam does not support dense gradients, please consider Adam instead")
        for param, group in moving:
            self._step_parameter(param, group)
        return loss

    def init_state(self) -> None:
        """Make the states that the first step would make, where they are missing, without a step."""
        for group in self.param_groups:
            for param in group["params"]:
                if param.requires_grad:
                    self._complete_state(param)

    @torch.no_grad()
    def _complete_state(self, param: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[param]
        if len(state) == 0:
            state.update(step=0, exp_avg=torch.zeros_like(param), exp_avg_sq=torch.zeros_like(param))
        return state

    def _step_parameter(self, param: Tensor, group: dict[str, Any]) -> None:
        state = self._complete_state(param)
        state["step"] += 1
        assert param.grad is not None
        grad = param.grad.coalesce()
        if grad.values().numel() == 0:
            return
        row = (param.detach(), state["exp_avg"], state["exp_avg_sq"])
        places = tuple(grad.indices())
        values = -grad.values() if group.get("maximize", False) else grad.values()
        rate = group["lr"].reshape(()) if isinstance(group["lr"], Tensor) else group["lr"]
        numbers = (*group["betas"], group["eps"])
        if self._compile and not torch.compiler.is_compiling():
            self._step_compiled(row, places, values, state["step"], rate, numbers)
            return
        for tensor, new in zip(row, _moved(row, places, values, torch.tensor(state["step"]), rate, *numbers)):
            tensor[places] = new.to(tensor.dtype)

    def _step_compiled(
        self, row: Row, places: Places, values: Tensor, step: int, rate: Any, others: tuple[float, ...]
    ) -> None:
        if len(places) == 0:  # the gradient stores all numbers: one row of a tensor with one axis more
            row = row[0][None], row[1][None], row[2][None]
            places = (torch.zeros(1, dtype=torch.int64, device=values.device),)
        if len(values) == 1:  # which torch compiles apart; twice the same to the same place is once
            places, values = tuple(index.repeat(2) for index in places), torch.cat([values, values])
        numbers = torch.tensor([step, *others], dtype=scalar_dtype(values.device), device=values.device)
        rate = torch.as_tensor(rate, dtype=numbers.dtype, device=numbers.device).reshape(1)
        options = self._compile if isinstance(self._compile, dict) else {}
        given = tree.map(_no_view, (row, places, values))
        numbers = torch.cat([numbers[:1], rate, numbers[1:]])
        torch._dynamo.mark_static(numbers, 0)  # or as many rows would be taken for the same size
        _compiled(tuple(options.items()))(*given, numbers)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_compile": self._compile}

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        own = {key: group.get(key, value) for key, value in self.defaults.items()}
        torch.optim.SparseAdam([torch.zeros(1)], **own)
