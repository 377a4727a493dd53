"""Checkpoints of an optimizer: what goes into a state dict, and states that come back as they were."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

_PLAIN = (type(None), bool, int, float, complex, str, Tensor, torch.dtype)


def is_plain(value: Any) -> bool:
    """Whether `torch.load(weights_only=True)` reads a value: numbers, tensors, dtypes, and containers of them."""
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return all(map(is_plain, value))
    if type(value) is dict:
        return all(map(is_plain, value.values()))
    return isinstance(value, _PLAIN)


def plain_entries(group: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a group that a checkpoint can hold: not functions, such as a schedule or a mask."""
    return {name: value for name, value in group.items() if name == "params" or is_plain(value)}


def completed_groups(saved: Sequence[Mapping[str, Any]], live: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The saved groups, with the live entries that no checkpoint holds."""
    return [
        {**{key: value for key, value in mine.items() if not is_plain(value)}, **theirs}
        for theirs, mine in zip(saved, live)
    ]


def check_sizes(optimizer: str, saved: Sequence[Mapping[str, Any]], live: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError if saved groups are of other sizes than live ones."""
    sizes = [[len(group["params"]) for group in groups] for groups in (saved, live)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"{optimizer}.load_state_dict: the state dict has groups of {sizes[0]} parameters, but this optimizer has "
            f"groups of {sizes[1]}."
        )


def exact_states(
    saved: Mapping[Any, Any], saved_groups: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]
) -> dict[Any, Any]:
    """The saved states by parameter: copies in the dtypes that were saved, on the device of the parameter."""
    numbers = chain.from_iterable(group["params"] for group in saved_groups)
    params = dict(zip(numbers, chain.from_iterable(group["params"] for group in groups)))
    return {
        params[number]: copy_to(params[number].device, state) for number, state in saved.items() if number in params
    }


def copy_to(device: torch.device, value: Any) -> Any:
    """A copy of every tensor in a value, on the device."""
    if isinstance(value, Tensor):
        return value.detach().to(device, copy=True)
    if isinstance(value, dict):
        return {key: copy_to(device, part) for key, part in value.items()}
    return value


def check_states(
    optimizer: str, states: Mapping[Tensor, Any], expected: Mapping[Tensor, Any], own: frozenset[str]
) -> None:
    """Raise ValueError if saved states are not what the optimizer would make; `own` are names that each must have."""
    for number, (param, wanted) in enumerate(expected.items()):
        given = states.get(param)
        if not given:
            continue
        if lacking := sorted(wanted.keys() & own - given.keys()):
            raise ValueError(
                f"{optimizer}.load_state_dict: the state of parameter {number} has {', '.join(map(repr, given))}, and "
                f"lacks {', '.join(map(repr, lacking))}; it is that of another optimizer."
            )
        for name, leaf in wanted.items():
            found = given.get(name)
            if isinstance(found, Tensor) and isinstance(leaf, Tensor) and found.shape != leaf.shape:
                raise ValueError(
                    f"{optimizer}.load_state_dict: {name!r} of parameter {number} has the shape {tuple(found.shape)}, "
                    f"where {tuple(leaf.shape)} is expected; it is the state of another model."
                )
