"""How the entries of a parameter group make a transformation.

A group speaks torch's names, since schedulers, loggers and checkpoints look for them: `lr` is the argument
`learning_rate` of a factory, and `betas` the pair of its arguments `b1` and `b2`.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import required

from funcopt.optim.pickling import from_portable, to_portable
from funcopt.paths import Path, children, replace
from funcopt.transform import GradientTransformation, Params, State, Updates
from funcopt.wrappers.annotations import admitted_kinds
from funcopt.wrappers.hyperparams import is_hyperparameter, settable_hyperparams


class Recipe:
    """A function from arguments to a transformation, and the entries of a group that the arguments stand in.

    Attributes:
        name: of the transformation, for messages.
        make: the function.
        defaults: the value of each entry where a group gives none; torch's `required` where it must.
    """

    def __init__(
        self,
        name: str,
        make: Callable[..., GradientTransformation],
        arguments: Mapping[str, Any],
        takes_numbers: Callable[[str, Any], bool],
        origin: tuple[Any, ...],
    ) -> None:
        self.name = name
        self.make = make
        self._takes_numbers = takes_numbers
        self._origin = origin
        self._renamed = "learning_rate" in arguments and "lr" not in arguments
        self._paired = "b1" in arguments and "b2" in arguments and "betas" not in arguments
        self.defaults: dict[str, Any] = {}
        for name, value in arguments.items():
            if name == "b2" and self._paired:
                continue
            paired = self._paired and name == "b1"
            self.defaults[self.entry_of(name)] = (value, arguments["b2"]) if paired else value

    def entry_of(self, argument: str) -> str:
        """The name of the entry that an argument stands in."""
        if self._renamed and argument == "learning_rate":
            return "lr"
        return "betas" if self._paired and argument in ("b1", "b2") else argument

    def fold(self, entries: dict[str, Any]) -> None:
        """Put what is given under the names of arguments, `learning_rate` say, under those of entries."""
        if self._renamed and "learning_rate" in entries:
            entries["lr"] = entries.pop("learning_rate")
        if self._paired and ("b1" in entries or "b2" in entries):
            b1, b2 = entries.get("betas", self.defaults["betas"])
            entries["betas"] = (entries.pop("b1", b1), entries.pop("b2", b2))

    def arguments(self, entries: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments that the entries of a group say."""
        found: dict[str, Any] = {}
        for name in self.defaults:
            value = entries[name]
            if name == "lr" and self._renamed:
                found["learning_rate"] = self._scalar(name, value)
            elif name == "betas" and self._paired:
                found["b1"], found["b2"] = self._pair(value)
            else:
                found[name] = self._scalar(name, value)
        return found

    def _pair(self, value: Any) -> tuple[Any, Any]:
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise ValueError(f"{self.name}: betas must be the pair (b1, b2), got betas={value!r}.")
        return self._scalar("betas[0]", value[0]), self._scalar("betas[1]", value[1])

    def _scalar(self, name: str, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.ndim == 0:
            return value
        if value.numel() != 1:
            raise ValueError(f"{self.name}: Tensor {name} must be 1-element, got the shape {tuple(value.shape)}.")
        return value.reshape(())

    def is_number(self, argument: str, value: Any) -> bool:
        """Whether an argument may be a tensor, and its value a number that can be put into one."""
        number = isinstance(value, (int, float, Tensor)) and not isinstance(value, bool)
        return number and self._takes_numbers(argument, value)

    def check(self, entries: Mapping[str, Any]) -> None:
        """Raise what the factory raises for these entries; of those that are missing yet nothing is asked."""
        arguments = self.arguments({**self.defaults, **entries})
        made = self.make(**{name: _NOTHING if value is required else value for name, value in arguments.items()})
        if not isinstance(made, GradientTransformation):
            raise TypeError(f"{self.name}: the factory must return a GradientTransformation, got {made!r}.")

    def __deepcopy__(self, memo: dict[int, Any]) -> "Recipe":
        return self  # nothing in it changes

    def __reduce__(self) -> Any:
        return _restore, tuple(map(to_portable, self._origin))


def _restore(function: Callable[..., Recipe], *arguments: Any) -> Recipe:
    return function(*map(from_portable, arguments))


_NOTHING = torch.zeros(())  # in place of an argument that is not known yet: what is a tensor, no factory looks at


def recipe_of_factory(name: str, factory: Callable[..., GradientTransformation], given: dict[str, Any]) -> Recipe:
    """The recipe of a factory: every argument is an entry, with the value given or else its default."""
    parameters = arguments_of(factory)
    kinds = admitted_kinds(factory)
    arguments = {key: required if p.default is p.empty else p.default for key, p in parameters.items()}

    def takes_numbers(argument: str, value: Any) -> bool:
        return is_hyperparameter(value, kinds[argument], parameters[argument].default)

    recipe = Recipe(name, factory, arguments, takes_numbers, (recipe_of_factory, name, factory, dict(given)))
    recipe.fold(given)
    recipe.defaults.update(given)
    return recipe


def arguments_of(factory: Callable[..., GradientTransformation]) -> dict[str, inspect.Parameter]:
    """The arguments of a factory that have a name of their own."""
    parameters = inspect.signature(factory).parameters
    return {key: p for key, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def fixed_recipe(name: str, transformation: GradientTransformation) -> Recipe:
    """The recipe of a ready transformation without arguments."""
    return _recipe_at(name, transformation, {}, {})


def recipe_of_transformation(name: str, transformation: GradientTransformation, state: State) -> Recipe:
    """The recipe of a ready transformation: the hyperparameters in its state are entries, except scheduled ones."""
    paths = settable_hyperparams(state)
    values = {key: _shortest_number(_part(state, path)) for key, path in paths.items()}
    return _recipe_at(name, transformation, paths, values)


def _recipe_at(
    name: str, transformation: GradientTransformation, paths: dict[str, Path], values: dict[str, float]
) -> Recipe:
    def make(**values: Any) -> GradientTransformation:
        return _with_values(transformation, paths, values)

    return Recipe(name, make, values, lambda key, value: True, (_recipe_at, name, transformation, paths, values))


def _shortest_number(value: Tensor) -> float:
    """The number of fewest digits that is `value` once it is rounded to its dtype: 0.1, not 0.10000000149."""
    exact = float(value)
    short = (float(f"{exact:.{digits}g}") for digits in range(1, 17))
    return next((number for number in short if float(torch.tensor(number, dtype=value.dtype)) == exact), exact)


def _with_values(
    transformation: GradientTransformation, paths: Mapping[str, Path], values: Mapping[str, Any]
) -> GradientTransformation:
    """`transformation` with other values of the hyperparameters that are at `paths` in its state."""
    if not paths:
        return transformation

    def put(state: State) -> State:
        return replace(state, {path: _like(_part(state, path), values[key]) for key, path in paths.items()})

    def init(params: Params) -> State:
        return put(transformation.init(params))

    def update(updates: Updates, state: State, params: Params | None = None, **extra: Any) -> tuple[Updates, State]:
        return transformation.update(updates, put(state), params, **extra)

    return GradientTransformation(init, update, transformation.coupling, transformation.call)


def _part(state: State, path: Path) -> Any:
    for step in path:
        state = (children(state) or {})[step.name]
    return state


def _like(old: Tensor, value: float | Tensor) -> Tensor:
    return torch.zeros_like(old) + torch.as_tensor(value, dtype=old.dtype, device=old.device)
