"""What a mutant is: a transformation with a bug that some library had, and what it was meant to be."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import funcopt as fo
from funcopt import tree
from funcopt.numerics import increment
from funcopt.testing.declared import Declared
from funcopt.transform import require_params, zero_count


@dataclass(frozen=True)
class Mutant:
    """A wrong transformation.

    Attributes:
        make: makes it; its name is the mutant's, and its docstring tells the bug, and where it was.
        right: makes what it was meant to be.
        declared: what is declared of either.
    """

    make: Callable[..., fo.GradientTransformation]
    right: Callable[..., fo.GradientTransformation]
    declared: Declared

    @property
    def name(self) -> str:
        return self.make.__name__

    @property
    def bug(self) -> str:
        return (self.make.__doc__ or "").strip()

    def __str__(self) -> str:
        return self.name


def of_rule(rule: Any, buffers: int = 0, coupling: Any = "elementwise", reads: bool = False) -> Any:
    """A transformation from `rule(t, g, *buffers)`, or with the parameter too if it `reads` it: all else is right.

    `t` is the step, 1 at the first. The rule returns the update and the new buffers, which start at zero.
    """

    def init(params):
        return (zero_count(params), *(tree.zeros_like(params) for _ in range(buffers)))

    def update(updates, state, params=None, **extra):
        count = increment(state[0])
        t = count.to(torch.float64)
        given = (require_params(params, "mutant"),) if reads else ()
        result = tree.map_rule(lambda *leaves: rule(t, *leaves), updates, *state[1:], reads=given)
        updates, *kept = result if buffers else (result,)
        return updates, (count, *kept)

    return fo.GradientTransformation(init, update, coupling)


def of_functions(init: Any, update: Any, coupling: Any = "elementwise") -> fo.GradientTransformation:
    """A transformation from `init(params)` and `update(updates, state, params)`."""

    def call(updates, state, params=None, **extra):
        return update(updates, state, params)

    return fo.GradientTransformation(init, call, coupling)


def stateless(f: Any, coupling: Any = "elementwise") -> fo.GradientTransformation:
    """A transformation without state from a function of the tree of updates and that of params."""
    return of_functions(lambda params: (), lambda updates, state, params: (f(updates, params), ()), coupling)
