"""Making a transformation anew: from the call that made it, with other numbers in place of its hyperparameters."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from funcopt.calls import Call
from funcopt.testing.declared import Declared
from funcopt.transform import GradientTransformation


def as_transformation(tx_or_factory: GradientTransformation | Callable[..., GradientTransformation]) -> Any:
    """The transformation itself, or what the factory makes, which then remembers the factory.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(tx_or_factory, GradientTransformation):
        return tx_or_factory
    made = tx_or_factory() if callable(tx_or_factory) else None
    if not isinstance(made, GradientTransformation):
        raise TypeError(
            "check: expected a GradientTransformation, or a function that makes one from its defaults, "
            f"got {tx_or_factory!r}{'' if made is None else f', which made {made!r}'}."
        )
    if isinstance(tx_or_factory, functools.partial):
        call = Call(tx_or_factory.func, tx_or_factory.args, tx_or_factory.keywords)
    else:
        call = Call(tx_or_factory, (), {})
    return replace(made, call=call)


def hyperparameters(tx: GradientTransformation, declared: Declared) -> dict[str, float]:
    """The arguments that are floats in the call that made it, by name; those declared, or all."""
    if tx.call is None:
        return {}
    arguments = _arguments(tx.call)
    names = arguments if declared.hyperparameters is None else declared.hyperparameters
    return {name: arguments[name] for name in names if type(arguments.get(name)) is float}


def remake(tx: GradientTransformation, **values: Any) -> GradientTransformation:
    """A second transformation from the same call, with some arguments replaced; itself where no call is known."""
    return remaker(tx)(values)


def remaker(tx: GradientTransformation) -> Callable[[dict[str, Any]], GradientTransformation]:
    """`remake` as a function of the values alone, which Dynamo need not trace through the signature."""
    if tx.call is None:
        return lambda values: tx
    function, args, kwargs = tx.call.function, tx.call.args, tx.call.kwargs
    parameters = list(inspect.signature(function).parameters.values())
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return lambda values: function(*args, **{**kwargs, **values})
    named = {parameter.name: value for parameter, value in zip(parameters, args)}
    return lambda values: function(**{**named, **kwargs, **values})


def _arguments(call: Call) -> dict[str, Any]:
    bound = inspect.signature(call.function).bind(*call.args, **call.kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)
