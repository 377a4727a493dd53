"""LawViolation: which law does not hold, and where, by how much, for which transformation, in which case."""

from typing import Any

from funcopt import tree
from funcopt.testing.printing import source
from funcopt.testing.scripts import law_reproducer
from funcopt.transform import GradientTransformation

_SHOWN = 40  # numbers of a case that are printed; of a larger case, the shapes


class LawViolation(AssertionError):  # noqa: N818  # it is no error of the program, but a finding
    """A law does not hold.

    Attributes:
        law, statement: its name, and what it says.
        problem: what was found instead.
        transformation: what broke it.
        case: the params and the gradients that it was found with, or None.
        check, declared: the law itself, and what was declared.
        remedy: what to declare if it is meant so, or "".
    """

    law = ""
    statement = ""
    remedy = ""
    transformation: GradientTransformation | Any = None  # or a schedule
    case: tuple[tree.Tree, list[tree.Tree]] | None = None
    check: Any = None
    declared: Any = None
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

    def reproducer(self) -> str:
        """A script that checks the law again in the case: it raises this violation.

        What cannot be imported (a function local to another, a lambda, what is defined in the script that ran) a
        comment names, to be defined there. A violation of a schedule, or of a session, has no case and no script: "".
        """
        if self.case is None or self.check is None:
            return ""
        return law_reproducer(self.check, *self.case, self.transformation, self.declared)


def _told(params: tree.Tree, gradients: list[tree.Tree]) -> list[str]:
    size = sum(leaf.numel() for leaf in tree.leaves((params, gradients)))
    show = source if size <= _SHOWN else shapes
    lines = [f"    params = {show(params)}"]
    if size > _SHOWN:
        return [*lines, f"    {len(gradients)} gradients of this kind"]
    return [*lines, "    gradients = [", *(f"        {show(each)}," for each in gradients), "    ]"]


def shapes(values: tree.Tree) -> str:
    """A tree of tensors as its containers with dtypes and shapes at the leaves: `{'w': float32[2, 3]}`."""
    named = tree.map(lambda leaf: _Named(f"{str(leaf.dtype).removeprefix('torch.')}{list(leaf.shape)}"), values)
    return repr(named)


class _Named(str):
    def __repr__(self) -> str:
        return str(self)
