"""Accumulation over micro-batches, and steps taken under a condition."""

import functools
from typing import Any

import torch

import funcopt as fo
from funcopt import tree
from tests.catalogue.entry import Entry, decaying

SPOILED_ABOVE = 2.2
"""Numbers of a larger magnitude become infinite: one or more in about half of the trees that the laws draw."""


def spoil() -> fo.GradientTransformation:
    """Infinite gradients now and then, so that the laws see steps that are refused."""

    def rule(update: torch.Tensor, param: torch.Tensor | None) -> torch.Tensor:
        return torch.where(update.abs() > SPOILED_ABOVE, torch.inf, update)

    return fo.stateless_with_tree_map(rule, "elementwise")


def optax_spoil() -> Any:
    import jax
    import jax.numpy as jnp
    import optax

    def rule(update: Any) -> Any:
        return jnp.where(jnp.abs(update) > SPOILED_ABOVE, jnp.inf, update)

    return optax.stateless(lambda updates, params: jax.tree.map(rule, updates))


def every_third_and_fourth(step: Any) -> Any:
    return step % 4 >= 2


def at_first(step: Any) -> Any:
    return step < 1


def growing(gradient_step: Any) -> Any:
    """1, 1, 2, 2, 3 ... micro-batches."""
    return 1 + gradient_step // 2


def weighing(inner: fo.GradientTransformation) -> fo.GradientTransformation:
    """Give `inner` a weight that depends on the gradients."""

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        return inner.update(updates, state, params, weight=1.0 + tree.global_norm(updates), **extra)

    return fo.GradientTransformation(inner.init, update, "treewise")


def accumulated(
    every_k_schedule: Any,
    learning_rate: Any = 0.05,
    b1: Any = 0.8,
    max_squared_norm: Any = None,
    *,
    spoiled: bool = False,
    weighted: bool = False,
    **kwargs: Any,
) -> fo.GradientTransformation:
    skip = skip_function(fo, max_squared_norm, spoiled)
    made = fo.accumulate_gradients(fo.adam(learning_rate, b1), every_k_schedule, should_skip_update_fn=skip, **kwargs)
    made = weighing(made) if weighted else made
    return fo.chain(spoil(), made) if spoiled else made


def skip_function(library: Any, max_squared_norm: Any, spoiled: bool) -> Any:
    if max_squared_norm is not None:
        return functools.partial(library.skip_large_updates, max_squared_norm=max_squared_norm)
    return library.skip_not_finite if spoiled else None


def optax_accumulated(
    every_k_schedule: Any,
    learning_rate: Any = 0.05,
    b1: Any = 0.8,
    max_squared_norm: Any = None,
    *,
    spoiled: bool = False,
    weighted: bool = False,
    accumulator_dtype: Any = None,
    **kwargs: Any,
) -> Any:
    import jax.numpy as jnp
    import optax

    if weighted:
        return None
    made = optax.MultiSteps(
        optax.adam(learning_rate, b1),
        every_k_schedule,
        should_skip_update_fn=skip_function(optax, max_squared_norm, spoiled),
        accumulator_dtype=accumulator_dtype or jnp.float64,
        **kwargs,
    ).gradient_transformation()
    return optax.chain(optax_spoil(), made) if spoiled else made


def skipping(learning_rate: Any = 0.05) -> fo.GradientTransformation:
    return fo.chain(spoil(), fo.skip_if(fo.sgd(learning_rate, 0.9), fo.skip_not_finite))


def optax_skipping(learning_rate: Any = 0.05) -> Any:
    import optax

    inner = optax.sgd(learning_rate, 0.9)
    made = optax.MultiSteps(inner, 1, should_skip_update_fn=optax.skip_not_finite, accumulator_dtype="float64")
    return optax.chain(optax_spoil(), made.gradient_transformation())


def finite(learning_rate: Any = 0.05, **kwargs: Any) -> fo.GradientTransformation:
    return fo.chain(spoil(), fo.apply_if_finite(fo.sgd(learning_rate, 0.9), 50, **kwargs))


def optax_finite(learning_rate: Any = 0.05, rehearse: bool = False) -> Any:
    import optax

    return optax.chain(optax_spoil(), optax.apply_if_finite(optax.sgd(learning_rate, 0.9), 50))


def conditionally(name: str, *cases: dict[str, Any]) -> Entry:
    def build(should_transform_fn: Any, learning_rate: Any = 0.05, momentum: Any = 0.9) -> fo.GradientTransformation:
        return getattr(fo, name)(fo.sgd(learning_rate, momentum), should_transform_fn)

    def optax_build(should_transform_fn: Any, learning_rate: Any = 0.05, momentum: Any = 0.9) -> Any:
        import optax

        return getattr(optax, name)(optax.sgd(learning_rate, momentum), should_transform_fn)

    return Entry(name, cases, scalars=("learning_rate", "momentum"), build=build, optax=optax_build)


ACCUMULATION: tuple[Entry, ...] = (
    Entry(
        "accumulate_gradients",
        (
            {"every_k_schedule": 2, "learning_rate": decaying, "b1": 0.7},
            {"every_k_schedule": growing, "use_grad_mean": False},
            {"every_k_schedule": 3, "accumulator_dtype": torch.bfloat16},
            {"every_k_schedule": 2, "spoiled": True},
            {"every_k_schedule": growing, "max_squared_norm": 30.0, "use_grad_mean": False},
            {"every_k_schedule": 2, "learning_rate": 0.05, "weighted": True},
        ),
        scalars=("learning_rate", "b1", "max_squared_norm"),
        build=accumulated,
        optax=optax_accumulated,
    ),
    Entry("apply_every", ({"k": 3}, {})),
    Entry("skip_if", ({"learning_rate": 0.05},), scalars=("learning_rate",), build=skipping, optax=optax_skipping),
    Entry(
        "apply_if_finite",
        ({"learning_rate": decaying, "rehearse": True}, {"learning_rate": 0.05}),
        scalars=("learning_rate",),
        build=finite,
        optax=optax_finite,
    ),
    conditionally(
        "conditionally_transform",
        {"should_transform_fn": every_third_and_fourth, "learning_rate": decaying, "momentum": 0.7},
        {"should_transform_fn": at_first, "learning_rate": 0.05},
    ),
    conditionally(
        "conditionally_mask", {"should_transform_fn": every_third_and_fourth, "learning_rate": 0.05, "momentum": 0.7}
    ),
)

ACCUMULATION_ELSEWHERE: dict[str, str] = {
    "MultiSteps": "tests/wrappers/test_accumulation.py",
    "has_updated": "tests/wrappers/test_accumulation.py",
    "skip_not_finite": "tests/wrappers/test_skipping.py",
    "skip_large_updates": "tests/wrappers/test_skipping.py",
}
"""Public functions that are no transformation, and the file that tests them."""
