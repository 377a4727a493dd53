"""Wrong transformations, each with a bug of a real library, and the laws that catch them.

    python -m tests.testing.mutants

prints the table of mutants and laws.
"""

import random
from collections.abc import Iterable, Sequence

import torch

from funcopt.testing.check import fixed_case, violations
from funcopt.testing.law import Law
from funcopt.testing.laws import LAWS
from tests.testing.wrong import Mutant
from tests.testing.wrong_modes import MODES
from tests.testing.wrong_moments import MOMENTS
from tests.testing.wrong_sizes import SIZES
from tests.testing.wrong_state import STATE

MUTANTS: tuple[Mutant, ...] = (*MOMENTS, *STATE, *SIZES, *MODES)


def laws_that_catch(mutant: Mutant, laws: Iterable[Law] = LAWS) -> list[str]:
    """The names of the laws that the mutant breaks; those that draw from a global generator draw the same."""
    random.seed(0)
    torch.manual_seed(0)
    return [violation.law for violation in violations(mutant.make, laws, mutant.declared, *fixed_case())]


def table(mutants: Sequence[Mutant] = MUTANTS, laws: Iterable[Law] = LAWS) -> str:
    """Every mutant, its bug, and the laws that catch it, as a table in Markdown."""
    rows = [row(mutant, laws_that_catch(mutant, laws)) for mutant in mutants]
    return "\n".join(["| mutant | bug | caught by |", "|---|---|---|", *rows])


def row(mutant: Mutant, caught_by: Iterable[str]) -> str:
    bug = mutant.bug.replace("|", r"\|")  # a bar ends a cell
    return f"| {mutant} | {bug} | {', '.join(caught_by)} |"


if __name__ == "__main__":
    print(table())
