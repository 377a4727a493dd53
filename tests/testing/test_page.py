"""docs/testing.md has the tables that the code makes, and its table of mutants is the one that the laws give."""

from pathlib import Path

import pytest
import torch

from funcopt.testing import LAWS
from tests.testing import tables
from tests.testing.mutants import MUTANTS, laws_that_catch, row
from tests.testing.test_mutants import WITNESSES

PAGE = (Path(__file__).parents[2] / "docs" / "testing.md").read_text().splitlines()
CAUGHT = [line for line in PAGE if line.count(" | ") == 2 and line.split()[1] in {mutant.name for mutant in MUTANTS}]
"""The rows of the table of mutants."""


@pytest.mark.parametrize("table", [tables.laws, tables.declarations, tables.optax_findings, tables.torch_findings])
def test_the_page_has_the_table(table):
    rows = table().splitlines()
    start = PAGE.index(rows[0])
    assert PAGE[start : start + len(rows) + 1] == [*rows, ""], "paste what python -m tests.testing.tables prints"


def test_every_mutant_has_a_row_with_its_bug_and_known_laws():
    assert len(CAUGHT) == len(MUTANTS)
    for line, mutant in zip(CAUGHT, MUTANTS):
        laws = line.removesuffix(" |").split(" | ")[-1].split(", ")
        assert line == row(mutant, laws)
        assert set(laws) <= {law.name for law in LAWS}


def test_every_witness_is_in_the_table():
    rows = {line.split()[1]: line.removesuffix(" |").split(" | ")[-1].split(", ") for line in CAUGHT}
    assert all(law in rows[mutant] for law, mutant in WITNESSES.items())


ADDRESSES = "state_by_identity"  # what breaks depends on where tensors come to lie in memory, a little


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the compiler, which would count as a failure of the law
@pytest.mark.parametrize("mutant", [mutant for mutant in MUTANTS if mutant.name != ADDRESSES], ids=str)
def test_the_row_of_a_mutant_is_right(mutant):
    torch.compiler.reset()
    assert row(mutant, laws_that_catch(mutant)) in PAGE, "paste what python -m tests.testing.mutants prints"
    torch.compiler.reset()
