"""Monitors, metrics, projections, and changes of the tree."""

from typing import Any

import funcopt as fo
from tests.catalogue.entry import Entry, decaying

PROJECTIONS_FILE = "tests/transforms/test_projections.py"


def snapshot_of(whole: bool = False) -> fo.GradientTransformation:
    """Of the norm, or of the updates themselves, which must then be copied."""
    return fo.snapshot("seen", (lambda updates: updates) if whole else fo.global_norm)


def optax_snapshot_of(whole: bool = False) -> Any:
    import optax

    return optax.snapshot("seen", (lambda updates: updates) if whole else optax.tree.norm)


def monitored(decay: float = 0.9, debias: bool = True) -> fo.GradientTransformation:
    measures = {
        "norm": fo.global_norm,
        "mean_norm": fo.measure_with_ema(fo.global_norm, decay, debias),
        "momentum": fo.trace(decay),
    }
    return fo.monitor(measures)


def optax_monitored(decay: float = 0.9, debias: bool = True) -> Any:
    import optax

    measures = {
        "norm": optax.tree.norm,
        "mean_norm": optax.measure_with_ema(optax.tree.norm, decay, debias),
        "momentum": optax.trace(decay),
    }
    return optax.monitor(measures)


def clipped_adam(library: Any, max_norm: float, learning_rate: Any) -> Any:
    return library.chain(library.clip_by_global_norm(max_norm), library.adam(learning_rate, 0.8, 0.95, 1e-3))


def with_metrics(max_norm: float = 1.0, learning_rate: Any = 0.1) -> fo.GradientTransformation:
    return fo.with_metrics(clipped_adam(fo, max_norm, learning_rate))


def optax_clipped_adam(max_norm: float = 1.0, learning_rate: Any = 0.1) -> Any:
    import optax

    return clipped_adam(optax, max_norm, learning_rate)


def projected_sgd(projection: str = "l2_ball", scale: float = 1.0) -> fo.GradientTransformation:
    project = getattr(fo, f"projection_{projection}")
    return fo.chain(fo.sgd(0.3), fo.keep_params_in(lambda params: project(params, scale)))


def optax_projected_sgd(projection: str = "l2_ball", scale: float = 1.0) -> Any:
    import optax

    project = getattr(optax.projections, f"projection_{projection}")

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        target = optax.apply_updates(params, updates)
        return optax.tree.sub(project(target, scale), params), state

    return optax.chain(optax.sgd(0.3), optax.GradientTransformation(optax.init_empty_state, update))


def flattened(max_norm: float | None = None, learning_rate: Any = 0.1) -> fo.GradientTransformation:
    """An elementwise inner transformation, or one with a norm."""
    adamw = fo.adamw(learning_rate, 0.8, 0.95, 1e-3, weight_decay=0.1)
    return fo.flatten(adamw if max_norm is None else fo.chain(fo.clip_by_block_rms(max_norm), adamw))


def optax_flattened(max_norm: float | None = None, learning_rate: Any = 0.1) -> Any:
    import optax

    adamw = optax.adamw(learning_rate, 0.8, 0.95, 1e-3, weight_decay=0.1)
    return optax.flatten(adamw if max_norm is None else optax.chain(optax.clip_by_block_rms(max_norm), adamw))


def split_adam(max_delta: float = 1.0, learning_rate: Any = 0.1) -> fo.GradientTransformation:
    return fo.split_real_and_imaginary(fo.chain(fo.clip(max_delta), fo.adam(learning_rate, 0.8, 0.95, 1e-3)))


def optax_split_adam(max_delta: float = 1.0, learning_rate: Any = 0.1) -> Any:
    import optax

    inner = optax.chain(optax.clip(max_delta), optax.adam(learning_rate, 0.8, 0.95, 1e-3))
    return optax.contrib.split_real_and_imaginary(inner)


def optax_normalize() -> Any:
    import optax

    return optax.contrib.normalize()


MONITORS: tuple[Entry, ...] = (
    Entry("snapshot", ({}, {"whole": True}), build=snapshot_of, optax=optax_snapshot_of),
    Entry(
        "monitor",
        ({"decay": 0.7}, {"decay": 0.7, "debias": False}),
        scalars=("decay",),
        build=monitored,
        optax=optax_monitored,
    ),
    Entry(
        "with_metrics",
        ({"max_norm": 1.0, "learning_rate": 0.05}, {"max_norm": 5.0, "learning_rate": decaying}),
        scalars=("max_norm", "learning_rate"),
        build=with_metrics,
        optax=optax_clipped_adam,
    ),
    Entry(
        "keep_params_in",
        (
            {"projection": "l2_ball", "scale": 2.5},
            {"projection": "l2_sphere", "scale": 1.5},
            {"projection": "l1_ball", "scale": 3.0},
        ),
        scalars=("scale",),
        build=projected_sgd,
        optax=optax_projected_sgd,
    ),
    Entry(
        "flatten",
        ({"learning_rate": decaying}, {"learning_rate": 0.05, "max_norm": 0.7}),
        scalars=("learning_rate", "max_norm"),
        build=flattened,
        optax=optax_flattened,
    ),
    Entry(
        "split_real_and_imaginary",
        ({"learning_rate": 0.05, "max_delta": 0.7},),
        scalars=("learning_rate", "max_delta"),
        build=split_adam,
        optax=optax_split_adam,
    ),
    Entry("normalize", optax=optax_normalize),
)

MONITORS_ELSEWHERE: dict[str, str] = {
    "measure_with_ema": "tests/transforms/test_monitor.py",
    "metrics": "tests/transforms/test_metrics.py",
    "projection_box": PROJECTIONS_FILE,
    "projection_halfspace": PROJECTIONS_FILE,
    "projection_hypercube": PROJECTIONS_FILE,
    "projection_hyperplane": PROJECTIONS_FILE,
    "projection_l1_ball": PROJECTIONS_FILE,
    "projection_l1_sphere": PROJECTIONS_FILE,
    "projection_l2_ball": PROJECTIONS_FILE,
    "projection_l2_sphere": PROJECTIONS_FILE,
    "projection_linf_ball": PROJECTIONS_FILE,
    "projection_non_negative": PROJECTIONS_FILE,
    "projection_simplex": PROJECTIONS_FILE,
    "projection_vector": PROJECTIONS_FILE,
}
"""Public functions that are no transformation, and the file that tests them."""
