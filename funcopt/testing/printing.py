"""Values as Python source, so that what a property test found can be pasted and run.

Importing this module teaches hypothesis to print tensors, transformations and the states of funcopt that way.
"""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from hypothesis.vendor import pretty
from torch import Tensor

import funcopt
from funcopt import tree
from funcopt.calls import Call
from funcopt.transform import GradientTransformation, Params, Updates


def source(value: Any) -> str:
    """A Python expression for a tree of tensors, a transformation, a schedule, or a number: `eval` gives an equal one.

    Tensors keep their dtype, their strides and every bit, but for the payload of a NaN. The names in it are those of
    torch, of funcopt (without a prefix), and of the modules where NamedTuples and other factories are defined. What was
    made by no such factory, a lambda say, prints as its repr.

    >>> source({"a": torch.tensor([0.1, -0.0]), "b": None})
    "{'a': torch.tensor([0.1, -0.0], dtype=torch.float32), 'b': None}"
    """
    value = _origin(value)
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, float):
        return _number(value, torch.float64)
    if isinstance(value, Call):
        arguments = [source(part) for part in value.args]
        arguments += [f"{name}={source(part)}" for name, part in value.kwargs.items()]
        return f"{value.name}({', '.join(arguments)})"
    if _is_named_tuple(value):
        return f"{type(value).__name__}({', '.join(f'{name}={source(part)}' for name, part in _fields(value))})"
    if type(value) in (list, tuple):
        shown = ", ".join(map(source, value))
        return f"[{shown}]" if type(value) is list else f"({shown}{',' if len(value) == 1 else ''})"
    if type(value) is dict:
        return "{" + ", ".join(f"{source(key)}: {source(part)}" for key, part in value.items()) + "}"
    return value.__qualname__ if inspect.isfunction(value) else repr(value)


def _origin(value: Any) -> Any:
    """The call that made a transformation or a schedule, where it is known; else the value itself."""
    if isinstance(value, GradientTransformation) or inspect.isfunction(value):
        return getattr(value, "call", None) or value
    return value


def _is_named_tuple(value: Any) -> bool:
    return isinstance(value, tuple) and hasattr(value, "_fields")


def _fields(value: Any) -> list[tuple[str, Any]]:
    return list(zip(value._fields, value))


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


def reproducer(params: Params, gradients: list[Updates], tx: GradientTransformation) -> str:
    """A script that runs `tx` on these values, one step for each tree of gradients, and prints each step.

    Paste it into a file, or `exec` it: at the end `params` and `state` hold the values after the last step. A factory
    or a NamedTuple is imported from the module where it is defined; one that is local to a function cannot be, and a
    comment says so.
    """
    return "\n".join(
        (
            *_imports((params, gradients, tx)),
            "",
            f"params = {source(params)}",
            "gradients = [",
            *(f"    {source(gradient)}," for gradient in gradients),
            "]",
            f"tx = {source(tx)}",
            "",
            "state = tx.init(params)",
            "for step, gradient in enumerate(gradients):",
            "    updates, state = tx.update(gradient, state, params)",
            "    params = apply_updates(params, updates)",
            '    print(f"step {step}: updates = {updates}, params = {params}")',
            "",
        )
    )


def _imports(value: Any) -> list[str]:
    names: dict[str, set[str]] = {"funcopt": {"apply_updates"}}
    missing = set()
    for named in _named(value):
        public = named.__module__.startswith("funcopt.") and hasattr(funcopt, named.__name__)
        if "<" in named.__qualname__:
            missing.add(named.__qualname__)
        else:
            names.setdefault("funcopt" if public else named.__module__, set()).add(named.__name__)
    imports = [f"from {module} import {', '.join(sorted(names[module]))}" for module in sorted(names)]
    return ["import torch", *imports, *(f"# define here: {name}" for name in sorted(missing))]


def _named(value: Any) -> Iterator[Any]:
    """The functions and classes whose names occur in the source of `value`."""
    value = _origin(value)
    if isinstance(value, Call):
        yield value.function
        yield from _named([*value.args, *value.kwargs.values()])
        return
    if inspect.isfunction(value) or _is_named_tuple(value):
        yield value if inspect.isfunction(value) else type(value)
    for part in (tree.children(value) or {}).values():
        yield from _named(part)


def _print(value: Any, printer: Any, cycle: bool) -> None:
    printer.text(source(value))


def print_as_source(kind: type) -> type:
    """Teach hypothesis to print values of a class by `source`; a NamedTuple of tensors would print as its repr."""
    pretty.for_type_by_name(kind.__module__, kind.__name__, _print)
    return kind


for _kind in (Tensor, GradientTransformation, tree.MaskedNode, *vars(funcopt).values()):
    if _kind in (Tensor, GradientTransformation) or (isinstance(_kind, type) and hasattr(_kind, "_fields")):
        print_as_source(_kind)
