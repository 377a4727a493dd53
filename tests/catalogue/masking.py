"""Masks, partitions, multipliers by path.

All builders take a `mask`: a tree of bools, a function of params, or patterns. Bools, and 2, are labels of a partition;
for multipliers they tell which of two factors a leaf gets.
"""

import fnmatch
from typing import Any

import funcopt as fo
from funcopt import tree
from tests.catalogue.entry import DECAY_MASK, Entry, decaying, only_matrices

WEIGHTS = {"*weight": True, "b*": False, "*": False}
GROUPS = {"*weight": True, "b*": 2, "*": False}


def clipped(library: Any, max_norm: float | None, optimizer: Any) -> Any:
    return optimizer if max_norm is None else library.chain(library.clip_by_global_norm(max_norm), optimizer)


def clipped_adam(library: Any, max_norm: float | None, learning_rate: Any) -> Any:
    return clipped(library, max_norm, library.adam(learning_rate, b1=0.8, eps=1e-3))


def groups(library: Any, max_norm: float | None, learning_rate: Any) -> dict[int, Any]:
    """Three groups, and one without leaves."""
    return {
        True: clipped_adam(library, max_norm, learning_rate),
        False: library.sgd(learning_rate, momentum=0.8),
        2: clipped(library, max_norm, library.sgd(0.3)),
        3: library.adam(0.1),
    }


def masked(mask: Any, max_norm: float | None = None, learning_rate: Any = 0.1) -> fo.GradientTransformation:
    return fo.masked(clipped_adam(fo, max_norm, learning_rate), mask)


def freeze(mask: Any, max_norm: float | None = None, learning_rate: Any = 0.1) -> fo.GradientTransformation:
    return fo.freeze(clipped_adam(fo, max_norm, learning_rate), mask)


def partition(mask: Any, max_norm: float | None = None, learning_rate: Any = 0.1) -> fo.GradientTransformation:
    return fo.partition(groups(fo, max_norm, learning_rate), mask)


def scale_by_path(mask: Any, first: float = 0.5, second: float = 3.0) -> fo.GradientTransformation:
    def factor(chosen: bool) -> float:
        return first if chosen else second

    if callable(mask):
        return fo.scale_by_path(lambda params: tree.map(factor, mask(params)))
    return fo.scale_by_path(tree.map(factor, mask))


# ------------------------------------------------------------------------------------------- the same with optax


def for_optax(mask: Any) -> Any:
    """Patterns as the function of params that optax would need, other masks as they are."""
    import jax

    def first_match(path: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return next(value for pattern, value in mask.items() if fnmatch.fnmatchcase(name, pattern))

    if isinstance(mask, dict) and "*" in mask:
        return lambda params: jax.tree_util.tree_map_with_path(first_match, params)
    return mask


def optax_masked(mask: Any, max_norm: float | None = None, learning_rate: Any = 0.1) -> Any:
    import optax

    return optax.masked(clipped_adam(optax, max_norm, learning_rate), for_optax(mask))


def optax_freeze(mask: Any, max_norm: float | None = None, learning_rate: Any = 0.1) -> Any:
    """selective_transform takes the mask as a tree only."""
    import optax

    optimizer = clipped_adam(optax, max_norm, learning_rate)
    if callable(mask):
        return optax.partition({False: optimizer, True: optax.set_to_zero()}, mask)
    return optax.selective_transform(optimizer, freeze_mask=mask)


def optax_partition(mask: Any, max_norm: float | None = None, learning_rate: Any = 0.1) -> Any:
    import optax

    return optax.partition(groups(optax, max_norm, learning_rate), for_optax(mask))


def optax_scale_by_path(mask: Any, first: float = 0.5, second: float = 3.0) -> Any:
    import optax

    return optax.partition({True: optax.scale(first), False: optax.scale(second)}, for_optax(mask))


SCALARS = ("max_norm", "learning_rate")

MASKING: tuple[Entry, ...] = (
    Entry(
        "masked",
        (
            {"mask": only_matrices, "learning_rate": decaying},
            {"mask": DECAY_MASK, "max_norm": 1.5, "learning_rate": 0.05},
            {"mask": WEIGHTS, "max_norm": 1.5, "learning_rate": 0.05},
        ),
        scalars=SCALARS,
        build=masked,
        optax=optax_masked,
    ),
    Entry(
        "freeze",
        (
            {"mask": only_matrices, "learning_rate": decaying},
            {"mask": DECAY_MASK, "max_norm": 1.5, "learning_rate": 0.05},
        ),
        scalars=SCALARS,
        build=freeze,
        optax=optax_freeze,
    ),
    Entry(
        "partition",
        (
            {"mask": GROUPS, "max_norm": 0.5, "learning_rate": 0.05},
            {"mask": DECAY_MASK, "learning_rate": decaying},
            {"mask": only_matrices, "learning_rate": 0.05},
        ),
        scalars=SCALARS,
        build=partition,
        optax=optax_partition,
    ),
    Entry(
        "scale_by_path",
        (
            {"mask": only_matrices, "first": 0.3, "second": -2.0},
            {"mask": {"*bias": True, "*": False}, "first": 0.3, "second": -2.0},
        ),
        scalars=("first", "second"),
        build=scale_by_path,
        optax=optax_scale_by_path,
    ),
)

MASKING_ELSEWHERE: dict[str, str] = {
    "by_path": "tests/wrappers/test_patterns.py",
    "describe": "tests/wrappers/test_describe.py",
}
"""Public functions that are no transformation, and the file that tests them."""
