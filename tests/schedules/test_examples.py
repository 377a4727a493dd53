"""The examples in the docstrings hold."""

import doctest

import pytest

import funcopt.schedules
from funcopt.schedules import cyclic, decay, join, warmup


@pytest.mark.parametrize("module", [cyclic, decay, join, warmup], ids=lambda module: module.__name__)
def test_examples(module):
    result = doctest.testmod(module, extraglobs=vars(funcopt.schedules))
    assert result.attempted and not result.failed
