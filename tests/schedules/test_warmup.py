"""Reference values of the schedules that begin with a warm-up, and how they relate."""

import pytest

import funcopt as fo

VALUES = [
    (fo.warmup_constant_schedule(0.1, 0.9, 4), range(6), [0.1, 0.3, 0.5, 0.7, 0.9, 0.9]),
    (fo.warmup_constant_schedule(0.1, 0.9, 0), [0, 1], [0.9, 0.9]),
    (
        fo.warmup_cosine_decay_schedule(0.0, 1.0, 3, 8, 0.1),
        range(9),
        [0, 0.333333, 0.666667, 1, 0.914058, 0.689058, 0.410942, 0.185942, 0.1],
    ),
    (fo.warmup_cosine_decay_schedule(0.0, 1.0, 0, 2), range(4), [1, 0.5, 0, 0]),
    (fo.warmup_cosine_decay_schedule(1.0, 0.0, 2, 4, 0.5), range(6), [1, 0.5, 0, 0.25, 0.5, 0.5]),
    (fo.warmup_exponential_decay_schedule(0.0, 1.0, 3, 2, 0.5), range(3, 8), [1, 0.707107, 0.5, 0.353553, 0.25]),
    (fo.warmup_exponential_decay_schedule(0.0, 1.0, 0, 1, 0.5, 1), range(4), [1, 1, 0.5, 0.25]),
    (fo.warmup_stable_decay_schedule(0.0, 1.0, 2, 2, 4), range(10), [0, 0.5, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0]),
    (
        fo.warmup_stable_decay_schedule(0.0, 1.0, 0, 1, 4, 0.2, "1-sqrt"),
        range(7),
        [1, 1, 0.6, 0.434315, 0.307180, 0.2, 0.2],
    ),
    (
        fo.warmup_stable_decay_schedule(0.0, 1.0, 0, 0, 4, 0.0, "cosine"),
        range(6),
        [1, 0.853553, 0.5, 0.146447, 0, 0],
    ),
    (fo.inverse_sqrt_schedule(1.0, warmup_steps=4), [0, 1, 4, 16, 64], [0, 0.25, 1, 0.5, 0.25]),
    (fo.inverse_sqrt_schedule(1.0), [0, 3, 15, 99], [1, 0.5, 0.25, 0.1]),
    (fo.inverse_sqrt_schedule(1.0, timescale=100.0), [0, 300], [1, 0.5]),
    (fo.inverse_sqrt_schedule(1.0, warmup_steps=4, timescale=1.0), [4, 7, 12], [1, 0.5, 0.333333]),
]


@pytest.mark.parametrize("schedule, counts, values", VALUES)
def test_reference_values(schedule, counts, values):
    assert [float(schedule(count)) for count in counts] == pytest.approx(values, abs=5e-7)


@pytest.mark.parametrize("warmup_steps", [0, 3])
def test_the_peak_is_reached_exactly(warmup_steps):
    for schedule in (
        fo.warmup_constant_schedule(0.1, 0.7, warmup_steps),
        fo.warmup_cosine_decay_schedule(0.1, 0.7, warmup_steps, 9, 0.2),
        fo.warmup_exponential_decay_schedule(0.1, 0.7, warmup_steps, 4, 0.5),
        fo.warmup_stable_decay_schedule(0.1, 0.7, warmup_steps, 0, 5, 0.2),
        fo.inverse_sqrt_schedule(0.7, warmup_steps=warmup_steps, init_value=0.1),
    ):
        assert schedule(warmup_steps) == 0.7


def test_a_longer_stable_phase_prolongs_a_run():
    """The point of WSD: until the decay begins, runs of any length are one."""
    short, long = (fo.warmup_stable_decay_schedule(0.0, 1.0, 3, stable, 5) for stable in (4, 40))
    assert [short(count) for count in range(8)] == [long(count) for count in range(8)]
    assert [short(count) for count in range(7, 14)] == [long(count + 36) for count in range(7, 14)]
