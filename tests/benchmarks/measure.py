"""Timing side by side: contenders take turns, and what counts is the ratio within a turn."""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile

Step = Callable[[], Any]


@dataclass
class Timing:
    """One contender in one race.

    Attributes:
        first: seconds of its first call, with the compilation.
        turns: milliseconds of a step in each turn (the median within the turn).
        graphs: how many graphs it compiled.
        peak: bytes that a step holds through torch at its peak, beyond what was there; None for what is not torch.
    """

    name: str
    first: float = 0.0
    turns: list[float] = field(default_factory=list)
    graphs: int = 0
    peak: int | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.turns)


@dataclass
class Race:
    """Timings of contenders that took turns; `kind` is "step", "training" or "sweep"."""

    kind: str
    workload: str
    rule: str
    timings: dict[str, Timing]

    def ratio(self, one: str, other: str) -> tuple[float, float, float] | None:
        """Lower quartile, median and upper quartile of the ratios turn by turn; None if one did not take part."""
        if one not in self.timings or other not in self.timings:
            return None
        return ratio(self.timings[one], self.timings[other])

    def fastest(self, names: tuple[str, ...]) -> str | None:
        """Of these the one with the least median; None if none took part."""
        return min((name for name in names if name in self.timings), key=lambda n: self.timings[n].median, default=None)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Race":
        timings = {name: Timing(**timing) for name, timing in data["timings"].items()}
        return cls(data["kind"], data["workload"], data["rule"], timings)


def seconds_of(step: Step) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def start(name: str, step: Step) -> Timing:
    """The first call, with what it compiles, and a second one, which may compile once more."""
    before = counters["stats"]["unique_graphs"]
    timing = Timing(name, seconds_of(step))
    step()
    timing.graphs = counters["stats"]["unique_graphs"] - before
    return timing


def race(steps: dict[str, Step], turns: int, seconds: float) -> dict[str, Timing]:
    """Time all steps by turns, each for about `seconds` a turn and for at least three calls."""
    timings = {name: start(name, step) for name, step in steps.items()}
    calls = {name: max(3, int(seconds / max(seconds_of(step), 1e-6))) for name, step in steps.items()}
    gc.collect()
    gc.disable()
    try:
        for _ in range(turns):
            for name, step in steps.items():
                timings[name].turns.append(_turn(step, calls[name]))
    finally:
        gc.enable()
    return timings


def _turn(step: Step, calls: int) -> float:
    return 1e3 * statistics.median(seconds_of(step) for _ in range(calls))


def ratio(one: Timing, other: Timing) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of the ratios of `one` to `other`, turn by turn."""
    ratios = [a / b for a, b in zip(one.turns, other.turns)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return low, middle, high


def peak_memory(step: Step) -> int:
    """The most that one step holds at a time beyond what was there, from the profiler's memory events."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        step()
    events = [event for event in trace.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def stream_bandwidth(size: int = 2**25) -> float:
    """Bytes a second that `c = a + b` moves over float32 vectors too large for the caches: two read, one written."""
    a, b, c = (torch.ones(size) for _ in range(3))
    best = min(seconds_of(lambda: torch.add(a, b, out=c)) for _ in range(10))
    return 3 * 4 * size / best
