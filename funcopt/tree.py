"""Pytrees of tensors: nested dicts, lists, tuples and NamedTuples with tensors at the leaves.

`None` is a leaf that means "absent": every function here passes it through. This module alone imports torch's
pytree implementation.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree

from funcopt import numerics
from funcopt.paths import (
    children as children,
    get as get,
    get_all_with_path as get_all_with_path,
    set as set,
)
from funcopt.rows import PLAIN, apply_rule, apply_to_row, is_among, widen
from funcopt.stacks import STACKED, are_stacks, batched

Tree: TypeAlias = Any
"""A tensor, None, or a dict, list, tuple or NamedTuple of trees."""


def register(
    cls: type,
    flatten: Callable[[Any], Any],
    unflatten: Callable[[Any, Any], Any],
    names: Callable[[Any], Any],
    stacked: Callable[[Any], Sequence[bool]] | None = None,
) -> None:
    """Make `cls` a node: its children and static context, what makes one of them, and the names of the children.

    `stacked(context)` tells which children are leaves of one shape, stacked along a new first axis.
    """
    if stacked is not None:
        STACKED[cls] = stacked
    _pytree.register_pytree_node(
        cls,
        flatten,
        unflatten,
        flatten_with_keys_fn=lambda node: (
            [(_pytree.MappingKey(name), child) for name, child in zip(names(node), flatten(node)[0])],
            flatten(node)[1],
        ),
    )


def flatten(tree: Tree) -> tuple[list[Any], Any]:
    """The leaves of `tree`, `None` included, and the structure that `unflatten` puts them back into."""
    return _pytree.tree_flatten(tree)


def unflatten(leaves: list[Any], structure: Any) -> Tree:
    """The tree of `structure` with these leaves."""
    return _pytree.tree_unflatten(leaves, structure)


def nodes(cls: type, tree: Tree) -> list[Any]:
    """The nodes of type `cls` in `tree`, outermost only."""
    found = _pytree.tree_leaves(tree, is_leaf=lambda node: isinstance(node, cls))
    return [node for node in found if isinstance(node, cls)]


def map_nodes(fn: Callable[[Any], Any], cls: type | tuple[type, ...], tree: Tree) -> Tree:
    """`tree` with `fn(node)` in place of every node of type `cls`; everything else stays."""
    return _pytree.tree_map(
        lambda node: fn(node) if isinstance(node, cls) else node, tree, is_leaf=lambda node: isinstance(node, cls)
    )


def leaves(tree: Tree) -> list[Any]:
    """The leaves of `tree`, without those that are `None`."""
    return [leaf for leaf in _pytree.tree_leaves(tree) if leaf is not None]


def leaves_with_path(tree: Tree) -> list[tuple[str, Any]]:
    """Pairs of path and leaf, `None` included; a path joins keys, indices and field names by dots: `conv.0.weight`."""
    return list(_walk(tree, ""))


def _walk(tree: Tree, path: str) -> Iterator[tuple[str, Any]]:
    # Plain containers by hand: traced, torch's own walk takes eight times as long.
    if type(tree) in (dict, list, tuple):
        for name, part in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _walk(part, f"{path}.{name}" if path else str(name))
    elif tree is None or isinstance(tree, Tensor):
        yield path, tree
    else:
        for entries, leaf in _pytree.tree_flatten_with_path(tree)[0]:
            yield ".".join([path] * bool(path) + [_entry_name(entry) for entry in entries]), leaf


def _entry_name(entry: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def substructures(structure: Any, start: int = 0) -> list[tuple[int, Any]]:
    """`structure` and all structures below it, depth first, each with the number of leaves that precede it."""
    found = [(start, structure)]
    for child in structure.children():
        found += substructures(child, start)
        start += child.num_leaves
    return found


def leaves_up_to(structure: Any, tree: Tree) -> list[Any]:
    """The parts of `tree` at the leaves of `structure`; dictionaries are matched by key, whatever their order.

    Raises:
        ValueError: the trees differ; the message names a path.
    """
    try:
        return list(structure.flatten_up_to(tree))
    except ValueError as error:
        raise ValueError(_describe_mismatch(structure, tree)) from error


def _describe_mismatch(structure: Any, tree: Tree) -> str:
    expected = [path for path, _ in leaves_with_path(unflatten([0] * structure.num_leaves, structure))]
    given = [path for path, _ in leaves_with_path(tree)]
    missing = [path for path in expected if path not in given]
    unknown = [path for path in given if path not in expected]
    differences = [f"{path!r} is missing" for path in missing[:3]]
    differences += [f"{path!r} is not expected" for path in unknown[:3]]
    return (
        f"tree: trees that belong together differ: {'; '.join(differences) or 'they have containers of other types'}. "
        "Pass updates, state and params of the same model, with the state that init(params) made."
    )


def broadcast_prefix(prefix: Tree, tree: Tree) -> list[Any]:
    """For every leaf of `tree`, in order, the leaf of `prefix` that stands for it.

    Raises:
        ValueError: `prefix` is no prefix of `tree`.
    """
    chosen, structure = flatten(prefix)
    own = flatten(tree)[1]
    if structure.is_leaf():
        return [prefix] * int(own.num_leaves)
    if structure == own:
        return chosen
    parts = leaves_up_to(structure, tree)
    spread = unflatten([_fill(part, value) for part, value in zip(parts, chosen)], structure)
    return leaves_up_to(own, spread)


def _fill(tree: Tree, value: Any) -> Tree:
    structure = flatten(tree)[1]
    return unflatten([value] * structure.num_leaves, structure)


def map(fn: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """Apply `fn` leaf by leaf to one or several trees; where any of the leaves is `None`, the result is `None`.

    `tree` may be a prefix of the others: `fn` then receives their subtrees.
    """
    columns, _, rebuild = _side_by_side(tree, (tree, *rest))
    return rebuild([None if is_among(None, row) else fn(*row) for row in zip(*columns)])


def map_rule(
    rule: Callable[..., Any], updates: Tree, *states: Tree, reads: tuple[Tree, ...] = (), elementwise: bool = False
) -> Any:
    """Apply the update rule of one tensor to every leaf.

    `rule(update, *state_leaves, *read_leaves)` returns the new update, or, when there are state trees, the new update
    followed by one new leaf for each of them; so does `map_rule`, in trees. Around the rule:

    - it sees tensors of at least float32, and each result is rounded once to the dtype of the leaf that it replaces;
    - where a leaf is `None`, the update is `None` and the state is kept;
    - no result shares its tensor with an argument or with another result;
    - of stacked leaves it sees one, batched over all: see `map_leafwise`.

    `elementwise=True` promises that the rule is a function of the numbers alone: no shape is read, nothing is drawn or
    counted. In eager mode it is then called once for many leaves, with the same results.
    """
    outputs = 1 + len(states)
    columns, stacks, rebuild = _side_by_side(states[0] if states else updates, (updates, *states, *reads))
    if any(stacks):
        applied = [_apply_to_stack if stack else apply_to_row for stack in stacks]
        results: Sequence[Any] = list(zip(*[apply(rule, row, outputs) for apply, row in zip(applied, zip(*columns))]))
    else:
        results = apply_rule(rule, columns, outputs, elementwise=elementwise)
    trees = tuple(rebuild(column) for column in results)
    return trees if states else trees[0]


def _apply_to_stack(rule: Callable[..., Any], row: tuple[Any, ...], outputs: int) -> tuple[Any, ...]:
    if is_among(None, row):
        return apply_to_row(rule, row, outputs)
    results: tuple[Any, ...] = batched(lambda *slices: apply_to_row(rule, slices, outputs), row)
    return results


def add(tree: Tree, other: Tree) -> Tree:
    """`tree + other`, added in the promoted dtype and rounded to that of `tree`; where `other` is None, a copy."""
    columns, _, rebuild = _side_by_side(tree, (tree, other))
    (sums,) = apply_rule(torch.add, columns, 1, elementwise=True)
    if is_among(None, sums):
        sums = [leaf.clone() if total is None and leaf is not None else total for total, leaf in zip(sums, columns[0])]
    return rebuild(sums)


_LEAVES = frozenset((*PLAIN, type(None)))


def _side_by_side(like: Tree, trees: Iterable[Tree]) -> tuple[list[list[Any]], Sequence[bool], Callable[[Any], Tree]]:
    """The leaves of trees in the order of `like`, which of them are stacks, and what makes such a tree of leaves."""
    # A dict of tensors by hand: torch's own walk takes several times as long.
    flat = type(like) is dict and _LEAVES.issuperset({type(leaf) for leaf in like.values()})
    if flat and all(type(tree) is dict and tree.keys() == like.keys() for tree in trees):
        return [[tree[key] for key in like] for tree in trees], (), lambda leaves: dict(zip(like, leaves))
    structure = flatten(like)[1]
    columns = [leaves_up_to(structure, tree) for tree in trees]
    return columns, are_stacks(structure), lambda leaves: unflatten(leaves, structure)


def map_leafwise(fn: Callable[..., Tensor], tree: Tree, *rest: Tree) -> Tree:
    """Like `map`, of a function to tensors that looks at a leaf as a whole, its shape for example.

    Of leaves that `pack` has stacked, `fn` sees one, and is batched over the stack by `torch.vmap`.
    """
    columns, stacks, rebuild = _side_by_side(tree, (tree, *rest))
    if not any(stacks):
        return rebuild([None if is_among(None, row) else fn(*row) for row in zip(*columns)])
    return rebuild(
        [
            None if is_among(None, row) else batched(fn, row) if stack else fn(*row)
            for stack, row in zip(stacks, zip(*columns))
        ]
    )


def one_of_each(tree: Tree) -> list[Any]:
    """The leaves of `tree`, `None` included, and of each stack the first."""
    leaves, structure = flatten(tree)
    return [leaf[0] if stack and leaf is not None else leaf for stack, leaf in zip(are_stacks(structure), leaves)]


class MaskedNode(NamedTuple):
    """What stands in a tree where a leaf is masked out: a container without leaves, which costs no memory."""


def mask(tree: Tree, keep: Tree) -> Tree:
    """`tree` with a `MaskedNode` in place of every leaf where `keep`, a tree of bools or a prefix of one, is False.

    Also where that leaf is `None`: what is masked out looks the same whether it is there or not.
    """
    chosen, structure = flatten(keep)
    parts = leaves_up_to(structure, tree)
    return unflatten(
        [_fill(part, MaskedNode()) if kept is False else part for kept, part in zip(chosen, parts)], structure
    )


def unmask(masked: Tree, tree: Tree) -> Tree:
    """`masked` with the leaves of `tree` in place of every `MaskedNode` that stands for one."""
    own, structure = flatten(tree)
    parts = leaves_up_to(structure, masked)
    return unflatten([leaf if isinstance(part, MaskedNode) else part for part, leaf in zip(parts, own)], structure)


def mask_like(tree: Tree, masked: Tree) -> Tree:
    """`tree` with a `MaskedNode` wherever `masked` has one."""
    own, structure = flatten(tree)
    parts = leaves_up_to(structure, masked)
    return unflatten([part if isinstance(part, MaskedNode) else leaf for part, leaf in zip(parts, own)], structure)


def where(condition: Tensor, tree: Tree, other: Tree) -> Tree:
    """`tree` where the 0-d tensor `condition` holds, else `other`, leaf by leaf in the dtypes of `other`.

    Neither side leaks into the other: a NaN in the side that is not taken stays there.
    """
    return map(lambda leaf, kept: torch.where(condition, leaf.to(kept.dtype), kept), tree, other)


def clone(tree: Tree) -> Tree:
    """A copy of every tensor, contiguous and in storage of its own."""
    return map(lambda leaf: leaf.clone(memory_format=torch.contiguous_format), tree)


def check_params(params: Tree) -> None:
    """Raise TypeError, naming the path, for a leaf that no optimizer can move: no tensor, or of an integer dtype."""
    for path, leaf in leaves_with_path(params):
        if leaf is None or (isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())):
            continue
        kind = f"a tensor of {leaf.dtype}" if isinstance(leaf, Tensor) else f"a {type(leaf).__name__}"
        raise TypeError(
            f"init: the leaf {path!r} of params is {kind}, but an optimizer moves floating-point and complex tensors. "
            "Keep it out of params, or put None in its place."
        )


def zeros_like(params: Tree, dtype: torch.dtype | None = None) -> Tree:
    """Zeros for an accumulator of `params`: at least float32, or exactly `dtype` where one is given.

    A complex leaf keeps its accumulator complex whatever `dtype` says.

    Raises:
        TypeError: a leaf is no floating-point or complex tensor.
    """
    return full_like(params, 0.0, dtype)


def full_like(params: Tree, value: float | Tensor, dtype: torch.dtype | None = None, *, real: bool = False) -> Tree:
    """Like `zeros_like`, filled with `value`; `real` gives real accumulators (of |g|², say) for complex leaves too."""
    check_params(params)

    def fill(leaf: Tensor) -> Tensor:
        kind = numerics.compute_dtype(leaf.dtype) if dtype is None or leaf.is_complex() else dtype
        kind = numerics.real_dtype(kind) if real else kind
        return (torch.zeros_like(leaf, dtype=kind, memory_format=torch.contiguous_format) + value).to(kind)

    return map(fill, params)


def clone_wide(params: Tree, dtype: torch.dtype | None = None) -> Tree:
    """A copy of `params` for a state: at least float32, or exactly `dtype` where one is given, as in `zeros_like`."""
    check_params(params)

    def copy(leaf: Tensor) -> Tensor:
        kind = numerics.compute_dtype(leaf.dtype) if dtype is None or leaf.is_complex() else dtype
        return leaf.to(kind).clone(memory_format=torch.contiguous_format)

    return map(copy, params)


def ravel(tree: Tree) -> tuple[Tensor, Callable[[Tensor], Tree]]:
    """All numbers of `tree` in one vector, and the function that puts a vector of that length back into such a tree.

    Leaves follow each other in the order of their paths, so that the order of dict keys does not matter; `None` leaves
    take no place. The vector has the promoted dtype of the leaves; on the way back each part is rounded to the dtype of
    its leaf, and a real leaf takes the real part. The results share no memory with what they are made of.
    """
    own, structure = flatten(tree)
    paths = [path for path, _ in leaves_with_path(tree)]
    order = sorted((i for i, leaf in enumerate(own) if leaf is not None), key=paths.__getitem__)
    dtype = functools.reduce(torch.promote_types, [own[i].dtype for i in order]) if order else torch.float32
    vector = torch.cat([own[i].reshape(-1).to(dtype) for i in order]) if order else torch.zeros(0)

    def unravel(vector: Tensor) -> Tree:
        parts: list[Tensor | None] = [None] * len(own)
        start = 0
        for i in order:
            leaf, end = own[i], start + own[i].numel()
            part = vector[start:end].reshape(leaf.shape)
            part = part.real if part.is_complex() and not leaf.is_complex() else part
            parts[i], start = part.to(leaf.dtype, copy=True), end
        return unflatten(parts, structure)

    return vector, unravel


def cast(tree: Tree, dtype: torch.dtype | None) -> Tree:
    """Every leaf in `dtype`; the tree itself where `dtype` is None."""
    return tree if dtype is None else map(lambda leaf: leaf.to(dtype), tree)


def global_norm(tree: Tree) -> Tensor:
    """The 2-norm of all numbers in `tree` together: a 0-d tensor, at least in float32, 0 for an empty tree.

    Its derivative at a tree of zeros is 0.
    """
    squares = [numerics.abs_square(widen(leaf)).sum() for leaf in leaves(tree)]
    return numerics.safe_sqrt(sum(squares[1:], squares[0])) if squares else torch.zeros(())
