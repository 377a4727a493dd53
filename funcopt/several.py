"""Several tensors that an elementwise function sees as if they were one.

In eager mode a small tensor costs what calls from Python cost, whatever its size. A function of `Several` makes one
call for all of them: its operations go to torch's `_foreach_` functions, which loop in C++ and give the same numbers as
the operation on each tensor, and for what has no such function to a loop in Python.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Operation = Callable[..., Any]


def _operator(operation: Operation) -> Operation:
    return lambda *args, **kwargs: apply(operation, args, kwargs)


def _reflected(operation: Operation) -> Operation:
    return lambda self, other: apply(operation, (other, self), {})


class Several:
    """Tensors of one dtype and device, and any shapes; what operations make of them is `Several` again.

    What is no tensor (a dtype, say) is read as if from one tensor.

    Raises:
        TypeError: where that differs between the tensors, as a shape does.
    """

    __slots__ = ("tensors",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors: Any = tensors

    @property
    def dtype(self) -> Any:
        return self.tensors[0].dtype

    def is_complex(self) -> Any:
        return self.dtype.is_complex

    def __getattr__(self, name: str) -> Any:
        operation = getattr(Tensor, name)
        if callable(operation):
            return lambda *args, **kwargs: apply(operation, (self, *args), kwargs)
        return _together(name, [getattr(tensor, name) for tensor in self.tensors], [self])

    def __bool__(self) -> bool:
        raise TypeError("tree: an elementwise rule selects by torch.where; it cannot ask whether a tensor is true.")

    @classmethod
    def __torch_function__(cls, operation: Operation, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return apply(operation, args, kwargs or {})

    # The common ones at hand:
    sqrt_, square, clamp = _operator(Tensor.sqrt_), _operator(torch.square), _operator(torch.clamp)
    add, lerp = _operator(torch.add), _operator(torch.lerp)
    __add__, __radd__ = add, _reflected(torch.add)
    __sub__, __rsub__ = _operator(torch.sub), _reflected(torch.sub)
    __mul__, __rmul__ = _operator(torch.mul), _reflected(torch.mul)
    __truediv__, __rtruediv__ = _operator(torch.div), _reflected(torch.div)
    __pow__, __rpow__ = _operator(torch.pow), _reflected(torch.pow)
    __neg__, __abs__, __invert__ = _operator(torch.neg), _operator(torch.abs), _operator(torch.bitwise_not)
    __and__, __or__, __xor__ = (_operator(op) for op in (torch.bitwise_and, torch.bitwise_or, torch.bitwise_xor))
    __eq__, __ne__ = _operator(torch.eq), _operator(torch.ne)
    __lt__, __le__, __gt__, __ge__ = (_operator(op) for op in (torch.lt, torch.le, torch.gt, torch.ge))


def apply(operation: Operation, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """What an operation of torch makes of numbers, 0-d tensors and `Several` of one length."""
    at_once = _AT_ONCE.get(operation.__name__)
    if at_once is not None:
        found = at_once(*args, **kwargs)
        if found is not None:
            return Several(found)
    count = next((len(arg.tensors) for arg in (*args, *kwargs.values()) if type(arg) is Several), 0)
    each = [
        operation(*[_at(arg, i) for arg in args], **{name: _at(arg, i) for name, arg in kwargs.items()})
        for i in range(count)
    ]
    return _together(operation.__name__, each, [arg for arg in args if type(arg) is Several])


def _at(arg: Any, i: int) -> Any:
    return arg.tensors[i] if type(arg) is Several else arg


def _together(name: str, values: list[Any], given: Sequence[Several]) -> Any:
    """`Several` of the values, with no tensor of what was given, unless it is that; or the one value that they have."""
    if not values or not all(isinstance(value, Tensor) for value in values):
        if not values or any(value != values[0] for value in values):
            raise TypeError(f"tree: a rule that is declared elementwise uses {name!r}, which differs between leaves.")
        return values[0]
    for several in given:
        same = [value is tensor for value, tensor in zip(values, several.tensors)]
        if all(same):
            return several
        values = [value.clone() if copied else value for value, copied in zip(values, same)]
    return Several(values)


# ------------------------------------------------------------------------------- what torch does in one call, or None


def _sequence(foreach: Operation, commutative: bool, by_tensor: bool) -> Operation:
    """An operation of two arguments; `by_tensor` where foreach takes a 0-d tensor as the second of them."""

    def at_once(x: Any, y: Any, **options: Any) -> Any:
        if options.keys() - {"alpha"}:
            return None
        if type(x) is Several and type(y) is Several:
            return foreach(x.tensors, y.tensors, **options)
        if type(x) is not Several and commutative:
            x, y = y, x
        many, one = (x, y) if type(x) is Several else (y, x)
        scalar = None if options else _scalar(one, many.tensors)
        if scalar is None:
            return None
        if many is x:
            return foreach(x.tensors, scalar if by_tensor else [scalar] * len(x.tensors))
        return foreach([scalar] * len(y.tensors), y.tensors)

    return at_once


def _scalar(value: Any, tensors: Sequence[Tensor]) -> Any:
    """A number, or a 0-d tensor, in the dtype in which an operation with the tensors uses it."""
    dtype = tensors[0].dtype
    if not dtype.is_floating_point:
        return None
    if isinstance(value, (int, float)):
        return torch.full((), value, dtype=dtype)
    if value.ndim or value.is_complex() or value.requires_grad:
        return None
    if value.dtype == dtype:
        return value
    return None if 0 in map(Tensor.dim, tensors) else value.to(dtype)  # two 0-d tensors meet in the wider dtype


def _unary(foreach: Operation) -> Operation:
    return lambda x, **options: None if options or not x.tensors[0].is_floating_point() else foreach(x.tensors)


def _sqrt_in_place(x: Several) -> Any:
    torch._foreach_sqrt_(x.tensors)
    return x.tensors


def _square(x: Several) -> Any:
    return torch._foreach_mul(x.tensors, x.tensors) if x.tensors[0].is_floating_point() else None


def _lerp(start: Several, end: Several, weight: Any) -> Any:
    if isinstance(weight, (int, float)):
        return torch._foreach_lerp(start.tensors, end.tensors, weight)
    return None


def _maximum(x: Any, y: Any) -> Any:
    return torch._foreach_maximum(x.tensors, y.tensors) if type(x) is type(y) else None


def _clamp(x: Several, min: Any = None, max: Any = None) -> Any:
    return torch._foreach_clamp_min(x.tensors, min) if max is None and isinstance(min, (int, float)) else None


_AT_ONCE: dict[str, Operation] = {
    "add": _sequence(torch._foreach_add, commutative=True, by_tensor=False),
    "sub": _sequence(torch._foreach_sub, commutative=False, by_tensor=False),
    "mul": _sequence(torch._foreach_mul, commutative=True, by_tensor=True),
    "div": _sequence(torch._foreach_div, commutative=False, by_tensor=True),
    "neg": _unary(torch._foreach_neg),
    "abs": _unary(torch._foreach_abs),
    "sqrt": _unary(torch._foreach_sqrt),
    "sqrt_": _sqrt_in_place,
    "clone": _unary(torch._foreach_clone),
    "square": _square,
    "lerp": _lerp,
    "clamp": _clamp,
    "maximum": _maximum,
}
