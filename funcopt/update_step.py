"""One compiled step of an optimizer on a tree of separate leaves, however many they are.

Small leaves are gathered into few buffers outside of the compiled code, and live there from the first step on. Large
ones stay where they are, and two graphs for any size serve them: one leaf, or four of one size, in a call. So nothing
that is compiled grows with the leaves.
"""

import contextlib
import functools
import operator
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcopt import tree
from funcopt.compile import prepare
from funcopt.pack import Layout, Packed, Place, gather, placed_leaves, plan, unpack
from funcopt.replay import Bound, Replaying, like, outline, storage_starts
from funcopt.transform import GradientTransformation, Params, State, Updates, apply_updates, check_transformation

Step = Callable[..., tuple[Params, State]]


def compile_update(
    transformation: GradientTransformation,
    *,
    labels: Any = None,
    alone: int = 2**18,
    stack: bool = False,
    in_place: bool = False,
    **options: Any,
) -> Step:
    """Compile the whole step of an optimizer, `step(params, state, grads, **extra) -> (params, state)`.

    For params, a state and gradients whose leaves are separate tensors. It compiles in seconds for any number of
    leaves, where compiling `update` and `apply_updates` on such a tree takes half a second for each leaf.

    Params and state are donated. Leaves of fewer than `alone` elements come back as views of buffers that the step
    keeps; the next step finds them there. Larger leaves are written in place. The gradients are only read.

    Args:
        transformation: one that asks for masks or labels, or is not elementwise, is compiled for all buffers and large
            leaves together: half a second more for each large leaf. One that looks at whole leaves needs `stack`.
        labels, alone, stack: as for `pack`; leaves of different labels share no buffer.
        in_place: write new parameters into the tensors that were given, as an imperative optimizer does, and read them
            anew in every step. It costs a gather and a copy of the small leaves.
        options: as for `torch.compile`.

    Raises:
        TypeError: `transformation` is none.
        ValueError: at the call: the trees do not belong together, a gradient is None where there is a parameter, or
            the transformation looks at whole leaves, without `stack`.

    >>> params, optimizer = {"w": torch.ones(2), "b": torch.ones(())}, sgd(0.5)
    >>> step = compile_update(optimizer, backend="eager")
    >>> step(params, optimizer.init(params), {"w": torch.ones(2), "b": torch.ones(())})[0]
    {'w': tensor([0.5000, 0.5000]), 'b': tensor(0.5000)}
    """
    check_transformation("compile_update", transformation=transformation)
    return _CompiledUpdate(transformation, lambda params: plan(params, labels, alone, stack), in_place, options)


def _constant_numbers() -> AbstractContextManager[Any]:
    """While compiling for any size: the numbers of a rule are no sizes, and stay constants."""
    patch: AbstractContextManager[Any] = torch._dynamo.config.patch(specialize_float=True, specialize_int=True)
    return patch


class _CompiledUpdate:
    def __init__(
        self,
        transformation: GradientTransformation,
        plan: Callable[[Params], Layout],
        in_place: bool,
        options: dict[str, Any],
    ) -> None:
        self.transformation = transformation
        self.plan = plan
        self.in_place = in_place
        self.home: _Home | None = None
        # Each set of leaves has graphs of its own.
        step, settings = _step_of(transformation), {"fullgraph": True, "recompile_limit": 64, **options}
        self.for_one_size = prepare(step, (0, 1), {"dynamic": False, **settings})
        self.for_any_size = prepare(step, (0, 1), {**settings, "dynamic": True})

    @torch.no_grad()
    def __call__(self, params: Params, state: State, grads: Updates, /, **extra: Any) -> tuple[Params, State]:
        home = self._home_of(params, state)
        gradients = home.gather_gradients(grads)
        if self.in_place:
            home.read_params()
        home.share_counters()
        if extra or not home.run_again(gradients):
            self._run(home, gradients, extra)
        home.note_counters()
        if self.in_place:
            home.write_params()
        return home.params, home.state

    def _run(self, home: "_Home", gradients: list[Tensor], extra: dict[str, Any]) -> None:
        """One step with all checks, and a note of what runs it again without them."""
        gradients = [_flat(gradient) for gradient in gradients] if home.works_by_blocks else gradients
        bound = []
        with contextlib.nullcontext() if home.is_settled else _constant_numbers():
            for block in home.blocks:
                one_size = block.buffers is None or home.is_shared(block.buffers[0])
                step = self.for_one_size if one_size else self.for_any_size
                args = (block.params, block.state, home.gradients_for(block, gradients), extra)
                step(args, {})
                bound.append(step.bind(args, gradients) if isinstance(step, Replaying) and not extra else None)
        home.is_settled = True
        if not extra:
            home.bind(bound)

    def _home_of(self, params: Params, state: State) -> "_Home":
        leaves: list[Tensor] = []
        key: list[Any] = []
        outline((params, state), leaves, key)
        if self.home is None or not self.home.holds(leaves, key):
            self.home = _Home(self.transformation, params, state, self.plan(params), self.in_place)
        return self.home


def _step_of(transformation: GradientTransformation) -> Callable[..., tuple[Params, State]]:
    def step(params: Params, state: State, grads: Updates, extra: dict[str, Any]) -> tuple[Params, State]:
        updates, state = transformation.update(grads, state, params, **extra)
        return apply_updates(params, updates), state

    return step


class _Block(NamedTuple):
    """What one call of the compiled step works on: some buffers, as a tree of their own, or all of them (None)."""

    buffers: tuple[int, ...] | None
    params: Params
    state: State


class _Home:
    """Where the numbers of params and state live between steps.

    Attributes:
        params, state: the trees as they are given back.
        blocks: the same tensors, as the compiled steps take them.
    """

    def __init__(
        self, transformation: GradientTransformation, params: Params, state: State, layout: Layout, in_place: bool
    ) -> None:
        given = tree.leaves(params)
        _check_apart(given)
        self.layout = layout
        self.shapes = [leaf.shape for leaf in given]
        self.members: list[list[int]] = [[] for _ in layout.names]
        for i, place in enumerate(_places(layout)):
            self.members[place.buffer].append(i)
        packed = _house(params, layout)
        marks, structure = _flatten_to_packed(_expected_state(transformation, packed))
        housed = [
            _house(part, layout, any_shape=True) if isinstance(mark, Packed) else part
            for mark, part in zip(marks, tree.leaves_up_to(structure, state))
        ]
        self.blocks = _blocks(transformation, packed, housed, structure)
        self.works_by_blocks = self.blocks[0].buffers is not None
        self.counters = [_counters(housed, structure, block) for block in self.blocks]
        self.note_counters()
        own = unpack(packed)
        self.params = params if in_place else own
        self.state = _plain_state(housed, structure, self.blocks[0])
        self.packed = packed
        self.is_settled = False
        self.moved = [(leaf, home) for leaf, home in zip(given, tree.leaves(own)) if home is not leaf]
        self.small = [i for i, place in enumerate(_places(layout)) if self.is_shared(place.buffer)]
        buffers = [b for part in (packed, *housed) if isinstance(part, Packed) for b in part.buffers]
        self.written = frozenset(storage_starts([buffer for buffer in buffers if isinstance(buffer, Tensor)]))
        self.scratch: list[Tensor | None] = [None] * len(layout.names)
        self.scratch_leaves: list[Tensor] = []
        self.expects: Callable[[list[Tensor]], bool] = lambda gradients: False
        self.bound: list[Bound] = []
        self.key: list[Any] = []
        self.leaves: list[Tensor] = []
        outline((self.params, self.state), self.leaves, self.key)
        self.addresses = [leaf.data_ptr() for leaf in self.leaves]
        self.params_key: list[Any] = []
        outline(self.params, [], self.params_key)

    def holds(self, leaves: list[Tensor], key: list[Any]) -> bool:
        """Whether these are the trees that were given back last, in tensors that have not been moved."""
        same = key == self.key and len(leaves) == len(self.leaves) and all(map(operator.is_, leaves, self.leaves))
        return same and list(map(Tensor.data_ptr, leaves)) == self.addresses

    def is_shared(self, buffer: int) -> bool:
        return self.layout.sizes[buffer] is not None

    def gather_gradients(self, grads: Updates) -> list[Tensor]:
        """One gradient for each buffer: a copy of those of the leaves that share it, or that of the leaf itself."""
        leaves = self._gradients_in_order(grads)
        if self.small:
            torch._foreach_copy_(self.scratch_leaves, [leaves[i] for i in self.small])
        gradients = [
            leaves[members[0]].contiguous().resolve_conj().resolve_neg() if scratch is None else scratch
            for members, scratch in zip(self.members, self.scratch)
        ]
        if self.written.isdisjoint(storage_starts(gradients)):
            return gradients
        return [gradient.clone() for gradient in gradients]  # one is a parameter, say, which a block may write first

    def _gradients_in_order(self, grads: Updates) -> list[Tensor]:
        leaves: list[Tensor] = []
        key: list[Any] = []
        if not (outline(grads, leaves, key) and key == self.params_key):
            leaves = [leaf for _, leaf in placed_leaves(grads, self.layout)]
        if not self.expects(leaves):
            placed_leaves(grads, self.layout)  # says which one is wrong
            self._expect(leaves)
        return leaves

    def _expect(self, leaves: list[Tensor]) -> None:
        """Make room for gradients like these."""
        self.scratch = [
            _room([leaves[i] for i in members], buffer, scratch) if self.is_shared(number) else None
            for number, (members, buffer, scratch) in enumerate(zip(self.members, self.packed.buffers, self.scratch))
        ]
        parts = [
            iter(() if scratch is None else torch.split(scratch.view(-1), [leaves[i].numel() for i in members]))
            for members, scratch in zip(self.members, self.scratch)
        ]
        places = _places(self.layout)
        self.scratch_leaves = [next(parts[places[i].buffer]).view(leaves[i].shape) for i in self.small]
        self.expects, self.bound = like(leaves), []

    def gradients_for(self, block: _Block, gradients: list[Tensor]) -> Updates:
        if block.buffers is None:
            return Packed(tuple(gradients), self.layout)
        return _one_or_several([gradients[i] for i in block.buffers])

    def bind(self, bound: "list[Bound | None]") -> None:
        self.bound = [run for run in bound if run is not None] if None not in bound else []
        self.replays = list({id(run.replay): run.replay for run in self.bound}.values())

    def run_again(self, gradients: list[Tensor]) -> bool:
        """Run the graphs of the step before, which was on the same tensors, with other gradients; False if one may not.

        The checks that `compile` makes of arguments are not needed: all others are ours, and the gradients are as
        expected.
        """
        if not (self.bound and all(replay.may_run() for replay in self.replays)):
            return False
        gradients = [gradient.flatten() for gradient in gradients] if self.works_by_blocks else gradients
        for run in self.bound:
            run(gradients)
        return True

    def share_counters(self) -> None:
        """Give the other blocks what the counters of the first hold, which are the user's, if somebody has set them."""
        first, *others = self.counters
        if others and first and self.versions != [leaf._version for leaf in first]:
            torch._foreach_copy_([leaf for block in others for leaf in block], first * len(others))

    def note_counters(self) -> None:
        self.versions = [leaf._version for leaf in self.counters[0]] if len(self.counters) > 1 else []

    def read_params(self) -> None:
        if self.moved:
            leaves, homes = map(list, zip(*self.moved))
            torch._foreach_copy_(homes, leaves)

    def write_params(self) -> None:
        if self.moved:
            leaves, homes = map(list, zip(*self.moved))
            torch._foreach_copy_(leaves, homes)


def _places(layout: Layout) -> list[Place]:
    return [place for place in layout.places if place is not None]


def _room(gradients: list[Tensor], buffer: Tensor, scratch: Tensor | None) -> Tensor:
    """Memory for the gradients of the leaves in a buffer, in a dtype that holds them all."""
    dtype = functools.reduce(torch.promote_types, (gradient.dtype for gradient in gradients))
    return scratch if scratch is not None and scratch.dtype == dtype else torch.empty_like(buffer, dtype=dtype)


def _house(values: tree.Tree, layout: Layout, any_shape: bool = False) -> Packed:
    """The buffers in which the numbers are from now on: for a leaf that lies alone that leaf itself, if it can be."""
    packed = gather(values, layout, copy=False, any_shape=any_shape)
    return Packed(
        tuple(part if isinstance(part, tree.MaskedNode) else part.contiguous() for part in packed.buffers), layout
    )


def _check_apart(leaves: list[Tensor]) -> None:
    addresses = [leaf.data_ptr() for leaf in leaves if leaf.numel()]
    if len(set(addresses)) < len(addresses):
        raise ValueError("compile_update: two parameters share memory, and would be stepped twice; pass one of them.")


def _expected_state(transformation: GradientTransformation, packed: Packed) -> State:
    """A state for packed params, for its structure; without memory where `init` does without values."""
    try:
        return transformation.init(
            Packed(tuple(torch.empty_like(b, device="meta") for b in packed.buffers), packed.layout)
        )
    except Exception:  # what init has to say it says of the params themselves
        return transformation.init(packed)


def _flatten_to_packed(state: State) -> tuple[list[Any], Any]:
    """The leaves of a state, each `Packed` taken for one, and its structure."""
    packed = iter(tree.nodes(Packed, state))
    leaves, structure = tree.flatten(tree.map_nodes(lambda node: _PACKED, Packed, state))
    return [next(packed) if leaf is _PACKED else leaf for leaf in leaves], structure


_PACKED = object()


def _blocks(transformation: GradientTransformation, params: Packed, state: list[Any], structure: Any) -> list[_Block]:
    if not _works_by_blocks(transformation, params):
        return [_Block(None, params, tree.unflatten(state, structure))]

    def part(leaf: Any, buffers: tuple[int, ...]) -> Any:
        if isinstance(leaf, Packed):
            return _one_or_several([_flat(leaf.buffers[i]) for i in buffers])
        with torch.inference_mode(False):  # it tells when it is written
            return leaf.clone()  # each block counts its own steps

    return [
        _Block(group, part(params, group), tree.unflatten([part(leaf, group) for leaf in state], structure))
        for group in _groups(params)
    ]


def _groups(params: Packed) -> list[tuple[int, ...]]:
    """The buffers one by one, but large leaves of one size four by four.

    A call takes 0.05 ms when the numbers have driven Python out of the caches; more leaves take longer to compile.
    """
    alike: dict[Any, list[int]] = {}
    for i, (buffer, sizes) in enumerate(zip(params.buffers, params.layout.sizes)):
        alike.setdefault(i if sizes is not None else (buffer.numel(), buffer.dtype, buffer.device), []).append(i)
    groups = []
    for same in alike.values():
        fours = [tuple(same[i : i + 4]) for i in range(0, len(same) - 3, 4)]
        groups += [*fours, *((i,) for i in same[4 * len(fours) :])]
    return groups


def _one_or_several(leaves: list[Tensor]) -> Any:
    return leaves[0] if len(leaves) == 1 else leaves


def _counters(state: list[Any], structure: Any, block: _Block) -> list[Tensor]:
    """The leaves in the state of a block that belong to no parameter."""
    own = tree.leaves_up_to(structure, block.state)
    return [leaf for part, leaf in zip(state, own) if not isinstance(part, Packed) and isinstance(leaf, Tensor)]


def _flat(leaf: Tensor) -> Tensor:
    """The numbers of a contiguous leaf as a vector in the same memory, but no view: Dynamo compiles views by base."""
    return leaf.detach().new_empty(0).set_(leaf.untyped_storage(), leaf.storage_offset(), (leaf.numel(),), (1,))


class _Opaque(NamedTuple):
    """In place of a layout: it names the buffers, and whoever asks for their leaves fails."""

    names: tuple[str, ...]
    stacked: tuple[bool, ...]


def _works_by_blocks(transformation: GradientTransformation, params: Packed) -> bool:
    """Whether the transformation does to a buffer alone what it does to it among others, and asks for no mask."""
    if transformation.coupling != "elementwise" or not params.buffers:
        return False
    layout: Any = _Opaque(params.layout.names, params.layout.stacked)
    numbers = Packed(tuple(buffer.new_ones(1) for buffer in params.buffers), layout)
    try:
        transformation.update(numbers, transformation.init(numbers), numbers)
    except Exception:
        return False
    return True


def _plain_state(state: list[Any], structure: Any, first: _Block) -> State:
    """The state as the user has it; what belongs to no parameter is that of the first block."""
    counted = tree.leaves_up_to(structure, first.state)
    return tree.unflatten(
        [unpack(leaf) if isinstance(leaf, Packed) else own for leaf, own in zip(state, counted)], structure
    )
