"""Checks of arguments: one message format for the whole library."""

from typing import Any

from torch import Tensor


def check_within(function: str, interval: str, **arguments: Any) -> None:
    """Raise unless every argument given as a number lies in `interval`, such as "[0, 1)" or "[0, inf)".

    Tensors and schedules are not looked at (that would read a device, and break tracing), and `None` means unset.

    Raises:
        TypeError: an argument is neither a number nor a tensor, a schedule or `None`.
        ValueError: a number lies outside, or is NaN. Either message names the function, the argument and its value.
    """
    for name, value in arguments.items():
        if value is None or isinstance(value, Tensor) or callable(value):
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{function}: {name} must be a number or a 0-d tensor, got {name}={value!r}.")
        low, high = (float(bound) for bound in interval[1:-1].split(","))
        above = value >= low if interval[0] == "[" else value > low
        below = value <= high if interval[-1] == "]" else value < high
        if not (above and below):
            raise ValueError(f"{function}: {name} must lie in {interval}, got {name}={value!r}.")


def check_choice(function: str, choices: tuple[str, ...], **arguments: str) -> None:
    """Raise ValueError unless every argument is one of `choices`."""
    for name, value in arguments.items():
        if value not in choices:
            raise ValueError(
                f"{function}: {name} must be one of {', '.join(map(repr, choices))}, got {name}={value!r}."
            )


def check_real(function: str, tensor: Tensor) -> None:
    """Raise TypeError for a complex tensor, for a rule that needs an order."""
    if tensor.is_complex():
        raise TypeError(f"{function}: complex leaves have no order; split them into real and imaginary parts first.")


def check_integer(function: str, minimum: int | None, **arguments: Any) -> None:
    """Raise unless every argument is an int of at least `minimum`; for what must be known before tracing.

    Raises:
        TypeError: an argument is no int. A float, a bool and a tensor are none.
        ValueError: it is smaller than `minimum`. Either message names the function, the argument and its value.
    """
    for name, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{function}: {name} must be an int, got {name}={value!r}.")
        if minimum is not None and value < minimum:
            raise ValueError(f"{function}: {name} must be at least {minimum}, got {name}={value!r}.")
