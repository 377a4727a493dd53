"""Every entry of the catalogue under all laws that apply to it."""

import functools

import pytest
import torch

import funcopt as fo
from funcopt.testing import EAGER, LAWS, TRANSFORMED, Declared, check, fixed_case
from funcopt.testing.modes import compiled, compiled_hyperparameters
from funcopt.testing.trajectory import generic
from tests.catalogue import CASES, ENTRIES, OPTIMIZERS, TRANSFORMATIONS, case_id
from tests.testing.declarations import QUIRKS, SPECIAL, declared

COMPILED = (compiled, compiled_hyperparameters)
QUICK = [law for law in LAWS if law not in COMPILED]
SHAPES = {
    "a": {"bias": torch.empty(3), "weight": torch.empty(2, 3)},
    "b": [torch.empty(()), torch.empty(0, 2)],
    "c": torch.empty(2, 1, 2),
}
"""A nested dict, a list, a 0-d leaf and an empty one."""
SMALL = {"b": torch.empty(()), "weight": torch.empty(2, 3)}
"""For the compiler, which takes half a second for each leaf."""


def case_of(shapes):
    return generic(shapes, 1), [generic(shapes, seed) for seed in (2, 3, 4)]


def case_to_compile(case):
    return case_of(SHAPES if "mask" in case else SMALL)  # masks are written for the leaves of SHAPES


@pytest.fixture(autouse=True)
def fresh_compiler():
    yield
    torch.compiler.reset()


def factory_of(entry, case):
    return functools.partial(entry.build or getattr(fo, entry.name), **case)


@pytest.mark.parametrize("entry, case", CASES, ids=case_id)
def test_laws(entry, case):
    check(factory_of(entry, case), QUICK, declared(entry, case), *case_of(SHAPES))


CORE = (*OPTIMIZERS, *TRANSFORMATIONS)
WITH_SCALARS = [
    pytest.param(entry, marks=() if entry in CORE and not entry.heavy else pytest.mark.slow)
    for entry in ENTRIES
    if entry.scalars
]


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_compiled(entry):
    """The last case, which has the most in it; the slow tests compile all."""
    case = entry.cases[-1]
    check(factory_of(entry, case), [compiled], declared(entry, case), *case_to_compile(case))


@pytest.mark.parametrize("entry", WITH_SCALARS, ids=str)
def test_compiled_hyperparameters(entry):
    case = entry.cases[-1]
    check(factory_of(entry, case), [compiled_hyperparameters], declared(entry, case), *case_to_compile(case))


@pytest.mark.parametrize("name", SPECIAL)
def test_laws_of_special_cases(name):
    make, known = SPECIAL[name]
    switched_on = [law for law in QUICK if law.applies(make(), known) and not law.applies(make(), Declared())]
    assert switched_on
    check(make, switched_on, known, *fixed_case())


@pytest.mark.slow
@pytest.mark.parametrize("entry, case", CASES, ids=case_id)
def test_compiled_with_all_leaves(entry, case):
    check(factory_of(entry, case), [compiled], declared(entry, case), *case_of(SHAPES))


UNMASKED = [entry for entry in ENTRIES if "mask" not in entry.cases[-1]]  # a mask is written for certain leaves


@pytest.mark.slow
@pytest.mark.parametrize("entry", UNMASKED, ids=str)
def test_laws_on_drawn_cases(entry):
    """Params of any structure, layout and dtype, gradients that vanish, explode, or are absent."""
    case = entry.cases[-1]
    check(factory_of(entry, case), [*EAGER, *TRANSFORMED[:-2]], declared(entry, case), max_examples=4)


def test_quirks_name_entries():
    assert set(QUIRKS) <= {entry.name for entry in ENTRIES}


def test_all_three_kinds_of_coupling_occur():
    couplings = [entry.make(**case).coupling for entry, case in CASES]
    assert couplings.count("elementwise") > 20 and couplings.count("leafwise") > 2 and couplings.count("treewise") > 2
