"""Graphs of elementwise steps with fewer operations: what is there twice, and what one operation of torch does."""

import math
from typing import Any

import torch
from torch.fx import Graph, Node


def name_of(node: Any) -> str:
    """The name of the operation, without its overload; "" of what is no operation."""
    return str(getattr(node.target, "_opname", "")) if isinstance(node, Node) else ""


def dtype_of(node: Node) -> torch.dtype:
    """The dtype of the value."""
    return node.meta["val"].dtype  # type: ignore[no-any-return]


def simplify(graph: Graph, arrays: set[Node]) -> None:
    """Drop copies and what is there already, put arrays before numbers, and let one operation do what two did."""
    known: dict[Any, Node] = {}
    for node in [node for node in graph.nodes if node in arrays and node.op == "call_function"]:
        if name_of(node) == "clone":
            _replace(node, node.args[0], arrays)
            continue
        if name_of(node) in ("add", "mul") and node.args[0] not in arrays:
            node.args = node.args[::-1]
        if node.kwargs == {"alpha": 1}:
            node.kwargs = {}
        same = known.setdefault((node.target, node.args, *node.kwargs.items()), node)
        if same is not node:
            _replace(node, same, arrays)
    for node in [node for node in graph.nodes if node in arrays and name_of(node) == "add" and not node.kwargs]:
        _fuse_sum(node, arrays)


def _replace(node: Node, other: Any, arrays: set[Node]) -> None:
    node.replace_all_uses_with(other)
    arrays.discard(node)


def without_floors(graph: Graph, arrays: set[Node]) -> dict[Node, float]:
    """Drop the floor of roots √max(x, tiny) to which an ε is added, or whose x = y + ε, and of maxima of x and y + ε.

    Gives the least ε for which that is the same to the last bit, with x and y not negative.
    """
    least: dict[Node, float] = {}
    floor: Any
    for floor in [node for node in graph.nodes if node in arrays and name_of(node) == "clamp"]:
        of: Any = floor.args[0]
        shift = _shift(of.args[1], arrays) if name_of(of) == "maximum" else None
        if shift is not None and floor.args[1:] == (torch.finfo(dtype_of(floor)).tiny,):
            least[shift] = torch.finfo(dtype_of(floor)).tiny
            _replace(floor, of, arrays)
    for root in [node for node in graph.nodes if node in arrays and name_of(node) == "sqrt"]:
        floor = root.args[0]
        info = torch.finfo(dtype_of(root))
        if name_of(floor) != "clamp" or floor.args[1:] != (info.tiny,):
            continue
        shifts = [_shift(user, arrays) for user in root.users]
        if (inner := _shift(floor.args[0], arrays)) is not None:
            least[inner] = max(info.tiny, least.get(inner, 0.0))
        elif len(shifts) == 1 and shifts[0] is not None:
            least[shifts[0]] = 2 * math.sqrt(info.tiny) / info.eps
        else:
            continue
        root.args = (floor.args[0],)
    return least


def _shift(node: Any, arrays: set[Node]) -> Node | None:
    """The number ε where the node is x + ε of an array x."""
    if name_of(node) == "add" and not node.kwargs and isinstance(node.args[1], Node) and node.args[1] not in arrays:
        return node.args[1]
    return None


def _fuse_sum(node: Node, arrays: set[Node]) -> None:
    """Of d a + (1 - d) y make lerp, of x + y² addcmul, of x + s (y / z) addcdiv, and of x + s y a sum with a factor."""
    args: Any = node.args
    first, second = args
    for x, other in ((first, second), (second, first)):
        if x in arrays and _is_square(other):
            node.target, node.args = torch.ops.aten.addcmul.default, (x, other.args[0], other.args[0])
            return
        factor, y = _scaled(other, arrays)
        if y is None or x not in arrays:
            continue
        decay, average = _scaled(x, arrays)
        if average is not None and _is_complement(factor, decay):
            node.target, node.args = torch.ops.aten.lerp.Tensor, (average, y, factor)
        elif name_of(y) == "div" and len(y.users) == 1 and {*y.args} <= arrays:
            numerator, denominator = y.args
            number, array = _scaled(numerator, arrays)
            if array is not None:
                factor, numerator = _of_numbers(node, torch.ops.aten.mul.Tensor, factor, number), array
            elif name_of(numerator) == "div" and len(numerator.users) == 1 and numerator.args[1] not in arrays:
                numerator, number = numerator.args
                factor = _of_numbers(node, torch.ops.aten.div.Tensor, factor, number)
            node.target, node.args = torch.ops.aten.addcdiv.default, (x, numerator, denominator)
            node.kwargs = {"value": factor}
        else:
            node.args, node.kwargs = (x, y), {"alpha": factor}
        return


def _is_square(node: Any) -> bool:
    """Whether the node is the square of an array, and used once."""
    return name_of(node) == "pow" and bool(node.args[1] == 2) and len(node.users) == 1


def _scaled(node: Any, arrays: set[Node]) -> tuple[Any, Any]:
    """(s, y) where the node is s y of a number and an array, and used once."""
    if name_of(node) == "mul" and len(node.users) == 1:
        a, b = node.args
        if b in arrays and a not in arrays:
            return a, b
        if a in arrays and b not in arrays:
            return b, a
    return None, None


def _of_numbers(before: Node, operation: Any, a: Node, b: Node) -> Node:
    """A new operation on two numbers."""
    with before.graph.inserting_before(before):
        made = before.graph.call_function(operation, (a, b))
    made.meta["val"] = torch.empty((), dtype=torch.promote_types(dtype_of(a), dtype_of(b)))
    return made


def _is_complement(factor: Any, decay: Any) -> bool:
    """Whether the factor is 1 - decay."""
    return name_of(factor) == "rsub" and tuple(factor.args) == (decay, 1)
