"""The call that made a transformation: how it prints, and what is said when its update is called with wrong things."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import Tensor

from funcopt import tree


class Call(NamedTuple):
    """A factory, and the arguments that it was called with. It prints as the expression."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    body: Any = None  # the Call that made what the function returned, where the function is made of others
    guarded: bool = True  # whether the update explains its errors

    @property
    def name(self) -> str:
        return self.function.__name__

    def __repr__(self) -> str:
        shown = [_show(value) for value in self.args] + [f"{name}={_show(v)}" for name, v in self.kwargs.items()]
        return f"{self.name}({', '.join(shown)})"


def _show(value: Any) -> str:
    if isinstance(value, Tensor):
        return repr(value) if value.ndim == 0 else f"<tensor of shape {tuple(value.shape)}>"
    if type(value) in (list, tuple):
        shown = ", ".join(map(_show, value))
        return f"[{shown}]" if type(value) is list else f"({shown}{',' if len(value) == 1 else ''})"
    if type(value) is dict:
        return "{" + ", ".join(f"{_show(key)}: {_show(part)}" for key, part in value.items()) + "}"
    if inspect.isfunction(value):
        return repr(getattr(value, "call", None) or value.__name__).strip("'")
    return repr(value)


def explain(
    name: str, init: Callable[..., Any], update: Callable[..., Any], arguments: tuple[Any, ...], extra: dict[str, Any]
) -> Exception | None:
    """Why an update of the transformation `name` failed, if its arguments show it: what the caller is to be told.

    `arguments` are updates, state and params. Only called once something went wrong, so that it may take its time.
    """
    for parameter in inspect.signature(update).parameters.values():
        needed = parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty
        if needed and parameter.name not in extra:
            return TypeError(
                f"{name}: update needs the extra argument {parameter.name!r}; "
                f"call update(updates, state, params, {parameter.name}=...)."
            )
    updates, state, params = arguments
    found = None if params is None else _first_difference("updates", params, updates)
    if found is None:
        try:
            expected = init(updates if params is None else params)
        except Exception:  # init says better than we could what is wrong with the params themselves
            return None
        found = _first_difference("the state", expected, state)
    if found is None:
        return None
    return ValueError(
        f"{name}: {found}. Pass updates, state and params of the same model, "
        "with the state that this transformation's init or its last update returned."
    )


def _first_difference(what: str, expected: tree.Tree, given: tree.Tree) -> str | None:
    return next(_differences(what, "", expected, given), None)


def _differences(what: str, path: str, expected: tree.Tree, given: tree.Tree) -> Iterator[str]:
    at = f"{what} at {path!r}" if path else what
    if expected is None or given is None:
        return
    wanted, present = tree.children(expected), tree.children(given)
    if wanted is None or present is None:
        if _kind(expected) != _kind(given):
            yield f"{at} must be {_kind(expected)}, got {_kind(given)}"
        return
    if type(expected) is not type(given) and not (isinstance(expected, dict) and isinstance(given, dict)):
        yield f"{at} must be {_kind(expected)}, got {_kind(given)}"
        return
    for key in wanted:
        below = f"{path}.{key}" if path else key
        if key not in present:
            yield f"{what}: {below!r} is missing"
        else:
            yield from _differences(what, below, wanted[key], present[key])
    for key in present:
        if key not in wanted:
            yield f"{what}: {f'{path}.{key}' if path else key!r} is not expected"


def _kind(part: tree.Tree) -> str:
    if isinstance(part, Tensor):
        return f"a tensor of shape {tuple(part.shape)}"
    if isinstance(part, (tuple, list)) and not hasattr(part, "_fields"):
        return f"a {type(part).__name__} of {len(part)}"
    return f"a {type(part).__name__}"
