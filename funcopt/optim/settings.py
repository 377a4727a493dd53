"""What the entries of a parameter group say, read again only where one of them is another."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from funcopt.optim.recipe import Recipe
from funcopt.optim.runs import is_of_library
from funcopt.transform import GradientTransformation


@dataclass(eq=False)
class Settings:
    """The arguments that the entries of a group say.

    Attributes:
        arguments: all of them.
        static: those that are no numbers.
        floats: those that are numbers of Python.
        tensors: those that may be numbers, and are tensors.
        key: equal for equal static arguments.
    """

    recipe: Recipe
    arguments: dict[str, Any]
    static: dict[str, Any]
    floats: dict[str, float]
    tensors: dict[str, Tensor]
    key: Any
    _made: GradientTransformation | None = None

    def transformation(self) -> GradientTransformation:
        """What the recipe makes; made once, unless a tensor or a function of the user's may have changed since."""
        if self._made is not None:
            return self._made
        made = self.recipe.make(**self.arguments)
        if is_of_library(self.recipe.make, self.static) and all(map(_is_immutable, self.arguments.values())):
            self._made = made
        return made


def read_settings(recipe: Recipe, group: Mapping[str, Any]) -> Settings:
    """What the entries of a group say."""
    arguments = recipe.arguments(group)
    numbers = {name: value for name, value in arguments.items() if recipe.is_number(name, value)}
    static = {name: value for name, value in arguments.items() if name not in numbers}
    tensors = {name: value for name, value in numbers.items() if isinstance(value, Tensor)}
    floats = {name: value for name, value in numbers.items() if name not in tensors}
    key = tuple([(name, type(value), _hashable(value)) for name, value in static.items()])
    return Settings(recipe, arguments, static, floats, tensors, key)


class SettingsReader:
    """Reads the entries of groups, and remembers what those of each said last."""

    def __init__(self) -> None:
        self._last: dict[int, tuple[list[Any], Settings]] = {}

    def read(self, recipe: Recipe, number: int, group: dict[str, Any]) -> Settings:
        """The settings of the group of that number."""
        recipe.fold(group)
        entries = [group[name] for name in recipe.defaults]
        last = self._last.get(number)
        if last is not None and all(map(operator.is_, entries, last[0])) and last[1].recipe is recipe:
            return last[1]
        settings = read_settings(recipe, group)
        if all(map(_stays, entries)):
            self._last[number] = entries, settings
        return settings


def _stays(entry: Any) -> bool:
    """Whether an entry that is the same object says the same: what is in a tensor is read when it is used."""
    return isinstance(entry, Tensor) or _is_immutable(entry)


def _is_immutable(value: Any) -> bool:
    if type(value) is tuple:
        return all(map(_is_immutable, value))
    return value is None or isinstance(value, (bool, int, float, str)) or callable(value)


def _hashable(value: Any) -> Any:
    try:
        hash(value)
    except TypeError:
        return id(value)  # a Kind keeps it alive
    return value
