"""Strong Wolfe conditions: a line search that brackets a step, and zooms into the bracket by cubic interpolation."""

from typing import NamedTuple

import torch
from torch import Tensor

from funcopt import tree


class Point(NamedTuple):
    """What is known of the function at one step along the direction; the numbers are 0-d tensors."""

    step: Tensor
    value: Tensor
    slope: Tensor  # derivative along the direction
    gradient: Tensor


class Search(NamedTuple):
    """A search under way."""

    start: Point  # at step 0
    left: Point  # while there is no bracket yet: the last point but one
    right: Point  # while there is none: the last point
    low_is_left: Tensor  # whether left is the lower end of the bracket
    trial: Tensor  # the step at which the function is to be evaluated next
    evaluations: Tensor
    bracketed: Tensor
    stalled: Tensor  # whether the last trial was moved less than a tenth of the bracket into it
    done: Tensor


def begin_search(start: Point, trial: Tensor) -> Search:
    """A search from `start` whose first trial is the step `trial`.

    The search does not call the function: while not `state.done`, the caller evaluates it at `state.trial` and hands
    the point to `advance_search`; then `found_point` is the result. Nothing is read back to the host.

    >>> start = Point(torch.tensor(0.0), torch.tensor(9.0), torch.tensor(-6.0), torch.tensor([-6.0]))  # of (t - 3)²
    >>> begin_search(start, torch.tensor(1.0)).trial
    tensor(1.)
    """
    no = torch.zeros_like(trial, dtype=torch.bool)
    return Search(start, start, start, ~no, trial, torch.zeros_like(trial, dtype=torch.int32), no, no, no)


def found_point(state: Search) -> Point:
    """The lower end of the bracket: after the search, the point that was found."""
    chosen: Point = tree.where(state.low_is_left, state.left, state.right)
    return chosen


def advance_search(
    state: Search,
    point: Point,
    *,
    largest: Tensor,
    tolerance: float,
    max_trials: int,
    c1: float = 1e-4,
    c2: float = 0.9,
) -> Search:
    """The search after the function has been evaluated at `state.trial`, which gave `point`.

    It looks for a step τ with (Nocedal & Wright, Numerical Optimization, 2nd edition, algorithms 3.5 and 3.6)

        φ(τ) ≤ φ(0) + c₁ τ φ'(0)        |φ'(τ)| ≤ c₂ |φ'(0)|

    and ends without one where `max_trials` trials have followed the first, or where no number moves by `tolerance`
    within the bracket, `largest` being the largest number of the direction. As in torch.optim.LBFGS, that a later trial
    is not lower than the one before counts from the third on.
    """
    taken = state.evaluations
    too_high = point.value > state.start.value + c1 * point.step * state.start.slope
    flat = point.slope.abs() <= -c2 * state.start.slope
    bracketing = _bracket(state, point, too_high, flat, taken >= max_trials)
    state = tree.where(state.bracketed, _zoom(state, point, too_high, flat), bracketing)
    state = state._replace(evaluations=taken + 1, done=state.done | (state.bracketed & (taken >= max_trials)))
    width = (state.right.step - state.left.step).abs()
    state = state._replace(done=state.done | (state.bracketed & (width * largest < tolerance)))
    inside, stalled = _trial_inside(state)
    outside = _trial_beyond(state)
    return state._replace(
        trial=torch.where(state.done, state.trial, torch.where(state.bracketed, inside, outside)),
        stalled=stalled & state.bracketed & ~state.done,
    )


def _bracket(state: Search, point: Point, too_high: Tensor, flat: Tensor, last: Tensor) -> Search:
    """Without a bracket: accept the point, or end the bracket there, or go on beyond it."""
    before = state.right
    risen = (state.evaluations > 1) & (point.value >= before.value)
    accept = ~last & ~too_high & ~risen & flat
    closes = last | too_high | risen | (point.slope >= 0)
    left = tree.where(accept, point, tree.where(last, state.start, before))
    return state._replace(
        left=left,
        right=point,
        low_is_left=left.value <= point.value,
        bracketed=accept | closes,
        done=accept | last,
    )


def _zoom(state: Search, point: Point, too_high: Tensor, flat: Tensor) -> Search:
    """Within the bracket: put the point in the place of one of its ends."""
    low, left_is_low = found_point(state), state.low_is_left
    high: Point = tree.where(left_is_low, state.right, state.left)
    shrink = too_high | (point.value >= low.value)  # the point becomes the upper end, else the lower one
    turn = ~shrink & ~flat & (point.slope * (high.step - low.step) >= 0)  # the minimum is on the other side of it
    new_low = tree.where(shrink, low, point)
    new_high = tree.where(shrink, point, tree.where(turn, low, high))
    left = tree.where(left_is_low, new_low, new_high)
    right = tree.where(left_is_low, new_high, new_low)
    return state._replace(
        left=left,
        right=right,
        low_is_left=torch.where(shrink, left.value <= right.value, left_is_low),
        done=~shrink & flat,
    )


def _trial_beyond(state: Search) -> Tensor:
    """Beyond the last point: where the cubic has its minimum, but a hundredth of the last move to ten steps further."""
    before, last = state.left, state.right
    return cubic_minimum(before, last, last.step + 0.01 * (last.step - before.step), 10 * last.step)


def _trial_inside(state: Search) -> tuple[Tensor, Tensor]:
    """Within the bracket: where the cubic has its minimum, but not twice in a row next to an end of it."""
    first = torch.minimum(state.left.step, state.right.step)
    last = torch.maximum(state.left.step, state.right.step)
    trial = cubic_minimum(state.left, state.right, first, last)
    margin = 0.1 * (last - first)
    near = torch.minimum(last - trial, trial - first) < margin
    move = near & (state.stalled | (trial >= last) | (trial <= first))
    moved = torch.where((trial - last).abs() < (trial - first).abs(), last - margin, first + margin)
    return torch.where(move, moved, trial), near & ~move


def cubic_minimum(a: Point, b: Point, low: Tensor, high: Tensor) -> Tensor:
    """The step between `low` and `high` where the cubic through both points, with their slopes, has its minimum.

    The middle where it has none (Nocedal & Wright, equation 3.59), or a value is infinite, for which torch's is NaN.
    """
    a, b = tree.where(a.step <= b.step, (a, b), (b, a))
    mean = a.slope + b.slope - 3 * (a.value - b.value) / (a.step - b.step)
    square = mean.square() - a.slope * b.slope
    root = square.clamp(min=0).sqrt()
    minimum = b.step - (b.step - a.step) * ((b.slope + root - mean) / (b.slope - a.slope + 2 * root))
    inside = torch.minimum(torch.maximum(minimum, low), high)
    return torch.where((square >= 0) & ~inside.isnan(), inside, (low + high) / 2)
