"""Every public transformation that is no optimizer and wraps none."""

from typing import Any

import funcopt as fo
from funcopt import tree
from tests.catalogue.entry import DECAY_MASK, Entry, decaying, no_counterpart, only_matrices, variant_of
from tests.catalogue.optimizers import ADAM, ADAM_SCALARS


def without_layout(layout: str = "torch", **kwargs: Any) -> Any:
    """optax's adaptive_grad_clip, which knows only one layout."""
    import optax

    return optax.adaptive_grad_clip(**kwargs) if layout == "jax" else None


def clipped_adam(max_norm: float = 1.0, learning_rate: Any = 0.1) -> fo.GradientTransformation:
    return fo.chain(fo.clip_by_global_norm(max_norm), fo.adam(learning_rate))


def named_clipped_adam(max_norm: float = 1.0, learning_rate: Any = 0.1) -> fo.GradientTransformation:
    return fo.named_chain(("clip", fo.clip_by_global_norm(max_norm)), ("adam", fo.adam(learning_rate)))


def optax_clipped_adam(max_norm: float = 1.0, learning_rate: Any = 0.1) -> Any:
    import optax

    return optax.chain(optax.clip_by_global_norm(max_norm), optax.adam(learning_rate))


def normalized_tree(factor: float = 1.0) -> fo.GradientTransformation:
    def normalize(updates: Any, params: Any) -> Any:
        norm = tree.global_norm(updates)
        return tree.map_rule(lambda u: factor * u / (1 + norm), updates)

    return fo.stateless(normalize)


def cubed(factor: float = 1.0) -> fo.GradientTransformation:
    return fo.stateless_with_tree_map(lambda update, param: factor * update**3, "elementwise")


TRANSFORMATIONS: tuple[Entry, ...] = (
    Entry("scale_by_adam", ({}, ADAM, {**ADAM, "nesterov": True}), scalars=ADAM_SCALARS),
    Entry(
        "scale_by_amsgrad",
        ({}, ADAM, {**ADAM, "max_of": "raw"}),
        scalars=ADAM_SCALARS,
        optax=variant_of("scale_by_amsgrad", max_of="corrected"),
    ),
    Entry(
        "scale_by_rss",
        ({}, {"initial_accumulator_value": 0.3, "eps": 1e-3}),
        scalars=("initial_accumulator_value", "eps"),
    ),
    Entry(
        "scale_by_rms",
        (
            {},
            {"decay": 0.8, "eps": 1e-3, "initial_scale": 0.5, "eps_in_sqrt": False, "bias_correction": True},
        ),
        scalars=("decay", "eps", "initial_scale"),
    ),
    Entry(
        "scale_by_stddev",
        (
            {"eps": 1e-2},
            {"decay": 0.8, "eps": 1e-2, "initial_scale": 0.5, "eps_in_sqrt": False, "bias_correction": True},
        ),
        scalars=("decay", "eps", "initial_scale"),
        float32_tolerance=1e-5,  # the variance is a difference
    ),
    Entry("scale", ({"step_size": 0.3},), scalars=("step_size",)),
    Entry(
        "scale_by_learning_rate",
        ({"learning_rate": 0.3}, {"learning_rate": decaying}, {"learning_rate": 0.3, "flip_sign": False}),
        scalars=("learning_rate",),
    ),
    Entry("scale_by_schedule", ({"step_size_fn": decaying},)),
    Entry("scale_by_sign"),
    Entry("normalize_by_update_norm", ({}, {"scale_factor": 2.0, "eps": 0.1}), scalars=("scale_factor", "eps")),
    Entry("centralize"),
    Entry("trace", ({"decay": 0.8}, {"decay": 0.8, "nesterov": True}), scalars=("decay",)),
    Entry("ema", ({"decay": 0.8}, {"decay": 0.8, "debias": False}), scalars=("decay",)),
    Entry("clip", ({"max_delta": 0.7},), scalars=("max_delta",), complex=False),
    Entry("clip_by_block_rms", ({"threshold": 0.8},), scalars=("threshold",)),
    Entry("clip_by_global_norm", ({"max_norm": 1.5}, {"max_norm": 100.0}), scalars=("max_norm",)),
    Entry(
        "adaptive_grad_clip",
        (
            {"clipping": 0.1, "eps": 1e-2, "layout": "jax"},
            {"clipping": 0.1},
        ),
        scalars=("clipping", "eps"),
        optax=without_layout,
    ),
    Entry(
        "add_decayed_weights",
        (
            {"weight_decay": 0.1},
            {"weight_decay": decaying, "mask": DECAY_MASK},
            {"weight_decay": 0.1, "mask": only_matrices},
        ),
        scalars=("weight_decay",),
    ),
    Entry(
        "add_noise",
        ({"eta": 0.3, "gamma": 0.55}, {"eta": 1.0, "gamma": 0.0, "key": 7}),
        scalars=("eta", "gamma"),
        optax=no_counterpart,  # its numbers to fewer digits: tests/transforms/test_noise.py
        ordered=True,
    ),
    Entry("zero_nans"),
    Entry("keep_params_nonnegative", complex=False),
    Entry("identity"),
    Entry("set_to_zero"),
    Entry("stateless", ({"factor": 0.5},), scalars=("factor",), build=normalized_tree, optax=no_counterpart),
    Entry("stateless_with_tree_map", ({"factor": 0.5},), scalars=("factor",), build=cubed, optax=no_counterpart),
    Entry(
        "chain",
        ({"max_norm": 1.0, "learning_rate": decaying},),
        scalars=("max_norm",),
        build=clipped_adam,
        optax=optax_clipped_adam,
    ),
    Entry(
        "named_chain",
        ({"max_norm": 1.0, "learning_rate": decaying},),
        scalars=("max_norm",),
        build=named_clipped_adam,
        optax=optax_clipped_adam,
    ),
)
