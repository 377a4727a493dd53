"""Training steps of many small runs, as few kernels: each step written out in its elements, several to a kernel."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from funcopt.elements import Elements, taken_apart, written_out

OPERATIONS = 1200
"""As many operations on numbers make a kernel that compiles in seconds."""

MOST_UNROLLED = 10

Train: TypeAlias = Callable[[list[Tensor], dict[str, Tensor], list[Tensor]], tuple[list[Tensor], Tensor]]
"""From the leaves at the start, hyperparameters and batches to the leaves at the end and the losses, by steps."""


class Example(NamedTuple):
    """The arguments of a step of one run."""

    rates: list[Tensor]  # hyperparameters
    leaves: list[Tensor]  # of params and state
    batch: list[Tensor]


def turns(
    step: Callable[[Example], list[Tensor]],
    example: Example,
    axes: list[int | None],
    size: int,
    steps: int,
    options: dict[str, Any],
) -> Train | None:
    """All steps of `size` runs, some of them in each kernel; None where a step cannot be written out in its elements.

    Args:
        step: returns the new leaves, and the loss.
        axes: for each leaf: the axis of the runs, None where all of them share one value.
        options: `backend` and `options`, as for `torch.compile`.
    """
    written = _written(step, example, axes)
    if written is None:
        return None
    layout = _Layout(example.leaves, axes, size)
    unrolled = _unrolled(steps, written.size)
    compiled: dict[int, Callable[..., Any]] = {}

    def train(leaves: list[Tensor], hyperparams: dict[str, Tensor], along: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        carry, rates, losses = layout.carry(leaves), _rows(hyperparams.values(), [0] * len(hyperparams)), []
        for batch in zip(*(torch.split(part, unrolled) for part in along)):
            number, inputs = len(batch[0]), [*carry, *rates, *batch, *written.captured]
            if number not in compiled:
                turn = _turn(written, layout, number, len(carry), len(rates), len(batch))
                compiled[number] = _compiled(turn, inputs, options)
            losses.append(compiled[number](*inputs)[0])
        return layout.leaves(carry), torch.cat(losses)

    return train


def _written(step: Callable[[Example], list[Tensor]], example: Example, axes: list[int | None]) -> Elements | None:
    rates, leaves, batch = example
    if not all(leaf.numel() for leaf in leaves):
        return None

    def flat(*tensors: Tensor) -> list[Tensor]:
        rest = iter(tensors)
        return step(Example(*([next(rest) for _ in part] for part in example)))

    vary = [axis is not None for axis in axes]
    varying = [True for _ in rates] + vary + [False for _ in batch]
    return written_out(flat, [*rates, *leaves, *batch], varying, [*vary, True], limit=OPERATIONS // 3)


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
        backend: Any = torch._TorchCompileInductorWrapper(None, options.get("options"), False)  # type: ignore[no-untyped-call]
    else:
        backend = torch._dynamo.lookup_backend(options["backend"])
    compiled: Callable[..., Any] = backend(graph, inputs)
    return compiled


def _unrolled(steps: int, size: int) -> int:
    """How many steps of a size are a turn: as many as compile in seconds, without a rest if that can be."""
    most = min(max(OPERATIONS // size, 1), steps, MOST_UNROLLED)
    return next((number for number in range(most, most // 2, -1) if steps % number == 0), most)


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
