"""The search finds steps that satisfy the conditions, on functions that are known, also vmapped and compiled."""

import math

import pytest
import torch
from torch.func import vmap
from torch.optim.lbfgs import _strong_wolfe

from funcopt.linesearch.strong_wolfe import Point, advance_search, begin_search, cubic_minimum, found_point

FUNCTIONS = {
    "parabola": lambda t: (t - 1) ** 2,
    "quartic": lambda t: (t - 3) ** 4 - t,
    "far": lambda t: (t - 40).abs() + 1 / (1 + (t - 40) ** 2),
    "waves": lambda t: -torch.sin(5 * t) - 0.1 * t - t**2 / 100,
    "steep": lambda t: torch.exp(-t) + torch.exp(5 * (t - 2)),
}


def point_at(function, step):
    value, slope = torch.func.grad_and_value(function)(step)[::-1]
    return Point(step, value, slope)


def scalar(value):
    return torch.tensor(value, dtype=torch.float64)


def search(function, trial, max_trials=25):
    start = point_at(function, scalar(0.0))
    state = begin_search(start, scalar(trial))
    while not state.done:
        point = point_at(function, state.trial)
        state = advance_search(state, point, largest=scalar(1.0), tolerance=1e-9, max_trials=max_trials)
    return start, found_point(state), int(state.evaluations)


@pytest.mark.parametrize("trial", [1e-3, 0.3, 1.0, 30.0])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_conditions_hold(name, trial):
    start, found, evaluations = search(FUNCTIONS[name], trial)
    assert found.value <= start.value + 1e-4 * found.step * start.slope
    assert found.slope.abs() <= 0.9 * start.slope.abs()
    assert evaluations <= 26
    torch.testing.assert_close(found, point_at(FUNCTIONS[name], found.step))


def drawn(seed):
    """A function with hills; some are rounded, so that values tie, or jump, or are infinite beyond a point."""
    generator = torch.Generator().manual_seed(seed)
    a, b, c, d = torch.rand(4, generator=generator, dtype=torch.float64).tolist()

    def function(t):
        value = (t - 4 * a) ** 2 * b + (0.2 + 2 * c) * torch.sin((1 + 9 * d) * t) - 2 * t
        if seed % 3 == 0:
            value = value + ((10 * value).round() / 10 - value).detach()
        if seed % 5 == 0:
            value = value + 1000 * (t > 0.2 * c)
        return torch.where(t > 2 + 3 * b, math.inf, value) if seed % 4 == 0 else value

    trial = 10 ** (3 * torch.rand((), generator=generator).item() - 1.5)
    return function, trial, int(torch.randint(1, 12, (), generator=generator))


@pytest.mark.parametrize("block", range(6))
def test_it_searches_as_torch(block):
    """The same trials and the same result, where rounding, ties, infinities and the end of the trials have a say."""
    for seed in range(100 * block, 100 * block + 100):
        function, trial, max_trials = drawn(seed)
        trials = []

        def objective(x, t, d, function=function, trials=trials):
            trials.append(float(t))
            point = point_at(function, scalar(float(t)))
            return float(point.value), point.slope[None]

        start = point_at(function, scalar(0.0))
        if start.slope >= 0:
            continue
        value, _, step, calls = _strong_wolfe(
            objective,
            scalar(0.0),
            trial,
            torch.ones(1, dtype=torch.float64),
            float(start.value),
            start.slope[None],
            start.slope,
            max_ls=max_trials,
        )
        state, found_trials = begin_search(start, scalar(trial)), []
        while not state.done:
            found_trials.append(float(state.trial))
            point = point_at(function, state.trial)
            state = advance_search(state, point, largest=scalar(1.0), tolerance=1e-9, max_trials=max_trials)
        found, common = found_point(state), [t for t in trials if not math.isnan(t)]
        assert found_trials[: len(common)] == pytest.approx(common, rel=1e-9), seed
        assert all(map(math.isfinite, found_trials))
        if len(common) == len(trials):  # torch's search has not met an infinite value, of which it makes NaN
            assert (float(found.step), float(found.value)) == pytest.approx((float(step), float(value)), rel=1e-9), seed
            assert int(state.evaluations) == calls
        else:
            assert float(found.value) <= float(start.value)


def test_a_search_that_runs_out_of_trials_gives_the_lower_end():
    start, found, evaluations = search(FUNCTIONS["parabola"], 1000.0, max_trials=0)
    assert evaluations == 1 and found.step == 0 and found.value == start.value
    _, found, evaluations = search(lambda t: -t, 1.0, max_trials=3)
    assert evaluations == 4 and found.step > 1


def test_a_bracket_that_moves_nothing_ends_the_search():
    def cliff(t):
        return torch.where(t > 0, scalar(1.0), -t)

    _, found, evaluations = search(cliff, 1.0)
    assert found.step < 1e-8 and evaluations <= 26


def test_the_cubic_has_its_minimum_there():
    def cubic(t):
        return t**3 - 3 * t

    points = [point_at(cubic, scalar(t)) for t in (0.2, 3.0)]
    for a, b in (points, points[::-1]):
        torch.testing.assert_close(cubic_minimum(a, b, scalar(0.0), scalar(5.0)), scalar(1.0))
    assert cubic_minimum(*points, scalar(2.0), scalar(5.0)) == 2.0
    falling = [Point(scalar(t), scalar(-t), scalar(s)) for t, s in ((0.0, -0.9), (1.0, -0.9))]
    assert cubic_minimum(*falling, scalar(1.0), scalar(3.0)) == 2.0 or math.isfinite(
        cubic_minimum(*falling, scalar(1.0), scalar(3.0))
    )


def test_many_searches_at_once():
    """The state has no Python numbers: vmapped, a search that is done waits for the others."""
    scales = torch.tensor([0.1, 1.0, 7.0], dtype=torch.float64)

    def one(scale):
        def function(t):
            return FUNCTIONS["quartic"](t * scale)

        state = begin_search(point_at(function, 0 * scale), 0 * scale + 0.5)
        for _ in range(12):
            after = advance_search(
                state, point_at(function, state.trial), largest=scalar(1.0), tolerance=1e-9, max_trials=25
            )
            state = type(state)(*(pick(state.done, old, new) for old, new in zip(state, after)))
        return found_point(state).step, state.done

    def pick(done, old, new):
        if isinstance(old, Point):
            return Point(*(torch.where(done, a, b) for a, b in zip(old, new)))
        return torch.where(done, old, new)

    steps, done = vmap(one)(scales)
    assert bool(done.all())
    for scale, step in zip(scales, steps):
        torch.testing.assert_close(step, search(lambda t, scale=scale: FUNCTIONS["quartic"](t * scale), 0.5)[1].step)
