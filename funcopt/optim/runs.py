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
    return Plan(names, size, tuple(moving), tuple(resting), tuple(written), tuple(read), tuple(runs), tuple(wirings))


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


def advance(
    plan: Plan,
    moving: list[Tensor],
    written: list[Any],
    resting: list[Tensor],
    read: list[Any],
    gradients: list[Tensor],
    numbers: list[dict[str, Any]],
    extra: dict[str, Any],
) -> tuple[list[Tensor], list[Any]]:
    """The new values of `moving` and `written`, parameters and states in the order of the plan. Pure.

    `numbers` are the arguments of each run that are numbers; `extra` are those of `update`.
    """
    params = _spread(plan.size, (*plan.moving, *plan.resting), [*moving, *resting])
    model = as_tree(plan.names, params)
    structure = tree.flatten(model)[1]
    stored = [*written, *read]
    moved, kept = list(moving), list(written)
    for run, wiring, values in zip(plan.runs, plan.wirings, numbers):
        seen = _spread(plan.size, [plan.moving[k] for k in wiring.gradients], [gradients[k] for k in wiring.gradients])
        leaves = [None if slot is None else stored[slot] for slot in wiring.reads]
        state = tree.unflatten(leaves, run.layout.structure)
        transformation = run.make(**run.static, **values)
        updates, state = transformation.update(as_tree(plan.names, seen), state, model, **extra)
        by_index = tree.leaves_up_to(structure, updates)
        new = apply_updates([moving[k] for k in wiring.own], [by_index[plan.moving[k]] for k in wiring.own])
        for k, param in zip(wiring.own, new):
            moved[k] = param
        leaves = tree.leaves_up_to(run.layout.structure, state)
        for leaf, slot in wiring.writes:
            kept[slot] = leaves[leaf]
    return moved, kept


def advance_from_vector(plan: Plan, names: tuple[tuple[str, ...], ...]) -> Callable[..., Any]:
    """`advance` for a plan, as a function of tensors alone: all numbers are in one vector.

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
        return advance(plan, moving, written, resting, read, gradients, filled[:-1], filled[-1])

    def advance_always(*arguments: Any) -> tuple[list[Tensor], list[Any]]:
        return advance_with(*arguments)

    # For `compile`, which asks what a function refers to: functions of the library do not change, and then it can run
    # the graph again without Dynamo's guards. What a user's function refers to is for Dynamo to watch.
    return advance_always if all(map(_is_of_library, plan.runs)) else advance_with


def _is_of_library(run: Run) -> bool:
    functions = [run.make, *filter(callable, run.static.values())]
    return all(getattr(each, "__module__", "").split(".")[0] == "funcopt" for each in functions)


def _spread(size: int, indices: Sequence[int], values: Sequence[Any]) -> list[Any]:
    """A list of that size with the values at the indices, and None elsewhere."""
    spread: list[Any] = [None] * size
    for index, value in zip(indices, values):
        spread[index] = value
    return spread
