"""Sweeps: one training run for each of many hyperparameters, all of them in one compiled graph."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, _higher_order_ops
from torch.func import grad_and_value, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from funcopt import tree
from funcopt.checks import check_integer
from funcopt.compile import compile
from funcopt.elements import Elements, taken_apart, written_out
from funcopt.transform import GradientTransformation, Params, apply_updates

SMALL = 2**16
"""Up to this many numbers a kernel takes less time than waking a second thread."""

OPERATIONS = 1200
"""As many operations on numbers make a kernel that compiles in seconds."""

MOST_UNROLLED = 10

Train: TypeAlias = Callable[[list[Tensor], dict[str, Tensor], list[Tensor]], tuple[list[Tensor], Tensor]]
"""From the leaves at the start, hyperparameters and batches to the leaves at the end and the losses, by steps."""


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
    turns = None if set(options) - {"backend", "options"} else _turns(configuration, arguments, axes, steps, options)
    train = turns or _looped(configuration, axes, options)

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


def _turns(
    configuration: "_Configuration",
    arguments: tuple[Params, dict[str, Tensor], tree.Tree],
    axes: list[int | None],
    steps: int,
    options: dict[str, Any],
) -> Train | None:
    """Some steps in one kernel, called until all are made; None where a step is not written out in its elements."""
    written = _written(configuration, arguments, axes)
    if written is None:
        return None
    layout = _Layout(_first(configuration, arguments), axes, len(next(iter(arguments[1].values()))))
    unrolled = _unrolled(steps, written.size)
    compiled: dict[int, Callable[..., Any]] = {}

    def train(leaves: list[Tensor], hyperparams: dict[str, Tensor], along: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        carry, rates, losses = layout.carry(leaves), _rows(hyperparams.values(), [0] * len(hyperparams)), []
        for batch in zip(*(part.split(unrolled) for part in along)):
            number, inputs = len(batch[0]), [*carry, *rates, *batch, *written.captured]
            if number not in compiled:
                turn = _turn(written, layout, number, len(carry), len(rates), len(batch))
                compiled[number] = _compiled(turn, inputs, options)
            losses.append(compiled[number](*inputs)[0])
        return layout.leaves(carry), torch.cat(losses)

    return train


def _turn(written: Elements, layout: "_Layout", number: int, *lengths: int) -> Callable[..., list[Tensor]]:
    """So many steps, which write into what is carried and return the losses, as a function of a list of tensors."""

    def turn(*inputs: Tensor) -> list[Tensor]:
        rest = iter(inputs)
        carry, rates, batches = ([next(rest) for _ in range(length)] for length in lengths)
        captured, numbers, losses = list(rest), [], []
        varying, shared = layout.apart(carry)
        for i in range(number):
            shared, more = written.shared(*shared, *taken_apart([*(batch[i] for batch in batches), *captured]))
            numbers += more
        # In memory: the compiler would otherwise compute each anew for every few configurations.
        numbers = _unstacked(_stacked(numbers), [each.dtype for each in numbers])
        for i in range(number):
            now = numbers[i * len(more) : (i + 1) * len(more)]
            *varying, value = written.varying(*rates, *varying, *now)
            losses.append(value.expand(layout.size))
        after, recorded = layout.together(varying, shared), torch.stack(losses)
        for old, new in zip(carry, after):
            old.copy_(new)
        return [recorded]

    return turn


def _compiled(turn: Callable[..., list[Tensor]], inputs: list[Tensor], options: dict[str, Any]) -> Callable[..., Any]:
    """Without Dynamo, whose guards would take longer at each call than the steps do."""
    graph = make_fx(turn, tracing_mode="fake")(*inputs)
    if options.get("backend", "inductor") == "inductor":
        backend = torch._TorchCompileInductorWrapper(None, options.get("options"), False)  # type: ignore[no-untyped-call]
    else:
        backend = torch._dynamo.lookup_backend(options["backend"])
    compiled: Callable[..., Any] = backend(graph, inputs)
    return compiled


def _unrolled(steps: int, size: int) -> int:
    """How many steps of a size are a turn: as many as compile in seconds, without a rest if that can be."""
    most = min(max(OPERATIONS // size, 1), steps, MOST_UNROLLED)
    return next((number for number in range(most, most // 2, -1) if steps % number == 0), most)


def _first(configuration: "_Configuration", arguments: tuple[Params, dict[str, Tensor], tree.Tree]) -> list[Tensor]:
    """The leaves of the first configuration."""
    return configuration.start({name: values[0] for name, values in arguments[1].items()}, arguments[0])


def _written(
    configuration: "_Configuration", arguments: tuple[Params, dict[str, Tensor], tree.Tree], axes: list[int | None]
) -> Elements | None:
    """The step as arithmetic of vectors over the configurations."""
    _, hyperparams, batches = arguments
    leaves, rates = _first(configuration, arguments), [values[0] for values in hyperparams.values()]
    along = [torch.zeros((), device=leaves[0].device), *(leaf[0] for leaf in tree.leaves(batches))]
    if not all(leaf.numel() for leaf in leaves):
        return None

    def flat(*tensors: Tensor) -> list[Tensor]:
        rest = iter(tensors)
        values = {name: next(rest) for name in hyperparams}
        leaves, value = configuration.step(values, [next(rest) for _ in axes], list(rest))
        return [*leaves, value]

    vary = [axis is not None for axis in axes]
    varying = [True for _ in rates] + vary + [False for _ in along]
    return written_out(flat, [*rates, *leaves, *along], varying, [*vary, True], limit=OPERATIONS // 3)


class _Layout:
    """The elements of all leaves in few tensors, which the loop carries: one for each dtype, and whether they vary."""

    def __init__(self, leaves: list[Tensor], axes: list[int | None], size: int) -> None:
        self.shapes = [leaf.shape for leaf in leaves]
        self.axes = axes
        self.size = size
        elements = [[leaf.dtype for _ in range(leaf.numel())] for leaf in leaves]
        self.varying = [dtype for dtypes, axis in zip(elements, axes) if axis is not None for dtype in dtypes]
        self.shared = [dtype for dtypes, axis in zip(elements, axes) if axis is None for dtype in dtypes]

    def carry(self, leaves: list[Tensor]) -> list[Tensor]:
        rows = _rows(leaves, self.axes)
        return self.together(rows, taken_apart(leaf for leaf, axis in zip(leaves, self.axes) if axis is None))

    def together(self, varying: list[Tensor], shared: list[Tensor]) -> list[Tensor]:
        return [*_stacked([row.expand(self.size) for row in varying]), *_stacked(shared)]

    def apart(self, carry: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        number = len(set(self.varying))
        return _unstacked(carry[:number], self.varying), _unstacked(carry[number:], self.shared)

    def leaves(self, carry: list[Tensor]) -> list[Tensor]:
        varying, shared = map(iter, self.apart(carry))
        return [
            torch.stack([next(shared) for _ in range(shape.numel())]).reshape(shape)
            if axis is None
            else torch.stack([next(varying) for _ in range(shape.numel())]).reshape(*shape, -1).movedim(-1, axis)
            for shape, axis in zip(self.shapes, self.axes)
        ]


def _rows(leaves: Iterable[Tensor], axes: list[int | None]) -> list[Tensor]:
    """The elements that vary, as vectors over the configurations."""
    moved = [leaf.movedim(axis, -1) for leaf, axis in zip(leaves, axes) if axis is not None]
    return [row for leaf in moved for row in leaf.reshape(-1, leaf.shape[-1]).unbind()]


def _stacked(parts: list[Tensor]) -> list[Tensor]:
    dtypes = dict.fromkeys(part.dtype for part in parts)
    return [torch.stack([part for part in parts if part.dtype == dtype]) for dtype in dtypes]


def _unstacked(stacks: list[Tensor], dtypes: list[torch.dtype]) -> list[Tensor]:
    parts = {stack.dtype: iter(stack.unbind()) for stack in stacks}
    return [next(parts[dtype]) for dtype in dtypes]


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
