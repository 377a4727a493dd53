"""One transformation for each group of leaves."""

import enum
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

from funcopt import tree
from funcopt.transform import (
    GradientTransformation,
    Params,
    State,
    Updates,
    check_members,
    factory,
    joint_coupling,
)
from funcopt.wrappers.masking import Part, rows
from funcopt.wrappers.patterns import PerLeaf, per_leaf


class PartitionState(NamedTuple):
    inner_states: dict[str, State]  # by label; each with a MaskedNode at the leaves of other labels


@factory
def partition(transforms: Mapping[Any, GradientTransformation], param_labels: PerLeaf) -> GradientTransformation:
    """Apply to every leaf the transformation that its label names. Groups do not see each other.

    Each group has its own counts and schedules, and a norm within it is over its own leaves.

    `param_labels` is a tree of labels or a prefix of it, a function of params (of updates, if `update` gets no params),
    or patterns as for `by_path`: a dict is taken for patterns if one of its keys is a function or holds `*`, `?` or
    `[`. A label is a str, a number, an enum or the like. In the state it is a str: the name of an enum, else `str`.
    A transformation that no leaf uses is allowed; it does not run.

    >>> optimizer = partition(
    ...     {"matrices": sgd(0.1, momentum=0.9), "others": adam(1e-3)},
    ...     {lambda path, leaf: leaf.ndim == 2: "matrices", "*": "others"},
    ... )

    Raises:
        TypeError: `transforms` is no mapping to transformations.
        ValueError: two labels are one in the state. At init: labels do not fit params; a leaf has no pattern, a pattern
            no leaf; a label is none of `transforms`. The message names it.
    """
    if not isinstance(transforms, Mapping):
        raise TypeError(f"partition: transforms must map labels to transformations, got {transforms!r}.")
    check_members("partition", transforms)
    members = _by_state_key(transforms)

    def check(name: str, label: Any) -> None:
        if label not in transforms:
            known = ", ".join(map(repr, transforms))
            raise ValueError(f"partition: {name} must be one of the labels {known}, got {label!r}.")

    labels_of = per_leaf("partition", "param_labels", param_labels, check)

    def init(params: Params) -> PartitionState:
        tree.check_params(params)
        labels = labels_of(params, None)
        leaves, structure = tree.flatten(params)
        return PartitionState(
            {key: Part(structure, labels, label).init(member, leaves) for key, (label, member) in members.items()}
        )

    def update(
        updates: Updates, state: PartitionState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, PartitionState]:
        old, values, structure = rows(updates, params)
        labels = labels_of(params, updates)
        merged, states = old, {}
        for key, (label, member) in members.items():
            part = Part(structure, labels, label)
            new, states[key] = part.update(member, old, state.inner_states[key], values, extra)
            merged = [own if keep else other for keep, own, other in zip(part.keep, new, merged)]
        return tree.unflatten(merged, structure), PartitionState(states)

    return GradientTransformation(init, update, joint_coupling(transforms.values()))


def state_key(label: Hashable) -> str:
    """The key of a label in the state: the same in every run and every version of Python."""
    return label.name if isinstance(label, enum.Enum) else str(label)


def _by_state_key(transforms: Mapping[Any, GradientTransformation]) -> dict[str, tuple[Any, GradientTransformation]]:
    members: dict[str, tuple[Any, GradientTransformation]] = {}
    for label, member in transforms.items():
        key = state_key(label)
        if key in members:
            raise ValueError(f"partition: the labels {members[key][0]!r} and {label!r} are both {key!r} in the state.")
        members[key] = (label, member)
    return members
