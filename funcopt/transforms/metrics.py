"""What a training run wants to see of its optimizer: kept by a wrapper, and read from any state by name."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from funcopt import tree
from funcopt.numerics import increment, safe_divide
from funcopt.paths import Path, walk
from funcopt.transform import (
    GradientTransformation,
    Params,
    State,
    Updates,
    check_transformation,
    factory,
    require_params,
    scalar,
    zero_count,
)
from funcopt.transforms.clipping import ClipByGlobalNormState


class HasMetrics(Protocol):
    """A state with something to show: a NamedTuple with `metrics`, tensors or trees of them by name.

    It may be a field or a property; `metrics(state)` finds it at any depth.
    """

    @property
    def metrics(self) -> Mapping[str, tree.Tree]: ...


class WithMetricsState(NamedTuple):
    count: Tensor  # type: ignore[assignment]  # steps taken
    metrics: dict[str, Tensor]  # of the last step; 0-d, zeros before the first
    inner_state: State


NAMES = ("gradient_norm", "update_norm", "param_norm", "update_to_param_ratio", "nonfinite_count")


@factory
def with_metrics(inner: GradientTransformation) -> GradientTransformation:
    """Take the steps of `inner`, and keep in the state what one wants to see of them, for `metrics(state)` to read.

    - `gradient_norm`, `update_norm`, `param_norm`: 2-norms of what comes in, of what goes out, and of the params before
      the step. `update_to_param_ratio`: how far the step moves, ‖u‖ / ‖p‖, and 0 for params of zero.
    - `nonfinite_count`: how many steps so far had a gradient norm that was NaN or infinite.
    - `clip_fraction`, if there is a `clip_by_global_norm` within `inner`: the share of steps so far that it clipped. If
      there are several, each has one with its label or place in front: `encoder.clip_fraction`. A step that a wrapper
      in between skipped counts as the one before it.

    All are 0-d tensors, float32, or float64 where a leaf of params is, and zeros before the first step. Nothing waits
    for the device. `metrics(state)` has the learning rates as well, which the states within keep.

    >>> optimizer = with_metrics(chain(clip_by_global_norm(1.0), sgd(0.5)))
    >>> params = {"w": torch.tensor([3.0, 4.0])}
    >>> updates, state = optimizer.update(params, optimizer.init(params), params)
    >>> {name: round(value.item(), 3) for name, value in metrics(state).items()}
    {'gradient_norm': 5.0, 'update_norm': 0.5, 'param_norm': 5.0, 'update_to_param_ratio': 0.1,
     'nonfinite_count': 0.0, 'clip_fraction': 1.0, 'learning_rate': 0.5}

    Raises:
        TypeError: `inner` is no `GradientTransformation`.
        ValueError: `update` got no params.
    """
    check_transformation("with_metrics", inner=inner)

    def init(params: Params) -> WithMetricsState:
        inner_state = inner.init(params)
        zeros = {name: scalar(params) for name in (*NAMES, *_clipped(inner_state))}
        return WithMetricsState(zero_count(params), zeros, inner_state)

    def update(
        updates: Updates, state: WithMetricsState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, WithMetricsState]:
        params = require_params(params, "with_metrics")
        steps, inner_state = inner.update(updates, state.inner_state, params, **extra)
        count, last = increment(state.count), state.metrics
        new = _measured(updates, steps, params)
        new["nonfinite_count"] = last["nonfinite_count"] + ~torch.isfinite(new["gradient_norm"])
        for name, clipped in _clipped(inner_state).items():
            new[name] = last[name] + (clipped - last[name]) / count
        kept = {name: new[name].to(value) for name, value in last.items()}
        return steps, WithMetricsState(count, kept, inner_state)

    return GradientTransformation(init, update, "treewise")


def _measured(gradients: Updates, updates: Updates, params: Params) -> dict[str, Tensor]:
    update_norm, param_norm = tree.global_norm(updates), tree.global_norm(params)
    return {
        "gradient_norm": tree.global_norm(gradients),
        "update_norm": update_norm,
        "param_norm": param_norm,
        "update_to_param_ratio": safe_divide(update_norm, param_norm),
    }


def _clipped(state: State) -> dict[str, Tensor]:
    """Whether each `clip_by_global_norm` within `state` clipped in the last step, under the name of its metric."""
    found = [(path, part) for path, part in _states(state) if isinstance(part, ClipByGlobalNormState)]
    names = _distinct([(path, "clip_fraction") for path, _ in found])
    return {name: part.clipped for name, (_, part) in zip(names, found)}


def metrics(state: State) -> dict[str, Tensor]:
    """All that the states within `state` have to show, by name: copies, to be returned from a compiled or vmapped step.

    Read are `with_metrics`, `snapshot`, `monitor`, the learning rates, and every state of your own that has `metrics`
    (a field or a property with a dict of tensors by name). A measurement that is a tree gives one entry for each leaf.

    A name that occurs once is used as it is. One that occurs several times is preceded by what tells the places apart:
    the labels of partitions and names of a `named_chain`; only if that is not enough, positions in chains; and only
    after that the names of fields.

    >>> optimizer = named_chain(("fast", sgd(0.5)), ("slow", sgd(0.25)))
    >>> metrics(optimizer.init(torch.ones(2)))
    {'fast.learning_rate': tensor(0.5000), 'slow.learning_rate': tensor(0.2500)}

    To read them all at once, wait for the device only once: `torch.stack(list(metrics(state).values())).tolist()`.
    """
    found = [
        (path, name, value)
        for path, part in _states(state)
        if hasattr(part, "metrics")
        for name, value in tree.leaves_with_path(part.metrics)
        if value is not None
    ]
    names = _distinct([(path, name) for path, name, _ in found])
    return {name: value.clone() for name, (_, _, value) in zip(names, found)}


def _states(state: State) -> list[tuple[Path, Any]]:
    """All NamedTuples within a state, depth first, each with the way to it."""
    return [(path, part) for path, part in walk(state) if hasattr(part, "_fields")]


QUALIFIERS = ((), ("key",), ("key", "index"), ("key", "index", "field"))


def _distinct(found: list[tuple[Path, str]]) -> list[str]:
    """A name for each place and name: with the first of `QUALIFIERS` that no other place shares."""
    columns = [[_qualified(path, name, kinds) for path, name in found] for kinds in QUALIFIERS]
    counts = [Counter(column) for column in columns]
    names = [next((name for name, count in zip(row, counts) if count[name] == 1), row[-1]) for row in zip(*columns)]
    return names if len(set(names)) == len(names) else columns[-1]


def _qualified(path: Path, name: str, kinds: tuple[str, ...]) -> str:
    return ".".join([*(step.name for step in path if step.kind in kinds), name])
