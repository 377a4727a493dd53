"""Sweeps: one training run for each of many hyperparameters, all of them in one compiled graph."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, _higher_order_ops
from torch.func import grad_and_value, vmap

from funcopt import tree
from funcopt.checks import check_integer
from funcopt.compile import compile
from funcopt.transform import GradientTransformation, Params, apply_updates
from funcopt.turns import Example, Train, turns

SMALL = 2**16
"""Up to this many numbers a kernel takes less time than waking a second thread."""


class SweepResult(NamedTuple):
    params: Params  # after the last step, with a leading axis of configurations
    losses: Tensor  # before the steps 0, k, 2k, ...; of the shape (configurations, records)


def sweep(
    make: Callable[..., GradientTransformation],
    loss: Callable[..., Tensor],
    *,
    steps: int,
    record_every: int = 1,
    **options: Any,
) -> Callable[..., SweepResult]:
    """A function that trains with many hyperparameters at once: `train(params, hyperparams, batches=None)`.

    `hyperparams` is a dict of tensors with a leading axis of N configurations. Configuration i starts at `params` and
    makes `steps` steps with the optimizer `make(**hyperparams[i])`, where every value is a tensor without that axis.
    All of them run under `vmap`, and all steps in one loop inside of one compiled graph, so that a step costs no call
    from Python. A `train` compiles at its first call, and again for other shapes; keep it for further sweeps.

    Args:
        make: a factory, or a function of keyword arguments to a transformation, such as
            `lambda rate, decay: chain(clip(1.0), adamw(rate, weight_decay=decay))`.
        loss: `loss(params)`, or `loss(params, batch)` if `train` is given batches: a tree of tensors with a leading
            axis of `steps`. All configurations see the same batch at a step.
        steps: how many.
        record_every: k; losses are recorded before the steps 0, k, 2k, ...
        options: as for `torch.compile`.

    Raises:
        TypeError: `make` or `loss` is no function, or `steps` or `record_every` no int. At the call: a leaf of params,
            hyperparams or batches is no tensor.
        ValueError: `steps` or `record_every` is less than 1. At the call: there are no hyperparameters, their leading
            axes differ, or that of the batches is not `steps`.

    >>> train = sweep(sgd, lambda x: x.square().sum(), steps=2, backend="eager")
    >>> train(torch.ones(1), {"learning_rate": torch.tensor([0.0, 0.25, 0.5])}).params
    tensor([[1.0000],
            [0.2500],
            [0.0000]])
    """
    for name, value in {"make": make, "loss": loss}.items():
        if not callable(value):
            raise TypeError(f"sweep: {name} must be a function, got {name}={value!r}.")
    check_integer("sweep", 1, steps=steps, record_every=record_every)
    runs: dict[Any, Callable[..., tuple[Params, Tensor]]] = {}

    def train(params: Params, hyperparams: Mapping[str, Tensor], batches: tree.Tree = None) -> SweepResult:
        size = _check(params, hyperparams, batches, steps)
        arguments = (params, {name: values.contiguous() for name, values in hyperparams.items()}, batches)
        key = (_signature(arguments), _referred_to(make), _referred_to(loss))
        with torch.no_grad():
            if key not in runs:
                settings = options if "backend" in options else {"options": _inductor_options(params, size), **options}
                runs[key] = _training_run(make, loss, steps, arguments, settings)
            final, losses = runs[key](*arguments)
        return SweepResult(final, losses[:, ::record_every])

    return train


def _check(params: Params, hyperparams: Mapping[str, Tensor], batches: tree.Tree, steps: int) -> int:
    """The number of configurations."""
    if not hyperparams:
        raise ValueError("sweep: hyperparams must hold at least one tensor, got none.")
    for name, part in {"params": params, "hyperparams": dict(hyperparams), "batches": batches}.items():
        for path, leaf in tree.leaves_with_path(part) if part is not None else ():
            if not isinstance(leaf, Tensor):
                raise TypeError(f"sweep: {name} must be a tree of tensors, got {leaf!r} at {path!r}.")
            if name != "params" and leaf.ndim == 0:
                raise ValueError(f"sweep: {name} must have a leading axis, got the 0-d tensor {leaf} at {path!r}.")
    sizes = {name: len(values) for name, values in hyperparams.items()}
    if len(set(sizes.values())) > 1 or 0 in sizes.values():
        raise ValueError(f"sweep: hyperparams must have one leading size, of at least 1, got the sizes {sizes}.")
    for path, leaf in tree.leaves_with_path(batches) if batches is not None else ():
        if len(leaf) != steps:
            raise ValueError(f"sweep: batches must have a leading axis of steps={steps}, got {len(leaf)} at {path!r}.")
    return next(iter(sizes.values()))


def _signature(arguments: tuple[Any, ...]) -> Any:
    leaves, structure = tree.flatten(arguments)
    parts = [(tuple(leaf.shape), leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    return (str(structure), *parts)


class _Same(NamedTuple):
    """Equal to itself only; holds on to the value, so that no other one takes its place in memory."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _referred_to(function: Callable[..., Any]) -> tuple[Any, ...]:
    """What the names in a function stand for, which is read when it is compiled."""
    if not inspect.isroutine(function):
        return (_Same(function),)
    found = inspect.getclosurevars(function)
    return tuple((name, _Same(value)) for part in (found.nonlocals, found.globals) for name, value in part.items())


def _inductor_options(params: Params, size: int) -> dict[str, Any]:
    """The loop in C++ and not in Python, at half the time; and one thread where the work is small."""
    numbers = size * sum(leaf.numel() for leaf in tree.leaves(params))
    # Steps written out are one kernel, if they may be one; many short expressions compile faster than few long ones.
    fusion = {"max_fusion_size": 10_000, "realize_opcount_threshold": 8}
    return {"cpp_wrapper": True, **fusion, **({"cpp.threads": 1} if numbers <= SMALL else {})}


def _training_run(
    make: Callable[..., GradientTransformation],
    loss: Callable[..., Tensor],
    steps: int,
    arguments: tuple[Params, dict[str, Tensor], tree.Tree],
    options: dict[str, Any],
) -> Callable[[Params, dict[str, Tensor], tree.Tree], tuple[Params, Tensor]]:
    """All steps of all configurations, as a pure function of params, hyperparams and batches."""
    size = len(next(iter(arguments[1].values())))
    configuration = _configuration(make, loss, arguments)
    axes = _axes_that_vary(configuration, arguments, size)
    train = _in_turns(configuration, arguments, axes, steps, options) or _looped(configuration, axes, options)

    def run(params: Params, hyperparams: dict[str, Tensor], batches: tree.Tree) -> tuple[Params, Tensor]:
        # Outside of the graph, which takes the leaves as donated and writes the final ones in their place.
        start = _start(configuration, hyperparams, params, axes)
        # Zeros along the steps also where there are no batches: the loop takes its length from them.
        along = [torch.zeros(steps, device=start[0].device), *tree.leaves(batches)]
        leaves, losses = train(start, hyperparams, along)
        leaves = [_leading(leaf, axis, size) for leaf, axis in zip(leaves, axes)]
        return tree.unflatten(leaves, configuration.structure)[0], losses.T

    return run


def _looped(configuration: "_Configuration", axes: list[int | None], options: dict[str, Any]) -> Train:
    """All steps in a loop inside of one graph."""
    step = vmap(configuration.step, in_dims=(0, axes, None), out_dims=(_out_dims(axes), 0))

    def loop(leaves: list[Tensor], hyperparams: dict[str, Tensor], along: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        def body(leaves: list[Tensor], batch: list[Tensor]) -> tuple[list[Tensor], Tensor]:
            leaves, value = step(hyperparams, leaves, batch)
            return [_own(leaf) for leaf in _place(leaves, axes)], _own(value)

        leaves, losses = _higher_order_ops.scan(body, leaves, along)
        return leaves, losses

    return compile(loop, donate_argnums=0, **options)


def _in_turns(
    configuration: "_Configuration",
    arguments: tuple[Params, dict[str, Tensor], tree.Tree],
    axes: list[int | None],
    steps: int,
    options: dict[str, Any],
) -> Train | None:
    """Some steps in one kernel, called until all are made; None where that cannot be."""
    params, hyperparams, batches = arguments
    if set(options) - {"backend", "options"}:
        return None
    first = {name: values[0] for name, values in hyperparams.items()}
    leaves = configuration.start(first, params)
    batch = [torch.zeros((), device=leaves[0].device), *(leaf[0] for leaf in tree.leaves(batches))]

    def step(example: Example) -> list[Tensor]:
        leaves, value = configuration.step(dict(zip(first, example.rates)), example.leaves, example.batch)
        return [*leaves, value]

    size = len(next(iter(hyperparams.values())))
    return turns(step, Example(list(first.values()), leaves, batch), axes, size, steps, options)


class _Configuration(NamedTuple):
    """The training of one configuration, as functions of lists of leaves, which is what loops and axes are made of."""

    structure: Any  # of the pair of params and state
    start: Callable[[dict[str, Tensor], Params], list[Tensor]]
    step: Callable[[dict[str, Tensor], list[Tensor], list[Tensor]], tuple[list[Tensor], Tensor]]


def _configuration(
    make: Callable[..., GradientTransformation],
    loss: Callable[..., Tensor],
    arguments: tuple[Params, dict[str, Tensor], tree.Tree],
) -> _Configuration:
    params, hyperparams, batches = arguments
    batch_structure = tree.flatten(batches)[1]
    first = {name: values[0] for name, values in hyperparams.items()}
    structure = tree.flatten((params, make(**first).init(params)))[1]

    def start(hyperparams: dict[str, Tensor], params: Params) -> list[Tensor]:
        return tree.flatten((params, make(**hyperparams).init(params)))[0]

    def step(hyperparams: dict[str, Tensor], leaves: list[Tensor], along: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        params, state = tree.unflatten(leaves, structure)
        batch = () if batches is None else (tree.unflatten(along[1:], batch_structure),)
        grads, value = grad_and_value(loss)(params, *batch)
        updates, state = make(**hyperparams).update(grads, state, params, value=value, grad=grads)
        return tree.flatten((apply_updates(params, updates), state))[0], value

    return _Configuration(structure, start, step)


def _axes_that_vary(
    configuration: _Configuration, arguments: tuple[Params, dict[str, Tensor], tree.Tree], size: int
) -> list[int | None]:
    """For each leaf of params and state: the axis of configurations, None where all of them share one value.

    A step count, and what is computed from it, is shared. vmap tells: what it did not batch, it expands, with stride 0.
    """
    params, hyperparams, batches = arguments
    first = [torch.zeros(()), *(leaf[0] for leaf in tree.leaves(batches))]
    leaves = vmap(configuration.start, in_dims=(0, None))(hyperparams, params)
    axes = [_axis(leaf, size) for leaf in leaves]
    while True:
        start = _start(configuration, hyperparams, params, axes)
        leaves = vmap(configuration.step, in_dims=(0, axes, None))(hyperparams, start, first)[0]
        after = [_axis(leaf, size) if axis is None else axis for axis, leaf in zip(axes, leaves)]
        if after == axes:
            return axes
        axes = after


def _start(
    configuration: _Configuration, hyperparams: dict[str, Tensor], params: Params, axes: list[int | None]
) -> list[Tensor]:
    leaves = vmap(configuration.start, in_dims=(0, None), out_dims=_out_dims(axes))(hyperparams, params)
    return [_own(leaf) for leaf in _place(leaves, axes)]


def _axis(leaf: Tensor, size: int) -> int | None:
    """The axis for a leaf that vmap returned: last for scalars and vectors, whose kernels then run along it."""
    if size > 1 and leaf.stride(0) == 0:
        return None
    return -1 if leaf.ndim <= 2 else 0


def _out_dims(axes: list[int | None]) -> Any:
    """0 for each axis: vmap in torch 2.13 expands what it did not batch along 0 only; for -1 it reads out of bounds."""
    return [None if axis is None else 0 for axis in axes]


def _place(leaves: list[Tensor], axes: list[int | None]) -> list[Tensor]:
    """The leaves as vmap gives them, with the configurations at their axes."""
    return [leaf if axis is None else leaf.movedim(0, axis) for leaf, axis in zip(leaves, axes)]


def _own(leaf: Tensor) -> Tensor:
    """A contiguous copy: what the loop carries must be its own, and keep its strides."""
    return leaf.clone(memory_format=torch.contiguous_format)


def _leading(leaf: Tensor, axis: int | None, size: int) -> Tensor:
    return _own(leaf.expand(size, *leaf.shape) if axis is None else leaf.movedim(axis, 0))
