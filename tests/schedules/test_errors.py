"""Wrong arguments are refused when a schedule is built, with the factory, the argument and its value named."""

import math

import pytest
import torch

import funcopt as fo

ENDS = {"init_value": 1.0, "end_value": 0.1}
RISE = {"init_value": 0.0, "peak_value": 1.0}
RISEN = {**RISE, "warmup_steps": 3}
DECAY = {"init_value": 1.0, "transition_steps": 3, "decay_rate": 0.5}
WSD = {**RISEN, "stable_steps": 2, "decay_steps": 4}
ONECYCLE = {"transition_steps": 20, "peak_value": 1.0}
PIECES = [fo.constant_schedule(1.0), fo.constant_schedule(2.0)]
LINEAR = {"interpolate_type": "linear", "init_value": 1.0}

WRONG_VALUES = [
    ("constant_schedule", {"value": math.nan}, "value must lie in"),
    ("constant_schedule", {"value": math.inf}, "got value=inf"),
    ("polynomial_schedule", {**ENDS, "power": -1, "transition_steps": 3}, "power must lie in [0, inf), got power=-1"),
    ("linear_schedule", {"init_value": math.nan, "end_value": 1.0, "transition_steps": 3}, "init_value must lie in"),
    ("exponential_decay", {**DECAY, "decay_rate": -0.5}, "decay_rate must lie in"),
    ("exponential_decay", {**DECAY, "end_value": math.inf}, "end_value must lie in"),
    ("cosine_decay_schedule", {"init_value": 1.0, "decay_steps": 0}, "decay_steps must be at least 1"),
    ("cosine_decay_schedule", {"init_value": 1.0, "decay_steps": 3, "exponent": -1.0}, "exponent must lie in"),
    ("piecewise_constant_schedule", {"init_value": 1.0, "boundaries_and_scales": {3: -0.5}}, "scale must lie in"),
    ("piecewise_constant_schedule", {"init_value": 1.0, "boundaries_and_scales": {-3: 0.5}}, "boundary must be at"),
    ("piecewise_interpolate_schedule", {**LINEAR, "boundaries_and_scales": {3: -0.5}}, "scale must lie in"),
    ("piecewise_interpolate_schedule", {**LINEAR, "interpolate_type": "cubic"}, "must be one of 'linear', 'cosine'"),
    ("linear_onecycle_schedule", {**ONECYCLE, "transition_steps": 0}, "transition_steps must be at least 1"),
    ("linear_onecycle_schedule", {**ONECYCLE, "transition_steps": 1}, "knots at [0, 0, 0, 1]"),
    ("linear_onecycle_schedule", {**ONECYCLE, "transition_steps": 3}, "knots at [0, 0, 2, 3]"),
    ("linear_onecycle_schedule", {**ONECYCLE, "pct_final": 0.3}, "knots at [0, 6, 6, 20]"),
    ("linear_onecycle_schedule", {**ONECYCLE, "pct_start": 0.9}, "knots at [0, 18, 17, 20]"),
    ("linear_onecycle_schedule", {**ONECYCLE, "pct_final": 1.0}, "knots at [0, 6, 20, 20]"),
    ("linear_onecycle_schedule", {**ONECYCLE, "pct_start": 1.5}, "pct_start must lie in [0, 1]"),
    ("linear_onecycle_schedule", {**ONECYCLE, "div_factor": 0.0}, "div_factor must lie in"),
    ("cosine_onecycle_schedule", {**ONECYCLE, "transition_steps": 2}, "knots at [0, 0, 2]"),
    ("cosine_onecycle_schedule", {**ONECYCLE, "pct_start": 1.0}, "knots at [0, 20, 20]"),
    ("cosine_onecycle_schedule", {**ONECYCLE, "final_div_factor": -1.0}, "final_div_factor must lie in"),
    ("join_schedules", {"schedules": PIECES, "boundaries": []}, "2 schedules need 1 boundaries, got boundaries=[]"),
    ("join_schedules", {"schedules": PIECES, "boundaries": [1, 2]}, "2 schedules need 1 boundaries"),
    ("join_schedules", {"schedules": [], "boundaries": []}, "schedules must hold at least one schedule"),
    ("join_schedules", {"schedules": PIECES, "boundaries": [-1]}, "boundary must be at least 0"),
    ("join_schedules", {"schedules": PIECES * 2, "boundaries": [1, 5, 4]}, "boundaries must ascend"),
    ("warmup_constant_schedule", {**RISE, "warmup_steps": -1}, "warmup_steps must be at least 0"),
    ("warmup_cosine_decay_schedule", {**RISEN, "decay_steps": 3}, "decay_steps must exceed warmup_steps=3"),
    ("warmup_cosine_decay_schedule", {**RISEN, "decay_steps": 8, "exponent": -1.0}, "exponent must lie in"),
    ("warmup_exponential_decay_schedule", {**DECAY, **RISE, "warmup_steps": -1}, "warmup_steps must be at least 0"),
    ("warmup_exponential_decay_schedule", {**DECAY, **RISEN, "decay_rate": -1.0}, "decay_rate must lie in"),
    ("warmup_stable_decay_schedule", {**WSD, "decay_steps": 0}, "decay_steps must be at least 1"),
    ("warmup_stable_decay_schedule", {**WSD, "stable_steps": -1}, "stable_steps must be at least 0"),
    ("warmup_stable_decay_schedule", {**WSD, "decay_shape": "sqrt"}, "must be one of 'linear', 'cosine', '1-sqrt'"),
    ("inverse_sqrt_schedule", {"peak_value": 1.0, "warmup_steps": -1}, "warmup_steps must be at least 0"),
    ("inverse_sqrt_schedule", {"peak_value": 1.0, "timescale": 0.0}, "timescale must lie in (0, inf)"),
    ("sgdr_schedule", {"cosine_kwargs": []}, "at least one cycle"),
    ("sgdr_schedule", {"cosine_kwargs": [{**RISEN, "decay_steps": 2}]}, "decay_steps must exceed warmup_steps=3"),
]

WRONG_TYPES = [
    ("constant_schedule", {"value": "high"}, "value must be a number or a 0-d tensor, got value='high'"),
    ("polynomial_schedule", {**ENDS, "power": 2, "transition_steps": 3.0}, "transition_steps must be an int"),
    ("linear_schedule", {**ENDS, "transition_steps": torch.tensor(3)}, "transition_steps must be an int"),
    ("linear_schedule", {**ENDS, "transition_steps": True}, "transition_steps must be an int"),
    ("exponential_decay", {**DECAY, "transition_begin": 0.5}, "transition_begin must be an int"),
    ("cosine_decay_schedule", {"init_value": 1.0, "decay_steps": 1e3}, "decay_steps must be an int"),
    ("piecewise_constant_schedule", {"init_value": 1.0, "boundaries_and_scales": {"3": 0.5}}, "must be an int"),
    ("piecewise_interpolate_schedule", {**LINEAR, "boundaries_and_scales": {3.5: 0.5}}, "boundary must be an int"),
    ("linear_onecycle_schedule", {**ONECYCLE, "pct_final": torch.tensor(0.9)}, "pct_final fixes a count"),
    ("cosine_onecycle_schedule", {**ONECYCLE, "transition_steps": 20.0}, "transition_steps must be an int"),
    ("join_schedules", {"schedules": [PIECES[0], 0.1], "boundaries": [3]}, "functions of the count, got 0.1"),
    ("join_schedules", {"schedules": PIECES, "boundaries": [3.0]}, "boundary must be an int"),
    ("warmup_constant_schedule", {**RISE, "warmup_steps": 0.1}, "warmup_steps must be an int"),
    ("warmup_stable_decay_schedule", {**WSD, "stable_steps": 0.8}, "stable_steps must be an int"),
    ("inverse_sqrt_schedule", {"peak_value": 1.0, "warmup_steps": 4e3}, "warmup_steps must be an int"),
    ("warmup_cosine_decay_schedule", {**RISEN, "decay_steps": 9.0}, "decay_steps must be an int"),
]


@pytest.mark.parametrize("name, arguments, message", WRONG_VALUES)
def test_wrong_values(name, arguments, message):
    check_raises(ValueError, name, arguments, message)


@pytest.mark.parametrize("name, arguments, message", WRONG_TYPES)
def test_wrong_types(name, arguments, message):
    check_raises(TypeError, name, arguments, message)


def check_raises(error, name, arguments, message):
    with pytest.raises(error) as caught:
        getattr(fo, name)(**arguments)
    assert message in str(caught.value)
    inner = {"sgdr_schedule": "warmup_cosine_decay_schedule", "warmup_exponential_decay_schedule": "exponential_decay"}
    assert str(caught.value).startswith((f"{name}: ", f"{inner.get(name, name)}: "))
