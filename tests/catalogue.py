"""Every public optimizer, transformation and schedule, once: what is listed here goes through all laws and parity."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import funcopt as fo
from funcopt import tree


@dataclass(frozen=True)
class Entry:
    """One public factory of a gradient transformation.

    Attributes:
        name: its name in `funcopt`.
        cases: keyword arguments, one dict for each variant that is worth a run; numbers away from their defaults.
        scalars: the arguments that are vmapped and differentiated, given as tensors.
        build: makes the transformation from the keyword arguments; unless given, the factory itself.
        optax: makes optax's counterpart from the same keyword arguments, or None for a case that has none; unless
            given, the factory of the same name.
        complex: whether complex leaves are accepted.
        float32_tolerance: the relative deviation from the float64 reference that parity grants in float32.
    """

    name: str
    cases: tuple[dict[str, Any], ...] = ({},)
    scalars: tuple[str, ...] = ()
    build: Callable[..., fo.GradientTransformation] | None = None
    optax: Callable[..., Any] | None = None
    complex: bool = True
    float32_tolerance: float = 1e-6

    def make(self, **kwargs: Any) -> fo.GradientTransformation:
        return (self.build or getattr(fo, self.name))(**kwargs)

    def scalar_values(self, case: dict[str, Any]) -> dict[str, float]:
        """The values of `scalars` in a case, from its arguments or else from the signature; only the numbers."""
        parameters = inspect.signature(self.build or getattr(fo, self.name)).parameters
        values = {name: case.get(name, parameters[name].default) for name in self.scalars}
        return {name: value for name, value in values.items() if isinstance(value, float)}


@dataclass(frozen=True)
class ScheduleEntry:
    """One public factory of a schedule.

    Attributes:
        name: its name in `funcopt`.
        cases: keyword arguments, one dict for each variant; `boundaries` are the counts at which its shape changes.
        scalars: the float arguments that are vmapped and differentiated, when given as a tensor.
        build: makes the schedule, if not by calling the factory with the keyword arguments alone.
        optax: makes optax's counterpart from the same keyword arguments; None where optax has none.
    """

    name: str
    cases: tuple[dict[str, Any], ...]
    scalars: tuple[str, ...] = ()
    build: Callable[..., fo.Schedule] | None = None
    optax: Callable[..., Any] | str | None = None

    def make(self, **kwargs: Any) -> fo.Schedule:
        return (self.build or getattr(fo, self.name))(**kwargs)

    def __str__(self) -> str:
        return self.name


def decaying(count: Any) -> Any:
    """A schedule that torch and jax can both evaluate."""
    count = count.to(torch.float64) if isinstance(count, torch.Tensor) else count
    return 0.05 / (1.0 + 0.25 * count)


def only_matrices(params: Any) -> Any:
    """A mask from a function: True for leaves of two axes or more."""
    return tree.map(lambda leaf: leaf.ndim >= 2, params)


def without_layout(layout: str = "torch", **kwargs: Any) -> Any:
    """optax's adaptive_grad_clip, which knows only one layout."""
    import optax

    return optax.adaptive_grad_clip(**kwargs) if layout == "jax" else None


def no_counterpart(**kwargs: Any) -> None:
    """For what optax does not have in this form."""


def clipped_adam(max_norm: float = 1.0, learning_rate: Any = 0.1) -> fo.GradientTransformation:
    return fo.chain(fo.clip_by_global_norm(max_norm), fo.adam(learning_rate))


def named_clipped_adam(max_norm: float = 1.0, learning_rate: Any = 0.1) -> fo.GradientTransformation:
    return fo.named_chain(("clip", fo.clip_by_global_norm(max_norm)), ("adam", fo.adam(learning_rate)))


def optax_clipped_adam(max_norm: float = 1.0, learning_rate: Any = 0.1) -> Any:
    import optax

    return optax.chain(optax.clip_by_global_norm(max_norm), optax.adam(learning_rate))


def normalized_tree(factor: float = 1.0) -> fo.GradientTransformation:
    return fo.stateless(
        lambda updates, params: tree.map(lambda u: factor * u / (1 + tree.global_norm(updates)), updates)
    )


def cubed(factor: float = 1.0) -> fo.GradientTransformation:
    return fo.stateless_with_tree_map(lambda update, param: factor * update**3, "elementwise")


ADAM = {"b1": 0.8, "b2": 0.95, "eps": 1e-3, "eps_root": 1e-4}
ADAM_SCALARS = ("b1", "b2", "eps", "eps_root")
DECAY_MASK = {"a": {"bias": False, "weight": True}, "b": True, "c": False}

OPTIMIZERS: tuple[Entry, ...] = (
    Entry(
        "sgd",
        (
            {"learning_rate": 0.05},
            {"learning_rate": decaying, "momentum": 0.8},
            {"learning_rate": 0.05, "momentum": 0.8, "nesterov": True},
            {"learning_rate": 0.05, "momentum": 0.8, "accumulator_dtype": torch.bfloat16},
        ),
        scalars=("learning_rate", "momentum"),
    ),
    Entry(
        "adam",
        (
            {"learning_rate": 0.05},
            {"learning_rate": decaying, **ADAM},
            {"learning_rate": 0.05, "mu_dtype": torch.bfloat16},
            {"learning_rate": 0.05, "b1": 0.0, "b2": 0.0, "eps": 0.1},
        ),
        scalars=("learning_rate", *ADAM_SCALARS),
    ),
    Entry("nadam", ({"learning_rate": 0.05}, {"learning_rate": decaying, **ADAM}), ("learning_rate", *ADAM_SCALARS)),
    Entry(
        "adamw",
        (
            {"learning_rate": 0.05},
            {"learning_rate": decaying, **ADAM, "weight_decay": 0.1},
            {"learning_rate": 0.05, "weight_decay": decaying, "mask": DECAY_MASK},
            {"learning_rate": 0.05, "weight_decay": 0.1, "mask": only_matrices},
            {"learning_rate": 0.05, "weight_decay": 0.0},
        ),
        scalars=("learning_rate", *ADAM_SCALARS, "weight_decay"),
    ),
    Entry(
        "nadamw",
        ({"learning_rate": 0.05}, {"learning_rate": decaying, **ADAM, "weight_decay": 0.1, "mask": DECAY_MASK}),
        scalars=("learning_rate", *ADAM_SCALARS, "weight_decay"),
    ),
    Entry(
        "amsgrad",
        (
            {"learning_rate": 0.05},
            {"learning_rate": decaying, **ADAM},
            {"learning_rate": 0.05, "bias_correction_mu": False, "bias_correction_nu": False},
        ),
        scalars=("learning_rate", *ADAM_SCALARS),
    ),
    Entry(
        "adagrad",
        (
            {"learning_rate": 0.05},
            {"learning_rate": decaying, "initial_accumulator_value": 0.3, "eps": 1e-3},
            {"learning_rate": 0.05, "initial_accumulator_value": 0.0},
        ),
        scalars=("learning_rate", "initial_accumulator_value", "eps"),
    ),
    Entry(
        "rmsprop",
        (
            {"learning_rate": 0.05},
            {"learning_rate": decaying, "decay": 0.8, "eps": 1e-3, "initial_scale": 0.5, "momentum": 0.7},
            {"learning_rate": 0.05, "eps": 1e-3, "eps_in_sqrt": False, "momentum": 0.7, "nesterov": True},
            {"learning_rate": 0.05, "eps": 1e-2, "centered": True, "bias_correction": True},
        ),
        scalars=("learning_rate", "decay", "eps", "initial_scale", "momentum"),
        float32_tolerance=1e-5,  # the variance is a difference
    ),
)

TRANSFORMATIONS: tuple[Entry, ...] = (
    Entry("scale_by_adam", ({}, ADAM, {**ADAM, "nesterov": True}), scalars=ADAM_SCALARS),
    Entry("scale_by_amsgrad", ({}, ADAM), scalars=ADAM_SCALARS),
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

ELSEWHERE = {
    "apply_updates": "tests/test_transform.py",
    "incremental_update": "tests/test_transform.py",
    "periodic_update": "tests/test_transform.py",
    "global_norm": "tests/test_tree.py",
    "compile": "tests/test_compile.py",
    "per_example_global_norm_clip": "tests/transforms/test_clipping.py",
    "per_example_layer_norm_clip": "tests/transforms/test_clipping.py",
    "unitwise_norm": "tests/transforms/test_clipping.py",
    "unitwise_clip": "tests/transforms/test_clipping.py",
}
"""Public functions that are no transformation or schedule, and the file that tests them."""


SCHEDULES: tuple[ScheduleEntry, ...] = ()
