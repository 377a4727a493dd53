"""Reference values of the decays, and their edges."""

import math

import pytest
import torch

import funcopt as fo

VALUES = [
    (fo.constant_schedule(0.3), range(3), [0.3, 0.3, 0.3]),
    (fo.linear_schedule(0.0, 1.0, 4), range(6), [0, 0.25, 0.5, 0.75, 1, 1]),
    (fo.polynomial_schedule(1.0, 0.1, 2, 10, 3), [0, 3, 4, 8, 13, 20], [1, 1, 0.829, 0.325, 0.1, 0.1]),
    (fo.polynomial_schedule(1.0, 0.1, 0, 10), [0, 5, 10, 20], [1, 1, 1, 1]),
    (fo.polynomial_schedule(1.0, 0.1, 2, 0), [0, 1, 9], [1, 1, 1]),
    (fo.linear_schedule(1.0, 0.0, 4, -3), range(6), [1, 0.75, 0.5, 0.25, 0, 0]),
    (fo.exponential_decay(1.0, 4, 0.5, transition_begin=2), range(2, 7), [1, 0.840896, 0.707107, 0.594604, 0.5]),
    (fo.exponential_decay(1.0, 4, 0.5, 0, True, 0.3), [0, 2, 4, 6, 8], [1, 1, 0.5, 0.5, 0.3]),
    (fo.exponential_decay(1.0, 1, 2.0, 0, False, 5.0), range(5), [1, 2, 4, 5, 5]),
    (fo.exponential_decay(1.0, 4, 0.0, end_value=2.0), [0, 4, 9], [1, 1, 1]),
    (fo.exponential_decay(1.0, -4, 0.5, end_value=2.0), [0, 4, 9], [1, 1, 1]),
    (fo.cosine_decay_schedule(2.0, 4, 0.1, 2.0), range(6), [2, 1.511396, 0.65, 0.238604, 0.2, 0.2]),
]


@pytest.mark.parametrize("schedule, counts, values", VALUES)
def test_reference_values(schedule, counts, values):
    assert [float(schedule(count)) for count in counts] == pytest.approx(values, abs=5e-7)


def test_the_ends_are_exact():
    for schedule in (fo.linear_schedule(0.1, 0.7, 3), fo.polynomial_schedule(0.1, 0.7, 1.5, 3)):
        assert schedule(0) == 0.1 and schedule(3) == 0.7
    assert fo.cosine_decay_schedule(0.3, 3)(3) == 0


def test_a_decay_rate_of_zero_given_as_a_tensor():
    rate = torch.zeros(())
    derivative, value = torch.func.grad_and_value(lambda r: fo.exponential_decay(0.7, 4, r, end_value=2.0)(9))(rate)
    assert value == 0.7 and derivative == 0


@pytest.mark.parametrize("end_value", [None, 5.0])
def test_derivatives_of_growth_stay_finite(end_value):
    def value(init_value, rate):
        return fo.exponential_decay(init_value, 1, rate, end_value=end_value)(2**31 - 1)

    arguments = torch.tensor(1.0, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64)
    gradient = torch.func.grad(value, argnums=(0, 1))(*arguments)
    assert all(entry.isfinite() for entry in gradient)
    assert value(*arguments).isfinite()


@pytest.mark.parametrize("power, value", [(0.0, 1.0), (0.5, 0.0), (3.0, 0.0)])
def test_a_power_given_as_a_tensor_at_the_end(power, value):
    schedule = fo.polynomial_schedule(1.0, 0.0, torch.tensor(power), 5)
    assert schedule(5) == value


def test_the_derivative_in_the_power():
    power = torch.tensor(2.0, dtype=torch.float64)

    def value(power, count):
        return fo.polynomial_schedule(1.0, 0.0, power, 4)(count)

    assert torch.func.grad(value)(power, 1).item() == pytest.approx(0.75**2 * math.log(0.75))
    assert torch.func.grad(value)(power, 4) == 0


def test_counts_that_are_no_integers():
    """Epochs in parts, say; what a scan carries as float32 comes in like that too."""
    assert fo.linear_schedule(0.0, 1.0, 4)(0.5) == 0.125
    assert fo.linear_schedule(0.0, 1.0, 4)(torch.tensor(2.5)) == 0.625
    assert fo.join_schedules([fo.linear_schedule(0.0, 1.0, 4), fo.constant_schedule(9.0)], [4])(3.5) == 0.875


def test_an_int_goes_to_the_cpu_whatever_the_default_device():
    schedule = fo.join_schedules([fo.linear_schedule(0.0, 1.0, 4), fo.constant_schedule(1.0)], [4])
    with torch.device("meta"):
        assert schedule(2).device.type == "cpu"
        assert schedule(torch.zeros((), dtype=torch.int32)).device.type == "meta"
