"""torch.optim.Adagrad on the pure core."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from funcopt.numerics import realise
from funcopt.optim.drop_in import DropIn, drop_in, real, scalar_state
from funcopt.optim.in_place import Row, stored_numbers, write_stored_numbers
from funcopt.optim.rule import Definition, Hyper, Recipe, Rule, Scalars
from funcopt.rules.adagrad import ScaleByRssState, scale_by_rss


def _rule(hyper: Hyper) -> Rule:
    return Rule(scale_by_rss(eps=hyper["eps"], eps_in_sqrt=False), ScaleByRssState("sum"))


def _learning_rate(hyper: Hyper, count: Tensor) -> float | Tensor:
    rate, decay = hyper["lr"], hyper["lr_decay"]
    if not isinstance(decay, Tensor) and decay == 0:
        return rate  # type: ignore[no-any-return]
    return realise(rate / (1 + count.double() * decay))


@drop_in
class Adagrad(DropIn, torch.optim.Adagrad):
    """`torch.optim.Adagrad`: the same arguments, groups, state and numbers; `compile=True` besides.

        s ← s + g²        θ ← θ - γ / (1 + (t - 1) η) g / (√s + ε)

    Unlike in torch, a group may have an `initial_accumulator_value` of its own, and `state_dict` leaves out the state
    of parameters that have been replaced in their group.
    """

    definition = Definition(_rule, _learning_rate, switches=("weight_decay", "lr_decay"))

    def __init__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(params, *args, **kwargs)
        for group in self.param_groups:
            if group["initial_accumulator_value"] != self.defaults["initial_accumulator_value"]:
                for param in group["params"]:
                    self.state[param].update(self.new_state(param, group))

    def new_state(self, param: Tensor, group: Hyper) -> dict[str, Any]:
        """Sums that start at `initial_accumulator_value`."""
        value = group["initial_accumulator_value"]
        start = complex(value, value) if param.is_complex() else value
        return {"step": scalar_state(param, {}), "sum": torch.full_like(param, start)}

    def check_gradient(self, param: Tensor, group: Hyper) -> None:
        """Sparse gradients are welcome, unless a weight decay would make them dense."""
        if param.grad is None or not param.grad.is_sparse:
            super().check_gradient(param, group)
        elif group["weight_decay"] != 0:
            raise RuntimeError("weight_decay option is not compatible with sparse gradients")

    def _write(self, hyper: Hyper, scalars: Scalars, rows: Sequence[Row], recipe: Recipe) -> Scalars:
        if not rows[0][1].is_sparse:
            return super()._write(hyper, scalars, rows, recipe)
        after: Scalars = {}
        for row in rows:
            after = super()._write(hyper, scalars, [real(stored := stored_numbers(row))], recipe)
            write_stored_numbers(row, stored)
        return after

    def state_dict(self) -> dict[str, Any]:
        """The state as a dict; see `torch.optim.Optimizer.state_dict`."""
        present = {id(param) for group in self.param_groups for param in group["params"]}
        for param in [key for key in self.state if isinstance(key, Tensor) and id(key) not in present]:
            del self.state[param]
        return super().state_dict()
