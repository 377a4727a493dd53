"""LawViolation: which law does not hold, and where, by how much, for which transformation, in which case."""

from typing import Any

import torch
from torch import Tensor

from funcopt import tree
from funcopt.transform import GradientTransformation

_SHOWN = 40  # numbers of a case that are printed; of a larger case, the shapes


class LawViolation(AssertionError):  # noqa: N818  # it is no error of the program, but a finding
    """A law does not hold.

    Attributes:
        law, statement: its name, and what it says.
        problem: what was found instead.
        transformation: what broke it.
        case: the params and the gradients that it was found with, or None.
        remedy: what to declare if it is meant so, or "".
    """

    law = ""
    statement = ""
    remedy = ""
    transformation: GradientTransformation | Any = None  # or a schedule
    case: tuple[tree.Tree, list[tree.Tree]] | None = None
    smallest = False  # whether the case has been shrunk

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        lines = [f"{self.law}: {self.statement}" if self.law else "", f"  {self.problem}"]
        if self.transformation is not None:
            lines.append(f"  by {self.transformation!r}")
        if self.case is not None:
            lines += ["  in the smallest case found" if self.smallest else "  in the case", *_told(*self.case)]
        return "\n".join(line for line in [*lines, f"  {self.remedy}" if self.remedy else ""] if line)


def _told(params: tree.Tree, gradients: list[tree.Tree]) -> list[str]:
    size = sum(leaf.numel() for leaf in tree.leaves((params, gradients)))
    show = expression if size <= _SHOWN else shapes
    lines = [f"    params = {show(params)}"]
    if size > _SHOWN:
        return [*lines, f"    {len(gradients)} gradients of this kind"]
    return [*lines, "    gradients = [", *(f"        {show(each)}," for each in gradients), "    ]"]


def expression(values: tree.Tree) -> str:
    """A tree of tensors as Python code that makes it."""
    return _written(values, _tensor_expression)


def shapes(values: tree.Tree) -> str:
    """A tree of tensors as its containers with dtypes and shapes at the leaves: `{'w': float32[2, 3]}`."""
    return _written(values, lambda leaf: f"{str(leaf.dtype).removeprefix('torch.')}{list(leaf.shape)}")


def _written(values: tree.Tree, show: Any) -> str:
    if isinstance(values, Tensor):
        return str(show(values))
    if isinstance(values, dict):
        return "{" + ", ".join(f"{key!r}: {_written(part, show)}" for key, part in values.items()) + "}"
    if isinstance(values, tuple) and hasattr(values, "_fields"):
        parts = (f"{name}={_written(part, show)}" for name, part in zip(values._fields, values))
        return f"{type(values).__name__}({', '.join(parts)})"
    if isinstance(values, (list, tuple)):
        inner = ", ".join(_written(part, show) for part in values)
        return f"[{inner}]" if isinstance(values, list) else f"({inner}{',' if len(values) == 1 else ''})"
    return repr(values)


def _tensor_expression(leaf: Tensor) -> str:
    if leaf.numel() == 0:
        return f"torch.zeros({tuple(leaf.shape)}, dtype={leaf.dtype})"
    numbers = repr(leaf.tolist()).replace("nan", "float('nan')").replace("inf", "float('inf')")
    dtype = "" if leaf.dtype == torch.float32 else f", dtype={leaf.dtype}"
    return f"torch.tensor({numbers}{dtype})"
