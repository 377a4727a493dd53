"""Measurements of the updates at one place of a chain, kept in the state for the caller to read."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from funcopt import tree
from funcopt.numerics import compute_dtype
from funcopt.transform import GradientTransformation, Params, State, Updates, factory, stateless
from funcopt.transforms.momentum import ema

Measure: TypeAlias = Callable[[Updates], tree.Tree]
"""What is to be known of the updates: a function of them to a number, a tensor, or a tree of tensors."""


class SnapshotState(NamedTuple):
    measurement: dict[str, tree.Tree]  # of the last updates, by its name

    @property
    def metrics(self) -> dict[str, tree.Tree]:
        """What `metrics` reads."""
        return self.measurement


@factory
def snapshot(measure_name: str, measure: Measure) -> GradientTransformation:
    """Pass the updates on, and keep `measure(updates)` in the state under `measure_name`.

    Shapes and dtypes of the measurement, floating-point ones at least float32, are found at init, where `measure` is
    called on the params; the values are zeros until the first update (optax keeps what it measured on the params).
    A part that is measured as None, since a leaf had no gradient, keeps its last value.

    >>> optimizer = chain(snapshot("before", global_norm), clip_by_global_norm(1.0), sgd(0.1))
    >>> params = torch.tensor([3.0, 4.0])
    >>> updates, state = optimizer.update(params, optimizer.init(params))
    >>> metrics(state)["before"]
    tensor(5.)

    Raises:
        TypeError: `measure_name` is no str, or `measure` is no function.
        ValueError: at the update: a measurement has another shape than at init.
    """
    if not isinstance(measure_name, str):
        raise TypeError(f"snapshot: measure_name must be a str, got measure_name={measure_name!r}.")
    if not callable(measure):
        raise TypeError(f"snapshot: measure must be a function of the updates, got measure={measure!r}.")

    def init(params: Params) -> SnapshotState:
        tree.check_params(params)
        return SnapshotState({measure_name: _blank(measure(params), params)})

    def update(
        updates: Updates, state: SnapshotState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, SnapshotState]:
        kept = _recorded("snapshot", measure_name, state.measurement[measure_name], measure(updates))
        return tree.clone(updates), SnapshotState({measure_name: kept})

    return GradientTransformation(init, update, "treewise")


class MonitorState(NamedTuple):
    measurements: dict[str, tree.Tree]  # of the last updates, by name
    measure_states: dict[str, State]  # what each measure remembers, by name

    @property
    def metrics(self) -> dict[str, tree.Tree]:
        """What `metrics` reads."""
        return self.measurements


@factory
def monitor(measures: Mapping[str, Measure | GradientTransformation]) -> GradientTransformation:
    """Pass the updates on, and keep several measurements of them in the state, by name.

    A measure is a function of the updates, or a transformation, whose own updates are then the measurement: it may
    remember (`measure_with_ema`, `trace`), and it receives params and the extra arguments. The state has one structure
    from init on, where optax fills it at the first update; before that the values are zeros, as in `snapshot`.
    A measure that needs an extra argument must do without it at init.

    >>> measures = {"norm": global_norm, "mean_norm": measure_with_ema(global_norm, decay=0.9)}
    >>> optimizer = chain(monitor(measures), sgd(0.1))
    >>> params = torch.tensor([3.0, 4.0])
    >>> updates, state = optimizer.update(params, optimizer.init(params))
    >>> metrics(state)
    {'norm': tensor(5.), 'mean_norm': tensor(5.), 'learning_rate': tensor(0.1000)}

    Raises:
        TypeError: `measures` is no dict of functions and transformations by name.
        ValueError: at the update: a measurement has another shape than at init.
    """
    if not isinstance(measures, Mapping):
        raise TypeError(f"monitor: measures must be a dict of measures by name, got {measures!r}.")
    members = {name: _as_transformation(name, measure) for name, measure in measures.items()}

    def init(params: Params) -> MonitorState:
        tree.check_params(params)
        states = {name: member.init(params) for name, member in members.items()}
        measured = {name: member.update(params, states[name], params)[0] for name, member in members.items()}
        return MonitorState({name: _blank(value, params) for name, value in measured.items()}, states)

    def update(
        updates: Updates, state: MonitorState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, MonitorState]:
        measurements, states = {}, {}
        for name, member in members.items():
            measured, states[name] = member.update(updates, state.measure_states[name], params, **extra)
            measurements[name] = _recorded("monitor", name, state.measurements[name], measured)
        return tree.clone(updates), MonitorState(measurements, states)

    return GradientTransformation(init, update, "treewise")


def _as_transformation(name: str, measure: Measure | GradientTransformation) -> GradientTransformation:
    if not isinstance(name, str):
        raise TypeError(f"monitor: the names of measures must be strs, got {name!r}.")
    if isinstance(measure, GradientTransformation):
        return measure
    if not callable(measure):
        raise TypeError(
            f"monitor: measure {name!r} must be a function of the updates or a GradientTransformation, got {measure!r}."
        )
    return stateless(lambda updates, params: measure(updates))


def measure_with_ema(
    measure: Measure, decay: float | Tensor, debias: bool = True, accumulator_dtype: torch.dtype | None = None
) -> GradientTransformation:
    """The exponential moving average of a measurement, as a measure for `monitor`; arguments as `ema` takes them.

    A bool counts as 0 or 1: the average of a condition is how often it held lately.

    >>> clipped_lately = measure_with_ema(lambda updates: global_norm(updates) > 1.0, decay=0.9)
    """
    if not callable(measure):
        raise TypeError(f"measure_with_ema: measure must be a function of the updates, got measure={measure!r}.")
    average = ema(decay, debias, accumulator_dtype)

    def init(params: Params) -> State:
        tree.check_params(params)
        return average.init(tree.map(_floating, _blank(measure(params), params)))

    def update(updates: Updates, state: State, params: Params | None = None, **extra: Any) -> tuple[tree.Tree, State]:
        return average.update(tree.map(_floating, measure(updates)), state)

    return GradientTransformation(init, update, "treewise")


def _floating(value: Any) -> Tensor:
    tensor = torch.as_tensor(value)
    return tensor if tensor.is_floating_point() or tensor.is_complex() else tensor.to(torch.float32)


def _blank(measured: tree.Tree, params: Params) -> tree.Tree:
    """Zeros in place of what was measured on `params`.

    They are made from a leaf of `params`: under vmap, zeros made from nothing would be one number for all examples.
    """
    first = next(iter(tree.leaves(params)), torch.zeros(()))

    def blank(value: Any) -> Tensor:
        value = torch.as_tensor(value)
        return first.new_zeros(value.shape, dtype=compute_dtype(value.dtype), device=value.device)

    return tree.map(blank, measured)


def _recorded(function: str, name: str, last: tree.Tree, measured: tree.Tree) -> tree.Tree:
    """A copy of `measured` in the dtypes of `last`, and of `last` where nothing was measured."""
    before, structure = tree.flatten(last)

    def record(old: Tensor | None, value: Any) -> Tensor | None:
        if old is None or value is None:
            return None if old is None else old.clone()
        new = torch.as_tensor(value)
        if new.shape != old.shape:
            raise ValueError(
                f"{function}: the measurement {name!r} had the shape {tuple(old.shape)} at init and has "
                f"{tuple(new.shape)} now; a measure must give the same shapes whatever the updates are."
            )
        return new.to(old.dtype).clone(memory_format=torch.contiguous_format)

    return tree.unflatten([record(*row) for row in zip(before, tree.leaves_up_to(structure, measured))], structure)
