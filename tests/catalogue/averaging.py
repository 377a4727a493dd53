"""Wrappers whose parameters differ between training and evaluation, and tuners of the learning rate."""

from typing import Any

import torch

import funcopt as fo
from tests.catalogue.entry import Entry, decaying


def lookahead(
    sync_period: int, slow_step_size: Any = 0.5, reset_state: bool = False, learning_rate: Any = 0.05
) -> fo.GradientTransformation:
    return fo.lookahead(fo.sgd(learning_rate, momentum=0.8), sync_period, slow_step_size, reset_state)


def optax_lookahead(
    sync_period: int, slow_step_size: Any = 0.5, reset_state: bool = False, learning_rate: Any = 0.05
) -> Any:
    """On plain params: the slow half of the pair that optax works on is kept in the state."""
    import jax
    import optax

    inner = optax.lookahead(optax.sgd(learning_rate, momentum=0.8), sync_period, slow_step_size, reset_state)

    def init(params: Any) -> Any:
        return inner.init(optax.LookaheadParams(params, params)), params

    def update(updates: Any, state: Any, params: Any) -> Any:
        inner_state, slow = state
        both, inner_state = inner.update(updates, inner_state, optax.LookaheadParams(params, slow))
        return both.fast, (inner_state, jax.tree.map(lambda p, u: p + u, slow, both.slow))

    return optax.GradientTransformation(init, update)


def sharpness_aware(
    rho: Any = 0.1, sync_period: int = 2, reset_state: bool = True, opaque: bool = False
) -> fo.GradientTransformation:
    ascent = fo.chain(fo.normalize_by_update_norm(1.0, 0.1), fo.sgd(rho, momentum=0.5))
    optimizer = fo.sam(fo.adamw(decaying, eps=1e-2, weight_decay=0.1), ascent, sync_period, reset_state, opaque)
    return with_gradients(optimizer) if opaque else optimizer


def with_gradients(optimizer: fo.GradientTransformation) -> fo.GradientTransformation:
    """The gradients that opaque mode asks for: those of a quartic around the point."""

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        def grad_fn(point: Any, i: int) -> Any:
            return fo.tree.map(lambda g, p: g + (i + 1) * p * p.abs(), updates, point)

        return optimizer.update(updates, state, params, grad_fn=grad_fn, **extra)

    return fo.GradientTransformation(optimizer.init, update, optimizer.coupling)


def optax_sharpness_aware(rho: Any = 0.1, sync_period: int = 2, reset_state: bool = True, opaque: bool = False) -> Any:
    import jax
    import optax

    ascent = optax.chain(optax.normalize_by_update_norm(1.0, 0.1), optax.sgd(rho, momentum=0.5))
    optimizer = optax.adamw(decaying, eps=1e-2, weight_decay=0.1)
    made = optax.contrib.sam(optimizer, ascent, sync_period, reset_state, opaque)
    if not opaque:
        return made

    def update(updates: Any, state: Any, params: Any) -> Any:
        def grad_fn(point: Any, i: int) -> Any:
            return jax.tree.map(lambda g, p: g + (i + 1) * p * abs(p), updates, point)

        return made.update(updates, state, params, grad_fn=grad_fn)

    return optax.GradientTransformation(made.init, update)


def ema_params(decay: Any, debias: bool = True) -> fo.GradientTransformation:
    return fo.ema_params(fo.sgd(0.05, momentum=0.8), decay, debias)


def swa(start_step: int, every: int = 1) -> fo.GradientTransformation:
    return fo.swa(fo.sgd(0.05, momentum=0.8), start_step, every)


def optax_sgd(**kwargs: Any) -> Any:
    """Averages beside the params change no update."""
    import optax

    return optax.sgd(0.05, momentum=0.8)


def schedule_free(
    learning_rate: Any, b1: Any = 0.9, weight_lr_power: Any = 2.0, state_dtype: Any = None
) -> fo.GradientTransformation:
    base = fo.chain(fo.scale_by_rms(0.8, 1e-2), fo.scale_by_learning_rate(learning_rate))
    return fo.schedule_free(base, learning_rate, b1, weight_lr_power, state_dtype)


def optax_schedule_free(learning_rate: Any, b1: Any = 0.9, weight_lr_power: Any = 2.0, state_dtype: Any = None) -> Any:
    import optax

    base = optax.chain(optax.scale_by_rms(0.8, 1e-2), optax.scale_by_learning_rate(learning_rate))
    return optax.contrib.schedule_free(base, from_zero(learning_rate), b1, weight_lr_power, state_dtype)


def from_zero(learning_rate: Any) -> Any:
    """For optax, whose schedule-free wrapper counts from 1 where its base optimizer counts from 0."""
    return (lambda count: learning_rate(count - 1)) if callable(learning_rate) else learning_rate


def without_warmup(name: str) -> Any:
    """optax's preset; with a warm-up its first step is rounding, where ours is 0 (tests/wrappers/)."""

    def make(warmup_steps: int | None = None, **kwargs: Any) -> Any:
        import optax

        return getattr(optax.contrib, name)(**kwargs) if warmup_steps is None else None

    return make


def mechanize(
    weight_decay: Any = 1e-2, eps: Any = 1e-8, s_init: Any = 1e-6, num_betas: int = 6, learning_rate: Any = 1.0
) -> fo.GradientTransformation:
    return fo.mechanize(fo.sgd(learning_rate, momentum=0.8), weight_decay, eps, s_init, num_betas)


def optax_mechanize(
    weight_decay: Any = 1e-2, eps: Any = 1e-8, s_init: Any = 1e-6, num_betas: int = 6, learning_rate: Any = 1.0
) -> Any:
    import optax

    return optax.contrib.mechanize(optax.sgd(learning_rate, momentum=0.8), weight_decay, eps, s_init, num_betas)


def reduce_on_plateau(
    factor: Any = 0.1, patience: int = 10, rtol: Any = 1e-4, atol: Any = 0.0, cooldown: int = 0, min_scale: Any = 0.0
) -> fo.GradientTransformation:
    """With the norm of the gradients as the loss."""
    inner = fo.reduce_on_plateau(factor, patience, rtol, atol, cooldown, min_scale=min_scale)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        return inner.update(updates, state, params, value=fo.global_norm(updates), **extra)

    return fo.GradientTransformation(inner.init, update, "treewise")


def optax_reduce_on_plateau(**kwargs: Any) -> Any:
    import optax

    inner = optax.contrib.reduce_on_plateau(**kwargs)

    def update(updates: Any, state: Any, params: Any) -> Any:
        return inner.update(updates, state, params, value=optax.tree.norm(updates))

    return optax.GradientTransformation(inner.init, update)


AVERAGING: tuple[Entry, ...] = (
    Entry(
        "lookahead",
        (
            {"sync_period": 2, "reset_state": True},
            {"sync_period": 1, "slow_step_size": 0.7, "learning_rate": decaying},
            {"sync_period": 2, "slow_step_size": 0.3, "learning_rate": 0.04},
        ),
        scalars=("slow_step_size", "learning_rate"),
        build=lookahead,
        optax=optax_lookahead,
        float32_tolerance=1e-5,  # steps of synced params are differences of params
    ),
    Entry(
        "sam",
        ({"rho": 0.2}, {"sync_period": 3, "reset_state": False}, {"sync_period": 3, "opaque": True}),
        scalars=("rho",),
        build=sharpness_aware,
        optax=optax_sharpness_aware,
        float32_tolerance=1e-5,
    ),
    Entry(
        "ema_params",
        ({"decay": decaying, "debias": False}, {"decay": 0.8}),
        scalars=("decay",),
        build=ema_params,
        optax=optax_sgd,
    ),
    Entry("swa", ({"start_step": 1, "every": 2},), build=swa, optax=optax_sgd),
    Entry(
        "schedule_free",
        (
            {"learning_rate": 0.3, "state_dtype": torch.bfloat16},
            {"learning_rate": decaying, "b1": 0.7, "weight_lr_power": 1.5},
            {"learning_rate": 0.3},
        ),
        scalars=("learning_rate", "b1", "weight_lr_power"),
        build=schedule_free,
        optax=optax_schedule_free,
    ),
    Entry(
        "schedule_free_sgd",
        ({"learning_rate": 0.3, "b1": 0.8, "weight_decay": 0.1, "weight_lr_power": 1.0},),
        scalars=("learning_rate", "b1", "weight_decay", "weight_lr_power"),
        optax=without_warmup("schedule_free_sgd"),
    ),
    Entry(
        "schedule_free_adamw",
        (
            {"learning_rate": 0.1, "eps": 1e-2, "warmup_steps": 5},
            {"learning_rate": 0.1, "b1": 0.8, "b2": 0.9, "eps": 1e-2, "weight_decay": 0.1, "weight_lr_power": 1.0},
        ),
        scalars=("learning_rate", "b1", "b2", "eps", "weight_decay", "weight_lr_power"),
        optax=without_warmup("schedule_free_adamw"),
    ),
    Entry(
        "mechanize",
        ({"weight_decay": 0.1, "eps": 1e-2, "s_init": 0.3, "num_betas": 3, "learning_rate": 0.9},),
        scalars=("weight_decay", "eps", "s_init", "learning_rate"),
        build=mechanize,
        optax=optax_mechanize,
        float32_tolerance=1e-4,  # so are all steps here, and what their scale is learned from
    ),
    Entry(
        "reduce_on_plateau",
        (
            {"factor": 0.6, "patience": 1, "rtol": 0.05, "atol": 0.1},
            {"factor": 0.5, "patience": 2, "rtol": 0.01, "cooldown": 3, "min_scale": 0.3},
        ),
        scalars=("factor", "rtol", "atol", "min_scale"),
        build=reduce_on_plateau,
        optax=optax_reduce_on_plateau,
    ),
)

AVERAGING_ELSEWHERE: dict[str, str] = {
    "eval_params": "tests/wrappers/test_views.py",
    "train_params": "tests/wrappers/test_views.py",
    "schedule_free_eval_params": "tests/wrappers/test_schedule_free.py",
}
"""Public functions that are no transformation, and the file that tests them."""
