"""Elementwise steps taken down once, and run as a list of torch's operations that write in place.

What Python costs in an update rule, and the tensors that it makes, are paid when the rule is recorded. A tape works for
tensors of any length and for any values of the numbers in the rule: what the rule computes of numbers alone is done in
Python's arithmetic.
"""

import math
import operator
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg

from funcopt.optim.fusion import dtype_of, name_of, simplify, without_floors

Step = Callable[[list[Tensor], list[Tensor]], list[Tensor]]
"""New scalars, followed by the new row without its gradient, from 0-d tensors and a row."""

GRADIENT = 1  # its place in a row, which is only read


class Tape(NamedTuple):
    """A recorded step.

    Attributes:
        of_scalars: `of_scalars(*numbers)` gives the new scalars, and the numbers that the others need.
        of_row: `of_row(*row, *buffers, *numbers)` writes the row; the buffers are tensors of its shape.
        of_rows: `of_rows(*columns, *numbers)` writes many rows, of which it is given the columns, by torch's
            operations on lists; None where there are no such operations.
        buffers: the dtypes of the buffers.
        least: what numbers must be at least, by their place in what `of_scalars` gives, for the tape to hold.
    """

    of_scalars: Callable[..., tuple[list[Any], list[Any]]]
    of_row: Callable[..., None]
    of_rows: Callable[..., None] | None
    buffers: tuple[torch.dtype, ...]
    least: dict[int, float]


def record(step: Step, numbers: Sequence[Tensor], row: Sequence[Tensor], *, floors: bool = False) -> Tape | None:
    """The tape of `step`, or None where it does something that is not known to be elementwise.

    `numbers` and `row` are examples: of their values nothing is kept, only the dtypes. Without `floors` the tape does
    not keep roots away from 0 to which it adds a number, which then must not be too small.
    """
    pure = torch.func.functionalize(step, remove="mutations_and_views")
    graph = make_fx(pure)(list(numbers), [torch.zeros(3, dtype=tensor.dtype) for tensor in row]).graph
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    scalar_inputs, row_inputs = inputs[: len(numbers)], inputs[len(numbers) :]
    arrays = _depending_on(row_inputs, graph)
    simplify(graph, arrays)
    least = {} if floors else without_floors(graph, arrays)
    outputs = list(next(node for node in graph.nodes if node.op == "output").args[0])
    new_scalars, new_row = outputs[: 1 - len(row)], outputs[1 - len(row) :]
    if {*new_scalars} & arrays or not {*new_row} <= arrays or {*new_row} & {*row_inputs}:
        return None

    of_row = [node for node in _needed_for(new_row, graph) if node in arrays and node not in row_inputs]
    needed = list(dict.fromkeys(n for node in of_row for n in node.all_input_nodes if n not in arrays))
    of_scalars = [n for n in _needed_for([*new_scalars, *needed], graph) if n not in scalar_inputs]
    if not all(map(_is_known, of_row)) or not all(name_of(node) in _IN_PYTHON for node in of_scalars):
        return None
    whole = {n for node in of_row for n in node.all_input_nodes if name_of(node) == "where" or n is node.args[0]}
    places, buffers = _places(of_row, row_inputs, new_row)
    return Tape(
        _in_python(of_scalars, scalar_inputs, new_scalars, needed, whole),
        _in_place(of_row, places, row_inputs, new_row, needed, buffers),
        _on_lists(of_row, places, row_inputs, new_row, needed) if all(map(_knows_lists, of_row)) else None,
        tuple(buffers),
        {needed.index(number): value for number, value in least.items()},
    )


def _depending_on(inputs: Iterable[Node], graph: Graph) -> set[Node]:
    found = {*inputs}
    for node in graph.nodes:
        if node.op == "call_function" and not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _needed_for(nodes: Iterable[Node], graph: Graph) -> list[Node]:
    """The nodes and all that they are made of, in the order of the graph."""
    wanted = {*nodes}
    for node in reversed(graph.nodes):
        if node in wanted:
            wanted |= {*node.all_input_nodes}
    return [node for node in graph.nodes if node in wanted]


# The arithmetic of arrays.

_ON_LISTS = {"abs", "add", "addcdiv", "addcmul", "clamp", "div", "lerp", "maximum", "minimum", "mul", "neg", "pow"}
_ON_LISTS |= {"reciprocal", "sign", "sqrt", "sub"}
_WITH_OUT = _ON_LISTS | {"ge", "gt", "le", "lt", "where"}


def _is_known(node: Node) -> bool:
    return name_of(node) in _WITH_OUT or name_of(node) in ("_to_copy", "zeros_like")


def _in_place(
    operations: Sequence[Node],
    places: dict[Node, int],
    row: Sequence[Node],
    outputs: Sequence[Node],
    numbers: Sequence[Node],
    buffers: Sequence[torch.dtype],
) -> Callable[..., None]:
    """The operations as a function of one row that writes each result into its place."""
    made = Graph()
    rooms = [made.placeholder(f"row_{i}") for i in range(len(row))]
    rooms += [made.placeholder(f"buffer_{i}") for i in range(len(buffers))]
    new = {node: made.placeholder(f"number_{i}") for i, node in enumerate(numbers)}
    new |= {node: rooms[place] for node, place in places.items()}
    for node in operations:
        args, kwargs = map_arg((node.args, _options(node)), new.__getitem__)
        if name_of(node) == "zeros_like":
            made.call_method("zero_", (new[node],))
        elif name_of(node) == "_to_copy":
            made.call_method("copy_", (new[node], *args))
        else:
            made.call_function(getattr(torch, name_of(node)), args, {**kwargs, "out": new[node]})
    for slot, node in zip(_written(row), outputs):
        if places[node] != slot:
            made.call_method("copy_", (rooms[slot], new[node]))
    made.output(None)
    return GraphModule(torch.nn.Module(), made).forward


def _options(node: Node) -> dict[str, Any]:
    return {key: value for key, value in node.kwargs.items() if key in ("alpha", "value")}


def _knows_lists(node: Node) -> bool:
    """Whether torch has the operation for lists of tensors."""
    lists = [isinstance(arg, Node) and arg.meta["val"].ndim > 0 for arg in node.args]
    return name_of(node) in _ON_LISTS and lists[0] and (name_of(node) != "clamp" or len(node.args) == 2)


def _on_lists(
    operations: Sequence[Node],
    places: dict[Node, int],
    row: Sequence[Node],
    outputs: Sequence[Node],
    numbers: Sequence[Node],
) -> Callable[..., None]:
    """The operations as a function of the columns of many rows: in place where a value replaces its first argument."""
    made = Graph()
    columns = [made.placeholder(f"column_{i}") for i in range(len(row))]
    new = {node: made.placeholder(f"number_{i}") for i, node in enumerate(numbers)}
    new |= dict(zip(row, columns))
    for node in operations:
        first: Any = node.args[0]
        name = "_foreach_clamp_min" if name_of(node) == "clamp" else f"_foreach_{name_of(node)}"
        args, kwargs = map_arg((node.args, _options(node)), new.__getitem__)
        if places[node] == places[first]:
            made.call_function(getattr(torch, name + "_"), args, kwargs)
            new[node] = new[first]
            continue
        new[node] = made.call_function(getattr(torch, name), args, kwargs)
        if places[node] < len(row):
            made.call_function(torch._foreach_copy_, (columns[places[node]], new[node]))
    for slot, node in zip(_written(row), outputs):
        if places[node] != slot:
            made.call_function(torch._foreach_copy_, (columns[slot], new[node]))
    made.output(None)
    return GraphModule(torch.nn.Module(), made).forward


def _places(
    operations: Sequence[Node], row: Sequence[Node], outputs: Sequence[Node]
) -> tuple[dict[Node, int], list[torch.dtype]]:
    """Where each value lives: a place in the row, or a buffer, numbered on from there, of the dtypes given.

    A new value of the row goes to its place there, if nothing needs what that holds any more. Everything else goes
    where something of its dtype is not needed any more, be it from this operation on, or into another buffer.
    """
    places = {node: i for i, node in enumerate(row)}
    last = {n: i for i, node in enumerate(operations) for n in node.all_input_nodes}
    last |= {node: len(operations) for node in outputs}
    slots = dict(zip(reversed(outputs), reversed(_written(row))))
    dtypes = [dtype_of(node) for node in row]
    free = [i for i in _written(row) if row[i] not in last]
    for i, node in enumerate(operations):
        free += [places[n] for n in node.all_input_nodes if last[n] == i and places.get(n, GRADIENT) != GRADIENT]
        dtype = dtype_of(node)
        fitting = [place for place in free if dtypes[place] == dtype]
        place = slots.get(node, GRADIENT)
        if place not in free:
            place = next((room for room in fitting if node not in slots or room >= len(row)), len(dtypes))
        if place == len(dtypes):
            dtypes.append(dtype)
        else:
            free.remove(place)
        places[node] = place
    return places, dtypes[len(row) :]


def _written(row: Sequence[Any]) -> list[int]:
    return [i for i in range(len(row)) if i != GRADIENT]


# The arithmetic of numbers.


def _float32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


def _like_torch(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of numbers, with infinity and NaN, as torch has them, where Python raises."""

    def compute(*numbers: float) -> Any:
        try:
            return function(*numbers)
        except (ArithmeticError, ValueError):
            return getattr(torch, name)(*(torch.tensor(number, dtype=torch.float64) for number in numbers)).item()

    return compute


def _clamp(x: float, low: float | None = None, high: float | None = None) -> float:
    x = x if low is None or x >= low or x != x else low
    return x if high is None or x <= high or x != x else high


_IN_PYTHON: dict[str, Callable[..., Any]] = {
    "_to_copy": lambda x, dtype: (int if dtype == torch.int32 else float)(x),
    "add": lambda a, b, alpha=1: a + alpha * b,
    "clamp": _clamp,
    "div": _like_torch("div", operator.truediv),
    "exp": _like_torch("exp", math.exp),
    "expm1": _like_torch("expm1", math.expm1),
    "ge": operator.ge,
    "gt": operator.gt,
    "le": operator.le,
    "lt": operator.lt,
    "mul": operator.mul,
    "neg": operator.neg,
    "pow": _like_torch("pow", math.pow),
    "reciprocal": _like_torch("reciprocal", lambda x: 1 / x),
    "rsub": lambda a, b, alpha=1: b - alpha * a,
    "scalar_tensor": lambda x, **options: x,
    "sqrt": _like_torch("sqrt", math.sqrt),
    "sub": lambda a, b, alpha=1: a - alpha * b,
    "where": lambda condition, a, b: a if condition else b,
}


def _in_python(
    operations: Sequence[Node],
    inputs: Sequence[Node],
    outputs: Sequence[Node],
    needed: Sequence[Node],
    whole: set[Node],
) -> Callable[..., tuple[list[Any], list[Any]]]:
    """The operations between numbers as a function of Python's numbers; of what is `needed`, `whole` are tensors."""
    made = Graph()
    new = {node: made.placeholder(node.name) for node in inputs}
    for node in operations:
        args, kwargs = map_arg((node.args, node.kwargs), new.__getitem__)
        new[node] = made.call_function(_IN_PYTHON[name_of(node)], args, kwargs)
        if dtype_of(node) == torch.float32:
            new[node] = made.call_function(_float32, (new[node],))
    scalars = [new[node] for node in outputs]
    for node in whole & {*needed}:
        new[node] = made.call_function(torch.tensor, (new[node],), {"dtype": dtype_of(node)})
    made.output((scalars, [new[node] for node in needed]))
    return GraphModule(torch.nn.Module(), made).forward
