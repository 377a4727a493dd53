"""Reference values of schedules made of pieces, and what a piece gets to see."""

import pytest
import torch

import funcopt as fo

KNOTS = {2: 0.5, 6: 0.1}
VALUES = [
    (fo.piecewise_constant_schedule(1.0, {2: 0.5, 5: 0.1}), range(8), [1, 1, 0.5, 0.5, 0.5, 0.05, 0.05, 0.05]),
    (
        fo.piecewise_interpolate_schedule("linear", 1.0, KNOTS),
        range(9),
        [1, 0.75, 0.5, 0.3875, 0.275, 0.1625, 0.05, 0.05, 0.05],
    ),
    (
        fo.piecewise_interpolate_schedule("cosine", 1.0, KNOTS),
        range(9),
        [1, 0.75, 0.5, 0.434099, 0.275, 0.115901, 0.05, 0.05, 0.05],
    ),
    (fo.piecewise_constant_schedule(0.7), [0, 9], [0.7, 0.7]),
    (fo.piecewise_interpolate_schedule("linear", 0.7, {}), [0, 9], [0.7, 0.7]),
    (fo.piecewise_constant_schedule(1.0, {0: 0.5}), [0, 1], [0.5, 0.5]),
    (fo.piecewise_interpolate_schedule("linear", 1.0, {0: 0.5, 2: 0.5}), range(4), [0.5, 0.375, 0.25, 0.25]),
    (
        fo.join_schedules([fo.linear_schedule(0.0, 1.0, 2), fo.linear_schedule(5.0, 4.0, 2)], [2]),
        [1, 2, 3],
        [0.5, 5, 4.5],
    ),
]


@pytest.mark.parametrize("schedule, counts, values", VALUES)
def test_reference_values(schedule, counts, values):
    assert [float(schedule(count)) for count in counts] == pytest.approx(values, abs=5e-7)


def test_a_dict_that_changes_later_changes_nothing():
    scales = {2: 0.5}
    schedules = [fo.piecewise_constant_schedule(1.0, scales), fo.piecewise_interpolate_schedule("linear", 1.0, scales)]
    scales[2] = 7.0
    scales[3] = 7.0
    assert [float(schedule(9)) for schedule in schedules] == [0.5, 0.5]


def test_each_piece_sees_its_own_counts():
    seen = {"first": [], "second": [], "third": []}

    def watch(name):
        def piece(count):
            seen[name].append(int(count))
            return 0.5  # a Python number, as a schedule of one's own may return

        return piece

    schedule = fo.join_schedules([watch(name) for name in seen], [3, 7])
    values = [schedule(torch.tensor(count, dtype=torch.int32)) for count in (0, 2, 3, 6, 7, 2**31 - 1)]
    assert all(value.shape == () and value.dtype == torch.float64 for value in values)
    assert seen == {
        "first": [0, 2, 3, 3, 3, 3],
        "second": [0, 0, 0, 3, 4, 4],
        "third": [0, 0, 0, 0, 0, 2**31 - 1 - 7],
    }


def test_a_piece_that_is_not_used_leaves_no_trace_in_the_derivative():
    """The derivative of a root at 0 and the growth behind a boundary are infinite; optax gets NaN from 0 * inf."""
    rate = torch.tensor(2.0, dtype=torch.float64)

    def value(rate, count):
        grows = lambda count: rate ** count.to(rate.dtype)  # noqa: E731
        root = lambda count: (rate * (count + 1)).log().sqrt()  # noqa: E731
        return fo.join_schedules([grows, root], [4])(count)

    for count in (0, 3, 4, 10**6):
        assert torch.func.grad(value)(rate, count).isfinite()


def test_boundaries_beyond_the_range_of_the_counter():
    schedule = fo.join_schedules([fo.constant_schedule(1.0), fo.constant_schedule(2.0)], [2**40])
    assert schedule(torch.tensor(2**31 - 1, dtype=torch.int32)) == 1 and schedule(2**40) == 2
    assert fo.linear_schedule(0.0, 1.0, 2**40)(torch.tensor(2**30, dtype=torch.int32)) == 2.0**-10


def test_one_schedule_without_boundaries():
    assert fo.join_schedules([fo.linear_schedule(0.0, 1.0, 4)], [])(3) == 0.75
