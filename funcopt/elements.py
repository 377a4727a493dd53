"""Programs over small tensors, written out as arithmetic of their elements.

A compiler fuses arithmetic on the same places of equal tensors. What goes on between the elements of one tensor (a
coordinate that is taken out, a sum, the gradient of either, which puts numbers among zeros) ends a kernel. In a program
over elements there is none of it: each element is a value of its own, and may be a vector over many runs.
"""

import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, _decomp, _prims_common, _subclasses, fx
from torch.fx.experimental.proxy_tensor import make_fx

aten = torch.ops.aten

_PROMOTION = _prims_common.ELEMENTWISE_TYPE_PROMOTION_KIND.DEFAULT

_MOVE_NAMES = (
    "alias clone detach lift_fresh_copy squeeze unsqueeze permute transpose t expand repeat select slice split "
    "split_with_sizes unbind cat stack flip roll diagonal tril triu select_scatter slice_scatter diagonal_scatter "
    "select_backward slice_backward diagonal_backward"
)
_MOVES = frozenset(getattr(aten, name) for name in _MOVE_NAMES.split())
"""Operations that put elements to other places, and 0 to some."""

_RESHAPES = frozenset((aten.view, aten._unsafe_view, aten.reshape))

_FOLDS = {
    aten.sum: aten.add.Tensor,
    aten.prod: aten.mul.Tensor,
    aten.amax: aten.maximum.default,
    aten.amin: aten.minimum.default,
    aten.any: aten.logical_or.default,
    aten.all: aten.logical_and.default,
}
"""Reductions, and what each does with two elements."""


class Elements(NamedTuple):
    """A function of tensors as two programs over elements.

    Attributes:
        shared: from the elements of the arguments that do not vary, then those of `captured`, to a pair of lists: the
            elements of the results that do not vary, and the numbers that the other program needs.
        varying: from the elements of the arguments that vary, then those numbers, to the elements of the results that
            vary.
        captured: tensors that the function refers to.
        size: how many operations the programs have.
    """

    shared: fx.GraphModule
    varying: fx.GraphModule
    captured: list[Tensor]
    size: int


def written_out(
    fn: Callable[..., list[Tensor]],
    arguments: Sequence[Tensor],
    varying: Sequence[bool],
    varying_results: Sequence[bool],
    *,
    limit: int,
) -> Elements | None:
    """`fn` as programs over elements; None if they have more than `limit` operations, or one that is not elementary.

    Args:
        fn: a pure function of tensors to a list of tensors.
        arguments: tensors such as it will be given; their values do not matter.
        varying: for each argument: whether its elements will be vectors, all of one length, and not 0-d.
        varying_results: the same for the results; all that depend on what varies.
    """
    try:
        pure = torch.func.functionalize(fn, remove="mutations")
        traced = make_fx(pure, _decompositions(), tracing_mode="fake", _allow_non_fake_inputs=True)(*arguments)
        return _Writer(traced, limit).write(varying, varying_results)
    except Exception:  # whatever cannot be traced here still runs as it is, or fails with its own error
        return None


def taken_apart(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The elements of all tensors, each 0-d."""
    return [element for tensor in tensors for element in tensor.reshape(-1).unbind()]


@functools.cache
def _decompositions() -> dict[Any, Callable[..., Any]]:
    """Into elementwise operations, moves and reductions; what is one of those stays."""
    rules = {
        op: rule
        for op, rule in dict(_decomp.core_aten_decompositions()).items()
        if torch.Tag.pointwise not in op.tags and op.overloadpacket not in _MOVES
    }
    norms = _decomp.get_decompositions([aten.linalg_vector_norm.default])
    return {**rules, **norms, aten.mm.default: _mm, aten.mean.dim: _mean, aten.mean.default: _mean}


def _mm(a: Tensor, b: Tensor) -> Tensor:
    return (a.unsqueeze(-1) * b).sum(1)


def _mean(x: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    total = x.sum(dim, keepdim, dtype=dtype)
    return total / (x.numel() / max(total.numel(), 1))


class _NotElementaryError(Exception):
    pass


class _Writer:
    """Writes a graph over elements for a graph over tensors.

    A tensor of the old graph is a tensor of its shape that holds numbers of nodes of the new one. What moves elements
    moves these numbers. Number 0 stands for the constant 0, whatever the dtype.
    """

    def __init__(self, traced: fx.GraphModule, limit: int) -> None:
        self.traced = traced
        self.limit = limit
        self.shared, self.varying = fx.Graph(), fx.Graph()
        self.nodes: list[Any] = [None]
        self.numbers: dict[fx.Node, Any] = {}  # of the tensors of the old graph
        self.examples: dict[fx.Node, Tensor] = {}  # a value of each new node, 0-d; of a constant, its value
        self.constants: set[fx.Node] = set()
        self.handed: dict[fx.Node, fx.Node] = {}  # what the varying graph needs of the shared one
        self.known: dict[Any, fx.Node] = {}  # the same operation on the same elements is written once

    def write(self, varying: Sequence[bool], varying_results: Sequence[bool]) -> Elements:
        for node, varies in zip(self.traced.graph.find_nodes(op="placeholder"), varying, strict=True):
            self.numbers[node] = self._inputs(node.meta["val"], self.varying if varies else self.shared)
        captured = []
        for node in self.traced.graph.find_nodes(op="get_attr"):
            captured.append(getattr(self.traced, node.target))
            self.numbers[node] = self._captured(node, captured[-1])
        for node in self.traced.graph.nodes:
            if node.op == "call_function":
                self.numbers[node] = self._call(node)
        (output,) = self.traced.graph.find_nodes(op="output")
        self._write_results(list(zip(output.args[0], varying_results, strict=True)))
        programs = [fx.GraphModule({}, graph) for graph in (self.shared, self.varying)]
        return Elements(programs[0], programs[1], captured, len(self.shared.nodes) + len(self.varying.nodes))

    def _write_results(self, results: list[tuple[fx.Node, bool]]) -> None:
        varying = [self._in(self.varying, e) for leaf, varies in results if varies for e in self._elements(leaf)]
        shared = [self._in(self.shared, e) for leaf, varies in results if not varies for e in self._elements(leaf)]
        self.varying.output(varying)
        self.shared.output((shared, list(self.handed)))
        for graph in (self.shared, self.varying):
            graph.eliminate_dead_code()

    def _inputs(self, value: Tensor, graph: fx.Graph) -> Tensor:
        self._count(value.numel())
        nodes = [self._placeholder(graph, value) for _ in range(value.numel())]
        return self._tensor(nodes, value)

    def _placeholder(self, graph: fx.Graph, like: Tensor) -> fx.Node:
        node = graph.placeholder(f"element_{len(self.examples)}")
        self.examples[node] = torch.ones((), dtype=like.dtype, device=like.device)
        return node

    def _captured(self, node: fx.Node, tensor: Any) -> Tensor:
        if isinstance(tensor, _subclasses.FakeTensor) or not isinstance(tensor, Tensor):
            raise _NotElementaryError(node)
        node.meta["val"] = tensor
        return self._inputs(tensor, self.shared)

    def _call(self, node: Any) -> Any:
        target = node.target
        if target is operator.getitem:
            return self.numbers[node.args[0]][node.args[1]]
        if not isinstance(target, torch._ops.OpOverload):
            raise _NotElementaryError(node)
        if target._schema.is_mutable or torch.Tag.nondeterministic_seeded in target.tags:
            raise _NotElementaryError(node)
        kind = target.overloadpacket
        if not node.all_input_nodes:
            return self._constant(node)
        if kind is aten.full_like:
            return self._tensor(
                [self._number(node.args[1], node.meta["val"])] * node.meta["val"].numel(), node.meta["val"]
            )
        if kind in _RESHAPES:
            return self.numbers[node.args[0]].reshape(node.meta["val"].shape)
        if kind in _MOVES:
            return target(*fx.map_arg(node.args, self.numbers.__getitem__), **_of_places(node.kwargs))
        if kind is aten.constant_pad_nd:
            return self._pad(*node.args)
        if kind is aten._to_copy:
            return self._tensor(
                [self._as(e, node.meta["val"].dtype) for e in self._elements(node.args[0])], node.meta["val"]
            )
        if kind in _FOLDS:
            return self._fold(node, _FOLDS[kind], *node.args)
        if torch.Tag.pointwise in target.tags:
            return self._elementwise(node)
        raise _NotElementaryError(node)

    def _constant(self, node: Any) -> Tensor:
        self._count(node.meta["val"].numel())
        made = node.target(*node.args, **node.kwargs)
        return self._tensor([self._number(number, made) for number in made.flatten().tolist()], made)

    def _pad(self, source: fx.Node, sizes: list[int], number: Any = 0) -> Any:
        filling = self._tensor([self._number(number, source.meta["val"])], torch.zeros(())) if number else 0
        return aten.constant_pad_nd.default(self.numbers[source], sizes, int(filling))

    def _fold(self, node: fx.Node, fold: Any, source: fx.Node, dims: Any = None, *_: Any) -> Tensor:
        result, rank = node.meta["val"], source.meta["val"].ndim
        along = [dim % rank for dim in ([dims] if isinstance(dims, int) else dims or range(rank))]
        kept = [dim for dim in range(rank) if dim not in along]
        rows = self.numbers[source].permute(kept + along).reshape(result.numel(), -1)
        if not rows.shape[1]:
            raise _NotElementaryError(node)
        dtype = source.meta["val"].dtype if result.dtype == torch.bool else result.dtype
        made = []
        for row in rows.tolist():
            elements = (self._as(self._element(number, source.meta["val"]), dtype) for number in row)
            made.append(functools.reduce(lambda a, b: self._write(fold, (a, b)), elements))
        return self._tensor([self._as(e, result.dtype) for e in made], result)

    def _elementwise(self, node: fx.Node) -> Tensor:
        """The operation on each place, in the dtype that it has for the whole tensors.

        An element that varies has a dimension and one that does not has none: left to themselves, they would promote
        each other otherwise than the tensors did. Booleans never do.
        """
        value = node.meta["val"]
        operands = [arg.meta["val"] if isinstance(arg, fx.Node) else arg for arg in node.args if arg is not None]
        compute, _ = _prims_common.elementwise_dtypes(*operands, type_promotion_kind=_PROMOTION)
        columns = [
            [
                self._as(e, compute) if self.examples[e].dtype != torch.bool else e
                for e in self._elements(arg, value.shape)
            ]
            if isinstance(arg, fx.Node)
            else [arg] * value.numel()
            for arg in node.args
        ]
        kwargs = _of_places(node.kwargs)
        return self._tensor(
            [self._as(self._write(node.target, row, kwargs), value.dtype) for row in zip(*columns)], value
        )

    def _elements(self, node: Any, shape: Sequence[int] | None = None) -> list[fx.Node]:
        value, numbers = node.meta["val"], self.numbers[node]
        numbers = numbers if shape is None else numbers.expand(shape)
        return [self._element(number, value) for number in numbers.flatten().tolist()]

    def _element(self, number: int, like: Tensor) -> fx.Node:
        return self.nodes[number] if number else self._number(0, like)

    def _tensor(self, nodes: Sequence[fx.Node], like: Tensor) -> Tensor:
        start = len(self.nodes)
        self.nodes.extend(nodes)
        return torch.arange(start, len(self.nodes)).reshape(like.shape)

    def _as(self, element: fx.Node, dtype: torch.dtype) -> fx.Node:
        if self.examples[element].dtype == dtype:
            return element
        return self._write(aten._to_copy.default, (element,), {"dtype": dtype})

    def _number(self, number: Any, like: Tensor, graph: fx.Graph | None = None) -> fx.Node:
        key = (repr(number), like.dtype, like.device, graph or self.shared)
        if key not in self.known:
            settings: Any = {"dtype": like.dtype, "device": like.device}
            node = self.known[key] = key[-1].call_function(aten.full.default, ([], number), settings)
            self.constants.add(node)
            self.examples[node] = torch.full([], number, **settings)
        return self.known[key]

    def _write(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any] = {}) -> fx.Node:  # noqa: B006
        key = (target, *((type(arg), arg) for arg in args), *kwargs.items())
        if key not in self.known:
            self._count(1)
            self.known[key] = self._new(target, args, kwargs)
        return self.known[key]

    def _new(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        inputs = [arg for arg in args if isinstance(arg, fx.Node)]
        example = target(*(self.examples[arg] if isinstance(arg, fx.Node) else arg for arg in args), **kwargs)
        if self.constants.issuperset(inputs):
            return self._number(example.item(), example)
        graph = self.varying if any(arg.graph is self.varying for arg in inputs) else self.shared
        node = graph.call_function(
            target, tuple(self._in(graph, arg) if isinstance(arg, fx.Node) else arg for arg in args), kwargs
        )
        self.examples[node] = example
        return node

    def _in(self, graph: fx.Graph, node: fx.Node) -> fx.Node:
        """A node as one of that graph."""
        if node.graph is graph:
            return node
        if node in self.constants:
            return self._number(self.examples[node].item(), self.examples[node], graph)
        if graph is self.shared:
            raise _NotElementaryError("a result varies")
        if node not in self.handed:
            self.handed[node] = self._placeholder(graph, self.examples[node])
        return self.handed[node]

    def _count(self, more: int) -> None:
        self.limit -= more
        if self.limit < 0:
            raise _NotElementaryError("too many elements")


def _of_places(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Without what is said of memory."""
    return {name: value for name, value in kwargs.items() if name not in ("memory_format", "dtype", "layout", "device")}
