"""Values as Python source, so that what a property test found can be pasted and run.

Importing this module teaches hypothesis to print tensors, transformations and the states of funcopt that way.
"""

import dataclasses
import functools
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from hypothesis.vendor import pretty
from torch import Tensor

import funcopt
from funcopt import tree
from funcopt.calls import Call
from funcopt.transform import GradientTransformation


def source(value: Any) -> str:
    """A Python expression for a tree of tensors, a transformation, a schedule, or a number: `eval` gives an equal one.

    Tensors keep their dtype, their strides and every bit, but for the payload of a NaN. The names in it are those of
    torch, of funcopt (without a prefix), and of the modules where NamedTuples and other factories are defined. What was
    made by no such factory, a lambda say, prints as its repr.

    >>> source({"a": torch.tensor([0.1, -0.0]), "b": None})
    "{'a': torch.tensor([0.1, -0.0], dtype=torch.float32), 'b': None}"
    """
    value = origin(value)
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, float):
        return _number(value, torch.float64)
    if isinstance(value, Call):
        return _call(value.name, value.args, value.kwargs)
    if isinstance(value, GradientTransformation):
        return "unknown_transformation"
    if isinstance(value, functools.partial):
        return _call("functools.partial", (value.func, *value.args), value.keywords)
    if is_named_tuple(value):
        return _call(type(value).__name__, (), value._asdict())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _call(type(value).__name__, (), fields_of(value))
    if type(value) in (list, tuple):
        shown = ", ".join(map(source, value))
        return f"[{shown}]" if type(value) is list else f"({shown}{',' if len(value) == 1 else ''})"
    if type(value) is dict:
        return "{" + ", ".join(f"{source(key)}: {source(part)}" for key, part in value.items()) + "}"
    return name_of(value) if inspect.isfunction(value) else repr(value)


def _call(name: str, args: Iterable[Any], kwargs: Mapping[str, Any]) -> str:
    return f"{name}({', '.join([*map(source, args), *(f'{key}={source(part)}' for key, part in kwargs.items())])})"


def origin(value: Any) -> Any:
    """The call that made a transformation or a schedule, where it is known; else the value itself."""
    if isinstance(value, GradientTransformation) or inspect.isfunction(value):
        return getattr(value, "call", None) or value
    return value


def is_named_tuple(value: Any) -> bool:
    """Whether it is of a class of NamedTuples."""
    return isinstance(value, tuple) and hasattr(value, "_fields")


def fields_of(value: Any) -> dict[str, Any]:
    """The fields of a dataclass that are not as they would be by default; none of what is no dataclass."""
    if not dataclasses.is_dataclass(value) or isinstance(value, (type, GradientTransformation)):
        return {}
    pairs = ((field, getattr(value, field.name)) for field in dataclasses.fields(value))
    return {field.name: part for field, part in pairs if part is not field.default and part != field.default}


def name_of(function: Any) -> str:
    """The name of a function or class, made up for a lambda: it has none that could be defined."""
    qualified: str = function.__qualname__
    if function.__name__ == "<lambda>":
        return f"lambda_of_line_{function.__code__.co_firstlineno}"
    return function.__name__ if "<locals>" in qualified else qualified


def _tensor(x: Tensor) -> str:
    x = x.detach().resolve_conj().resolve_neg().cpu()
    repeated = [stride == 0 and size > 1 for stride, size in zip(x.stride(), x.shape)]
    if x.numel() == 0:
        return f"torch.zeros({tuple(x.shape)}, dtype={x.dtype})"
    if any(repeated):
        once = x[tuple(slice(0, 1) if again else slice(None) for again in repeated)]
        usual = torch.empty(once.shape).stride()  # along the repeated axes; expand replaces it
        strides = [usual[axis] if again else x.stride(axis) for axis, again in enumerate(repeated)]
        return f"{_tensor(once.as_strided(once.shape, strides))}.expand({tuple(x.shape)})"
    if _is_dense(x):
        return _contiguous(x)
    if x.ndim >= 2 and _is_dense(x.mT):
        return f"{_contiguous(x.mT)}.mT"
    reach = sum(stride * (size - 1) for stride, size in zip(x.stride(), x.shape)) + 1
    offset = x.storage_offset() if x.storage_offset() < 16 else 0  # a small window of a large buffer is moved
    buffer = x.as_strided((offset + reach,), (1,), x.storage_offset() - offset)
    return f"{_contiguous(buffer)}.as_strided({tuple(x.shape)}, {x.stride()}, {offset})"


def _is_dense(x: Tensor) -> bool:
    """Whether a new tensor of this shape has the strides of `x`, also along axes of size one."""
    return x.storage_offset() == 0 and x.stride() == torch.empty_like(x, memory_format=torch.contiguous_format).stride()


def _contiguous(x: Tensor) -> str:
    numbers = [_number(value, x.dtype) for value in x.flatten().tolist()]
    if x.ndim and len(set(numbers)) == 1:
        name = {"0.0": "zeros", "1.0": "ones"}.get(numbers[0])
        shape = tuple(x.shape)
        return (
            f"torch.{name}({shape}, dtype={x.dtype})" if name else f"torch.full({shape}, {numbers[0]}, dtype={x.dtype})"
        )
    return f"torch.tensor({_nested(numbers, x.shape)}, dtype={x.dtype})"


def _nested(numbers: list[str], shape: tuple[int, ...]) -> str:
    if not shape:
        return numbers[0]
    size = len(numbers) // shape[0]
    return f"[{', '.join(_nested(numbers[i * size : (i + 1) * size], shape[1:]) for i in range(shape[0]))}]"


def _number(value: Any, dtype: torch.dtype) -> str:
    """The shortest literal that `dtype` rounds to the number, which it holds."""
    if isinstance(value, complex):
        part = torch.float32 if dtype == torch.complex64 else torch.float64
        return f"complex({_number(value.real, part)}, {_number(value.imag, part)})"
    if not isinstance(value, float):
        return repr(value)
    if value != value:
        return "torch.nan"
    if value in (float("inf"), float("-inf")):
        return "torch.inf" if value > 0 else "-torch.inf"
    candidates = (float(f"{value:.{digits}g}") for digits in range(1, 18))
    in_range = (x for x in candidates if abs(x) <= torch.finfo(dtype).max)  # torch.full takes no number beyond
    return repr(next((x for x in in_range if torch.tensor(x, dtype=dtype).item() == value), value))


def _print(value: Any, printer: Any, cycle: bool) -> None:
    printer.text(source(value))


def print_as_source(kind: type) -> type:
    """Teach hypothesis to print values of a class by `source`; a NamedTuple of tensors would print as its repr."""
    pretty.for_type_by_name(kind.__module__, kind.__name__, _print)
    return kind


for _kind in (Tensor, GradientTransformation, tree.MaskedNode, *vars(funcopt).values()):
    if _kind in (Tensor, GradientTransformation) or (isinstance(_kind, type) and hasattr(_kind, "_fields")):
        print_as_source(_kind)
