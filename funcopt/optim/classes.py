"""Classes of optimizers from factories of transformations."""

import functools
import inspect
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim.optimizer import required

from funcopt.optim.adapter import CompileOptions, ScopeName, TransformationOptimizer
from funcopt.optim.recipe import arguments_of, recipe_of_factory
from funcopt.transform import GradientTransformation

_OPTIONS = ("params", "scope", "compile", "differentiable")
_classes: weakref.WeakValueDictionary[Any, type[TransformationOptimizer]] = weakref.WeakValueDictionary()


def as_optimizer(
    factory: Callable[..., GradientTransformation], name: str | None = None
) -> type[TransformationOptimizer]:
    """The class of optimizers that a factory makes, with its arguments as hyperparameters in `param_groups`.

    The constructor takes parameters or groups, the arguments of the factory, and the options of `Optimizer`. All are
    read from the groups at every step, may differ between groups, and may be rewritten by any scheduler. In groups they
    have torch's names: `lr` for `learning_rate`, and `betas` for the pair of `b1` and `b2`, which is where schedulers
    look; both may be given under either name. A group with a value out of range is refused before anything is changed.

    A transformation that couples all parameters, by a global norm say, sees those of all groups, whatever their
    hyperparameters; functions and flags must be the same in all groups then.

    >>> AdamW = as_optimizer(adamw)
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
    >>> optimizer.param_groups[0]["betas"]
    (0.9, 0.999)

    Args:
        factory: a function that returns a transformation, of this library or your own. Arguments are numbers that may
            change (floats), or fixed (the rest), as `inject_hyperparams` tells them apart.
        name: of the class; unless given, from that of the factory: `adamw` makes `AdamW`.

    Raises:
        TypeError: `factory` is no factory, or has an argument with the name of an option.
    """
    _check_factory(factory)
    title = name or _title(factory)
    key = (factory, title)
    made = _classes.get(key)
    if made is None:
        made = _classes[key] = _make_class(factory, title)
    return made


def _check_factory(factory: Any) -> None:
    if isinstance(factory, GradientTransformation):
        raise TypeError(
            f"as_optimizer: expected a factory, got the transformation {factory!r}; for it, call Optimizer(params, tx)."
        )
    if not callable(factory):
        raise TypeError(f"as_optimizer: expected a factory, got {factory!r}.")
    taken = [argument for argument in arguments_of(factory) if argument in _OPTIONS]
    if taken:
        raise TypeError(
            f"as_optimizer: the argument {taken[0]!r} of {_name(factory)} has the name of an option of Optimizer; "
            "wrap the factory in a function with another name for it."
        )


def _make_class(factory: Callable[..., GradientTransformation], title: str) -> type[TransformationOptimizer]:
    parameters = arguments_of(factory)

    def __init__(  # noqa: N807
        self: TransformationOptimizer,
        params: Any,
        *args: Any,
        scope: ScopeName = "all",
        compile: CompileOptions = False,
        differentiable: bool = False,
        **kwargs: Any,
    ) -> None:
        recipe = recipe_of_factory(title, factory, _given(title, parameters, args, kwargs))
        recipe.check({})
        self._begin(params, recipe, scope, compile, differentiable)

    def __reduce_ex__(self: TransformationOptimizer, protocol: Any) -> Any:  # noqa: N807
        if type(self) is not made:  # a class that was derived from this one, and has a name that pickle finds
            return object.__reduce_ex__(self, protocol)
        return _blank, (factory, title), self.__getstate__()

    body = {"__init__": __init__, "__reduce_ex__": __reduce_ex__, "__module__": __name__}
    made = type(title, (TransformationOptimizer,), {**body, "_factory": staticmethod(factory)})
    made.__doc__ = f"`{_name(factory)}` as a torch.optim.Optimizer.\n\n{inspect.getdoc(factory) or ''}"
    made.__signature__ = _signature(parameters.values())  # type: ignore[attr-defined]
    return made


def _blank(factory: Callable[..., GradientTransformation], title: str) -> TransformationOptimizer:
    """An optimizer of the class that a factory makes, to be filled by pickle."""
    return object.__new__(as_optimizer(factory, title))


def _given(
    title: str, parameters: dict[str, inspect.Parameter], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of a constructor by name; `lr` and `betas` as they are."""
    places = [name for name, parameter in parameters.items() if parameter.kind is not parameter.KEYWORD_ONLY]
    if len(args) > len(places):
        raise TypeError(f"{title}: takes at most {len(places)} hyperparameters by position, got {len(args)}.")
    given = dict(zip(places, args))
    aliases = {"lr": ("learning_rate",), "betas": ("b1", "b2")}
    aliases = {alias: names for alias, names in aliases.items() if alias not in parameters}
    known = {*parameters, *(alias for alias, names in aliases.items() if {*names} <= {*parameters})}
    for name, value in kwargs.items():
        if name not in known:
            raise TypeError(f"{title}: got an unexpected argument {name!r}; there are {', '.join(sorted(known))}.")
        if name in given:
            raise TypeError(f"{title}: {name} is given twice.")
        given[name] = value
    for alias, names in aliases.items():
        other = next((name for name in names if name in given), None)
        if alias in given and other is not None:
            raise TypeError(f"{title}: {alias} and {other} are the same argument; give one of them.")
    return given


def _signature(parameters: Iterable[inspect.Parameter]) -> inspect.Signature:
    kind = inspect.Parameter
    renamed = [p.replace(name="lr") if p.name == "learning_rate" else p for p in parameters]
    options = [
        kind("scope", kind.KEYWORD_ONLY, default="all"),
        kind("compile", kind.KEYWORD_ONLY, default=False),
        kind("differentiable", kind.KEYWORD_ONLY, default=False),
    ]
    relaxed = [p.replace(default=required) if p.default is p.empty else p for p in renamed]
    return inspect.Signature([kind("params", kind.POSITIONAL_OR_KEYWORD), *relaxed, *options])


def _name(factory: Any) -> str:
    return _name(factory.func) if isinstance(factory, functools.partial) else getattr(factory, "__name__", "factory")


_WORDS = {name.lower(): name for name in dir(torch.optim) if isinstance(getattr(torch.optim, name), type)}


def _title(factory: Any) -> str:
    """The name of the class: `AdamW` for adamw, `ScheduleFreeAdamW` for schedule_free_adamw."""
    words = [word for word in _name(factory).split("_") if word.isalnum()]
    return "".join(_WORDS.get(word.lower(), word[:1].upper() + word[1:]) for word in words) or "FunctionalOptimizer"
