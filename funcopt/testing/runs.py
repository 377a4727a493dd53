"""The ways to run an optimizer: as functions, compiled functions, or an object of torch.optim."""

import io
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcopt import tree
from funcopt.compile import compile
from funcopt.optim import TransformationOptimizer, as_optimizer
from funcopt.transform import GradientTransformation, Params, State, apply_updates

MODES = ("eager", "compiled", "adapter")


class Values(NamedTuple):
    """What training goes on from: params are a dict by name."""

    params: Params
    state: State


class Functional:
    """Steps of a factory that takes the learning rate, eager or compiled, with the rate as a tensor."""

    def __init__(self, make: Callable[..., GradientTransformation], backend: str) -> None:
        self._make = make
        self._backend = backend
        self._compiled: dict[Any, Callable[..., Any]] = {}

    def step(self, mode: str, rate: float, values: Values, gradients: tree.Tree) -> Values:
        run = self._step if mode == "eager" else self._compiled_for(gradients)
        with torch.no_grad():
            return Values(*run(torch.tensor(rate), *values, gradients))

    def _step(self, rate: Tensor, params: Params, state: State, gradients: tree.Tree) -> tuple[Params, State]:
        updates, state = self._make(rate).update(gradients, state, params)
        return apply_updates(params, updates), state

    def _compiled_for(self, gradients: tree.Tree) -> Callable[..., Any]:
        """One for each set of leaves that have gradients: together they would reach the limit of graphs."""
        key = tuple((path, leaf is None) for path, leaf in tree.leaves_with_path(gradients))
        if key not in self._compiled:
            self._compiled[key] = compile(self._step, backend=self._backend)
        return self._compiled[key]


class Adapted:
    """A `funcopt.optim.Optimizer` of a factory that takes the learning rate, which goes on from given values."""

    def __init__(self, make: Callable[..., GradientTransformation], values: Values, rate: float) -> None:
        def with_rate(learning_rate: float | Tensor) -> GradientTransformation:
            return make(learning_rate)

        self._kind = as_optimizer(with_rate)
        self._params = {name: torch.nn.Parameter(leaf.clone()) for name, leaf in values.params.items()}
        self._optimizer = self._kind(list(self._params.items()), lr=rate)  # type: ignore[call-arg]
        put_state(self._optimizer, values.state)

    def values(self) -> Values:
        """The values as functions see them: the tensors themselves."""
        self._optimizer.init_state()
        params = {name: param.detach() for name, param in self._params.items()}
        return Values(params, self._optimizer.functional_state())

    def step(self, rate: float, gradients: tree.Tree) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        set_gradients(self._params, gradients)
        self._optimizer.step()

    def add_group(self, params: Params, rate: float) -> None:
        added = {name: torch.nn.Parameter(leaf) for name, leaf in params.items()}
        self._params |= added
        self._optimizer.add_param_group({"params": list(added.items()), "lr": rate})

    def through_a_file(self, rate: float) -> Values:
        """The values of another optimizer, which has loaded what this one has saved."""
        file = io.BytesIO()
        torch.save(self._optimizer.state_dict(), file)
        file.seek(0)
        names = [group["param_names"] for group in self._optimizer.param_groups]
        groups = [{"params": [(name, self._params[name]) for name in each], "lr": rate} for each in names]
        other = self._kind(groups, lr=rate)  # type: ignore[call-arg]
        other.load_state_dict(torch.load(file, weights_only=True))
        return Values(self.values().params, other.functional_state())


def put_state(optimizer: TransformationOptimizer, state: State) -> None:
    """Write a functional state over that of an optimizer, whose tensors its own functional state consists of."""
    optimizer.init_state()
    pairs = zip(tree.leaves_with_path(optimizer.functional_state()), tree.leaves_with_path(state), strict=True)
    for (path, own), (other, leaf) in pairs:
        assert path == other
        if own is not None:
            own.copy_(leaf)


def set_gradients(params: dict[str, Any], gradients: tree.Tree) -> None:
    """What backward would leave behind."""
    for name, param in params.items():
        gradient = gradients[name]
        param.grad = None if gradient is None else gradient.clone()


def dict_by_path(values: tree.Tree) -> dict[str, Any]:
    """The leaves of a tree by path, as parameters of a model are."""
    return {path or "param": leaf for path, leaf in tree.leaves_with_path(values)}
