"""One value for every leaf of a tree: given as a tree, as a function of params, or by patterns of paths."""

import fnmatch
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeGuard

import torch
from torch import Tensor

from funcopt import tree
from funcopt.calls import Call
from funcopt.pack import Packed, per_buffer
from funcopt.transform import Params, Updates

Pattern: TypeAlias = str | Callable[[str, Tensor], bool]
"""A glob on the path of a leaf, or a predicate of its path and the leaf itself."""
PerLeaf: TypeAlias = tree.Tree | Callable[[Params], tree.Tree] | Mapping[Pattern, Any]
"""Values for leaves: a tree of them or a prefix of one, a function that makes it from params, or patterns."""


def by_path(patterns: Mapping[Pattern, Any]) -> Callable[[Params], tree.Tree]:
    """A function of params that gives every leaf the value of the first pattern that matches it.

    Use it wherever a mask, labels or multipliers may be a function of params. A pattern is a glob on the leaf's path as
    `tree.leaves_with_path` writes it (`encoder.0.bias`), in which `*` stands for any characters, dots included, `?`
    for one, and `[ab]` for one of these; or a predicate `(path, tensor) -> bool`, which may look at shape and dtype.

    >>> decayed = by_path({"*bias": False, lambda path, leaf: leaf.ndim < 2: False, "*": True})
    >>> optimizer = adamw(1e-3, mask=decayed)

    A leaf that is `None` is matched by its path alone; it gets `None` if that does not decide.

    Raises:
        TypeError: a pattern is neither str nor function, or a value is a container.
        ValueError: at the call: a leaf that no pattern matches, or a pattern other than `*` to which the earlier ones
            leave no leaf (unless leaves that are masked out or `None` might be meant). The message names it.
    """
    rules = _rules("by_path", patterns)

    def choose(params: Params) -> tree.Tree:
        return tree.unflatten(_values_by_path("by_path", rules, params), tree.flatten(params)[1])

    choose.call = Call(by_path, (patterns,), {})  # type: ignore[attr-defined]  # how it prints
    return choose


def per_leaf(
    caller: str, argument: str, given: PerLeaf, check: Callable[[str, Any], None]
) -> Callable[[Params | None, Updates], list[Any]]:
    """How the factory `caller` reads its `argument`: a function of params that lists the values of its leaves.

    Where params are None, updates stand in for them. The leaves are those of `tree.flatten`; a value is None only where
    its leaf is. `check(name, value)` raises for a value that is not suitable; the name is one for an error message.
    """
    read = _reader(caller, argument, given, check)

    def values_of(params: Params | None, updates: Updates) -> list[Any]:
        model = updates if params is None else params
        values = _of_buffers(caller, read, model) if isinstance(model, Packed) else read(model)
        leaves = tree.flatten(model)[0]
        for index, (value, leaf) in enumerate(zip(values, leaves)):
            if value is None and (leaf is not None or params is None):
                path = tree.leaves_with_path(model)[index][0]
                remedy = "" if leaf is not None else ", whose update is None; call update(updates, state, params)"
                raise ValueError(f"{caller}: {argument} does not tell what holds for the leaf {path!r}{remedy}.")
        return values

    return values_of


def _reader(
    caller: str, argument: str, given: PerLeaf, check: Callable[[str, Any], None]
) -> Callable[[Params], list[Any]]:
    if _holds_patterns(given):
        rules = _rules(caller, given)
        for pattern, value in rules:
            check(f"{argument} at {_name(pattern)}", value)
        return lambda model: _values_by_path(caller, rules, model)

    def read(model: Params) -> list[Any]:
        prefix = given(model) if callable(given) else given
        for path, value in tree.leaves_with_path(prefix):
            if value is not None:
                check(f"{argument} at {path!r}" if path else argument, value)
        try:
            return tree.broadcast_prefix(prefix, model)
        except ValueError as error:
            raise ValueError(_describe_misfit(caller, argument, given, prefix, model)) from error

    return read


def _of_buffers(caller: str, read: Callable[[Params], list[Any]], packed: Packed) -> list[Any]:
    def as_tree(params: Params) -> tree.Tree:
        return tree.unflatten(read(params), tree.flatten(params)[1])

    return tree.flatten(per_buffer(caller, as_tree, packed))[0]


def _describe_misfit(caller: str, argument: str, given: PerLeaf, prefix: tree.Tree, model: Params) -> str:
    misfit = _first_misfit(prefix, model) or "it has containers of other types"
    remedy = ""
    if isinstance(given, Mapping):
        remedy = " If its keys are meant as patterns of paths, pass by_path({...}), or write globs such as 'encoder*'."
    return f"{caller}: {argument} is a tree that does not fit the params: {misfit}.{remedy}"


def _first_misfit(prefix: tree.Tree, model: Params, path: str = "") -> str | None:
    given, wanted = tree.children(prefix), tree.children(model)
    if given is None:
        return None
    if wanted is None:
        return f"it goes on below the leaf {path!r}"
    below = {key: f"{path}.{key}" if path else key for key in {**wanted, **given}}
    for key in wanted:
        if key not in given:
            return f"it has nothing for {below[key]!r}"
    for key in given:
        if key not in wanted:
            return f"params have no {below[key]!r}"
    return next((found for key in given if (found := _first_misfit(given[key], wanted[key], below[key]))), None)


# ------------------------------------------------------------------------------------------------------ patterns


def _holds_patterns(given: PerLeaf) -> TypeGuard[Mapping[Pattern, Any]]:
    return isinstance(given, Mapping) and any(
        callable(key) or (isinstance(key, str) and any(sign in key for sign in "*?[")) for key in given
    )


def _rules(caller: str, patterns: Mapping[Pattern, Any]) -> list[tuple[Pattern, Any]]:
    if not isinstance(patterns, Mapping):
        raise TypeError(f"{caller}: patterns must be a dict from patterns to values, got {patterns!r}.")
    for pattern, value in patterns.items():
        if not (isinstance(pattern, str) or callable(pattern)):
            raise TypeError(f"{caller}: a pattern is a str or a function of path and leaf, got {pattern!r}.")
        if value is None or tree.children(value) is not None:
            raise TypeError(f"{caller}: a pattern has one value for each leaf, got {value!r} for {_name(pattern)}.")
    return list(patterns.items())


def _name(pattern: Pattern) -> str:
    return repr(pattern) if isinstance(pattern, str) else getattr(pattern, "__name__", repr(pattern))


def _values_by_path(caller: str, rules: list[tuple[Pattern, Any]], params: Params) -> list[Any]:
    patterns = [pattern for pattern, _ in rules]
    places = tree.leaves_with_path(params)
    chosen = [_first_match(patterns, path, leaf) for path, leaf in places]
    for (path, leaf), index in zip(places, chosen):
        if index is None and leaf is not None:
            raise ValueError(f"{caller}: no pattern matches the leaf {path!r}; end with '*' for all that is left.")
    unused = {index for index, pattern in enumerate(patterns) if pattern != "*"} - set(chosen)
    if unused and any(leaf is not None for _, leaf in places):
        _check_unused(caller, patterns, unused, params)
    return [None if index is None else rules[index][1] for index in chosen]


def _first_match(patterns: list[Pattern], path: str, leaf: Tensor | None) -> int | None:
    for index, pattern in enumerate(patterns):
        if isinstance(pattern, str):
            if _matches(path, pattern):
                return index
        elif leaf is None:
            return None  # there is nothing to show to the predicate
        elif pattern(path, leaf):
            return index
    return None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # its cache of patterns is not to be traced
def _matches(path: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(path, pattern)


def _check_unused(caller: str, patterns: list[Pattern], unused: set[int], params: Params) -> None:
    """Raise for a pattern without a leaf, unless it may be meant for one that is masked out or None here."""
    paths = [path for path, leaf in tree.leaves_with_path(params) if leaf is not None]
    for path in _absent(params):
        index = _first_match(patterns, path, None)
        if index is None:
            return
        unused = unused - {index}
    if unused:
        shown = ", ".join(map(repr, paths[:8])) + (", ..." if len(paths) > 8 else "")
        raise ValueError(
            f"{caller}: the pattern {_name(patterns[min(unused)])} has no leaf: it matches none, or none that "
            f"earlier patterns have not taken. The leaves are {shown}."
        )


def _absent(values: tree.Tree, path: str = "") -> list[str]:
    if values is None or isinstance(values, tree.MaskedNode):
        return [path]
    parts = tree.children(values) or {}
    return [place for key, part in parts.items() for place in _absent(part, f"{path}.{key}" if path else key)]
