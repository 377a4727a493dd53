"""`functionalize`: any class of torch.optim, or another subclass of its Optimizer, as a pure transformation."""

import inspect
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from funcopt import tree
from funcopt.optim.single_step import Kept, Recipe, first_states, start, step
from funcopt.optim.watched import is_watched
from funcopt.transform import Coupling, GradientTransformation, Params, Updates, factory, require_params

_ELEMENTWISE = ("SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "Adadelta", "Adagrad", "ASGD")
_COUPLINGS: dict[type, Coupling] = {getattr(torch.optim, name): "elementwise" for name in (*_ELEMENTWISE, "SparseAdam")}
_COUPLINGS |= {torch.optim.Adafactor: "leafwise", torch.optim.Muon: "leafwise"}
_READ_BY_CONSTRUCTORS = ("initial_accumulator_value",)


class FunctionalizedState(NamedTuple):
    tensors: dict[str, tree.Tree]  # by the class's name: a tree like params, masked where a leaf has none of that name
    numbers: dict[str, tree.Tree]  # likewise, its Python numbers, as 0-d tensors
    flags: dict[str, tree.Tree]  # "started" of a class whose first step is not one from any state; else empty


Row: TypeAlias = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]
"""Tensors, numbers and flags of one leaf."""


@factory
def functionalize(optimizer_class: type[torch.optim.Optimizer], **hyperparameters: Any) -> GradientTransformation:
    """A pure transformation from a class of `torch.optim`, or any other subclass of its `Optimizer`.

    >>> optimizer = functionalize(torch.optim.RMSprop, lr=0.01, momentum=0.9)

    Every update makes a fresh optimizer over copies of the parameters, gives it copies of gradients and state, takes
    one step, and returns the difference of the parameters. `update` needs params. A leaf whose gradient is None is not
    shown to the optimizer. All leaves are in one group; `funcopt.partition` makes several.

    The state is what the class keeps for each parameter, by its names and in its dtypes (but `step` in float64, for
    the bias corrections). It is complete from `init` on, which watches what a step that is thrown away puts there. A
    class whose first step is not a step from any such state (SGD with dampening) takes every step twice, once as its
    first, and selects.

    A class that takes `differentiable` is given `differentiable=True` unless told, and has derivatives.
    Hyperparameters may be tensors where the class can calculate with them. docs/functionalize.md has the table of what
    `vmap`, `grad` and `torch.compile` allow.

    Raises:
        TypeError: it is no optimizer class, needs a closure (LBFGS: `funcopt.optim.LBFGS`), or keeps something other
            than tensors and numbers in its state.
        RuntimeError: at `update`: the class changes its groups, or takes a tensor for a number that vmap or grad see.
    """
    _check(optimizer_class, hyperparameters)
    recipe = Recipe(optimizer_class, hyperparameters)

    def init(params: Params) -> FunctionalizedState:
        if torch.compiler.is_dynamo_compiling():
            raise RuntimeError("functionalize: init cannot be compiled; call it before, and compile the update.")
        tree.check_params(params)
        present = tree.leaves(params)
        begin = start(recipe, present[0].device) if present else None
        rows: list[Row] = [(*each, {}) for each in (begin or list)(first_states(recipe, present) if present else [])]
        if begin is None:
            rows = [(*row[:2], {"started": leaf.new_zeros((), dtype=torch.bool)}) for row, leaf in zip(rows, present)]
        return _by_name(rows, params)

    def update(
        updates: Updates, state: FunctionalizedState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, FunctionalizedState]:
        params = require_params(params, "functionalize")
        leaves, structure = tree.flatten(params)
        grads = tree.leaves_up_to(structure, updates)
        rows = _by_leaf(state, structure)
        seen = [i for i, (leaf, grad) in enumerate(zip(leaves, grads)) if leaf is not None and grad is not None]
        moved: list[Any] = [None] * len(leaves)
        rows = [row if i in seen else tree.clone(row) for i, row in enumerate(rows)]
        if seen:
            chosen = [leaves[i] for i in seen], [grads[i] for i in seen], [rows[i] for i in seen]
            for i, update, row in zip(seen, *_step_or_first(recipe, *chosen)):
                moved[i], rows[i] = update, row
        present = [row for row, leaf in zip(rows, leaves) if leaf is not None]
        return tree.unflatten(moved, structure), _by_name(present, params)

    return GradientTransformation(init, update, _COUPLINGS.get(optimizer_class, "treewise"))


def _check(optimizer_class: Any, hyperparameters: dict[str, Any]) -> None:
    if not (isinstance(optimizer_class, type) and issubclass(optimizer_class, torch.optim.Optimizer)):
        raise TypeError(
            f"functionalize: expected a subclass of torch.optim.Optimizer, got {optimizer_class!r}; give the class, "
            "and its hyperparameters by name."
        )
    name = optimizer_class.__name__
    closure = inspect.signature(optimizer_class.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise TypeError(
            f"functionalize: a step of {name} evaluates the loss through a closure, which is no pure function of "
            "gradients; use funcopt.optim.LBFGS, or the class itself."
        )
    for argument, value in hyperparameters.items():
        tensor = isinstance(value, Tensor)
        if tensor and argument == "initial_accumulator_value":  # Adagrad's: its group is not asked
            raise TypeError(f"functionalize: {name} reads {argument} when it is constructed; give a number.")
        if tensor and argument == "lr" and issubclass(optimizer_class, torch.optim.ASGD) and is_watched(value):
            raise RuntimeError(
                f"functionalize: {name} copies lr into its state, where vmap and derivatives do not follow it; give a "
                "number."
            )


def _step_or_first(
    recipe: Recipe, params: list[Tensor], grads: list[Tensor], rows: list[Row]
) -> tuple[list[Tensor], list[Row]]:
    """A step, or the first one where the flag "started" is there and does not hold."""
    kept = [Kept(tensors, numbers) for tensors, numbers, _ in rows]
    updates, after = step(recipe, params, grads, kept)
    if not rows[0][2]:
        return updates, [(*each, {}) for each in after]
    first_updates, first_after = step(recipe, params, grads, kept, first=True)
    flags = [row[2]["started"] for row in rows]
    updates = [tree.where(*each) for each in zip(flags, updates, first_updates)]
    after = [tree.where(*each) for each in zip(flags, after, first_after)]
    return updates, [(*each, {"started": torch.ones_like(flag)}) for each, flag in zip(after, flags)]


def _by_name(rows: list[Row], params: Params) -> FunctionalizedState:
    """The state, from what is kept for each leaf of params that is there."""
    leaves, structure = tree.flatten(params)

    def columns(part: int) -> dict[str, tree.Tree]:
        names = dict.fromkeys(name for row in rows for name in row[part])
        values = {name: iter([row[part].get(name, tree.MaskedNode()) for row in rows]) for name in names}
        return {
            name: tree.unflatten([None if leaf is None else next(column) for leaf in leaves], structure)
            for name, column in values.items()
        }

    return FunctionalizedState(columns(0), columns(1), columns(2))


def _by_leaf(state: FunctionalizedState, structure: Any) -> list[Row]:
    """What is kept for each leaf, from the state."""

    def rows(part: dict[str, tree.Tree]) -> list[dict[str, Tensor]]:
        columns = {name: tree.leaves_up_to(structure, values) for name, values in part.items()}
        return [
            {name: column[i] for name, column in columns.items() if isinstance(column[i], Tensor)}
            for i in range(structure.num_leaves)
        ]

    return list(zip(*map(rows, state)))
