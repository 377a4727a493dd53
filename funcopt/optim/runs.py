"""One step of an optimizer as a pure function of lists of tensors: what it reads, computes and writes.

A *run* is one call of `update`. All parameters of a scope are one tree, and every run sees the whole tree; a run moves
those parameters whose groups say the same. With one group, or equal ones, there is one run.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from funcopt import tree
from funcopt.optim.layout import Layout
from funcopt.transform import GradientTransformation, apply_updates


class Slot(NamedTuple):
    """A place in the states of an optimizer: the number of the parameter that it is under, and the name there."""

    param: int
    name: str


class Run(NamedTuple):
    """One call of `update`."""

    make: Callable[..., GradientTransformation]
    static: dict[str, Any]  # the arguments of `make` that are no numbers
    sees_all: bool  # whether it gets the gradients of parameters that it does not move
    moves: frozenset[int]  # the parameters that it moves
    layout: Layout
    shared: int  # the parameter that keeps what is shared


class Wiring(NamedTuple):
    """Where the numbers of a run come from and go to."""

    gradients: tuple[int, ...]  # which of the moving parameters it gets the gradients of
    own: tuple[int, ...]  # which of the moving parameters it moves
    reads: tuple[int | None, ...]  # for each leaf of its state, the slot; None for one that is absent
    writes: tuple[tuple[int, int], ...]  # leaves of its new state, and the slots that they go to


class Plan(NamedTuple):
    """What one step reads and writes.

    Of the parameters, `moving` have a gradient, and `resting` have a state only; others are absent. Of the slots,
    `written` change, and `read` are only looked at; a `Wiring` numbers them through.
    """

    names: tuple[str, ...] | None
    size: int
    structure: Any  # of the tree of parameters
    moving: tuple[int, ...]
    resting: tuple[int, ...]
    written: tuple[Slot, ...]
    read: tuple[Slot, ...]
    runs: tuple[Run, ...]
    wirings: tuple[Wiring, ...]


def make_plan(
    names: tuple[str, ...] | None, size: int, moving: Sequence[int], resting: Sequence[int], runs: Sequence[Run]
) -> Plan:
    """The plan of a step in which the parameters `moving` have gradients."""
    slots = [_slots(run, {*moving, *resting}) for run in runs]
    written = list(dict.fromkeys(slot for run, row in zip(runs, slots) for slot in _changing(run, row, {*moving})))
    read = list(dict.fromkeys(slot for row in slots for slot in row if slot is not None and slot not in written))
    numbers = {slot: number for number, slot in enumerate([*written, *read])}
    wirings = []
    for run, row in zip(runs, slots):
        changing = {*_changing(run, row, {*moving})}
        wirings.append(
            Wiring(
                gradients=tuple(k for k, index in enumerate(moving) if run.sees_all or index in run.moves),
                own=tuple(k for k, index in enumerate(moving) if index in run.moves),
                reads=tuple(None if slot is None else numbers[slot] for slot in row),
                writes=tuple((leaf, numbers[slot]) for leaf, slot in enumerate(row) if slot in changing),
            )
        )
    structure = tree.flatten(as_tree(names, [None] * size))[1]
    slots_of = tuple(written), tuple(read)
    return Plan(names, size, structure, tuple(moving), tuple(resting), *slots_of, tuple(runs), tuple(wirings))


def _slots(run: Run, known: set[int]) -> list[Slot | None]:
    """The slot of each leaf of the state of a run; None where the parameter is absent, or no business of the run."""

    def slot_of(owner: int | None, name: str) -> Slot | None:
        if owner is None:
            return Slot(run.shared, name)
        return Slot(owner, name) if owner in known and (run.sees_all or owner in run.moves) else None

    return [slot_of(*place) for place in run.layout.places]


def _changing(run: Run, slots: list[Slot | None], moving: set[int]) -> list[Slot]:
    """The slots that a run writes: what is shared, and what belongs to parameters that it moves."""

    def changes(owner: int | None) -> bool:
        return owner is None or (owner in moving and owner in run.moves)

    return [slot for (owner, _), slot in zip(run.layout.places, slots) if slot is not None and changes(owner)]


def as_tree(names: tuple[str, ...] | None, leaves: list[Any]) -> tree.Tree:
    """The tree that a transformation sees: a dict by the names of the parameters, or a list if they have none."""
    return leaves if names is None else dict(zip(names, leaves))


class Tensors(NamedTuple):
    """What a step is given, in the order of its plan."""

    moving: list[Tensor]
    written: list[Any]
    resting: list[Tensor]
    read: list[Any]
    gradients: list[Tensor]


def updates_of(
    plan: Plan, given: Tensors, transformations: Sequence[GradientTransformation], extra: dict[str, Any]
) -> tuple[list[Any], list[Any]]:
    """What is to be added to `moving`, and the new values of `written`. Pure.

    There is a transformation for each run; `extra` are further arguments of `update`.
    """
    model = as_tree(plan.names, _spread(plan.size, (*plan.moving, *plan.resting), [*given.moving, *given.resting]))
    stored = [*given.written, *given.read]
    updates: list[Any] = [None] * len(plan.moving)
    kept = list(given.written)
    for run, wiring, transformation in zip(plan.runs, plan.wirings, transformations):
        seen = _spread(
            plan.size, [plan.moving[k] for k in wiring.gradients], [given.gradients[k] for k in wiring.gradients]
        )
        leaves = [None if slot is None else stored[slot] for slot in wiring.reads]
        state = tree.unflatten(leaves, run.layout.structure)
        made, state = transformation.update(as_tree(plan.names, seen), state, model, **extra)
        by_index = _in_order(plan, made)
        for k in wiring.own:
            updates[k] = by_index[plan.moving[k]]
        leaves = tree.leaves_up_to(run.layout.structure, state)
        for leaf, slot in wiring.writes:
            kept[slot] = leaves[leaf]
    return updates, kept


def _in_order(plan: Plan, updates: tree.Tree) -> Sequence[Any]:
    """The updates by the numbers of their parameters; at once where they stand as the parameters do."""
    if type(updates) is dict and plan.names is not None and tuple(updates) == plan.names:
        return list(updates.values())
    if type(updates) is list and plan.names is None and len(updates) == plan.size:
        return updates
    return tree.leaves_up_to(plan.structure, updates)


def compilable_step(plan: Plan, names: tuple[tuple[str, ...], ...]) -> Callable[..., Any]:
    """The new values of `moving` and `written` as a function of tensors alone: all numbers are in one vector.

    `names` are those of the numbers of each run and, at last, of the extra arguments that are numbers. Dynamo takes a
    0-d float64 tensor on the CPU for a number that it might have to read, and would trace everything twice.
    """

    def advance_with(
        moving: list[Tensor],
        written: list[Any],
        resting: list[Tensor],
        read: list[Any],
        gradients: list[Tensor],
        vector: Tensor,
        others: list[dict[str, Any]],
    ) -> tuple[list[Tensor], list[Any]]:
        filled = []
        start = 0
        for row, rest in zip(names, others):
            filled.append({**rest, **{name: vector[start + k] for k, name in enumerate(row)}})
            start += len(row)
        made = [run.make(**run.static, **numbers) for run, numbers in zip(plan.runs, filled)]
        updates, kept = updates_of(plan, Tensors(moving, written, resting, read, gradients), made, filled[-1])
        return apply_updates(moving, updates), kept

    def advance_always(*arguments: Any) -> tuple[list[Tensor], list[Any]]:
        return advance_with(*arguments)

    # For `compile`, which asks what a function refers to: functions of the library do not change, and then it can run
    # the graph again without Dynamo's guards. What a user's function refers to is for Dynamo to watch.
    return advance_always if all(map(_is_of_library, plan.runs)) else advance_with


def _is_of_library(run: Run) -> bool:
    return is_of_library(run.make, run.static)


def is_of_library(make: Callable[..., Any], arguments: dict[str, Any]) -> bool:
    """Whether a factory and the functions among its arguments are of this library, so that they never change."""
    functions = [make, *filter(callable, arguments.values())]
    return all(getattr(each, "__module__", "").split(".")[0] == "funcopt" for each in functions)


def _spread(size: int, indices: Sequence[int], values: Sequence[Any]) -> list[Any]:
    """A list of that size with the values at the indices, and None elsewhere."""
    spread: list[Any] = [None] * size
    for index, value in zip(indices, values):
        spread[index] = value
    return spread
