"""The schedules against optax, and against the formulas of the papers where optax has none."""

import contextlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from optax import schedules

import funcopt as fo
from tests.catalogue import SCHEDULE_CASES, SCHEDULES, WSD, case_id

WITH_OPTAX = [(entry, case) for entry, case in SCHEDULE_CASES if entry.optax]

EDGES = [
    ("polynomial_schedule", {"init_value": 0.9, "end_value": 0.1, "power": 0.0, "transition_steps": 5}),
    ("exponential_decay", {"init_value": 0.9, "transition_steps": 5, "decay_rate": 0.0, "end_value": 1.2}),
    ("exponential_decay", {"init_value": 0.9, "transition_steps": 5, "decay_rate": 1.0, "end_value": 0.4}),
    ("exponential_decay", {"init_value": 0.2, "transition_steps": 50, "decay_rate": 0.5, "end_value": 0.4}),
    ("exponential_decay", {"init_value": 0.9, "transition_steps": 5, "decay_rate": 0.5, "transition_begin": -3}),
    ("cosine_decay_schedule", {"init_value": 0.9, "decay_steps": 5, "alpha": 1.5, "exponent": 0.0}),
    ("linear_onecycle_schedule", {"transition_steps": 4, "peak_value": 0.9, "final_div_factor": 0.5}),
]

KNOWN_BUGS = [
    # Without warm-up optax stays at the value from which the warm-up would have started.
    ("warmup_constant_schedule", {"init_value": 0.1, "peak_value": 1.0, "warmup_steps": 0}, 0, 1.0),
    ("warmup_constant_schedule", {"init_value": 0.1, "peak_value": 1.0, "warmup_steps": 0}, 9, 1.0),
    # The end value is kept as a multiple of the peak, of which there is none for a peak of 0.
    (
        "warmup_cosine_decay_schedule",
        {"init_value": 0.2, "peak_value": 0.0, "warmup_steps": 2, "decay_steps": 6, "end_value": 0.1},
        6,
        0.1,
    ),
]
"""Name, arguments, count, and the right value, which is funcopt's; optax gives another one."""

COLLISIONS = [
    ("linear_onecycle_schedule", {"transition_steps": 1, "peak_value": 1.0}),
    ("linear_onecycle_schedule", {"transition_steps": 40, "peak_value": 1.0, "pct_start": 0.5, "pct_final": 0.51}),
]
"""One-cycle schedules that in optax never reach their peak."""


@contextlib.contextmanager
def jax_precision(dtype):
    """float32, which is jax's default, or float64; within the block only."""
    with jax.enable_x64(dtype == "float64"), jax.default_device(jax.devices("cpu")[0]):
        yield


def counts_of(case):
    near = {boundary + offset for boundary in case.boundaries for offset in (-1, 0, 1)}
    return sorted({*range(200), *near, 1000, 10**6} - {-1})


def values_in_optax(schedule, counts, dtype):
    with jax_precision(dtype):
        values = jax.vmap(lambda count: jnp.asarray(schedule(count), dtype))(jnp.asarray(counts))
        assert values.dtype == dtype
        return np.asarray(values, dtype=np.float64)


def values_in_funcopt(schedule, counts):
    return np.array([float(schedule(torch.tensor(count, dtype=torch.int32))) for count in counts])


def assert_close(actual, expected, tolerance):
    """Relative; in float32 to the largest value, since jax's own differences cancel there (7e-5 at worst)."""
    scale = np.abs(expected).max() if tolerance > 1e-7 else 0.0
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * scale)


precisions = pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-6), ("float64", 1e-12)])


@precisions
@pytest.mark.parametrize("entry, case", WITH_OPTAX, ids=case_id)
def test_as_optax(entry, case, dtype, tolerance):
    counts = counts_of(case)
    with jax_precision(dtype):
        schedule = entry.make(schedules, **case.arguments)
    expected = values_in_optax(schedule, counts, dtype)
    assert_close(values_in_funcopt(entry.make(**case.arguments), counts), expected, tolerance)


@precisions
@pytest.mark.parametrize("name, arguments", EDGES)
def test_as_optax_at_the_edges(name, arguments, dtype, tolerance):
    counts = [*range(30), 1000]
    with jax_precision(dtype):
        schedule = getattr(schedules, name)(**arguments)
    expected = values_in_optax(schedule, counts, dtype)
    assert_close(values_in_funcopt(getattr(fo, name)(**arguments), counts), expected, tolerance)


def test_the_precision_of_jax_is_restored():
    before = jnp.asarray(1.0).dtype
    with jax_precision("float64"):
        assert jnp.asarray(1.0).dtype == "float64"
    assert jnp.asarray(1.0).dtype == before


@pytest.mark.parametrize("entry", SCHEDULES, ids=case_id)
def test_the_catalogue_says_what_optax_has(entry):
    assert entry.optax == hasattr(schedules, entry.name)


@pytest.mark.parametrize("name, arguments, count, right", KNOWN_BUGS)
def test_known_bugs_of_optax(name, arguments, count, right):
    assert float(getattr(fo, name)(**arguments)(count)) == pytest.approx(right, rel=1e-12)
    assert float(getattr(schedules, name)(**arguments)(count)) != pytest.approx(right, rel=1e-3)


@pytest.mark.parametrize("name, arguments", COLLISIONS)
def test_knots_that_collide_in_optax(name, arguments):
    with pytest.raises(ValueError, match="knots"):
        getattr(fo, name)(**arguments)
    schedule = getattr(schedules, name)(**arguments)
    assert max(float(schedule(count)) for count in range(41)) < 0.9 * arguments["peak_value"]


def warmup(count, start, peak, steps):
    return start + (peak - start) * count / steps


def wsd_by_hand(count, shape, init_value, peak_value, warmup_steps, stable_steps, decay_steps, end_value):
    if count < warmup_steps:
        return warmup(count, init_value, peak_value, warmup_steps)
    if count < warmup_steps + stable_steps:
        return peak_value
    part = min((count - warmup_steps - stable_steps) / decay_steps, 1)
    weight = {"linear": 1 - part, "cosine": math.cos(math.pi * part / 2) ** 2, "1-sqrt": 1 - math.sqrt(part)}[shape]
    return weight * peak_value + (1 - weight) * end_value


@pytest.mark.parametrize("shape", ["linear", "cosine", "1-sqrt"])
@pytest.mark.parametrize("lengths", [(4, 6, 9), (0, 5, 7), (3, 0, 2), (0, 0, 1), (10, 80, 90)])
def test_warmup_stable_decay_by_hand(shape, lengths):
    arguments = {**WSD, **dict(zip(("warmup_steps", "stable_steps", "decay_steps"), lengths))}
    actual = values_in_funcopt(fo.warmup_stable_decay_schedule(**arguments, decay_shape=shape), range(200))
    expected = np.array([wsd_by_hand(count, shape, **arguments) for count in range(200)])
    assert_close(actual, expected, 1e-13)


@precisions
@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_warmup_stable_decay_joined_in_optax(shape, dtype, tolerance):
    peak, end, steps = WSD["peak_value"], WSD["end_value"], WSD["decay_steps"]
    with jax_precision(dtype):
        decays = {
            "linear": schedules.linear_schedule(peak, end, steps),
            "cosine": schedules.cosine_decay_schedule(peak, steps, alpha=end / peak),
        }
        rise = schedules.linear_schedule(WSD["init_value"], peak, WSD["warmup_steps"])
        joined = schedules.join_schedules([rise, schedules.constant_schedule(peak), decays[shape]], [4, 10])
    actual = values_in_funcopt(fo.warmup_stable_decay_schedule(**WSD, decay_shape=shape), range(60))
    assert_close(actual, values_in_optax(joined, range(60), dtype), tolerance)


def test_inverse_sqrt_is_the_rate_of_the_paper():
    d_model, warmup_steps = 512, 40
    schedule = fo.inverse_sqrt_schedule((d_model * warmup_steps) ** -0.5, warmup_steps=warmup_steps)
    expected = [d_model**-0.5 * min(step**-0.5, step * warmup_steps**-1.5) for step in range(1, 200)]
    assert_close(values_in_funcopt(schedule, range(1, 200)), np.array(expected), 1e-13)


@pytest.mark.parametrize("warmup_steps, init_value, timescale", [(0, 0.0, None), (0, 0.0, 30.0), (7, 0.2, 12.5)])
def test_inverse_sqrt_by_hand(warmup_steps, init_value, timescale):
    schedule = fo.inverse_sqrt_schedule(0.8, warmup_steps=warmup_steps, init_value=init_value, timescale=timescale)

    def by_hand(count):
        if count < warmup_steps:
            return warmup(count, init_value, 0.8, warmup_steps)
        return 0.8 / math.sqrt(1 + (count - warmup_steps) / (timescale or 1))

    assert_close(values_in_funcopt(schedule, range(200)), np.array([by_hand(count) for count in range(200)]), 1e-13)


@precisions
def test_inverse_sqrt_joined_in_optax(dtype, tolerance):
    with jax_precision(dtype):
        joined = schedules.join_schedules(
            [schedules.linear_schedule(0.1, 0.8, 9), lambda count: 0.8 * jnp.sqrt(9 / jnp.maximum(count + 9, 9))], [9]
        )
    schedule = fo.inverse_sqrt_schedule(0.8, warmup_steps=9, init_value=0.1)
    assert_close(values_in_funcopt(schedule, range(60)), values_in_optax(joined, range(60), dtype), tolerance)
