"""Which leaves of a state belong to a parameter."""

from collections.abc import Callable
from typing import Any, get_args, get_type_hints

from torch import Tensor

from funcopt import tree
from funcopt.paths import rebuild

NOBODY = -1


def map_params(
    initable: Any,
    f: Callable[..., Any],
    state: tree.Tree,
    params: tree.Tree,
    *rest: tree.Tree,
    transform_non_params: Callable[[Any], Any] | None = None,
) -> tree.Tree:
    """Map the leaves of a state that belong to a parameter: `f(state_leaf, param, *rest_leaves)`.

    `initable` is the transformation that `state` belongs to, or its `init`. The parts of `init(params)` that have the
    structure of params belong to them leaf by leaf, whatever the shapes of their leaves; some may be masked out. If
    params is a single tensor, that is every floating-point tensor of its shape. What a NamedTuple declares as `Tensor`
    (a count, a rate) belongs to no parameter, nor does the rest: it is kept, or given to `transform_non_params`.
    `rest` are trees with the structure of params, or deeper ones. (optax finds the parts by an init with placeholders
    and takes no params.) If all tensors are on the device "meta", this costs no memory.

    >>> optimizer, params = adam(0.1), {"w": torch.ones(2, 3)}
    >>> map_params(optimizer, lambda leaf, param: param.shape, optimizer.init(params), params)[0].mu
    {'w': torch.Size([2, 3])}

    Raises:
        ValueError: the state does not belong to the transformation, or a tree of `rest` not to params.
    """
    structure = tree.flatten(params)[1]
    owners = _owners(getattr(initable, "init", initable)(params), params, structure)
    columns = [tree.leaves_up_to(structure, column) for column in (params, *rest)]

    def apply(owner: int, leaf: Any) -> Any:
        if owner == NOBODY:
            return leaf if transform_non_params is None else transform_non_params(leaf)
        return f(leaf, *(column[owner] for column in columns))

    return tree.map(apply, owners, state)


def _owners(part: tree.Tree, params: tree.Tree, structure: Any) -> tree.Tree:
    """`part` with the number of the parameter, or `NOBODY`, in place of each leaf."""
    aligned = _aligned(part, params, structure)
    if aligned is not None:
        owned = [owner if isinstance(leaf, Tensor) else leaf for owner, leaf in enumerate(aligned)]
        return tree.unflatten(owned, structure)
    parts = tree.children(part)
    if parts is None:
        return None if part is None else NOBODY
    tensors = _declared_tensors(type(part))

    def owners_of(name: str, child: tree.Tree) -> tree.Tree:
        return tree.map(lambda leaf: NOBODY, child) if name in tensors else _owners(child, params, structure)

    return rebuild(part, [owners_of(name, child) for name, child in parts.items()])


def _aligned(part: tree.Tree, params: tree.Tree, structure: Any) -> list[Any] | None:
    """The leaves of `part` in the order of those of params, if it has their structure."""
    try:
        parts: list[Any] = structure.flatten_up_to(part)
    except ValueError:
        return None
    if isinstance(params, Tensor):
        fits = isinstance(part, Tensor) and part.shape == params.shape and not _counts(part)
        return parts if fits or isinstance(part, tree.MaskedNode) else None
    return parts if all(tree.children(leaf) is None or isinstance(leaf, tree.MaskedNode) for leaf in parts) else None


def _counts(leaf: Tensor) -> bool:
    return not (leaf.is_floating_point() or leaf.is_complex())


def _declared_tensors(kind: type) -> frozenset[str]:
    """The fields of a NamedTuple that are declared as tensors, or as containers of them, and so hold no params."""
    try:
        hints = get_type_hints(kind) if hasattr(kind, "_fields") else {}
    except NameError:  # a class within a function whose annotations are strings
        hints = {}
    return frozenset(name for name, hint in hints.items() if _mentions_tensor(hint))


def _mentions_tensor(hint: Any) -> bool:
    return hint is Tensor or any(_mentions_tensor(part) for part in get_args(hint))
