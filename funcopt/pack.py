"""Packing: many small leaves become few buffers, so that a step is a few kernels and compiles in seconds.

Packing is a change of tree, not of optimizer: a `Packed` tree is a pytree whose leaves are the buffers.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcopt import tree


class Place(NamedTuple):
    """Where the numbers of one leaf are."""

    buffer: int
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Layout:
    """How the leaves of a tree lie in buffers; equal for trees that were packed alike.

    Attributes:
        structure: of the tree that was packed.
        places: of its leaves in order, None for those that are None.
        names: of the buffers: the path of a leaf that lies alone, else dtype and label of those that share it.
        sizes: of the leaves in each buffer, in order; None for a leaf that lies alone, in its own shape.
    """

    structure: Any
    paths: tuple[str, ...]
    places: tuple[Place | None, ...]
    names: tuple[str, ...]
    sizes: tuple[tuple[int, ...] | None, ...]

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Layout) and (self.structure, self.places, self.names, self.sizes) == (
            other.structure,
            other.places,
            other.names,
            other.sizes,
        )

    def __hash__(self) -> int:
        return hash((self.places, self.names, self.sizes))


class Packed:
    """A tree in buffers: a pytree node with the buffers as its leaves, made by `pack`, read by `unpack`."""

    __slots__ = ("buffers", "layout")

    def __init__(self, buffers: tuple[Any, ...], layout: Layout) -> None:
        self.buffers = buffers
        self.layout = layout

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}: {tuple(b.shape)}" for name, b in zip(self.layout.names, self.buffers))
        return f"Packed({shown})"


tree.register(
    Packed,
    lambda packed: (list(packed.buffers), packed.layout),
    lambda buffers, layout: Packed(tuple(buffers), layout),
    lambda packed: packed.layout.names,
)


def pack(params: tree.Tree, labels: Any = None, *, alone: int = 2**18) -> Packed:
    """Put the leaves of a tree into few buffers; with `unpack`, a loss and an optimizer work on these.

        packed = pack(params);    grads = grad(lambda packed: loss(unpack(packed)))(packed)

    Leaves of one dtype, device and label share a 1-D buffer. A leaf of at least `alone` elements keeps a buffer, and
    its shape, to itself: it is a kernel of its own anyway. The gradient with respect to a packed tree arrives packed,
    in one gather. An optimizer then does for a few buffers what it would do for all the leaves.

    Elementwise transformations do the same to buffers as to leaves, and sums over all numbers (a global norm) stay what
    they are. A transformation that looks at one leaf as a whole is refused by its `init`, unless each leaf lies alone.

    Args:
        params: tensors, with None where there is none; parameters, or anything that is to be packed as they are.
        labels: a tree of labels like `params` or a prefix of it, or a function that makes one from them: leaves of
            different labels do not share a buffer. Give the mask or the labels of a partition here.
        alone: the number of elements from which on a leaf lies alone.

    >>> packed = pack({"w": torch.ones(2, 2), "b": torch.zeros(2)})
    >>> packed
    Packed(float32: (6,))
    >>> unpack(packed)["w"].shape
    torch.Size([2, 2])

    Raises:
        TypeError: a leaf is no tensor.
    """
    return gather(params, plan(params, labels, alone))


def pack_like(tree_: tree.Tree, packed: Packed) -> Packed:
    """Pack a tree as another one was packed: gradients as the parameters they are for, a saved state, ...

    Raises:
        ValueError: the tree has another structure, or a leaf another shape.
    """
    return gather(tree_, packed.layout)


def unpack(packed: tree.Tree) -> tree.Tree:
    """The tree that was packed, as views of the buffers; every `Packed` within a tree, such as a state, is unpacked.

    A leading axis of the buffers (models stacked for `vmap`, say) becomes a leading axis of every leaf.
    """
    if isinstance(packed, Packed):
        return _scatter(packed)
    return tree.map_nodes(_scatter, Packed, packed)


def plan(params: tree.Tree, labels: Any, alone: int) -> Layout:
    """The layout of `pack(params, labels, alone=alone)`."""
    leaves, structure = tree.flatten(params)
    paths = [path for path, _ in tree.leaves_with_path(params)]
    groups: dict[Hashable, int] = {}
    names: list[str] = []
    sizes: list[tuple[int, ...] | None] = []
    places: list[Place | None] = []
    for path, leaf, label in zip(paths, leaves, _labels_of(labels, params)):
        if leaf is None:
            places.append(None)
            continue
        if not isinstance(leaf, Tensor):
            raise TypeError(f"pack: the leaf {path!r} must be a tensor, got a {type(leaf).__name__}.")
        own = leaf.numel() >= alone
        buffer = groups.setdefault(path if own else (leaf.dtype, leaf.device, label), len(names))
        if buffer == len(names):
            names.append(path if own else _buffer_name(leaf, label, names))
            sizes.append(None if own else ())
        shared = sizes[buffer]
        sizes[buffer] = None if shared is None else (*shared, leaf.numel())
        places.append(Place(buffer, tuple(leaf.shape)))
    return Layout(structure, tuple(paths), tuple(places), tuple(names), tuple(sizes))


def _labels_of(labels: Any, params: tree.Tree) -> list[Any]:
    given = labels(params) if callable(labels) else labels
    prefix, structure = tree.flatten(given)
    parts = tree.leaves_up_to(structure, params)
    return [label for label, part in zip(prefix, parts) for _ in tree.flatten(part)[0]]


def _buffer_name(leaf: Tensor, label: Any, taken: list[str]) -> str:
    name = str(leaf.dtype).removeprefix("torch.") + ("" if label is None else f"[{label}]")
    return f"{name}@{leaf.device}" if name in taken else name


def gather(values: tree.Tree, layout: Layout, *, copy: bool = True) -> Packed:
    """Pack a tree in a layout. Where the leaves of a buffer are masked out, so is the buffer.

    Without `copy`, a leaf that lies alone is itself the buffer.
    """
    parts: list[list[Tensor]] = [[] for _ in layout.names]
    for place, leaf in placed_leaves(values, layout):
        if not isinstance(leaf, tree.MaskedNode):
            parts[place.buffer].append(leaf)
    return Packed(tuple(_join(part, sizes, copy) for part, sizes in zip(parts, layout.sizes)), layout)


def placed_leaves(values: tree.Tree, layout: Layout) -> list[tuple[Place, Any]]:
    """The leaves of a tree that have a place in a layout, with it; each must have the shape, or be masked out."""
    found = []
    for path, place, leaf in zip(layout.paths, layout.places, tree.leaves_up_to(layout.structure, values)):
        if place is None:
            continue
        if leaf is None:
            raise ValueError(
                f"pack: the leaf {path!r} is None, but it has a place in a buffer; give zeros, or pack it out."
            )
        if not isinstance(leaf, tree.MaskedNode) and tuple(leaf.shape) != place.shape:
            raise ValueError(f"pack: the leaf {path!r} must have the shape {place.shape}, got {tuple(leaf.shape)}.")
        found.append((place, leaf))
    return found


def _join(leaves: list[Tensor], sizes: tuple[int, ...] | None, copy: bool) -> Tensor | tree.MaskedNode:
    if not leaves:
        return tree.MaskedNode()
    if sizes is None:
        return leaves[0].clone() if copy else leaves[0]
    return torch.cat([leaf.reshape(-1) for leaf in leaves])


def _scatter(packed: Packed) -> tree.Tree:
    layout = packed.layout
    parts = [iter(_cut(buffer, sizes)) for buffer, sizes in zip(packed.buffers, layout.sizes)]

    def leaf_at(place: Place | None) -> Any:
        if place is None:
            return None
        if isinstance(packed.buffers[place.buffer], tree.MaskedNode):
            return tree.MaskedNode()
        part: Tensor = next(parts[place.buffer])
        return part if layout.sizes[place.buffer] is None else part.reshape((*part.shape[:-1], *place.shape))

    return tree.unflatten([leaf_at(place) for place in layout.places], layout.structure)


def _cut(buffer: Tensor, sizes: tuple[int, ...] | None) -> Any:
    # One split, whose derivative is one concatenation; that of slices would add up a whole buffer for each.
    return (
        (buffer,) if sizes is None or isinstance(buffer, tree.MaskedNode) else torch.split(buffer, list(sizes), dim=-1)
    )


def per_buffer(name: str, values_of: Callable[[tree.Tree], tree.Tree], params: tree.Tree) -> tree.Tree:
    """What `values_of` says of each leaf of params (a mask, labels, ...), said of each buffer if params are packed.

    Raises:
        ValueError: the leaves of one buffer differ in it. The message names the function `name` and the leaves.
    """
    if not isinstance(params, Packed):
        return values_of(params)
    layout = params.layout
    found: list[Any] = [None] * len(layout.names)
    first: list[str | None] = [None] * len(layout.names)
    values = tree.leaves_up_to(layout.structure, values_of(unpack(params)))
    for path, place, value in zip(layout.paths, layout.places, values):
        if place is None:
            continue
        if first[place.buffer] is None:
            first[place.buffer], found[place.buffer] = path, value
        elif found[place.buffer] is not value and found[place.buffer] != value:
            raise ValueError(
                f"{name}: the packed buffer {layout.names[place.buffer]!r} holds leaves that are to be treated "
                f"differently, such as {first[place.buffer]!r} ({found[place.buffer]!r}) and {path!r} ({value!r}); "
                "give the same mask or labels to pack(params, labels=...)."
            )
    return Packed(tuple(found), layout)


def check_whole_leaves(name: str, params: tree.Tree) -> None:
    """Raise ValueError if leaves of params share a buffer, where the transformation `name` looks at each as a whole."""
    for packed in tree.nodes(Packed, params):
        shared = [buffer for buffer, sizes in zip(packed.layout.names, packed.layout.sizes) if sizes is not None]
        if shared:
            raise ValueError(
                f"{name}: it looks at each leaf as a whole, but the packed buffer {shared[0]!r} holds several or "
                "none in its own shape. Use the tree as it is for it, or pack(params, alone=1)."
            )
