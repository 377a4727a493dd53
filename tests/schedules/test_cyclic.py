"""Reference values of the one-cycle schedules and of SGDR."""

import pytest

import funcopt as fo

CYCLES = [
    {"init_value": 0.0, "peak_value": 1.0, "warmup_steps": 2, "decay_steps": 5},
    {"init_value": 0.0, "peak_value": 0.5, "warmup_steps": 1, "decay_steps": 3},
]
ONECYCLE_COUNTS = [0, 3, 6, 10, 17, 19, 20, 21]
VALUES = [
    (fo.linear_onecycle_schedule(20, 1.0), ONECYCLE_COUNTS, [0.04, 0.52, 1, 0.650909, 0.04, 0.013336, 4e-6, 4e-6]),
    (
        fo.cosine_onecycle_schedule(20, 1.0),
        ONECYCLE_COUNTS,
        [0.04, 0.52, 1, 0.811746, 0.109088, 0.012540, 4e-6, 4e-6],
    ),
    (fo.linear_onecycle_schedule(4, 1.0, 0.0, 0.5, 2.0, 2.0), range(6), [1, 0.75, 0.5, 0.375, 0.25, 0.25]),
    (fo.cosine_onecycle_schedule(4, 1.0, 0.0, 2.0, 2.0), [0, 2, 4, 5], [1, 0.625, 0.25, 0.25]),
    (fo.sgdr_schedule(CYCLES), range(10), [0, 0.5, 1, 0.75, 0.25, 0, 0.5, 0.25, 0, 0]),
    (fo.sgdr_schedule(iter(CYCLES[1:])), range(5), [0, 0.5, 0.25, 0, 0]),
]


@pytest.mark.parametrize("schedule, counts, values", VALUES)
def test_reference_values(schedule, counts, values):
    assert [float(schedule(count)) for count in counts] == pytest.approx(values, abs=5e-7)


@pytest.mark.parametrize("transition_steps", [4, 5, 7, 10, 101])
def test_a_cycle_reaches_its_peak(transition_steps):
    for factory in (fo.linear_onecycle_schedule, fo.cosine_onecycle_schedule):
        schedule = factory(transition_steps, 0.3)
        values = [float(schedule(count)) for count in range(transition_steps + 1)]
        assert max(values) == 0.3
        assert values[0] == pytest.approx(0.3 / 25, rel=1e-14)
        assert values[-1] == pytest.approx(0.3 / 25e4, rel=1e-14)
