"""Compilation with donation: `torch.compile` after the manner of `jax.jit`."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from funcopt import replay, tree

Result = TypeVar("Result")


def compile(
    fn: Callable[..., Result],
    *,
    donate_argnums: int | Sequence[int] = (),
    fullgraph: bool = True,
    dynamic: bool | None = False,
    **options: Any,
) -> Callable[..., Result]:
    """Compile a pure function, letting it reuse the memory of arguments that are not needed afterwards.

    The result of a step `params, state, loss = step(params, state, batch)` with `donate_argnums=(0, 1)` is written
    into the buffers of the `params` and `state` that were passed in, inside of the compiled graph: the trees that come
    back hold the same tensors with new values, and the step allocates nothing of their size.

    Args:
        fn: a pure function of pytrees of tensors. With donated arguments it is compiled without gradient recording,
            which is what lets the writes be fused; `torch.func.grad` inside of it works.
        donate_argnums: positions of the arguments to donate. For each, the first part of the result (in depth-first
            order) with the same structure, shapes and dtypes is written into it.
        fullgraph, dynamic, options: as for `torch.compile`, with `fullgraph=True` and `dynamic=False` unless told.

    Raises:
        TypeError: `fn` is not callable, a position is no int, or, at the call, a donated leaf is no tensor.
        ValueError: at the call: a position has no positional argument, two donated leaves share memory, or no part of
            the result fits a donated argument. Nothing has been written then.

    >>> step = funcopt.compile(train_step, donate_argnums=(0, 1))
    """
    donated = (donate_argnums,) if isinstance(donate_argnums, int) else tuple(donate_argnums)
    if not callable(fn):
        raise TypeError(f"compile: fn must be a function, got {fn!r}.")
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in donated):
        raise TypeError(f"compile: donate_argnums must be ints, got donate_argnums={donate_argnums!r}.")

    step = prepare(fn, donated, {"fullgraph": fullgraph, "dynamic": dynamic, **options})

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Result:
        with torch.no_grad() if donated else contextlib.nullcontext():
            result: Result = step(args, kwargs)
            return result

    return call


def prepare(
    fn: Callable[..., Result], donated: tuple[int, ...], settings: dict[str, Any]
) -> Callable[[tuple[Any, ...], dict[str, Any]], Result]:
    """The compiled `fn` as a function of `args` and `kwargs`, to be called without gradient recording if it donates."""

    def run(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not donated:
            return fn(*args, **kwargs)
        with torch.no_grad():
            return _write_back(fn(*args, **kwargs), [args[i] for i in donated], donated)

    def guarded(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        _check_donated(args, donated)
        try:
            return compiled(args, kwargs)
        except RuntimeError:
            # An error of fn reaches us as one of the tracer's. fn is pure: run again, eagerly, it raises its own.
            run(tuple(tree.clone(arg) if i in donated else arg for i, arg in enumerate(args)), kwargs)
            raise

    # All compiled functions share the code of `run`: without isolation they would share its limit of graphs, too.
    settings = {"isolate_recompiles": True, **settings}
    recorder = replay.record(settings)
    compiled: Callable[..., Result] = torch.compile(run, **settings)
    _keep_freed_memory()
    return guarded if recorder is None else replay.Replaying(fn, guarded, recorder, donated)


def _keep_freed_memory() -> None:
    """Have the C library keep the memory that a step frees at its end, for the next step.

    Otherwise glibc may give it back, and each step pays for thousands of fresh pages. It does so when more is free at
    the end of the heap than twice the largest block, of at most 32 MiB, that it has mapped and seen freed. This is such
    a block; it is never touched, and so takes no memory. Other allocators, and limits that the user has set, stay as
    they are.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8, device="cpu")


def _check_donated(args: tuple[Any, ...], donated: tuple[int, ...]) -> None:
    for i in donated:
        if not 0 <= i < len(args):
            raise ValueError(
                f"compile: donate_argnums names argument {i}, but the call has {len(args)} positional arguments; "
                "pass donated arguments by position."
            )
    leaves = [leaf for i in donated for leaf in tree.leaves(args[i])]
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            raise TypeError(f"compile: only tensors can be donated, got the leaf {leaf!r}.")
    buffers = [leaf.data_ptr() for leaf in leaves if leaf.numel()]
    if len(set(buffers)) < len(buffers):
        raise ValueError(
            "compile: two donated leaves share memory, so one would overwrite the other; clone one of them first."
        )


def _write_back(result: Any, arguments: list[Any], positions: tuple[int, ...]) -> Any:
    """`result` with the parts that fit `arguments` copied into them, and those tensors in place of their sources."""
    leaves, structure = tree.flatten(result)
    targets: list[Any] = [None] * len(leaves)
    for argument, position in zip(arguments, positions):
        buffers, part = tree.flatten(argument)
        for start, candidate in tree.substructures(structure):
            place = slice(start, start + len(buffers))
            free = all(target is None for target in targets[place])
            if candidate == part and free and all(map(_alike, leaves[place], buffers)):
                targets[place] = buffers
                break
        else:
            raise ValueError(
                f"compile: no part of the result has the structure, shapes and dtypes of the donated argument "
                f"{position}; return its new value, or take {position} out of donate_argnums."
            )
    # Every leaf is copied before the first write: a result may be, or may view, a donated argument.
    values = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    return tree.unflatten(list(map(_write, targets, values)), structure)


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device
    return a is None and b is None


def _write(target: Tensor | None, value: Any) -> Any:
    return value if target is None else target.copy_(value)
