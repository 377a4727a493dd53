"""Masks, partitions, multipliers by path.

The builders take `mask`, a tree of bools or a function of params, or else `patterns`. Bools are labels of a partition.
"""

import fnmatch
from typing import Any

import funcopt as fo
from funcopt import tree
from tests.catalogue.entry import DECAY_MASK, Entry, decaying, only_matrices

WEIGHTS = {"*weight": True, "b*": False, "*": False}


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
        3: clipped_adam(library, max_norm, 0.1),
    }


def chosen(mask: Any, patterns: Any) -> Any:
    return mask if patterns is None else patterns


def masked(
    mask: Any = None, patterns: Any = None, max_norm: float | None = None, learning_rate: Any = 0.1
) -> fo.GradientTransformation:
    return fo.masked(clipped_adam(fo, max_norm, learning_rate), chosen(mask, patterns))


def freeze(
    mask: Any = None, patterns: Any = None, max_norm: float | None = None, learning_rate: Any = 0.1
) -> fo.GradientTransformation:
    return fo.freeze(clipped_adam(fo, max_norm, learning_rate), chosen(mask, patterns))


def partition(
    mask: Any = None, patterns: Any = None, max_norm: float | None = None, learning_rate: Any = 0.1
) -> fo.GradientTransformation:
    return fo.partition(groups(fo, max_norm, learning_rate), chosen(mask, patterns))


def scale_by_path(biases: float = 0.5, others: float = 3.0, by_function: bool = False) -> fo.GradientTransformation:
    if by_function:
        return fo.scale_by_path(lambda params: tree.map(lambda leaf: biases if leaf.ndim < 2 else others, params))
    return fo.scale_by_path({"*bias": biases, "*": others})


# ------------------------------------------------------------------------------------------- the same with optax


def for_optax(mask: Any, patterns: Any) -> Any:
    """A mask as it is, and patterns as the function of params that optax would need."""
    import jax

    def first_match(path: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return next(value for pattern, value in patterns.items() if fnmatch.fnmatchcase(name, pattern))

    return (lambda params: jax.tree_util.tree_map_with_path(first_match, params)) if patterns else mask


def optax_masked(
    mask: Any = None, patterns: Any = None, max_norm: float | None = None, learning_rate: Any = 0.1
) -> Any:
    import optax

    return optax.masked(clipped_adam(optax, max_norm, learning_rate), for_optax(mask, patterns))


def optax_freeze(
    mask: Any = None, patterns: Any = None, max_norm: float | None = None, learning_rate: Any = 0.1
) -> Any:
    """selective_transform takes the mask as a tree only."""
    import optax

    optimizer, chosen = clipped_adam(optax, max_norm, learning_rate), for_optax(mask, patterns)
    if callable(chosen):
        return optax.partition({False: optimizer, True: optax.set_to_zero()}, chosen)
    return optax.selective_transform(optimizer, freeze_mask=chosen)


def optax_partition(
    mask: Any = None, patterns: Any = None, max_norm: float | None = None, learning_rate: Any = 0.1
) -> Any:
    import optax

    return optax.partition(groups(optax, max_norm, learning_rate), for_optax(mask, patterns))


def optax_scale_by_path(biases: float = 0.5, others: float = 3.0, by_function: bool = False) -> Any:
    import jax
    import optax

    transforms = {True: optax.scale(biases), False: optax.scale(others)}
    small = (lambda params: jax.tree.map(lambda leaf: leaf.ndim < 2, params)) if by_function else None
    return optax.partition(transforms, for_optax(small, None if by_function else {"*bias": True, "*": False}))


SCALARS = ("max_norm", "learning_rate")

MASKING: tuple[Entry, ...] = (
    Entry(
        "masked",
        (
            {"mask": only_matrices, "learning_rate": decaying},
            {"mask": DECAY_MASK, "max_norm": 1.5, "learning_rate": 0.05},
            {"patterns": WEIGHTS, "max_norm": 1.5, "learning_rate": 0.05},
        ),
        scalars=SCALARS,
        build=masked,
        optax=optax_masked,
    ),
    Entry(
        "freeze",
        (
            {"mask": DECAY_MASK, "max_norm": 1.5, "learning_rate": 0.05},
            {"mask": only_matrices, "learning_rate": decaying},
        ),
        scalars=SCALARS,
        build=freeze,
        optax=optax_freeze,
    ),
    Entry(
        "partition",
        (
            {"mask": DECAY_MASK, "learning_rate": decaying},
            {"mask": only_matrices, "max_norm": 0.5, "learning_rate": 0.05},
            {"patterns": {"*weight": True, "b*": 2, "*": False}, "max_norm": 0.5, "learning_rate": 0.05},
        ),
        scalars=SCALARS,
        build=partition,
        optax=optax_partition,
    ),
    Entry(
        "scale_by_path",
        ({"biases": 0.3, "others": -2.0}, {"biases": 0.3, "others": -2.0, "by_function": True}),
        scalars=("biases", "others"),
        build=scale_by_path,
        optax=optax_scale_by_path,
    ),
)

MASKING_ELSEWHERE: dict[str, str] = {
    "by_path": "tests/wrappers/test_paths.py",
    "describe": "tests/wrappers/test_describe.py",
}
"""Public functions that are no transformation, and the file that tests them."""
