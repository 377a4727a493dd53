"""Running a compiled graph again without asking Dynamo, whose guards cost more than the step of a small model.

`torch.compile` checks hundreds of guards a call, most of them on code of the library and of torch, and walks the trees
to do it. A `Recorder` notes which graph a call ran, on which leaves, and where its results went; the next call whose
arguments agree runs that graph alone. Whatever is out of the ordinary goes through Dynamo as before.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import BuiltinFunctionType, CellType, FunctionType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcopt import tree
from funcopt.pack import Packed
from funcopt.transform import GradientTransformation

_guards: Any = getattr(torch._C._dynamo, "guards", None)
_TESTED_WITH = "2.13."  # what is used here of torch is private to it; with other releases Dynamo does it all

_TENSORS = frozenset((Tensor, torch.nn.Parameter))
_ALL_TENSORS = "tensors"
_MOST_REPLAYS = 64  # a constant that changes at every call must not make them endless
_MOST_REFUSALS = 3  # to look at a graph takes longer than its guards: not again and again at one that stays as it is
_CONSTANTS = (type(None), bool, int, float, str)


def outline(node: tree.Tree, leaves: list[Tensor], key: list[Any]) -> bool:
    """Append the tensors of a tree to `leaves`, and all else that tells it from other trees to `key`.

    False for a tree with nodes or leaves that are not known here. Twice as fast as a general flattening.
    """
    kind = type(node)
    key.append(kind)
    if kind in _TENSORS:
        leaves.append(node)
        return True
    if kind is dict:
        key.append(tuple(node))
        children = node.values()
    elif kind is Packed:
        key.append(node.layout)
        children = node.buffers
    elif kind in (tuple, list) or hasattr(kind, "_fields"):
        key.append(len(node))
        children = node
    else:
        key.append(node)
        return kind in _CONSTANTS
    if _TENSORS.issuperset(map(type, children)):
        key.append(_ALL_TENSORS)
        leaves += children
        return True
    for child in children:  # noqa: SIM110 (`all` takes twice the time)
        if not outline(child, leaves, key):
            return False
    return True


class Run(NamedTuple):
    """One run of a graph."""

    graph: "Graph"
    inputs: tuple[Any, ...]
    outputs: Sequence[Any]


@dataclass(eq=False)
class Graph:
    """A graph that a backend has compiled, the names of what its guards look at, and how often `learn` refused it."""

    call: Callable[..., Sequence[Any]]
    watched: frozenset[str] | None = None
    refusals: int = 0


class Recorder:
    """A backend that compiles as another one does, and records the runs of its graphs."""

    def __init__(self, backend: Callable[..., Any]) -> None:
        self.backend = backend
        self.runs: list[Run] | None = None  # a list while somebody wants to know: runs hold tensors
        self._newest: Graph | None = None

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any], **options: Any) -> Callable[..., Any]:
        compiled = self._newest = Graph(self.backend(graph, inputs, **options))

        def run(*inputs: Any) -> Sequence[Any]:
            outputs = compiled.call(*inputs)
            if self.runs is not None:
                self.runs.append(Run(compiled, inputs, outputs))
            return outputs

        return run

    def keep_all(self, guards: Sequence[Any]) -> list[bool]:
        """A `guard_filter_fn` that filters nothing; Dynamo calls it after it has had a graph compiled."""
        if self._newest is not None:
            self._newest.watched = frozenset(guard.name for guard in guards)
            self._newest = None
        return [True] * len(guards)


def record(settings: dict[str, Any]) -> Recorder | None:
    """Put a recorder into the settings for `torch.compile`, if they allow for one.

    Not with a release of torch that this has not been tested with, nor with a mode (CUDA graphs must see every call),
    nor with a filter of guards of one's own.
    """
    options = settings.get("options") or {}
    if not torch.__version__.startswith(_TESTED_WITH):
        return None
    if settings.get("mode") or "guard_filter_fn" in options or not settings.get("fullgraph"):
        return None
    backend, dynamic = settings.get("backend", "inductor"), settings.get("dynamic")
    if backend == "inductor":
        recorder = Recorder(torch._TorchCompileInductorWrapper(None, options, dynamic))  # type: ignore[no-untyped-call]
    else:
        recorder = Recorder(torch._TorchCompileWrapper(backend, None, options, dynamic))  # type: ignore[no-untyped-call]
    settings.update(backend=recorder, options={"guard_filter_fn": recorder.keep_all})
    return recorder


class Replaying:
    """A compiled function that runs its graphs again by itself where it can."""

    def __init__(
        self, fn: Callable[..., Any], compiled: Callable[..., Any], recorder: Recorder, donated: tuple[int, ...]
    ) -> None:
        self.fn = fn
        self.compiled = compiled
        self.recorder = recorder
        self.donated = donated
        self.replays: list[Replay] = []

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if torch.compiler.is_compiling():
            return self.compiled(args, kwargs)
        leaves: list[Tensor] = []
        key: list[Any] = []
        if not outline((args, kwargs), leaves, key):
            return self.compiled(args, kwargs)
        replay = self._known(key, leaves)
        return self._learn(args, kwargs, key, leaves) if replay is None else replay(args, leaves)

    def _known(self, key: list[Any], leaves: list[Tensor]) -> "Replay | None":
        return next((replay for replay in self.replays if replay.fits(key, leaves)), None)

    def bind(self, args: tuple[Any, ...], free: list[Tensor]) -> "Bound | None":
        """The run of a graph on these arguments, all of them the same tensors every time but those of `free`.

        None if no graph is known for them, or if its result is not all in the arguments.
        """
        leaves: list[Tensor] = []
        key: list[Any] = []
        replay = self._known(key, leaves) if outline((args, {}), leaves, key) else None
        if replay is None or any(part.argument is None and part.sources for part in replay.parts):
            return None
        inputs = replay.inputs_of(leaves)
        numbers = {id(leaf): i for i, leaf in enumerate(free)}
        places = [(at, numbers[id(leaf)]) for at, leaf in enumerate(inputs) if id(leaf) in numbers]
        for at, _ in places:
            inputs[at] = None
        return Bound(replay, inputs, places)

    def _learn(self, args: tuple[Any, ...], kwargs: dict[str, Any], key: list[Any], leaves: list[Tensor]) -> Any:
        runs = self.recorder.runs = []
        try:
            result = self.compiled(args, kwargs)
        finally:
            self.recorder.runs = None
        if len(runs) == 1 and runs[0].graph.refusals < _MOST_REFUSALS and is_plain():
            replay = learn(self.fn, runs[0], key, leaves, args, result, self.donated)
            if replay is None:
                runs[0].graph.refusals += 1
            else:
                self.replays = [*self.replays, replay][-_MOST_REPLAYS:]
        return result


@dataclass(eq=False)
class Replay:
    """How to run a graph on arguments of one outline.

    Attributes:
        key: the outline, without the leaves.
        are_alike: whether leaves are tensors like those that the graph was made for.
        settings, pins: what else must hold as it did: torch's global state, and what `fn` refers to.
        apart: whether no two leaves may share memory, since some are written.
        inputs: what the graph takes: pairs of 1 and the number of a leaf, or of 0 and a size.
        parts: how the parts of the result are made.
    """

    key: list[Any]
    are_alike: Callable[[list[Tensor]], bool]
    settings: "_Settings"
    pins: list["Pin"]
    apart: bool
    call: Callable[..., Sequence[Any]]
    inputs: list[tuple[int, int]]
    parts: list["Part"]
    several: bool

    def fits(self, key: list[Any], leaves: list[Tensor]) -> bool:
        alike = key == self.key and self.are_alike(leaves) and self.may_run()
        return alike and (not self.apart or are_apart(leaves))

    def may_run(self) -> bool:
        """Whether all that is no argument is as it was."""
        return self.settings.check() and all(pin.holds() for pin in self.pins)

    def inputs_of(self, leaves: list[Tensor]) -> list[Any]:
        return [leaves[at] if is_leaf else at for is_leaf, at in self.inputs]

    def __call__(self, args: tuple[Any, ...], leaves: list[Tensor]) -> Any:
        outputs = self.call(*self.inputs_of(leaves))
        parts = [part.make(args, outputs, leaves) for part in self.parts]
        return tuple(parts) if self.several else parts[0]


class Bound(NamedTuple):
    """A replay whose inputs are known but for a few: `places` has their positions, and their numbers in `free`.

    Whoever calls it sees to it that `replay.may_run()`, and that the free ones are like those it was bound with.
    """

    replay: Replay
    inputs: list[Any]
    places: list[tuple[int, int]]

    def __call__(self, free: list[Tensor]) -> None:
        inputs = self.inputs.copy()
        for at, number in self.places:
            inputs[at] = free[number]
        self.replay.call(*inputs)


class Part(NamedTuple):
    """A part of a result: an argument that has been written into, or a tree of outputs, leaves and constants."""

    argument: int | None
    sources: list[tuple[int, Any]]
    structure: Any

    def make(self, args: tuple[Any, ...], outputs: Sequence[Any], leaves: list[Tensor]) -> tree.Tree:
        if self.argument is not None:
            return args[self.argument]
        pools = (outputs, leaves)
        return tree.unflatten([at if pool == 2 else pools[pool][at] for pool, at in self.sources], self.structure)


def are_apart(leaves: list[Tensor]) -> bool:
    """Whether no two leaves lie in the same storage."""
    starts = storage_starts(leaves)
    return len(set(starts)) == len(starts)


def storage_starts(leaves: list[Tensor]) -> list[int]:
    """The addresses of the storages of the leaves that have elements."""
    return [leaf.data_ptr() - int(leaf.storage_offset()) * leaf.itemsize for leaf in leaves if leaf.numel()]


def like(leaves: list[Tensor]) -> Callable[[list[Tensor]], bool]:
    """A check for tensors of the same types, dtypes, devices, shapes, strides ... as these; it holds none of them.

    It is the one in C++ that Dynamo uses. With a release of torch that this has not been tested with, nothing is alike.
    """
    if not torch.__version__.startswith(_TESTED_WITH):
        return lambda leaves: False
    guards, number = _guards.TensorGuards(*leaves, dynamic_dims_sizes=None, dynamic_dims_strides=None), len(leaves)
    return lambda leaves: len(leaves) == number and guards.check(*leaves)


def learn(
    fn: Callable[..., Any], run: Run, key: list[Any], leaves: list[Tensor], args: tuple[Any, ...], result: tree.Tree,
    donated: tuple[int, ...],
) -> Replay | None:  # fmt: skip
    """How to repeat what a call of the compiled `fn` has done, or None where that is not plain."""
    numbers = {id(leaf): i for i, leaf in enumerate(leaves)}
    pins = _pins(fn, run.graph.watched)
    known = all(id(leaf) in numbers or type(leaf) is int for leaf in run.inputs)  # ints are sizes
    if pins is None or len(numbers) < len(leaves) or not known:
        return None
    several = type(result) is tuple
    parts = [_part(part, run.outputs, numbers, args, donated) for part in (result if several else (result,))]
    if any(part is None for part in parts) or (donated and not are_apart(leaves)):
        return None
    inputs = [(0, leaf) if type(leaf) is int else (1, numbers[id(leaf)]) for leaf in run.inputs]
    found = [part for part in parts if part is not None]
    return Replay(key, like(leaves), _Settings(), pins, bool(donated), run.graph.call, inputs, found, several)


class _Settings:
    """Modes and settings of torch that a graph may depend on."""

    def __init__(self) -> None:
        self.guard = _guards.GlobalStateGuard()

    def check(self) -> bool:
        return self.guard.check() and is_plain()


def is_plain() -> bool:
    """Whether no mode is on that wants to see the operations, and nobody has asked for other than compiled code."""
    modes = torch._C._len_torch_function_stack() + torch._C._len_torch_dispatch_stack()
    return modes == 0 and torch._dynamo.eval_frame._stance.stance == "default"


def _part(
    part: tree.Tree, outputs: Sequence[Any], numbers: dict[int, int], args: tuple[Any, ...], donated: tuple[int, ...]
) -> Part | None:
    leaves, structure = tree.flatten(part)
    for i in donated:
        own, own_structure = tree.flatten(args[i])
        if own and len(own) == len(leaves) and own_structure == structure and all(map(_same, own, leaves)):
            return Part(i, [], None)
    places = {id(output): i for i, output in enumerate(outputs)}
    sources: list[tuple[int, Any]] = []
    for leaf in leaves:
        if id(leaf) in numbers:
            sources.append((1, numbers[id(leaf)]))
        elif id(leaf) in places:
            sources.append((0, places[id(leaf)]))
        elif type(leaf) in _CONSTANTS:
            sources.append((2, leaf))
        else:
            return None
    return Part(None, sources, structure)


def _same(a: Any, b: Any) -> bool:
    return a is b


_LIBRARIES = ("funcopt", "torch", "math", "builtins", "collections", "functools", "itertools", "typing")
_ARGUMENT = re.compile(r"\W*(\w+\()*(args|kwargs|donated)\b")
_GLOBAL = re.compile(r"G\['(\w+)'\]|__import__\('(\w+)'\)")
_CELL = re.compile(r"(?<![\w.])fn\.__closure__\[(\d+)\]\.cell_contents")


def _pins(fn: Callable[..., Any], watched: frozenset[str] | None) -> "list[Pin] | None":
    """What stands for Dynamo's guards on what `fn` refers to; None if that may change within.

    Arguments are looked at anyway, and the code of libraries stays as it is. A transformation is immutable: it is
    enough that the variable still holds it.
    """
    if watched is None or not isinstance(fn, FunctionType):
        return None
    own = f"__import_{fn.__module__.replace('.', '_dot_')}"
    variables = re.compile(re.escape(f"G['{own}'].") + r"(\w+)")
    pins: dict[str, Pin] = {}
    for name in watched - {"", "fn", f"G['{own}']"}:
        cell, variable = _CELL.search(name), variables.search(name)
        if cell is not None:
            pins[cell[0]] = _pin_cell((fn.__closure__ or ())[int(cell[1])])
        elif variable is not None:
            pins[variable[0]] = _pin_global(fn.__globals__, variable[1])
        elif not (_ARGUMENT.match(name) or _is_of_library(name)):
            return None
    return list(pins.values()) if all(_is_fixed(pin.value) for pin in pins.values()) else None


class Pin(NamedTuple):
    """A variable that `fn` refers to, and what it held."""

    read: Callable[[], Any]
    value: Any

    def holds(self) -> bool:
        return self.read() is self.value


def _pin_cell(cell: CellType) -> Pin:
    return Pin(lambda: cell.cell_contents, cell.cell_contents)


def _pin_global(variables: dict[str, Any], name: str) -> Pin:
    return Pin(lambda: variables.get(name), variables.get(name))


def _is_of_library(name: str) -> bool:
    """Whether it is below a global of the traced frame, which is the library's own, or below a library's module."""
    found = _GLOBAL.search(name)
    if found is None:
        return False
    module = found[2] or found[1].removeprefix("__import_")
    return module == found[1] or module.split("_dot_")[0] in _LIBRARIES


def _is_fixed(value: Any) -> bool:
    """Whether a value cannot change but by being replaced."""
    if isinstance(value, (GradientTransformation, torch.dtype, torch.device, *_CONSTANTS)):
        return True
    if isinstance(value, (FunctionType, BuiltinFunctionType, ModuleType, type)):
        home = value.__name__ if isinstance(value, ModuleType) else value.__module__
        return (home or "builtins").split(".")[0] in _LIBRARIES
    return type(value) is tuple and all(map(_is_fixed, value))
