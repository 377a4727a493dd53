"""Every entry of the catalogue under all laws that apply to it."""

import functools

import pytest
import torch

import funcopt as fo
from funcopt.testing.check import check
from funcopt.testing.declared import Declared
from funcopt.testing.laws import LAWS
from funcopt.testing.modes import compiled_hyperparameters
from funcopt.testing.trajectory import generic
from tests.catalogue import CASES, ENTRIES, case_id
from tests.testing.declarations import QUIRKS, SPECIAL, declared

ONCE = [law for law in LAWS if law is not compiled_hyperparameters]
SHAPES = {
    "a": {"bias": torch.empty(3), "weight": torch.empty(2, 3)},
    "b": [torch.empty(()), torch.empty(0, 2)],
    "c": torch.empty(2, 1, 2),
}
TREE = generic(SHAPES, 1), [generic(SHAPES, seed) for seed in (2, 3, 4)]
"""A nested dict, a list, a 0-d leaf and an empty one, and three gradients."""


pytestmark = pytest.mark.slow  # minutes: the default run has tests/laws for it


@pytest.fixture(autouse=True)
def fresh_compiler():
    yield
    torch.compiler.reset()


def factory_of(entry, case):
    return functools.partial(entry.build or getattr(fo, entry.name), **case)


@pytest.mark.parametrize("entry, case", CASES, ids=case_id)
def test_laws(entry, case):
    check(factory_of(entry, case), ONCE, declared(entry, case), *TREE)


@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if entry.scalars], ids=str)
def test_compiled_hyperparameters(entry):
    case = entry.cases[-1]
    check(factory_of(entry, case), [compiled_hyperparameters], declared(entry, case), *TREE)


@pytest.mark.parametrize("name", SPECIAL)
def test_laws_of_special_cases(name):
    make, known = SPECIAL[name]
    switched_on = [law for law in ONCE if law.applies(make(), known) and not law.applies(make(), Declared())]
    assert switched_on
    check(make, switched_on, known, *TREE)


def test_quirks_name_entries():
    assert set(QUIRKS) <= {entry.name for entry in ENTRIES}
