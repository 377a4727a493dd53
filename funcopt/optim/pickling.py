"""Transformations and schedules in pickles, by the call that made them: a function within a function has no name."""

import functools
import importlib
import inspect
import pickle
from collections.abc import Callable
from typing import Any

from funcopt.calls import Call


class Portable:
    """A transformation, or a schedule, that pickles as the call of its factory."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __deepcopy__(self, memo: dict[int, Any]) -> "Portable":
        return self

    def __reduce__(self) -> Any:
        call: Call = self.value.call
        arguments = to_portable(list(call.args)), to_portable(dict(call.kwargs))
        return _call_again, (_named(call), *arguments)


def to_portable(value: Any) -> Any:
    """`value` with a `Portable` in place of all that the library's factories made, in lists, tuples and dicts."""
    if type(value) in (list, tuple):
        return type(value)(map(to_portable, value))
    if type(value) is dict:
        return {key: to_portable(part) for key, part in value.items()}
    return Portable(value) if isinstance(getattr(value, "call", None), Call) else value


def from_portable(value: Any) -> Any:
    """The inverse of `to_portable`."""
    if type(value) in (list, tuple):
        return type(value)(map(from_portable, value))
    if type(value) is dict:
        return {key: from_portable(part) for key, part in value.items()}
    return value.value if isinstance(value, Portable) else value


def _call_again(factory: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> Portable:
    return Portable(from_portable(factory)(*from_portable(args), **from_portable(kwargs)))


def _named(call: Call) -> Any:
    """The factory of a call, as pickle finds it: by the name that its decorator left it."""
    function = call.function
    if isinstance(getattr(function, "call", None), Call):
        return Portable(function)  # a factory that was made by a call itself, as inject_hyperparams(adamw)
    while isinstance(function, functools.partial):
        function = function.func
    found: Any = importlib.import_module(function.__module__)
    for name in function.__qualname__.split("."):
        found = getattr(found, name, None)
    if found is None or inspect.unwrap(found) is not inspect.unwrap(call.function):
        raise pickle.PicklingError(
            f"{call!r} cannot be pickled, since {function.__module__} has no {function.__qualname__}; define its "
            "factory in a module, or save optimizer.state_dict()."
        )
    return found
