"""Every public schedule."""

from typing import Any

from tests.catalogue.entry import ScheduleCase, ScheduleEntry


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
