"""Small pytrees for tests, drawn from seeds, and comparisons of trees."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from funcopt import tree

SHAPES = {"a": {"bias": (3,), "weight": (4, 3)}, "b": [(), (0, 3)], "c": (2, 3, 2)}
"""A nested dict, a list, a 0-d leaf and an empty one. Its keys are sorted, so that jax orders the leaves alike."""


def draw(seed: int, dtype: torch.dtype = torch.float64, shapes: Any = SHAPES) -> Any:
    """A tree of normal numbers."""
    generator = torch.Generator().manual_seed(seed)

    def fill(shape: Any) -> Any:
        if isinstance(shape, dict):
            return {key: fill(value) for key, value in shape.items()}
        if isinstance(shape, list):
            return [fill(value) for value in shape]
        wide = torch.complex128 if dtype.is_complex else torch.float64
        return torch.randn(shape, generator=generator, dtype=wide).to(dtype)

    return fill(shapes)


def stack(trees: list[Any]) -> Any:
    return tree.map(lambda *leaves: torch.stack(leaves), *trees)


def run(transformation: Any, params: Any, steps: int, seed: int = 10, dtype: torch.dtype = torch.float64) -> Any:
    """The updates of each step, and the last state, with params held fixed."""
    state = transformation.init(params)
    history = []
    for step in range(steps):
        updates, state = transformation.update(draw(seed + step, dtype), state, params)
        history.append(updates)
    return history, state


def assert_close(actual: Any, expected: Any, rtol: float, atol: float = 0.0, what: str = "") -> None:
    """Every leaf within `rtol` of the largest magnitude in the expected leaf (or `atol`); the error names the leaf."""
    pairs = tree.leaves_with_path(actual), tree.leaves_with_path(expected)
    assert [path for path, _ in pairs[0]] == [path for path, _ in pairs[1]], what
    for (path, a), (_, b) in zip(*pairs):
        if b is None or b.numel() == 0:
            assert a is None if b is None else a.shape == b.shape
            continue
        assert a.shape == b.shape, f"{what} at {path}: shape {tuple(a.shape)}, expected {tuple(b.shape)}"
        a, b = (x.to(torch.complex128 if x.is_complex() else torch.float64) for x in (a, b))
        deviation, bound = (a - b).abs().max().item(), max(rtol * b.abs().max().item(), atol)
        assert deviation <= bound, f"{what} at {path}: off by {deviation:.3g}, granted {bound:.3g}\n{a}\n{b}"


def assert_identical(actual: Any, expected: Any, what: str = "") -> None:
    """The same structure, and every leaf the same dtype and the same numbers, NaN in the same places."""
    assert tree.flatten(actual)[1] == tree.flatten(expected)[1], what
    for (path, a), (_, b) in zip(tree.leaves_with_path(actual), tree.leaves_with_path(expected)):
        if b is None:
            assert a is None, f"{what} at {path}"
            continue
        assert a.dtype == b.dtype, f"{what} at {path}: {a.dtype}, expected {b.dtype}"
        numbers = ~b.isnan()
        assert torch.equal(~a.isnan(), numbers), f"{what} at {path}:\n{a}\n{b}"
        assert torch.equal(a[numbers], b[numbers]), f"{what} at {path}:\n{a}\n{b}"


def all_finite(values: Any) -> bool:
    return all(bool(torch.isfinite(leaf).all()) for leaf in tree.leaves(values))


def weighted_sum(values: Any, seed: int = 99) -> Tensor:
    """A scalar that depends on every number of a tree, with weights of its own for each."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros((), dtype=torch.float64)
    for leaf in tree.leaves(values):
        total = total + (torch.randn(leaf.shape, generator=generator, dtype=torch.float64) * leaf).sum()
    return total


def finite_difference(fn: Callable[[Tensor], Tensor], at: Tensor, step: float = 2e-7) -> Tensor:
    """The derivative from four values around a point; the error is of order `step⁴`, and of `1e-16 / step`."""
    near = fn(at + step) - fn(at - step)
    far = fn(at + 2 * step) - fn(at - 2 * step)
    return (8 * near - far) / (12 * step)
