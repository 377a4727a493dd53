"""`functionalize`: any class of torch.optim, or another subclass of its Optimizer, as a pure transformation."""

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcopt import tree
from funcopt.optim.single_step import Kept, Recipe, first_states, starts_like_any_step, step
from funcopt.transform import Coupling, GradientTransformation, Params, Updates, factory, require_params

_ELEMENTWISE = ("SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "Adadelta", "Adagrad", "ASGD")
_COUPLINGS: dict[type, Coupling] = {getattr(torch.optim, name): "elementwise" for name in (*_ELEMENTWISE, "SparseAdam")}
_COUPLINGS |= {torch.optim.Adafactor: "leafwise", torch.optim.Muon: "leafwise"}
_READ_BY_CONSTRUCTORS = ("initial_accumulator_value",)


class FunctionalizedState(NamedTuple):
    tensors: dict[str, tree.Tree]  # by the class's name: a tree like params, None where a leaf has none of that name
    numbers: dict[str, tree.Tree]  # likewise, its Python numbers, as 0-d tensors
    started: tree.Tree  # whether a leaf has made its first step; None where its state tells


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
        tree.check_params(params)
        leaves, structure = tree.flatten(params)
        present = [leaf for leaf in leaves if leaf is not None]
        first = iter(first_states(recipe, present) if present else [])
        kept = [None if leaf is None else next(first) for leaf in leaves]
        told = not present or starts_like_any_step(recipe, present[0].device)
        started = [None if told or leaf is None else leaf.new_zeros((), dtype=torch.bool) for leaf in leaves]
        return _by_name(kept, started, structure)

    def update(
        updates: Updates, state: FunctionalizedState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, FunctionalizedState]:
        leaves, structure = tree.flatten(require_params(params, "functionalize"))
        grads = tree.leaves_up_to(structure, updates)
        kept, started = _by_leaf(state, structure)
        seen = [i for i, (leaf, grad) in enumerate(zip(leaves, grads)) if leaf is not None and grad is not None]
        moved: list[Any] = [None] * len(leaves)
        kept, started = tree.clone(kept), tree.clone(started)
        if seen:
            rows = [[column[i] for i in seen] for column in (leaves, grads, kept, started)]
            for i, update, after, flag in zip(seen, *_select_step(recipe, *rows)):
                moved[i], kept[i], started[i] = update, after, flag
        return tree.unflatten(moved, structure), _by_name(kept, started, structure)

    return GradientTransformation(init, update, _COUPLINGS.get(optimizer_class, "treewise"))


def _check(optimizer_class: Any, hyperparameters: dict[str, Any]) -> None:
    if not (isinstance(optimizer_class, type) and issubclass(optimizer_class, torch.optim.Optimizer)):
        raise TypeError(
            f"functionalize: expected a subclass of torch.optim.Optimizer, got {optimizer_class!r}; give the class, "
            "and its hyperparameters by name."
        )
    name = optimizer_class.__name__
    closure = list(inspect.signature(optimizer_class.step).parameters.values())[1:2]
    if closure and closure[0].default is inspect.Parameter.empty and closure[0].kind is closure[0].POSITIONAL_OR_KEYWORD:
        raise TypeError(
            f"functionalize: a step of {name} evaluates the loss through a closure, which is no pure function of "
            "gradients; use funcopt.optim.LBFGS, or the class itself."
        )
    for argument in _READ_BY_CONSTRUCTORS:
        if isinstance(hyperparameters.get(argument), Tensor):
            raise TypeError(f"functionalize: {name} reads {argument} when it is constructed; give a number.")


def _select_step(
    recipe: Recipe, params: list[Tensor], grads: list[Tensor], kept: list[Kept], started: list[Any]
) -> tuple[list[Tensor], list[Kept], list[Any]]:
    updates, after = step(recipe, params, grads, kept)
    if started[0] is None:
        return updates, after, started
    first = step(recipe, params, grads, kept, first=True)
    rows = [tree.where(flag, *pair) for flag, *pair in zip(started, zip(updates, after), zip(*first))]
    return [row[0] for row in rows], [row[1] for row in rows], [torch.ones_like(flag) for flag in started]


def _by_name(kept: list[Kept | None], started: list[Any], structure: Any) -> FunctionalizedState:
    """The state, from what is kept for each leaf."""

    def columns(part: int) -> dict[str, tree.Tree]:
        rows = [{} if each is None else each[part] for each in kept]
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: tree.unflatten([row.get(name) for row in rows], structure) for name in names}

    return FunctionalizedState(columns(0), columns(1), tree.unflatten(started, structure))


def _by_leaf(state: FunctionalizedState, structure: Any) -> tuple[list[Kept], list[Any]]:
    """What is kept for each leaf, and whether it has started, from the state."""

    def rows(part: dict[str, tree.Tree]) -> list[dict[str, Tensor]]:
        columns = {name: tree.leaves_up_to(structure, values) for name, values in part.items()}
        return [
            {name: column[i] for name, column in columns.items() if column[i] is not None}
            for i in range(structure.num_leaves)
        ]

    kept = [Kept(*parts) for parts in zip(rows(state.tensors), rows(state.numbers))]
    return kept, tree.leaves_up_to(structure, state.started)
