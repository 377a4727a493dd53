"""Hyperparameters in the state, where they are read, set, scheduled, vmapped and differentiated like other tensors."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from funcopt import tree
from funcopt.calls import Call
from funcopt.numerics import increment
from funcopt.paths import Path, Step, dotted, replace, walk
from funcopt.transform import (
    EmptyState,
    GradientTransformation,
    Params,
    State,
    Updates,
    factory,
    scalar,
    value_at,
    zero_count,
)
from funcopt.wrappers.annotations import Kind, admitted_kinds

ScheduleState: TypeAlias = Tensor | tuple[Any, ...] | dict[str, Any]
"""What a stateful schedule remembers: a tensor, or a tuple, NamedTuple or dict of them."""


class StatefulSchedule(Protocol):
    """A hyperparameter that depends on what it remembers and on extra arguments, such as the loss `value`.

    At each step the value is taken from the state before the step. `init` of the optimizer calls it without extra
    arguments.
    """

    def init(self) -> ScheduleState: ...

    def update(self, state: ScheduleState, /, **extra: Any) -> ScheduleState: ...

    def __call__(self, state: ScheduleState, /, **extra: Any) -> float | Tensor: ...


class InjectHyperparamsState(NamedTuple):
    count: Tensor  # type: ignore[assignment]  # steps taken
    hyperparams: dict[str, Tensor]  # values of the last step; at the start, those of the first
    schedule_states: dict[str, ScheduleState]  # of scheduled ones, b1 as "b1_schedule"; EmptyState if of count alone
    inner_state: State


def inject_hyperparams(
    inner_factory: Callable[..., GradientTransformation], static_args: str | Iterable[str] = ()
) -> Callable[..., GradientTransformation]:
    """The factory of an optimizer that keeps its hyperparameters in its state, as 0-d tensors under their names.

    They are float32 whatever the parameters' dtype, float64 where a leaf of params is. Each may be a number, a 0-d
    tensor, a schedule (called with the count of steps before this one) or a `StatefulSchedule`; defaults count too.
    A value changed in the state (`set_hyperparams`) holds from the next step on and compiles nothing again.

    An argument is a hyperparameter if its annotation admits a float or a 0-d `Tensor`, and its value is one or is
    scheduled; sizes (`int`), flags, masks, dtypes and functions are not. Without an annotation floats are, ints where
    the default is a float, and of functions the schedules of this library, stateful ones, and those where the default
    is a float; others are handed on to the factory. `static_args` names arguments to be left out all the same. (optax
    rounds to the parameters' dtype, and takes every int and callable that `static_args` does not name.)

    >>> optimizer = inject_hyperparams(adamw)(learning_rate=0.1, weight_decay=linear_schedule(0.1, 0.0, 100))
    >>> state = set_hyperparams(optimizer.init({"w": torch.ones(2)}), learning_rate=0.05)
    >>> get_hyperparams(state)["learning_rate"]
    tensor(0.0500)

    Raises:
        TypeError, ValueError: what the factory itself raises for these arguments, when the optimizer is made.
    """
    _check_factory(inner_factory)
    signature = inspect.signature(inner_factory)
    static = {static_args} if isinstance(static_args, str) else {*static_args}
    if unknown := sorted(static - signature.parameters.keys()):
        raise ValueError(f"inject_hyperparams: {_name(inner_factory)} has no argument {', '.join(unknown)}.")
    admitted = admitted_kinds(inner_factory)
    name = f"inject_hyperparams({_name(inner_factory)})"

    def injected(*args: Any, **kwargs: Any) -> GradientTransformation:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{name}: {error}.") from None
        bound.apply_defaults()
        hyperparameters = {
            argument: _checked(name, argument, value)
            for argument, value in bound.arguments.items()
            if argument not in static
            and is_hyperparameter(value, admitted[argument], signature.parameters[argument].default)
        }

        def build(values: dict[str, Any]) -> GradientTransformation:
            arguments = inspect.BoundArguments(signature, {**bound.arguments, **values})
            return inner_factory(*arguments.args, **arguments.kwargs)

        return _injected(name, build, hyperparameters)

    functools.update_wrapper(injected, inner_factory)
    injected.__name__ = name
    injected.call = Call(inject_hyperparams, (inner_factory,), {"static_args": tuple(sorted(static))})  # type: ignore[attr-defined]
    return factory(injected)


def _injected(
    name: str, build: Callable[[dict[str, Any]], GradientTransformation], hyperparameters: dict[str, Any]
) -> GradientTransformation:
    """The transformation that `build` makes from values of the hyperparameters, which it keeps in its state."""
    schedules = {key: value for key, value in hyperparameters.items() if callable(value)}
    # Made once with the values given, for the factory to check them; of a schedule there is nothing to be checked.
    made = build({key: torch.zeros(()) for key in schedules})
    if not isinstance(made, GradientTransformation):
        raise TypeError(f"{name}: the factory must return a GradientTransformation, got {made!r}.")

    def scheduled(count: Tensor, states: dict[str, ScheduleState], extra: dict[str, Any]) -> dict[str, Any]:
        return {
            key: schedule(states[key + SCHEDULE], **extra) if _is_stateful(schedule) else value_at(schedule, count)
            for key, schedule in schedules.items()
        }

    def init(params: Params) -> InjectHyperparamsState:
        count = zero_count(params)
        states = {key + SCHEDULE: _initial_state(schedule, count) for key, schedule in schedules.items()}
        given = hyperparameters | scheduled(count, states, {})
        values = {key: scalar(params, value) for key, value in given.items()}
        return InjectHyperparamsState(count, values, states, build(values).init(params))

    def update(
        updates: Updates, state: InjectHyperparamsState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, InjectHyperparamsState]:
        given = state.hyperparams | scheduled(state.count, state.schedule_states, extra)
        values = {key: _like(state.hyperparams[key], given[key]) for key in hyperparameters}
        states = {key + SCHEDULE: _next_state(schedules[key], key + SCHEDULE, state, extra) for key in schedules}
        updates, inner_state = build(values).update(updates, state.inner_state, params, **extra)
        return updates, InjectHyperparamsState(increment(state.count), values, states, inner_state)

    return GradientTransformation(init, update, made.coupling)


SCHEDULE = "_schedule"  # ends the names of schedule states: `learning_rate` shall name one part of the state only


def _is_stateful(schedule: Any) -> bool:
    return callable(schedule) and hasattr(schedule, "init") and hasattr(schedule, "update")


def _initial_state(schedule: Any, count: Tensor) -> ScheduleState:
    """The state that a schedule starts from, in memory of its own; one that only counts has none."""
    if not _is_stateful(schedule):
        return EmptyState()

    def own(leaf: Any) -> Tensor:
        value = torch.as_tensor(leaf, device=count.device)
        return count.new_zeros(value.shape, dtype=value.dtype) + value

    state: ScheduleState = tree.map(own, schedule.init())
    return state


def _next_state(schedule: Any, key: str, state: InjectHyperparamsState, extra: dict[str, Any]) -> ScheduleState:
    if not _is_stateful(schedule):
        return EmptyState()
    old = state.schedule_states[key]
    new: ScheduleState = tree.map(_like, old, schedule.update(old, **extra))
    return new


def _like(old: Tensor, new: Any) -> Tensor:
    """`new` in the dtype of `old` and on its device, in memory of its own."""
    value: Tensor = torch.zeros_like(old) + new
    return value.to(old.dtype)


def is_hyperparameter(value: Any, kind: Kind, default: Any) -> bool:
    """The rule in the docstring of `inject_hyperparams`."""
    if isinstance(value, bool) or kind == "static":
        return False
    is_scalar = isinstance(value, Tensor) and value.ndim == 0 and value.is_floating_point()
    if kind == "tensor":
        return is_scalar or _is_stateful(value)
    if kind == "float":
        return isinstance(value, (int, float, Tensor)) or callable(value)
    like_default = isinstance(default, float) and (isinstance(value, int) or callable(value))
    made_here = callable(value) and isinstance(getattr(value, "call", None), Call)
    return isinstance(value, float) or is_scalar or like_default or made_here or _is_stateful(value)


def _checked(name: str, argument: str, value: Any) -> Any:
    if isinstance(value, Tensor) and value.ndim > 0:
        raise ValueError(
            f"{name}: {argument} must be a number, a 0-d tensor or a schedule, got a tensor of shape "
            f"{tuple(value.shape)}. For several values at once, make the state under vmap."
        )
    return value


def _check_factory(inner_factory: Any) -> None:
    if isinstance(inner_factory, GradientTransformation):
        name = "adam" if inner_factory.call is None else inner_factory.call.name
        raise TypeError(
            f"inject_hyperparams: expected a factory, got the transformation {inner_factory!r}; "
            f"call inject_hyperparams({name})(...)."
        )
    if not callable(inner_factory):
        raise TypeError(f"inject_hyperparams: expected a factory, got {inner_factory!r}.")


def _name(function: Any) -> str:
    return _name(function.func) if isinstance(function, functools.partial) else getattr(function, "__name__", "factory")


# ------------------------------------------------------------------------------------------- reading and setting


class _Found(NamedTuple):
    path: Path
    value: Tensor
    scheduled: bool
    names: tuple[str, str, str, str]  # alone, after labels, after labels and positions, as path from the root


def _find(state: State) -> list[_Found]:
    """All hyperparameters in a state."""
    found = []
    for path, part in walk(state):
        if not isinstance(part, InjectHyperparamsState):
            continue
        labels = [step.name for step in path if step.kind == "key"]
        positions = [step.name for step in path if step.kind != "field"]
        for name, value in part.hyperparams.items():
            whole = (*path, Step("hyperparams", "field"), Step(name, "key"))
            names = (name, ".".join([*labels, name]), ".".join([*positions, name]), dotted(whole))
            found.append(_Found(whole, value, name + SCHEDULE in part.schedule_states, names))
    return found


def get_hyperparams(state: State) -> dict[str, Tensor]:
    """The values of the hyperparameters in a state, those of the last step, wherever `inject_hyperparams` put them.

    The key is the name alone if it occurs once. Otherwise it is qualified by the keys of dicts on the way to it (the
    names of a `named_chain`, the labels of a partition), as "decay.learning_rate"; if these do not tell them apart,
    by positions in tuples as well, as "1.learning_rate", and at last by the whole path in the state.

    >>> get_hyperparams(chain(clip(1.0), inject_hyperparams(sgd)(0.5)).init(torch.ones(2)))
    {'learning_rate': tensor(0.5000)}
    """
    found = _find(state)
    return {_shortest_name(each, found): each.value for each in found}


def settable_hyperparams(state: State) -> dict[str, Path]:
    """Where in a state each hyperparameter is that `set_hyperparams` can set, by the key of `get_hyperparams`."""
    found = _find(state)
    return {_shortest_name(each, found): each.path for each in found if not each.scheduled}


def _shortest_name(one: _Found, found: list[_Found]) -> str:
    rivals = [other.names for other in found if other.names[0] == one.names[0]]
    if len(rivals) == 1:
        return one.names[0]

    def tells_apart(level: int) -> bool:
        keys = {names[level] for names in rivals}
        return len(keys) == len(rivals) and one.names[0] not in keys

    return one.names[next(filter(tells_apart, (1, 2)), 3)]


def set_hyperparams(state: State, values: Mapping[str, float | Tensor] | None = None, /, **named: Any) -> State:
    """A state with other values of hyperparameters, used from the next step on; `state` is not changed.

    The names are the keys of `get_hyperparams`; those that are no identifiers go into the mapping. A number or a 0-d
    tensor takes the dtype, device and shape of the value that it replaces; in a state that was made under vmap a
    stacked value, one for each model, does so too. All other tensors are shared with `state`.

    >>> optimizer = inject_hyperparams(sgd)(learning_rate=0.5)
    >>> state = set_hyperparams(optimizer.init(torch.ones(2)), learning_rate=0.1)

    Raises:
        KeyError: the state has no such hyperparameter, or several; the message lists what can be set.
        ValueError: it is scheduled, so that the value would be overwritten; or the value has another shape.
        TypeError: the value is neither a number nor a tensor.
    """
    found = _find(state)
    parts = {}
    for name, value in {**(values or {}), **named}.items():
        chosen = _choose(found, name)
        parts[chosen.path] = _replacement(name, chosen.value, value)
    return replace(state, parts)


def _choose(found: list[_Found], name: str) -> _Found:
    chosen = [each for each in found if name in each.names]
    if not chosen:
        there = ", ".join(_shortest_name(each, found) for each in found) or "none at all"
        raise KeyError(f"set_hyperparams: the state has no hyperparameter {name!r}; it has {there}.")
    if len(chosen) > 1:
        keys = [_shortest_name(each, found) for each in chosen]
        raise KeyError(
            f"set_hyperparams: {name!r} may be {', '.join(map(repr, keys))}; "
            f"call set_hyperparams(state, {{{keys[0]!r}: ...}})."
        )
    if chosen[0].scheduled:
        raise ValueError(
            f"set_hyperparams: {name} is scheduled, and its schedule would overwrite the value at the next step; make "
            f"the optimizer with a number for {name}, which can go on from the same state."
        )
    return chosen[0]


def _replacement(name: str, old: Tensor, value: Any) -> Tensor:
    if isinstance(value, bool) or not isinstance(value, (int, float, Tensor)):
        raise TypeError(f"set_hyperparams: {name} must be a number or a tensor, got {name}={value!r}.")
    if isinstance(value, Tensor) and value.ndim > 0 and value.shape != old.shape:
        raise ValueError(
            f"set_hyperparams: {name} must be a number, a 0-d tensor or of shape {tuple(old.shape)} as in the state, "
            f"got shape {tuple(value.shape)}. For several values at once, set each under vmap: "
            f"vmap(lambda value: set_hyperparams(state, {name}=value))(values)."
        )
    return torch.zeros_like(old) + torch.as_tensor(value, dtype=old.dtype, device=old.device)
