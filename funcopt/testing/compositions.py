"""Hypothesis strategies for transformations: those of the library, wrapped and chained at random."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor

import funcopt
from funcopt import tree
from funcopt.testing.arguments import drawable, hyperparameters
from funcopt.testing.trees import Choice, choice
from funcopt.transform import GradientTransformation, Params, chain, named_chain

REAL_ONLY = frozenset({"clip", "keep_params_nonnegative"})
"""Factories whose transformations refuse complex leaves."""

OVERRIDES: Mapping[str, Mapping[str, Choice[Any]]] = {}
"""By the name of a factory, what to draw an argument from that its signature does not describe."""

Inner: TypeAlias = SearchStrategy[GradientTransformation]


def matrices(params: Params) -> tree.Tree:
    """A mask: the leaves of two axes or more."""
    return tree.map(lambda leaf: leaf.ndim >= 2, params)


def from_the_second_step_on(step: Tensor) -> Tensor:
    """A condition of `conditionally_transform`."""
    return step > 0


_MASKS = (True, False, matrices)
_PERIODS = (1, 2, 3)

WRAPPERS: Mapping[str, Callable[[Inner], Mapping[str, Choice[Any]]]] = {
    "masked": lambda inner: {"inner": inner, "mask": _MASKS},
    "freeze": lambda inner: {"inner": inner, "mask": _MASKS},
    "partition": lambda inner: {
        "transforms": st.fixed_dictionaries({True: inner, False: inner}),
        "param_labels": _MASKS,
    },
    "accumulate_gradients": lambda inner: {"inner": inner, "every_k_schedule": _PERIODS},
    "skip_if": lambda inner: {"inner": inner, "should_skip_update_fn": (funcopt.skip_not_finite,)},
    "apply_if_finite": lambda inner: {"inner": inner, "max_consecutive_errors": (0, 2)},
    "conditionally_transform": lambda inner: {
        "inner": inner,
        "should_transform_fn": (from_the_second_step_on,),
        "forward_extra_args": (False,),
    },
    "conditionally_mask": lambda inner: {
        "inner": inner,
        "should_transform_fn": (from_the_second_step_on,),
        "forward_extra_args": (False,),
    },
    "lookahead": lambda inner: {"fast_optimizer": inner, "sync_period": _PERIODS},
    "ema_params": lambda inner: {"inner": inner},
    "swa": lambda inner: {"inner": inner, "start_step": (0, 1), "every": _PERIODS},
    "flatten": lambda inner: {"inner": inner},
    "split_real_and_imaginary": lambda inner: {"inner": inner},
}
"""The wrappers that are composed, each with what to draw for the arguments that its signature does not describe."""

NOT_COMPOSED = frozenset(("scale_by_muon", "scale_by_shape"))  # which want matrices; `muon` chooses them itself
"""Factories that are left out: their updates need more than gradients and parameters, or they do not fit anywhere."""


@functools.cache
def link_factories() -> Mapping[str, Callable[..., GradientTransformation]]:
    """By name, the public factories that wrap nothing: every optimizer, and every link of a chain.

    Read off funcopt itself: what its folders `rules` and `transforms` define, as far as `hyperparameters`, with
    `OVERRIDES`, can draw the arguments.
    """
    simplest = {"identity": funcopt.identity, "sgd": funcopt.sgd, "set_to_zero": funcopt.set_to_zero}
    found = {
        name: value
        for name, value in vars(funcopt).items()
        if getattr(value, "__module__", "").startswith(("funcopt.rules.", "funcopt.transforms."))
        and getattr(value, "__annotations__", {}).get("return") is GradientTransformation
        and name not in NOT_COMPOSED
        and drawable(value, OVERRIDES.get(name, ()))
    }
    return {**simplest, **found}


@st.composite
def _links(draw: DrawFn, names: tuple[str, ...], as_tensors: bool) -> GradientTransformation:
    name = draw(choice(names))
    make = link_factories()[name]
    return make(**draw(hyperparameters(make, overrides=OVERRIDES.get(name), as_tensors=as_tensors)))


@st.composite
def wrapped(draw: DrawFn, inner: Inner, as_tensors: bool = False) -> GradientTransformation:
    """One of the `WRAPPERS` around one of `inner`."""
    name = draw(choice(tuple(WRAPPERS)))
    make: Callable[..., GradientTransformation] = getattr(funcopt, name)
    return make(**draw(hyperparameters(make, overrides=WRAPPERS[name](inner), as_tensors=as_tensors)))


@st.composite
def _injected(draw: DrawFn, as_tensors: bool) -> GradientTransformation:
    """An optimizer whose hyperparameters are in its state."""
    make = link_factories()[draw(choice(_OPTIMIZERS))]
    return funcopt.inject_hyperparams(make)(**draw(hyperparameters(make, as_tensors=as_tensors)))


_OPTIMIZERS = ("sgd", "adam", "adamw", "rmsprop", "adagrad")


@st.composite
def _chains(draw: DrawFn, members: Inner) -> GradientTransformation:
    parts = draw(st.lists(members, min_size=1, max_size=5))
    if draw(st.booleans()):
        return named_chain(*((f"{place}.{_name(part)}", part) for place, part in enumerate(parts)))
    return chain(*parts)


def _name(transformation: GradientTransformation) -> str:
    return "transformation" if transformation.call is None else transformation.call.name


@functools.lru_cache(maxsize=64)
def transformations(max_depth: int = 2, *, complex: bool = False, as_tensors: bool = False) -> Inner:
    """Transformations of funcopt and their compositions, with random valid hyperparameters.

    Depth 1 is one of the library's own; each level more, chains and named chains of 1 to 5 of the level below, one of
    the `WRAPPERS` around one of it, and optimizers under `inject_hyperparams`. With `complex`, only such as take
    complex leaves. `as_tensors` as in `hyperparameters`. They print as the call that makes them. Shrinks to
    `identity()`.

    Raises:
        ValueError: `max_depth` is less than 1.
    """
    if max_depth < 1:
        raise ValueError(f"transformations: max_depth must be at least 1, got max_depth={max_depth}.")
    names = tuple(name for name in link_factories() if not (complex and name in REAL_ONLY))
    links = _links(names, as_tensors)
    if max_depth == 1:
        return links
    below = transformations(max_depth - 1, complex=complex, as_tensors=as_tensors)
    return st.one_of(links, _injected(as_tensors), wrapped(below, as_tensors), _chains(below))
