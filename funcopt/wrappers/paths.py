"""One value for every leaf of a tree: given as a tree, as a function of params, or by patterns of paths."""

import fnmatch
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeGuard

import torch
from torch import Tensor

from funcopt import tree
from funcopt.calls import Call
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
        ValueError: at the call: a leaf that no pattern matches, or a pattern to which the earlier ones leave no leaf
            (unless leaves that are masked out or `None` might be meant). The message names it.
    """
    return _chooser("by_path", patterns)


def per_leaf(
    caller: str, argument: str, given: PerLeaf, check: Callable[[str, Any], None]
) -> Callable[[Params | None, Updates], tree.Tree]:
    """How the factory `caller` reads its `argument`: a function of params that gives the tree of values of its leaves.

    Where params are None, updates stand in for them. `check(path, value)` raises for a value that is not suitable.
    """
    choose = _chooser(caller, given) if _holds_patterns(given) else given

    def values_of(params: Params | None, updates: Updates) -> tree.Tree:
        model = updates if params is None else params
        prefix = choose(model) if callable(choose) else choose
        try:
            values = tree.broadcast_prefix(prefix, model)
        except ValueError as error:
            raise ValueError(_describe_misfit(caller, argument, prefix, model, given)) from error
        for (path, value), (_, leaf) in zip(tree.leaves_with_path(values), tree.leaves_with_path(model)):
            if value is not None:
                check(path, value)
            elif leaf is not None:
                raise ValueError(f"{caller}: {argument} must say something for every leaf, got None at {path!r}.")
            elif params is None:
                raise ValueError(
                    f"{caller}: {argument} does not tell what holds for the absent update at {path!r}; "
                    "call update(updates, state, params)."
                )
        return values

    return values_of


def _holds_patterns(given: PerLeaf) -> TypeGuard[Mapping[Pattern, Any]]:
    return isinstance(given, Mapping) and any(
        callable(key) or (isinstance(key, str) and any(sign in key for sign in "*?[")) for key in given
    )


def _chooser(caller: str, patterns: Mapping[Pattern, Any]) -> Callable[[Params], tree.Tree]:
    if not isinstance(patterns, Mapping):
        raise TypeError(f"{caller}: patterns must be a dict from patterns to values, got {patterns!r}.")
    for pattern, value in patterns.items():
        if not (isinstance(pattern, str) or callable(pattern)):
            raise TypeError(f"{caller}: a pattern is a str or a function of path and leaf, got {pattern!r}.")
        if tree.children(value) is not None or value is None:
            raise TypeError(f"{caller}: the value of a pattern is that of one leaf, got {value!r} for {pattern!r}.")
    globs, values = tuple(patterns), tuple(patterns.values())

    def choose(params: Params) -> tree.Tree:
        places = tree.leaves_with_path(params)
        chosen = [_first_match(globs, path, leaf) for path, leaf in places]
        _check_matches(caller, globs, places, chosen, _masked_out(params))
        found = [None if index is None else values[index] for index in chosen]
        return tree.unflatten(found, tree.flatten(params)[1])

    choose.call = Call(by_path, (patterns,), {})  # type: ignore[attr-defined]  # how it prints
    return choose


def _first_match(patterns: tuple[Pattern, ...], path: str, leaf: Tensor | None) -> int | None:
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


def _check_matches(
    caller: str,
    patterns: tuple[Pattern, ...],
    places: list[tuple[str, Tensor | None]],
    chosen: list[int | None],
    masked_out: list[str],
) -> None:
    for (path, leaf), index in zip(places, chosen):
        if index is None and leaf is not None:
            raise ValueError(f"{caller}: no pattern matches the leaf {path!r}; end with '*' for all that is left.")
    present = any(leaf is not None for _, leaf in places)
    used = chosen + [_first_match(patterns, path, None) for path in masked_out]
    if not present or None in used:
        return
    for index, pattern in enumerate(patterns):
        if index not in used:
            name = repr(pattern) if isinstance(pattern, str) else getattr(pattern, "__name__", repr(pattern))
            raise ValueError(
                f"{caller}: the pattern {name} is left without a leaf: none matches, or earlier patterns "
                f"take them. The leaves are {_shown([path for path, _ in places])}."
            )


def _masked_out(values: tree.Tree, path: str = "") -> list[str]:
    if isinstance(values, tree.MaskedNode):
        return [path]
    parts = tree.children(values) or {}
    return [place for key, part in parts.items() for place in _masked_out(part, f"{path}.{key}" if path else key)]


def _describe_misfit(caller: str, argument: str, prefix: tree.Tree, model: Params, given: PerLeaf) -> str:
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


def _shown(paths: list[str], limit: int = 8) -> str:
    return ", ".join(map(repr, paths[:limit])) + (", ..." if len(paths) > limit else "")
