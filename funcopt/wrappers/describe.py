"""What an optimizer does to each leaf, as text."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from funcopt import tree
from funcopt.calls import Call
from funcopt.transform import GradientTransformation, Params, chain, named_chain
from funcopt.wrappers.masking import Part, freeze, masked
from funcopt.wrappers.partition import partition, state_key
from funcopt.wrappers.patterns import per_leaf


def describe(transformation: GradientTransformation, params: Params) -> str:
    """The routing of an optimizer as a table: for every leaf its path, shape, dtype, label, state and transformation.

    The transformation is what acts on the leaf: of a chain those links that do, of a partition the member of its label,
    with masks and multipliers shown by their value at the leaf. "-" means that nothing acts, so that the gradient comes
    out as it came in. The bytes of the state are those whose path ends in that of the leaf; the last line has the
    totals, with what belongs to no leaf (counts, say). `init` is run on meta tensors: nothing is allocated.

    >>> params = {"weight": torch.ones(2, 3), "bias": torch.ones(2)}
    >>> print(describe(freeze(adam(0.1), {"bias": True, "weight": False}), params))
    leaf    shape   dtype    state bytes  transformation
    weight  (2, 3)  float32           48  adam(0.1)
    bias    (2,)    float32            0  frozen
    2 leaves, 8 parameters (32 bytes); state of 60 bytes, 12 of them of no leaf

    What a wrapper that is none of this library's does inside cannot be seen; it is shown as its call.

    Raises:
        TypeError: `transformation` is none, or a leaf of params is no floating-point or complex tensor.
        ValueError: a mask or labels do not fit params.
    """
    if not isinstance(transformation, GradientTransformation):
        raise TypeError(f"describe: expected a GradientTransformation, got {transformation!r}.")
    tree.check_params(params)
    routes = _routes(transformation.call, params)
    bytes_of, elsewhere = _state_bytes(transformation, params)
    leaves = [(path, leaf) for path, leaf in tree.leaves_with_path(params) if leaf is not None]
    rows = [_row(path, leaf, routes[path], bytes_of[path]) for path, leaf in leaves]
    header = ("leaf", "shape", "dtype", "label", "state bytes", "transformation")
    return "\n".join([*_aligned([header, *rows]), _totals([leaf for _, leaf in leaves], bytes_of, elsewhere)])


# ------------------------------------------------------------------------------------------------------- routing


@dataclass(frozen=True)
class _Route:
    """What acts on one leaf: the labels that lead there, and the call as text, or None where nothing acts."""

    text: str | None = None
    labels: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return "-" if self.text is None else self.text


_Routes: TypeAlias = dict[str, _Route]
"""Routes by the paths of the leaves."""


def _routes(call: Call | None, params: Params) -> _Routes:
    paths = [path for path, _ in tree.leaves_with_path(params)]
    if call is None:
        return dict.fromkeys(paths, _Route("GradientTransformation(init, update)"))
    if call.function in _ROUTERS:
        return _ROUTERS[call.function](call, params)
    if call.body is not None and _differences(call.body) - _differences_shown(call):
        return _routes(call.body, params)
    return _routes_of_call(call, params)


def _routes_of_chain(call: Call, params: Params) -> _Routes:
    named = [member if isinstance(member, tuple) else (None, member) for member in call.args]
    links = [(name, _routes(member.call, params)) for name, member in named]

    def joined(path: str) -> _Route:
        acting = [(name, routes[path]) for name, routes in links if routes[path].text is not None]
        labels = tuple(label for _, route in acting for label in route.labels)
        if len(acting) <= 1:
            return _Route(acting[0][1].text if acting else None, labels)
        shown = [repr(route) if name is None else f"({name!r}, {route!r})" for name, route in acting]
        return _Route(f"{call.name}({', '.join(shown)})", labels)

    return {path: joined(path) for path, _ in tree.leaves_with_path(params)}


def _routes_of_masked(call: Call, params: Params) -> _Routes:
    return _routes_on_part(call, params, seen=True, elsewhere=_Route())


def _routes_of_freeze(call: Call, params: Params) -> _Routes:
    return _routes_on_part(call, params, seen=False, elsewhere=_Route("frozen"))


def _routes_on_part(call: Call, params: Params, *, seen: bool, elsewhere: _Route) -> _Routes:
    arguments = _arguments(call)
    inside = _routes(arguments["inner"].call, _part(params, _values(call, "mask", arguments["mask"], params), seen))
    return {path: inside.get(path, elsewhere) for path, _ in tree.leaves_with_path(params)}


def _routes_of_partition(call: Call, params: Params) -> _Routes:
    arguments = _arguments(call)
    labels = _values(call, "param_labels", arguments["param_labels"], params)
    routes = dict.fromkeys([path for path, _ in tree.leaves_with_path(params)], _Route())
    for label, member in arguments["transforms"].items():
        for path, route in _routes(member.call, _part(params, labels, label)).items():
            routes[path] = _Route(route.text, (state_key(label), *route.labels))
    return routes


def _part(params: Params, values: list[Any], label: Any) -> Params:
    leaves, structure = tree.flatten(params)
    return Part(structure, values, label).of(leaves)


_ROUTERS: dict[Callable[..., Any], Callable[[Call, Params], _Routes]] = {
    inspect.unwrap(chain): _routes_of_chain,
    inspect.unwrap(named_chain): _routes_of_chain,
    inspect.unwrap(masked): _routes_of_masked,
    inspect.unwrap(freeze): _routes_of_freeze,
    inspect.unwrap(partition): _routes_of_partition,
}


def _routes_of_call(call: Call, params: Params) -> _Routes:
    """The call as it was made, with each argument as it is for the leaf."""
    arguments = [(name, _at_leaf(call, name, value, params)) for name, value in _named(call)]
    positional = len(call.args)

    def at(path: str) -> _Route:
        shown = [(name, argument(path)) for name, argument in arguments]
        args, kwargs = [value for _, value in shown[:positional]], dict(shown[positional:])
        labels = tuple(label for _, value in shown for route in _inner_routes(value) for label in route.labels)
        return _Route(repr(call._replace(args=tuple(args), kwargs=kwargs)), labels)

    return {path: at(path) for path, _ in tree.leaves_with_path(params)}


def _at_leaf(call: Call, name: str, value: Any, params: Params) -> Callable[[str], Any]:
    """An argument as a function of the path: what a mask is there, and what acts there of a transformation."""
    if isinstance(value, GradientTransformation):
        return _routes(value.call, params).__getitem__
    if _differs_by_leaf(name, value):
        paths = [path for path, _ in tree.leaves_with_path(params)]
        return dict(zip(paths, _values(call, name, value, params))).__getitem__
    if type(value) in (list, tuple):
        parts = [_at_leaf(call, "", part, params) for part in value]
        return lambda path: type(value)(part(path) for part in parts)
    if type(value) is dict:
        by_key = {key: _at_leaf(call, "", part, params) for key, part in value.items()}
        return lambda path: {key: part(path) for key, part in by_key.items()}
    return lambda path: value


def _inner_routes(value: Any) -> Iterator[_Route]:
    if isinstance(value, _Route):
        yield value
    elif type(value) in (list, tuple, dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _inner_routes(part)


def _differs_by_leaf(name: str, value: Any) -> bool:
    """Whether an argument says something else for each leaf. Its name tells; a bool is the same for all."""
    per_leaf_names = name in ("mask", "param_labels", "multipliers") or name.endswith("_mask")
    return per_leaf_names and value is not None and not isinstance(value, bool)


def _differences(call: Call) -> set[int]:
    """The identities of all masks, labels and multipliers in a call and in what it is made of."""
    return _differences_shown(call) | (_differences(call.body) if call.body is not None else set())


def _differences_shown(call: Call) -> set[int]:
    found = {id(value) for name, value in _named(call) if _differs_by_leaf(name, value)}
    inner = (part for _, value in _named(call) for part in _inner_transformations(value))
    return found.union(*(_differences(part.call) for part in inner if part.call is not None))


def _inner_transformations(value: Any) -> Iterator[GradientTransformation]:
    if isinstance(value, GradientTransformation):
        yield value
    elif type(value) in (list, tuple, dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _inner_transformations(part)


def _named(call: Call) -> list[tuple[str, Any]]:
    """The arguments of a call as they were given, the positional ones with the names of their parameters."""
    names = [*inspect.signature(call.function).parameters, *("" for _ in call.args)]
    return [*zip(names, call.args), *call.kwargs.items()]


def _arguments(call: Call) -> dict[str, Any]:
    return inspect.signature(call.function).bind(*call.args, **call.kwargs).arguments


def _values(call: Call, name: str, value: Any, params: Params) -> list[Any]:
    return per_leaf(call.name, name, value, lambda name, value: None)(params, None)


# --------------------------------------------------------------------------------------------------------- state


def _state_bytes(transformation: GradientTransformation, params: Params) -> tuple[dict[str, int], int]:
    """The bytes of the state of every leaf, by path, and those of no leaf."""
    state = transformation.init(tree.map(lambda leaf: torch.empty_like(leaf, device="meta"), params))
    owned, elsewhere = {path: 0 for path, _ in tree.leaves_with_path(params)}, 0
    for path, leaf in tree.leaves_with_path(state):
        owner = None if leaf is None else _owner(path, leaf, params, owned)
        if owner is not None:
            owned[owner] += leaf.nbytes
        elif leaf is not None:
            elsewhere += leaf.nbytes
    return owned, elsewhere


def _owner(path: str, leaf: Tensor, params: Params, owned: Iterable[str]) -> str | None:
    """The longest path of a parameter that `path` ends in."""
    if isinstance(params, Tensor):  # its path is empty
        return "" if leaf.shape == params.shape and leaf.is_floating_point() == params.is_floating_point() else None
    names = path.split(".")
    suffixes = (".".join(names[start:]) for start in range(len(names)))
    return next((suffix for suffix in suffixes if suffix in owned), None)


# --------------------------------------------------------------------------------------------------------- table


def _row(path: str, leaf: Tensor, route: _Route, state_bytes: int) -> tuple[str, ...]:
    dtype = str(leaf.dtype).removeprefix("torch.")
    return path or "(params)", str(tuple(leaf.shape)), dtype, "/".join(route.labels), f"{state_bytes:,}", repr(route)


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows as lines: numbers to the right, without a column of labels where there are none."""
    shown = [i for i in range(len(rows[0])) if i != 3 or any(row[3] for row in rows[1:])]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def cell(row: tuple[str, ...], i: int) -> str:
        return row[i].rjust(widths[i]) if i == 4 else row[i].ljust(widths[i])

    return ["  ".join(cell(row, i) for i in shown).rstrip() for row in rows]


def _totals(leaves: list[Tensor], bytes_of: dict[str, int], elsewhere: int) -> str:
    numbers, memory = sum(leaf.numel() for leaf in leaves), sum(leaf.nbytes for leaf in leaves)
    plural = "leaf" if len(leaves) == 1 else "leaves"
    return (
        f"{len(leaves)} {plural}, {numbers:,} parameters ({memory:,} bytes); "
        f"state of {sum(bytes_of.values()) + elsewhere:,} bytes, {elsewhere:,} of them of no leaf"
    )
