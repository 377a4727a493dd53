"""Imperative code under vmap, grad and the compiler: in-place operations made pure, tensors where it reads numbers."""

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor
from torch.func import functionalize as without_mutation, vmap
from torch.overrides import TorchFunctionMode

from funcopt import tree

Result = TypeVar("Result")


def is_watched(tensor: Tensor) -> bool:
    """Whether vmap, grad, jvp or autograd follow what becomes of the tensor."""
    recorded = tensor.requires_grad and torch.is_grad_enabled()
    return recorded or torch.func.debug_unwrap(tensor, recurse=False) is not tensor


def take_watched(fn: Callable[..., Result], arguments: tuple[Any, ...]) -> Result:
    """`fn(*arguments)`, where `fn` writes in place and reads tensors as numbers, so that transforms can follow it.

    The first argument holds hyperparameters. If they are watched they get a batch axis of one: torch then refuses to
    read them as numbers, where derivatives would silently take them for constants.
    """
    watched = [leaf for leaf in tree.leaves(arguments) if isinstance(leaf, Tensor) and is_watched(leaf)]

    def run(*arguments: Any) -> Result:
        with TensorsForNumbers(strict=bool(watched)):
            return fn(*arguments)

    if not watched:
        return run(*arguments)
    scalars, *others = arguments
    if not any(isinstance(leaf, Tensor) and is_watched(leaf) for leaf in tree.leaves(scalars)):
        pure: Callable[..., Result] = without_mutation(run)
        return pure(*arguments)
    batch = vmap(without_mutation(run), in_dims=(0, *[None] * len(others)), randomness="different")
    result: Result = tree.map(lambda leaf: leaf[0], batch(tree.map(lambda leaf: leaf[None], scalars), *others))
    return result


class TensorsForNumbers(TorchFunctionMode):
    """While it lasts, `item` returns its tensor, and in-place functions take tensors for `alpha` and `value`.

    With `strict`, `float(tensor)` is an error. Copies into floating-point tensors become sums, whose derivative exists.
    """

    def __init__(self, strict: bool) -> None:
        super().__init__()
        self.strict = strict

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.item:
            return args[0]
        if func is Tensor.copy_ and args[0].is_floating_point():
            return args[0].masked_fill_(torch.ones_like(args[0], dtype=torch.bool), 0).add_(args[1])
        if func is Tensor.__float__ and self.strict:
            self._refuse()
        for name in ("alpha", "value"):
            if isinstance(kwargs.get(name), Tensor):
                scaled = args[1].to(torch.result_type(args[0], args[1]))
                args = (args[0], kwargs.pop(name).to(scaled.dtype) * scaled, *args[2:])
        return func(*args, **kwargs)

    def _refuse(self) -> NoReturn:
        raise RuntimeError("a tensor is read as a float, which vmap and derivatives do not follow.")


class _WithoutDerivative(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(name: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.clone() for tensor in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.name = inputs[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> NoReturn:
        raise RuntimeError(
            f"functionalize: {ctx.name} has no derivative, since its step is taken without gradient recording; detach "
            "the updates, or take a transformation of funcopt."
        )

    jvp = backward


def without_derivative(name: str, tensors: list[Tensor], sources: list[Tensor]) -> list[Tensor]:
    """The tensors, which depend on `sources`, with a derivative that is an error which names the class."""
    return list(_WithoutDerivative.apply(name, len(tensors), *tensors, *sources))  # type: ignore[no-untyped-call]
