"""The imperative step: it hands parameters, gradients and states to the pure one, and writes what comes back."""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcopt import tree
from funcopt.compile import compile
from funcopt.numerics import scalar_dtype
from funcopt.optim.recipe import Recipe
from funcopt.optim.runs import Plan, Slot, Tensors, compilable_step, make_plan, updates_of
from funcopt.optim.settings import Settings, SettingsReader
from funcopt.optim.states import Arrangement, Group, Model, StateMaker, States, gather, likeness, state_sizes
from funcopt.transform import State, apply_updates


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


@dataclass(eq=False)
class Program:
    """A step in which certain parameters have gradients, ready to be made with any numbers."""

    plan: Plan
    leads: tuple[int, ...]  # for each run, the group that it takes the arguments of
    compiled: dict[Any, Callable[..., Any]] = field(default_factory=dict)  # by the names of numbers
    vectors: dict[Any, tuple[list[float], Tensor]] = field(default_factory=dict)  # the numbers of the last step


class Stepper:
    """Steps for groups of parameters. What it remembers holds neither parameters nor their states."""

    def __init__(self) -> None:
        self._maker = StateMaker()
        self._reader = SettingsReader()
        self._programs: dict[Any, Program] = {}
        self._found: dict[Any, Program] = {}  # by what can be seen at little cost

    def step(self, how: How, groups: Sequence[Group], states: States, extra: dict[str, Any], first: int = 0) -> None:
        """One step of the parameters of these groups. If it fails, parameters have not been written.

        `first` is the number of the first group among those of the optimizer.
        """
        model = gather(groups, states)
        _check_gradients(how.recipe.name, model)
        settings = self._settings(how, groups, first)
        program, given = self._program(how, model, states, settings)
        if not program.plan.runs:
            return
        if how.compile_options is None:
            transformations = [settings[lead].transformation() for lead in program.leads]
            updates, kept = updates_of(program.plan, given, transformations, extra)
            _write(how, program.plan, model, states, given, updates, kept)
        else:
            _run_compiled(how, program, given, [settings[lead] for lead in program.leads], extra)

    def prepare(self, how: How, groups: Sequence[Group], states: States) -> frozenset[str]:
        """Make the states that are missing; gives the names of those that every parameter has of its own."""
        model = gather(groups, states)
        runs = self._arrange(how, model, states, self._settings(how, groups)).runs
        return frozenset[str]().union(*(run.layout.own for run in runs))

    def views(self, how: How, groups: Sequence[Group], states: States) -> list[View]:
        """What `update` would get in each run."""
        model = gather(groups, states)
        arrangement = self._arrange(how, model, states, self._settings(how, groups))
        known = [index for index, known in enumerate(model.known) if known]
        views = []
        for run in arrangement.runs:
            plan = make_plan(model.names, len(model.params), [], known, [run])
            stored = _read(list(map(states.get, model.params)), (*plan.written, *plan.read))
            leaves = [None if number is None else stored[number] for number in plan.wirings[0].reads]
            moves = {index: model.params[index] for index in sorted(run.moves)}
            views.append(View(tree.unflatten(leaves, run.layout.structure), model.tree(), moves))
        return views

    def _settings(self, how: How, groups: Sequence[Group], first: int = 0) -> list[Settings]:
        return [self._reader.read(how.recipe, first + g, group) for g, group in enumerate(groups)]

    def _arrange(self, how: How, model: Model, states: States, settings: Sequence[Settings]) -> Arrangement:
        # Compiled, groups are apart from the start: a graph for each that comes to differ would be compiled otherwise.
        apart = how.compile_options is not None
        return self._maker.arrange(how.recipe, model, states, settings, apart=apart)

    def _program(self, how: How, model: Model, states: States, settings: Sequence[Settings]) -> tuple[Program, Tensors]:
        """What is to be run, and on which tensors. States that are missing are made."""
        moving = tuple([gradient is not None for gradient in model.gradients])
        alike = likeness(model, settings) if how.compile_options is None else ()
        seen = (model.signature, tuple(map(len, model.members)), moving, alike, *[each.key for each in settings])
        program = self._found.get((seen, model.sizes))
        try:
            if program is not None:
                return program, _tensors(how, program.plan, model, states)
        except KeyError:  # an entry of a state has been replaced by another
            pass
        arrangement = self._arrange(how, model, states, settings)
        key = (arrangement.key, moving)
        program = self._programs.get(key)
        if program is None:
            absent = [index for index, has in enumerate(moving) if not has and model.known[index]]
            present = [index for index, has in enumerate(moving) if has]
            plan = make_plan(model.names, len(model.params), present, absent, arrangement.runs)
            program = self._programs[key] = Program(plan, arrangement.leads)
        self._found[seen, state_sizes(model.params, states)] = program
        return program, _tensors(how, program.plan, model, states)


def _check_gradients(optimizer: str, model: Model) -> None:
    for index, gradient in enumerate(model.gradients):
        if gradient is not None and gradient.is_sparse:
            name = index if model.names is None else repr(model.names[index])
            raise RuntimeError(f"{optimizer} does not support sparse gradients, and parameter {name} has one.")


def _tensors(how: How, plan: Plan, model: Model, states: States) -> Tensors:
    params, stored = model.params, list(map(states.get, model.params))
    detach = torch.clone if how.differentiable else Tensor.detach
    return Tensors(
        [detach(params[i]) for i in plan.moving],
        _read(stored, plan.written),
        [detach(params[i]) for i in plan.resting],
        _read(stored, plan.read),
        [gradient for gradient in model.gradients if gradient is not None],
    )


def _read(stored: Sequence[Any], slots: Sequence[Slot]) -> list[Any]:
    """What is in slots, of the states of all parameters."""
    return [stored[param][name] for param, name in slots]


def _run_compiled(
    how: How, program: Program, given: Tensors, settings: Sequence[Settings], extra: dict[str, Any]
) -> None:
    """The step as one graph, which writes into the tensors that it is given."""
    # A bool or an int that is extra stays what it is.
    extra_floats = {name: value for name, value in extra.items() if type(value) is float}
    floats = [*(each.floats for each in settings), extra_floats]
    others: list[dict[str, Any]] = [each.tensors for each in settings]
    others.append({name: value for name, value in extra.items() if name not in extra_floats})
    names = tuple(map(tuple, floats))
    device = (given.moving or given.resting)[0].device
    vector = _vector(program, names, device, floats, settings)
    if names not in program.compiled:
        function = compilable_step(program.plan, names)
        program.compiled[names] = compile(function, donate_argnums=(0, 1), **(how.compile_options or {}))
    program.compiled[names](*given, vector, others)


def _vector(
    program: Program,
    names: Any,
    device: torch.device,
    floats: Sequence[Mapping[str, float]],
    settings: Sequence[Settings],
) -> Tensor:
    """The numbers in a vector on the device: that of the last step if they are the same; others are checked."""
    values = [value for row in floats for value in row.values()]
    known, vector = program.vectors.get(names, (None, None))
    if vector is None or known != values or vector.device != device:
        for each in settings:
            each.recipe.make(**each.arguments)  # in the graph they are tensors, which nobody checks
        vector = torch.tensor(values, dtype=scalar_dtype(device), device=device)
        program.vectors[names] = values, vector
    return vector


def _write(
    how: How, plan: Plan, model: Model, states: States, given: Tensors, updates: list[Any], kept: list[Any]
) -> None:
    """Write into the tensors that there are, after all new values have been computed."""
    params = [model.params[index] for index in plan.moving]
    if how.differentiable or not (_are_plain(params) and _are_plain(updates) and _have_shapes(updates, params)):
        for param, value in zip(params, apply_updates(given.moving, updates)):
            param.copy_(value)
    elif params:
        torch._foreach_add_(params, updates)  # in the promoted dtype, and rounded once, as `apply_updates`
    if how.differentiable or not (_are_plain(given.written) and _are_plain(kept)):
        _write_states(how, plan, model, states, given.written, kept)
    elif kept:
        torch._foreach_copy_(given.written, kept)


def _write_states(how: How, plan: Plan, model: Model, states: States, written: list[Any], kept: list[Any]) -> None:
    for slot, old, new in zip(plan.written, written, kept):
        if isinstance(old, Tensor) and not how.differentiable:
            old.copy_(new)
        else:
            states[model.params[slot.param]][slot.name] = new  # the graph of the last step needs the old one


_PLAIN = frozenset((Tensor, torch.nn.Parameter))


def _are_plain(values: list[Any]) -> bool:
    """Whether all are tensors that foreach functions know; sharded ones they do not."""
    return _PLAIN.issuperset(map(type, values))


def _have_shapes(updates: list[Tensor], params: list[Tensor]) -> bool:
    return all(map(operator.eq, [update.shape for update in updates], [param.shape for param in params]))
