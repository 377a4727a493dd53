"""Timing side by side: contenders take turns, and what counts is the ratio within a turn."""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


@dataclass
class Timing:
    """One contender in one race.

    Attributes:
        first: seconds of its first call, with the compilation.
        turns: milliseconds of a step in each turn (the median within the turn).
        allocated: bytes that a step allocates through torch; None for what is not torch.
    """

    name: str
    first: float
    turns: list[float] = field(default_factory=list)
    allocated: int | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.turns)


def first_call(step: Callable[[], Any]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def bytes_allocated(step: Callable[[], Any]) -> int:
    """What one step allocates, from the profiler's memory events."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        step()
    events = trace.profiler.kineto_results.events()
    return sum(event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0)


def race(steps: dict[str, Callable[[], Any]], turns: int, seconds: float) -> dict[str, Timing]:
    """Time all steps by turns, each for about `seconds` a turn and for at least three calls."""
    timings = {name: Timing(name, first_call(step)) for name, step in steps.items()}
    for step in steps.values():
        step()
    calls = {name: max(3, int(seconds / max(first_call(step), 1e-6))) for name, step in steps.items()}
    gc.collect()
    gc.disable()
    try:
        for _ in range(turns):
            for name, step in steps.items():
                timings[name].turns.append(_turn(step, calls[name]))
    finally:
        gc.enable()
    return timings


def _turn(step: Callable[[], Any], calls: int) -> float:
    spent = []
    for _ in range(calls):
        began = time.perf_counter()
        step()
        spent.append(time.perf_counter() - began)
    return 1e3 * statistics.median(spent)


def ratio(one: Timing, other: Timing) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of the ratios of `one` to `other`, turn by turn."""
    ratios = [a / b for a, b in zip(one.turns, other.turns)]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return low, middle, high


def stream_bandwidth(size: int = 2**25) -> float:
    """Bytes a second that `c = a + b` moves over float32 vectors too large for the caches: two read, one written."""
    a, b, c = (torch.ones(size) for _ in range(3))
    best = min(first_call(lambda: torch.add(a, b, out=c)) for _ in range(10))
    return 3 * 4 * size / best
