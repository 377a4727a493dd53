"""Where the leaves of a state are kept: under which parameter, and by which name."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from funcopt import tree
from funcopt.paths import rebuild

_COUNTERS = ("count", "step_count", "gradient_step")


class Place(NamedTuple):
    """Where one leaf of a state is kept."""

    owner: int | None  # the number of the parameter that it belongs to; None if it belongs to all
    name: str


class Layout(NamedTuple):
    """The structure of a state, and the place of each of its leaves in the dicts of the parameters."""

    structure: Any
    places: tuple[Place, ...]
    own: frozenset[str]  # names of what belongs to one parameter
    shared: frozenset[str]  # names of what belongs to all of them together, such as a count


def layout_of(state: tree.Tree, params: tree.Tree) -> Layout:
    """The layout of the state that `init(params)` gave.

    What has the structure of params belongs to them leaf by leaf, and may go on below (as the real and the imaginary
    part of a complex leaf). A name is the path in the state without that of the parameter, as far as it takes to tell
    it apart: `mu` for `0.mu`. The first count is named `step`, as in torch.optim.
    """
    structure = tree.flatten(state)[1]
    places = tree.leaves_up_to(structure, _places(state, "", tree.flatten(params)[1]))
    short = _shorten(list(dict.fromkeys(place.name for place in places)))
    places = [Place(place.owner, short[place.name]) for place in places]
    own = frozenset(place.name for place in places if place.owner is not None)
    shared = frozenset(place.name for place in places if place.owner is None)
    return Layout(structure, tuple(places), own, shared)


def _places(part: tree.Tree, path: str, params: Any) -> tree.Tree:
    """`part` with a `Place` of the whole path for each leaf."""
    rows = _by_parameter(part, params)
    if rows is not None:
        return tree.unflatten([_within(row, path, owner) for owner, row in enumerate(rows)], params)
    children = tree.children(part)
    if children is None:
        return Place(None, path)
    return rebuild(part, [_places(child, _join(path, name), params) for name, child in children.items()])


def _by_parameter(part: tree.Tree, params: Any) -> list[Any] | None:
    """What `part` holds for each parameter, if it has the structure of params."""
    try:
        return list(params.flatten_up_to(part))
    except ValueError:
        return None


def _within(part: tree.Tree, path: str, owner: int) -> tree.Tree:
    children = tree.children(part)
    if children is None:
        return Place(owner, path)
    return rebuild(part, [_within(child, _join(path, name), owner) for name, child in children.items()])


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _shorten(paths: Sequence[str]) -> dict[str, str]:
    """For each path the shortest end that no other path has."""
    ends: dict[str, int] = {}
    for path in paths:
        for end in _ends(path):
            ends[end] = ends.get(end, 0) + 1
    short = {path: next((end for end in _ends(path) if ends[end] == 1), path) for path in paths}
    counter = next((path for path in paths if path.rpartition(".")[2] in _COUNTERS), None)
    if counter is not None and "step" not in short.values():
        short[counter] = "step"
    return short


def _ends(path: str) -> list[str]:
    """Every end of a path that says more than positions, the shortest first."""
    parts = path.split(".")
    return [".".join(parts[i:]) for i in reversed(range(len(parts))) if not "".join(parts[i:]).isdigit()]
