"""Packing: many small leaves become few buffers, so that a step is a few kernels and compiles in seconds.

Packing is a change of tree, not of optimizer: a `Packed` tree is a pytree whose leaves are the buffers.
"""

import itertools
from collections.abc import Callable, Sequence
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
        names: of the buffers: the path of a leaf that lies alone, else what those that share it have in common.
        sizes: of the leaves in each buffer, in order; None for a leaf that lies alone, in its own shape.
        stacked: of each buffer, whether its leaves are stacked, in their own shape, along a new first axis.
    """

    structure: Any
    paths: tuple[str, ...]
    places: tuple[Place | None, ...]
    names: tuple[str, ...]
    sizes: tuple[tuple[int, ...] | None, ...]
    stacked: tuple[bool, ...]

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Layout) and (self.structure, self.places, self.names, self.sizes, self.stacked) == (
            other.structure,
            other.places,
            other.names,
            other.sizes,
            other.stacked,
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
    stacked=lambda layout: layout.stacked,
)


def pack(params: tree.Tree, labels: Any = None, *, alone: int = 2**18, stack: bool = False) -> Packed:
    """Put the leaves of a tree into few buffers; with `unpack`, a loss and an optimizer work on these.

        packed = pack(params);    grads = grad(lambda packed: loss(unpack(packed)))(packed)

    Leaves of one dtype, device and label share a 1-D buffer. A leaf of at least `alone` elements keeps a buffer, and
    its shape, to itself: it is a kernel of its own anyway. The gradient with respect to a packed tree arrives packed,
    in one gather. An optimizer then does for a few buffers what it would do for all the leaves.

    Elementwise transformations do the same to buffers as to leaves, and sums over all numbers (a global norm) stay what
    they are. A transformation that looks at one leaf as a whole (a norm of it, Muon's products of matrices) is refused
    by its `init` where leaves share a 1-D buffer.

    For these, `stack` puts leaves of one shape, dtype, device and label into a tensor of shape (k, *shape), and each
    leaf of another shape than all others into a buffer of its own. They then do to every leaf what they do to it apart,
    batched over the stack.

    Args:
        params: tensors, with None where there is none; parameters, or anything that is to be packed as they are.
        labels: a tree of labels like `params` or a prefix of it, or a function that makes one from them: leaves of
            different labels do not share a buffer. Give the mask or the labels of a partition here.
        alone: the number of elements from which on a leaf lies alone, unless leaves are stacked.
        stack: whether to stack leaves of one shape, however large, instead of joining small ones.

    >>> packed = pack({"w": torch.ones(2, 2), "b": torch.zeros(2)})
    >>> packed
    Packed(float32: (6,))
    >>> unpack(packed)["w"].shape
    torch.Size([2, 2])
    >>> pack({"q": torch.ones(2, 2), "k": torch.ones(2, 2), "b": torch.zeros(2)}, stack=True)
    Packed(float32(2x2): (2, 2, 2), b: (2,))

    Raises:
        TypeError: a leaf is no tensor.
    """
    return gather(params, plan(params, labels, alone, stack))


def pack_like(tree_: tree.Tree, packed: Packed) -> Packed:
    """Pack a tree as another one was packed: gradients as the parameters they are for, a saved state, ...

    Raises:
        ValueError: the tree has another structure, a leaf another shape, or a part of a buffer is masked out.
    """
    return gather(tree_, packed.layout)


def unpack(packed: tree.Tree) -> tree.Tree:
    """The tree that was packed, as views of the buffers; every `Packed` within a tree, such as a state, is unpacked.

    A leading axis of the buffers (models stacked for `vmap`, say) becomes a leading axis of every leaf. Only if a state
    of such models has other shapes than the parameters, in stacks, unpack it under `vmap`.
    """
    if isinstance(packed, Packed):
        return _scatter(packed)
    return tree.map_nodes(_scatter, Packed, packed)


def plan(params: tree.Tree, labels: Any, alone: int, stack: bool = False) -> Layout:
    """The layout of `pack(params, labels, alone=alone, stack=stack)`."""
    leaves, structure = tree.flatten(params)
    paths = [path for path, _ in tree.leaves_with_path(params)]
    groups: dict[tuple[Any, ...], list[int]] = {}  # by what the leaves of a buffer have in common
    for i, (path, leaf, label) in enumerate(zip(paths, leaves, _labels_of(labels, params))):
        if leaf is None:
            continue
        if not isinstance(leaf, Tensor):
            raise TypeError(f"pack: the leaf {path!r} must be a tensor, got a {type(leaf).__name__}.")
        kind = tuple(leaf.shape) if stack else path if leaf.numel() >= alone else None
        groups.setdefault((kind, leaf.dtype, leaf.device, label), []).append(i)
    names: list[str] = []
    sizes: list[tuple[int, ...] | None] = []
    places: list[Place | None] = [None] * len(leaves)
    for buffer, ((kind, *_, label), members) in enumerate(groups.items()):
        lies_alone = isinstance(kind, str) or (stack and len(members) == 1)
        names.append(paths[members[0]] if lies_alone else _buffer_name(leaves[members[0]], label, kind, names))
        sizes.append(None if lies_alone else tuple(leaves[i].numel() for i in members))
        for i in members:
            places[i] = Place(buffer, tuple(leaves[i].shape))
    stacked = tuple(stack and shared is not None for shared in sizes)
    return Layout(structure, tuple(paths), tuple(places), tuple(names), tuple(sizes), stacked)


def _labels_of(labels: Any, params: tree.Tree) -> list[Any]:
    given = labels(params) if callable(labels) else labels
    prefix, structure = tree.flatten(given)
    parts = tree.leaves_up_to(structure, params)
    return [label for label, part in zip(prefix, parts) for _ in tree.flatten(part)[0]]


def _buffer_name(leaf: Tensor, label: Any, shape: tuple[int, ...] | None, taken: list[str]) -> str:
    name = str(leaf.dtype).removeprefix("torch.") + ("" if label is None else f"[{label}]")
    name += "" if shape is None else f"({'x'.join(map(str, shape))})"
    return f"{name}@{leaf.device}" if name in taken else name


def gather(values: tree.Tree, layout: Layout, *, copy: bool = True, any_shape: bool = False) -> Packed:
    """Pack a tree in a layout. Where the leaves of a buffer are masked out, so is the buffer.

    Without `copy`, a leaf that lies alone is itself the buffer. With `any_shape`, leaves may be states in other shapes.
    """
    parts: list[list[Tensor]] = [[] for _ in layout.names]
    for place, leaf in placed_leaves(values, layout, any_shape=any_shape):
        if not isinstance(leaf, tree.MaskedNode):
            parts[place.buffer].append(leaf)
    return Packed(tuple(_join(part, layout, buffer, copy) for buffer, part in enumerate(parts)), layout)


def placed_leaves(values: tree.Tree, layout: Layout, *, any_shape: bool = False) -> list[tuple[Place, Any]]:
    """The leaves of a tree that have a place in a layout, with it; each must have its shape, or be masked out."""
    found = []
    for path, place, leaf in zip(layout.paths, layout.places, tree.leaves_up_to(layout.structure, values)):
        if place is None:
            continue
        if leaf is None:
            raise ValueError(
                f"pack: the leaf {path!r} is None, but it has a place in a buffer; give zeros, or pack it out."
            )
        if not (any_shape or isinstance(leaf, tree.MaskedNode)) and tuple(leaf.shape) != place.shape:
            raise ValueError(f"pack: the leaf {path!r} must have the shape {place.shape}, got {tuple(leaf.shape)}.")
        found.append((place, leaf))
    return found


def _join(leaves: list[Tensor], layout: Layout, buffer: int, copy: bool) -> Tensor | tree.MaskedNode:
    sizes = layout.sizes[buffer]
    if not leaves:
        return tree.MaskedNode()
    if sizes is None:
        return leaves[0].clone() if copy else leaves[0]
    if len(leaves) < len(sizes):
        raise ValueError(
            f"pack: {len(sizes) - len(leaves)} of the {len(sizes)} leaves in the buffer {layout.names[buffer]!r} are "
            "masked out; give the same mask or labels to pack(params, labels=...)."
        )
    return torch.stack(leaves) if layout.stacked[buffer] else torch.cat([leaf.reshape(-1) for leaf in leaves])


def _scatter(packed: Packed) -> tree.Tree:
    layout = packed.layout
    shapes: list[list[tuple[int, ...]]] = [[] for _ in layout.names]
    for place in layout.places:
        if place is not None:
            shapes[place.buffer].append(place.shape)
    parts = [iter(_cut(part, layout, buffer, shapes[buffer])) for buffer, part in enumerate(packed.buffers)]
    return tree.unflatten(
        [place if place is None else next(parts[place.buffer]) for place in layout.places], layout.structure
    )


def _cut(part: Any, layout: Layout, buffer: int, shapes: list[tuple[int, ...]]) -> Sequence[Any]:
    """What is in a buffer, a tensor or a tree of tensors, leaf by leaf."""
    sizes = layout.sizes[buffer]
    if sizes is None:
        return (part,)
    if not isinstance(part, Tensor):
        inner, structure = tree.flatten(part)
        columns = [[None] * len(sizes) if p is None else _cut(p, layout, buffer, shapes) for p in inner]
        return [tree.unflatten([column[i] for column in columns], structure) for i in range(len(sizes))]
    # One operation, whose derivative is one concatenation; that of slices would add up a whole buffer for each.
    if layout.stacked[buffer]:
        whole = (len(sizes), *shapes[0])
        axis = part.ndim - len(whole)
        return torch.unbind(part, axis if part.shape[axis:] == whole else 0)  # the latter in a state of other shapes
    pieces = torch.split(part, list(sizes), dim=-1)
    return [piece.reshape((*piece.shape[:-1], *shape)) for piece, shape in zip(pieces, shapes)]


def numbered(values: tree.Tree) -> tree.Tree:
    """`values` with numbers in place of leaves, a tensor of them for a stack, counted in the order before `pack`."""
    numbers = itertools.count()

    def number(node: Packed | Tensor) -> Any:
        if isinstance(node, Tensor):
            return next(numbers)
        of_buffers: list[list[int]] = [[] for _ in node.buffers]
        for place in node.layout.places:
            if place is not None and isinstance(node.buffers[place.buffer], Tensor):
                of_buffers[place.buffer].append(next(numbers))
        chosen = [
            buffer if not found else torch.tensor(found, device=buffer.device) if stacked else found[0]
            for buffer, found, stacked in zip(node.buffers, of_buffers, node.layout.stacked)
        ]
        return Packed(tuple(chosen), node.layout)

    return tree.map_nodes(number, (Packed, Tensor), values)


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
        layout = packed.layout
        for buffer, sizes, stacked in zip(layout.names, layout.sizes, layout.stacked):
            if sizes is not None and not stacked:
                raise ValueError(
                    f"{name}: it looks at each leaf as a whole, but the packed buffer {buffer!r} holds several or none "
                    "in its own shape. Give stack=True to pack or compile_update, which stacks leaves of one shape."
                )
