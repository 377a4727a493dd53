"""The imperative step: it hands parameters, gradients and states to the pure one, and writes what comes back."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcopt import tree
from funcopt.compile import compile
from funcopt.numerics import scalar_dtype
from funcopt.optim.recipe import Recipe
from funcopt.optim.runs import Plan, Slot, advance, advance_from_vector, make_plan
from funcopt.optim.states import Arrangement, Group, Model, StateMaker, States, gather
from funcopt.transform import State


class How(NamedTuple):
    """How steps are made."""

    recipe: Recipe
    compile_options: dict[str, Any] | None  # None: eagerly
    differentiable: bool


class View(NamedTuple):
    """What `update` gets for some parameters, and which these are."""

    state: State
    params: tree.Tree
    moves: dict[int, Tensor]


class Stepper:
    """Steps for groups of parameters. What it remembers holds neither parameters nor their states."""

    def __init__(self) -> None:
        self._maker = StateMaker()
        self._plans: dict[Any, Plan] = {}
        self._compiled: dict[Any, Callable[..., Any]] = {}
        self._vectors: dict[Any, tuple[list[float], Tensor]] = {}

    def step(self, how: How, groups: Sequence[Group], states: States, extra: dict[str, Any]) -> None:
        """One step of the parameters of these groups. If it fails, parameters have not been written."""
        model = gather(groups, states)
        gradients = [_gradient(how.recipe.name, model, index) for index in range(len(model.params))]
        arguments = [_arguments(how.recipe, group) for group in groups]
        arrangement = self._arrange(how, model, states, arguments)
        if not arrangement.runs:
            return
        moving = tuple([index for index, gradient in enumerate(gradients) if gradient is not None])
        key = (arrangement.key, moving)
        plan = self._plans.get(key)
        if plan is None:
            resting = [index for index, known in enumerate(model.known) if known and gradients[index] is None]
            plan = make_plan(model.names, len(model.params), moving, resting, arrangement.runs)
            self._plans[key] = plan
        detach = torch.clone if how.differentiable else Tensor.detach
        inputs = (
            [detach(model.params[i]) for i in plan.moving],
            _read(model, states, plan.written),
            [detach(model.params[i]) for i in plan.resting],
            _read(model, states, plan.read),
            [gradient for gradient in gradients if gradient is not None],
        )
        if how.compile_options is None:
            numbers = [_numbers(how.recipe, arguments[lead]) for lead in arrangement.leads]
            moved, kept = advance(plan, *inputs, numbers, extra)
            _write(how, plan, model, states, moved, inputs[1], kept)
        else:
            given = [arguments[lead] for lead in arrangement.leads]
            self._run_compiled(how, key, plan, inputs, given, extra)

    def prepare(self, how: How, groups: Sequence[Group], states: States) -> frozenset[str]:
        """Make the states that are missing; gives the names of those that every parameter has of its own."""
        model = gather(groups, states)
        arguments = [_arguments(how.recipe, group) for group in groups]
        runs = self._arrange(how, model, states, arguments).runs
        return frozenset[str]().union(*(run.layout.own for run in runs))

    def views(self, how: How, groups: Sequence[Group], states: States) -> list[View]:
        """What `update` would get in each run."""
        model = gather(groups, states)
        arrangement = self._arrange(how, model, states, [_arguments(how.recipe, group) for group in groups])
        known = [index for index, known in enumerate(model.known) if known]
        views = []
        for run in arrangement.runs:
            plan = make_plan(model.names, len(model.params), [], known, [run])
            stored = _read(model, states, (*plan.written, *plan.read))
            leaves = [None if number is None else stored[number] for number in plan.wirings[0].reads]
            moves = {index: model.params[index] for index in sorted(run.moves)}
            views.append(View(tree.unflatten(leaves, run.layout.structure), model.tree(), moves))
        return views

    def _arrange(self, how: How, model: Model, states: States, arguments: Sequence[dict[str, Any]]) -> Arrangement:
        # Compiled, groups are apart from the start: a graph for each that comes to differ would be compiled otherwise.
        apart = how.compile_options is not None
        return self._maker.arrange(how.recipe, model, states, arguments, apart=apart)

    def _run_compiled(
        self,
        how: How,
        key: Any,
        plan: Plan,
        inputs: tuple[list[Any], ...],
        arguments: Sequence[dict[str, Any]],
        extra: dict[str, Any],
    ) -> None:
        """The step as one graph, which writes into the tensors that it is given."""
        rows = [*(_numbers(how.recipe, each) for each in arguments), extra]
        kinds = [(int, float)] * len(arguments) + [(float,)]  # a bool or an int that is extra stays what it is
        floats = [{name: v for name, v in row.items() if type(v) in kind} for row, kind in zip(rows, kinds)]
        others = [{name: v for name, v in row.items() if name not in own} for row, own in zip(rows, floats)]
        key = (key, tuple(tuple(row) for row in floats))
        vector = self._vector(how, key, (inputs[0] or inputs[2])[0].device, floats, arguments)
        if key not in self._compiled:
            self._compiled[key] = compile(
                advance_from_vector(plan, key[1]), donate_argnums=(0, 1), **(how.compile_options or {})
            )
        self._compiled[key](*inputs, vector, others)

    def _vector(
        self,
        how: How,
        key: Any,
        device: torch.device,
        floats: Sequence[dict[str, float]],
        arguments: Sequence[dict[str, Any]],
    ) -> Tensor:
        """The numbers in a vector on the device: that of the last step if they are the same; others are checked."""
        values = [value for row in floats for value in row.values()]
        known, vector = self._vectors.get(key, (None, None))
        if vector is None or known != values or vector.device != device:
            for each in arguments:
                how.recipe.make(**each)  # in the graph they are tensors, which nobody checks
            vector = torch.tensor(values, dtype=scalar_dtype(device), device=device)
            self._vectors[key] = (values, vector)
        return vector


def _gradient(optimizer: str, model: Model, index: int) -> Tensor | None:
    gradient = model.params[index].grad
    if gradient is not None and gradient.is_sparse:
        name = index if model.names is None else repr(model.names[index])
        raise RuntimeError(f"{optimizer} does not support sparse gradients, and parameter {name} has one.")
    return gradient


def _arguments(recipe: Recipe, group: Group) -> dict[str, Any]:
    recipe.fold(group)
    return recipe.arguments(group)


def _numbers(recipe: Recipe, arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if recipe.is_number(name, value)}


def _read(model: Model, states: States, slots: Sequence[Slot]) -> list[Any]:
    return [states[model.params[param]][name] for param, name in slots]


def _write(
    how: How,
    plan: Plan,
    model: Model,
    states: States,
    moved: list[Tensor],
    written: list[Any],
    kept: list[Any],
) -> None:
    """Copy new values into the tensors that there are, after all of them have been computed."""
    for index, value in zip(plan.moving, moved):
        model.params[index].copy_(value)
    for slot, old, new in zip(plan.written, written, kept):
        if isinstance(old, Tensor) and not how.differentiable:
            old.copy_(new)
        else:
            states[model.params[slot.param]][slot.name] = new  # the graph of the last step needs the old one
