"""Parts of a tree by name: where a key, a field or a class of states occurs, and the tree with such parts replaced."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

Filter: TypeAlias = Callable[[str, Any], bool]
"""`filtering(path, part)`: whether a part of that name is meant; the path is dotted, `inner_state.1.count`."""


class Step(NamedTuple):
    """One step from a container to a part of it."""

    name: str
    kind: Literal["key", "index", "field"]


Path: TypeAlias = tuple[Step, ...]


def dotted(path: Path) -> str:
    """The names of the steps, joined by dots."""
    return ".".join(step.name for step in path)


def children(tree: Any) -> dict[str, Any] | None:
    """The parts of a dict, list, tuple or NamedTuple by the names that paths are made of; None for a leaf."""
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return dict(zip(tree._fields, tree))
    if isinstance(tree, (list, tuple)):
        return {str(index): part for index, part in enumerate(tree)}
    return {str(key): part for key, part in tree.items()} if isinstance(tree, dict) else None


def rebuild(container: Any, parts: list[Any]) -> Any:
    """A container like this one, of other parts in the order of `children`."""
    if isinstance(container, dict):
        new = container.copy()
        new.update(zip(container, parts))
        return new
    return type(container)(*parts) if hasattr(container, "_fields") else type(container)(parts)


def _steps(container: Any) -> list[tuple[Step, Any]]:
    kind: Literal["key", "index", "field"] = "field" if hasattr(container, "_fields") else "index"
    kind = "key" if isinstance(container, dict) else kind
    return [(Step(name, kind), part) for name, part in (children(container) or {}).items()]


def walk(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every part of `tree` with the path to it, depth first, `tree` itself before all others."""
    yield path, tree
    for step, part in _steps(tree):
        yield from walk(part, (*path, step))


def replace(tree: Any, parts: Mapping[Path, Any], path: Path = ()) -> Any:
    """`tree` with other parts at the paths given; what does not change is shared with `tree`."""
    if path in parts:
        return parts[path]
    changed = any(other[: len(path)] == path for other in parts)
    if not changed:
        return tree
    return rebuild(tree, [replace(part, parts, (*path, step)) for step, part in _steps(tree)])


def get(tree: Any, key: str, default: Any = None, filtering: Filter | None = None) -> Any:
    """The one part of a state (of any tree) that `key` names, or `default` where there is none.

    `key` is a key of a dict, a field of a NamedTuple, or the name of a NamedTuple class. Parts without any leaf are
    passed over, such as masked leaves, unless their class is asked for.

    >>> tree.get(adam(0.1).init({"w": torch.ones(2)}), "last_rate")
    tensor(0.1000)

    Raises:
        KeyError: several parts have that name; the message lists their paths. `filtering(path, part)` chooses.
    """
    found = get_all_with_path(tree, key, filtering)
    if len(found) > 1:
        where = ", ".join(repr(path) for path, _ in found)
        raise KeyError(f"get: {key!r} occurs at {where}; choose one by filtering=lambda path, part: ...")
    return found[0][1] if found else default


def get_all_with_path(tree: Any, key: str, filtering: Filter | None = None) -> list[tuple[str, Any]]:
    """All parts that `key` names, as in `get`, each with its dotted path; also parts of other such parts."""
    return [(dotted(path), part) for path, part in _named(tree, key, filtering)]


def _named(tree: Any, key: str, filtering: Filter | None) -> list[tuple[Path, Any]]:
    def meant(path: Path, part: Any) -> bool:
        by_name = bool(path) and path[-1].kind != "index" and path[-1].name == key and not _is_empty(part)
        by_class = hasattr(part, "_fields") and type(part).__name__ == key
        return (by_name or by_class) and (filtering is None or filtering(dotted(path), part))

    return [(path, part) for path, part in walk(tree) if meant(path, part)]


def _is_empty(tree: Any) -> bool:
    parts = children(tree)
    return parts is not None and all(_is_empty(part) for part in parts.values())


def set(tree: Any, filtering: Filter | None = None, /, **values: Any) -> Any:
    """A tree in which every part that a keyword names, as in `get`, has a new value; `tree` is not changed.

    A number fills the tensor that it replaces. Tensors and trees are copied, and the rest is shared with `tree`.

    >>> state = tree.set(adam(0.1).init({"w": torch.ones(2)}), count=10)

    Raises:
        KeyError: nothing has that name.
        ValueError, TypeError: the new value has another structure or shape, or another dtype; the path is named.
            (optax takes any value.)
    """
    for key, value in values.items():
        found = _named(tree, key, filtering)
        if not found:
            raise KeyError(f"set: nothing is named {key!r}; there are {_list_names(tree)}.")
        tree = replace(tree, {path: _fitted(dotted(path), part, value) for path, part in found})
    return tree


def _list_names(tree: Any, limit: int = 20) -> str:
    """The names in a tree, those near the root first."""
    steps = sorted((path for path, _ in walk(tree) if path and path[-1].kind != "index"), key=len)
    names = list(dict.fromkeys(path[-1].name for path in steps))
    return ", ".join([*names[:limit], *(["..."] if len(names) > limit else [])]) or "no names"


def _fitted(path: str, old: Any, new: Any) -> Any:
    """`new` as a part that can stand where `old` does: a copy of the same structure, shapes and dtypes."""
    if isinstance(old, Tensor):
        return _fitted_tensor(path, old, new)
    parts, given = children(old), children(new)
    if parts is None or given is None or type(old) is not type(new) or parts.keys() != given.keys():
        if old is None and new is None:
            return None
        raise ValueError(f"set: the value at {path!r} must have the structure of {_kind(old)}, got {_kind(new)}.")
    below = f"{path}." if path else ""
    return rebuild(old, [_fitted(f"{below}{name}", part, given[name]) for name, part in parts.items()])


def _fitted_tensor(path: str, old: Tensor, new: Any) -> Tensor:
    if isinstance(new, Tensor):
        if new.shape != old.shape:
            raise ValueError(f"set: the value at {path!r} must be {_kind(old)}, got {_kind(new)}.")
        if new.dtype != old.dtype:
            raise TypeError(f"set: the value at {path!r} must be of {old.dtype}, got {new.dtype}; cast it first.")
        return new.to(old.device).clone(memory_format=torch.contiguous_format)
    whole = not (old.is_floating_point() or old.is_complex())
    number = isinstance(new, int) or (isinstance(new, float) and not whole)
    if not number or isinstance(new, bool) != (old.dtype == torch.bool):
        raise TypeError(f"set: the value at {path!r} must be {_kind(old)} of {old.dtype}, got {new!r}.")
    return torch.full_like(old, new)


def _kind(part: Any) -> str:
    if isinstance(part, Tensor):
        return f"a tensor of shape {tuple(part.shape)}"
    parts = children(part)
    return repr(part) if parts is None else f"a {type(part).__name__} of {', '.join(parts) or 'nothing'}"
