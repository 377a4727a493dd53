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
        ordered: whether the result depends on the order of the leaves, which then draw from keys in that order.
    """

    name: str
    cases: tuple[dict[str, Any], ...] = ({},)
    scalars: tuple[str, ...] = ()
    build: Callable[..., fo.GradientTransformation] | None = None
    optax: Callable[..., Any] | None = None
    complex: bool = True
    float32_tolerance: float = 1e-6
    ordered: bool = False

    def make(self, **kwargs: Any) -> fo.GradientTransformation:
        return (self.build or getattr(fo, self.name))(**kwargs)

    def __str__(self) -> str:
        return self.name

    def scalar_values(self, case: dict[str, Any]) -> dict[str, float]:
        """The values of `scalars` in a case, from its arguments or else from the signature; only the numbers."""
        parameters = inspect.signature(self.build or getattr(fo, self.name)).parameters
        values = {name: case.get(name, parameters[name].default) for name in self.scalars}
        return {name: value for name, value in values.items() if isinstance(value, float)}


@dataclass(frozen=True)
class ScheduleCase:
    """Arguments of a schedule, and the counts at which its shape changes."""

    arguments: dict[str, Any]
    boundaries: tuple[int, ...] = ()

    def __str__(self) -> str:
        return case_id(self.arguments)


@dataclass(frozen=True)
class ScheduleEntry:
    """One public factory of a schedule.

    Attributes:
        name: its name in `funcopt`.
        cases: one for each variant.
        scalars: the float arguments that are vmapped and differentiated, where a case gives them.
        build: makes the schedule from a library and the arguments, if not by calling the factory with them alone.
        optax: whether optax has it, under the same name and with the same arguments.
    """

    name: str
    cases: tuple[ScheduleCase, ...]
    scalars: tuple[str, ...] = ()
    build: Callable[..., Any] | None = None
    optax: bool = True

    def make(self, library: Any = fo, **arguments: Any) -> Any:
        return self.build(library, **arguments) if self.build else getattr(library, self.name)(**arguments)

    def scalar_values(self, case: ScheduleCase) -> dict[str, float]:
        return {name: case.arguments[name] for name in self.scalars if case.arguments.get(name) is not None}

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
    def normalize(updates: Any, params: Any) -> Any:
        norm = tree.global_norm(updates)
        return tree.map_rule(lambda u: factor * u / (1 + norm), updates)

    return fo.stateless(normalize)


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
            {"learning_rate": 0.05, **ADAM, "bias_correction_mu": False, "bias_correction_nu": False},
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
            {"learning_rate": 0.05, "eps": 1e-2, "initial_scale": 0.5, "centered": True, "bias_correction": True},
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

ENTRIES = (*OPTIMIZERS, *TRANSFORMATIONS)
CASES = [(entry, case) for entry in ENTRIES for case in entry.cases]


def case_id(value: Any) -> str:
    """How pytest names a parameter: an entry by its name, a case by its arguments."""
    if not isinstance(value, dict):
        return str(value).removeprefix("torch.")
    short = {name: getattr(argument, "__name__", argument) for name, argument in value.items()}
    return ",".join(f"{name}={'...' if isinstance(v, dict) else v}" for name, v in short.items()) or "default"


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


def knotted_constant(library: Any, init_value: Any, **knots: Any) -> Any:
    return library.piecewise_constant_schedule(init_value, scales_at(**knots))


def knotted_interpolation(library: Any, interpolate_type: str, init_value: Any, **knots: Any) -> Any:
    return library.piecewise_interpolate_schedule(interpolate_type, init_value, scales_at(**knots))


def scales_at(counts: tuple[int, ...] = (), first: Any = 1.0, second: Any = 1.0) -> dict[int, Any] | None:
    return dict(zip(counts, (first, second))) or None


def three_joined(library: Any, peak: Any, rate: Any, end: Any, boundaries: tuple[int, int]) -> Any:
    pieces = [
        library.linear_schedule(0.1, peak, 5),
        library.exponential_decay(peak, 4, rate),
        library.constant_schedule(end),
    ]
    return library.join_schedules(pieces, boundaries)


def two_cycles(library: Any, first: Any, second: Any, init_value: Any, exponent: Any = 1.0) -> Any:
    shared = {"init_value": init_value, "end_value": 0.05, "exponent": exponent}
    return library.sgdr_schedule(
        [
            {"peak_value": first, "warmup_steps": 2, "decay_steps": 9, **shared},
            {"peak_value": second, "warmup_steps": 0, "decay_steps": 14, **shared},
        ]
    )


ONECYCLE_SCALARS = ("peak_value", "div_factor", "final_div_factor")
ENDS = ("init_value", "end_value")
WARMUP_ENDS = ("init_value", "peak_value", "end_value")
WSD = {"init_value": 0.05, "peak_value": 0.7, "warmup_steps": 4, "stable_steps": 6, "decay_steps": 9, "end_value": 0.02}

SCHEDULES: tuple[ScheduleEntry, ...] = (
    ScheduleEntry("constant_schedule", (ScheduleCase({"value": 0.3}), ScheduleCase({"value": 0.0})), ("value",)),
    ScheduleEntry(
        "polynomial_schedule",
        (
            ScheduleCase(
                {"init_value": 1.0, "end_value": 0.1, "power": 2.0, "transition_steps": 10, "transition_begin": 3},
                boundaries=(3, 13),
            ),
            ScheduleCase({"init_value": 0.0, "end_value": 0.7, "power": 0.5, "transition_steps": 7}, (7,)),
            ScheduleCase(
                {"init_value": 1.0, "end_value": 0.2, "power": 3, "transition_steps": 6, "transition_begin": -4}, (6,)
            ),
            ScheduleCase({"init_value": 0.3, "end_value": 0.1, "power": 2.0, "transition_steps": 0}),
        ),
        scalars=(*ENDS, "power"),
    ),
    ScheduleEntry(
        "linear_schedule",
        (
            ScheduleCase({"init_value": 0.0, "end_value": 1.0, "transition_steps": 4}, (4,)),
            ScheduleCase(
                {"init_value": 0.3, "end_value": -0.02, "transition_steps": 9, "transition_begin": 4}, (4, 13)
            ),
            ScheduleCase({"init_value": 0.3, "end_value": 0.1, "transition_steps": -1}),
        ),
        scalars=ENDS,
    ),
    ScheduleEntry(
        "exponential_decay",
        (
            ScheduleCase({"init_value": 1.0, "transition_steps": 4, "decay_rate": 0.5, "transition_begin": 2}, (2,)),
            ScheduleCase(
                {"init_value": 1.0, "transition_steps": 4, "decay_rate": 0.5, "staircase": True, "end_value": 0.3},
                boundaries=(4, 8),
            ),
            ScheduleCase({"init_value": 1.0, "transition_steps": 1, "decay_rate": 2.0, "end_value": 5.0}, (2, 3)),
            ScheduleCase({"init_value": 0.7, "transition_steps": 0, "decay_rate": 0.5, "end_value": 2.0}),
        ),
        scalars=(*ENDS, "decay_rate"),
    ),
    ScheduleEntry(
        "cosine_decay_schedule",
        (
            ScheduleCase({"init_value": 2.0, "decay_steps": 4, "alpha": 0.1, "exponent": 2.0}, (4,)),
            ScheduleCase({"init_value": 0.4, "decay_steps": 150, "alpha": 0.0, "exponent": 0.5}, (150,)),
            ScheduleCase({"init_value": 0.4, "decay_steps": 31}, (31,)),
        ),
        scalars=("init_value", "alpha", "exponent"),
    ),
    ScheduleEntry(
        "piecewise_constant_schedule",
        (
            ScheduleCase({"init_value": 0.8, "counts": (9, 4), "first": 0.1, "second": 0.5}, (4, 9)),
            ScheduleCase({"init_value": 0.8, "counts": (0, 120), "first": 3.0, "second": 0.0}, (0, 120)),
            ScheduleCase({"init_value": 0.8}),
        ),
        scalars=("init_value", "first", "second"),
        build=knotted_constant,
    ),
    ScheduleEntry(
        "piecewise_interpolate_schedule",
        (
            ScheduleCase(
                {"interpolate_type": "linear", "init_value": 0.8, "counts": (9, 4), "first": 0.1, "second": 0.5}, (4, 9)
            ),
            ScheduleCase(
                {"interpolate_type": "cosine", "init_value": 0.8, "counts": (9, 120), "first": 2.0, "second": 0.0},
                boundaries=(9, 120),
            ),
            ScheduleCase(
                {"interpolate_type": "linear", "init_value": 0.8, "counts": (0, 9), "first": 0.5, "second": 0.1},
                boundaries=(0, 9),
            ),
            ScheduleCase({"interpolate_type": "cosine", "init_value": 0.8, "counts": (0,), "first": 0.5}),
            ScheduleCase({"interpolate_type": "cosine", "init_value": 0.8}),
        ),
        scalars=("init_value", "first", "second"),
        build=knotted_interpolation,
    ),
    ScheduleEntry(
        "linear_onecycle_schedule",
        (
            ScheduleCase({"transition_steps": 20, "peak_value": 1.0}, (6, 17, 20)),
            ScheduleCase(
                {
                    "transition_steps": 170,
                    "peak_value": 0.3,
                    "pct_start": 0.21,
                    "pct_final": 0.64,
                    "div_factor": 10.0,
                    "final_div_factor": 50.0,
                },
                boundaries=(35, 108, 170),
            ),
            ScheduleCase({"transition_steps": 9, "peak_value": 0.3, "pct_start": 0.0, "div_factor": 4.0}, (7, 9)),
        ),
        scalars=ONECYCLE_SCALARS,
    ),
    ScheduleEntry(
        "cosine_onecycle_schedule",
        (
            ScheduleCase({"transition_steps": 20, "peak_value": 1.0}, (6, 20)),
            ScheduleCase(
                {
                    "transition_steps": 170,
                    "peak_value": 0.3,
                    "pct_start": 0.21,
                    "div_factor": 10.0,
                    "final_div_factor": 50.0,
                },
                boundaries=(35, 170),
            ),
            ScheduleCase({"transition_steps": 9, "peak_value": 0.3, "pct_start": 0.0, "div_factor": 4.0}, (9,)),
        ),
        scalars=ONECYCLE_SCALARS,
    ),
    ScheduleEntry(
        "join_schedules",
        (
            ScheduleCase({"peak": 0.9, "rate": 0.7, "end": 0.05, "boundaries": (5, 12)}, (5, 12)),
            ScheduleCase({"peak": 0.9, "rate": 1.5, "end": 0.05, "boundaries": (3, 3)}, (3,)),
            ScheduleCase({"peak": 0.9, "rate": 0.7, "end": 0.05, "boundaries": (0, 90)}, (0, 90)),
        ),
        scalars=("peak", "rate", "end"),
        build=three_joined,
    ),
    ScheduleEntry(
        "warmup_constant_schedule",
        (
            ScheduleCase({"init_value": 0.1, "peak_value": 0.9, "warmup_steps": 6}, (6,)),
            ScheduleCase({"init_value": 0.1, "peak_value": 0.9, "warmup_steps": 1}, (1,)),
        ),
        scalars=("init_value", "peak_value"),
    ),
    ScheduleEntry(
        "warmup_cosine_decay_schedule",
        (
            ScheduleCase({"init_value": 0.0, "peak_value": 1.0, "warmup_steps": 3, "decay_steps": 8}, (3, 8)),
            ScheduleCase(
                {
                    "init_value": 0.1,
                    "peak_value": 0.9,
                    "warmup_steps": 7,
                    "decay_steps": 140,
                    "end_value": 0.05,
                    "exponent": 1.5,
                },
                boundaries=(7, 140),
            ),
            ScheduleCase(
                {"init_value": 0.1, "peak_value": 0.9, "warmup_steps": 0, "decay_steps": 5, "end_value": 2.0}, (5,)
            ),
        ),
        scalars=(*WARMUP_ENDS, "exponent"),
    ),
    ScheduleEntry(
        "warmup_exponential_decay_schedule",
        (
            ScheduleCase(
                {"init_value": 0.0, "peak_value": 1.0, "warmup_steps": 3, "transition_steps": 2, "decay_rate": 0.5},
                (3,),
            ),
            ScheduleCase(
                {
                    "init_value": 0.1,
                    "peak_value": 0.9,
                    "warmup_steps": 4,
                    "transition_steps": 5,
                    "decay_rate": 0.6,
                    "transition_begin": 3,
                    "staircase": True,
                    "end_value": 0.2,
                },
                boundaries=(4, 7, 12, 17, 22),
            ),
            ScheduleCase(
                {"init_value": 0.1, "peak_value": 0.9, "warmup_steps": 0, "transition_steps": 5, "decay_rate": 0.6}
            ),
        ),
        scalars=(*WARMUP_ENDS, "decay_rate"),
    ),
    ScheduleEntry(
        "warmup_stable_decay_schedule",
        (
            ScheduleCase(WSD, (4, 10, 19)),
            ScheduleCase({**WSD, "decay_shape": "cosine", "stable_steps": 0}, (4, 13)),
            ScheduleCase({**WSD, "decay_shape": "1-sqrt", "warmup_steps": 0}, (6, 15)),
        ),
        scalars=WARMUP_ENDS,
        optax=False,
    ),
    ScheduleEntry(
        "inverse_sqrt_schedule",
        (
            ScheduleCase({"peak_value": 0.8, "warmup_steps": 9, "init_value": 0.1}, (9,)),
            ScheduleCase({"peak_value": 0.8}),
            ScheduleCase({"peak_value": 0.8, "timescale": 20.0}),
            ScheduleCase({"peak_value": 0.8, "warmup_steps": 5, "timescale": 12.0}, (5,)),
        ),
        scalars=("init_value", "peak_value", "timescale"),
        optax=False,
    ),
    ScheduleEntry(
        "sgdr_schedule",
        (
            ScheduleCase({"first": 1.0, "second": 0.6, "init_value": 0.1}, (2, 9, 23)),
            ScheduleCase({"first": 1.0, "second": 0.6, "init_value": 0.0, "exponent": 1.5}, (2, 9, 23)),
        ),
        scalars=("first", "second", "init_value", "exponent"),
        build=two_cycles,
    ),
)
SCHEDULE_CASES = [(entry, case) for entry in SCHEDULES for case in entry.cases]
