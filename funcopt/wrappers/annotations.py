"""What the annotations of a factory say about its arguments: which of them can be tensors."""

import functools
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

Kind: TypeAlias = Literal["float", "tensor", "anything", "static"]
"""What an annotation admits: floats; tensors and no floats; whatever (there is none); neither."""


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def admitted_kinds(function: Callable[..., Any]) -> dict[str, Kind]:
    """What the annotation of each argument admits; also where the factory is made in the course of a compiled step."""
    inner = inspect.unwrap(function.func if isinstance(function, functools.partial) else function)
    names = getattr(inner, "__globals__", {})
    parameters = inspect.signature(function).parameters.values()
    return {parameter.name: _admitted_kind(parameter.annotation, names) for parameter in parameters}


def _admitted_kind(annotation: Any, names: dict[str, Any]) -> Kind:
    try:
        hints = get_type_hints(types.SimpleNamespace(__annotations__={"it": annotation}), names)
    except Exception:  # a string that cannot be evaluated is as good as none
        return "anything"
    hint = hints["it"]
    if hint in (inspect.Parameter.empty, Any, object) or isinstance(hint, TypeVar):
        return "anything"
    members = [*_members(hint)]
    if float in members:
        return "float"
    return "tensor" if Tensor in members else "static"


def _members(annotation: Any) -> Iterator[Any]:
    """The alternatives of a union, of unions within it and of aliases; any other annotation alone."""
    annotation = getattr(annotation, "__value__", annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _members(member)
    else:
        yield annotation
