"""One step of an imperative optimizer over copies: what it adds to the parameters, and the state that it leaves."""

import inspect
import pkgutil
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from funcopt import tree
from funcopt.numerics import compute_dtype, scalar_dtype
from funcopt.optim.watched import is_watched, take_watched, without_derivative

Result = TypeVar("Result")


class Recipe(NamedTuple):
    """How an optimizer is made."""

    optimizer_class: type[torch.optim.Optimizer]
    hyperparameters: dict[str, Any]


class Kept(NamedTuple):
    """What an optimizer keeps for one parameter, by name."""

    tensors: dict[str, Tensor]
    numbers: dict[str, Tensor]  # its Python numbers, as 0-d tensors


Stepped: TypeAlias = tuple[list[Tensor], list[Kept]]
"""Per parameter: what is added to it, and what is then kept for it."""


def step(
    recipe: Recipe, params: list[Tensor], grads: list[Tensor], kept: list[Kept], *, first: bool = False
) -> Stepped:
    """One step of a fresh optimizer to which `kept` is given, or, if it is the first, only expected of it."""
    if torch.compiler.is_dynamo_compiling():
        name = f"{recipe.optimizer_class.__module__}:{recipe.optimizer_class.__qualname__}"
        flat = list(_step_in_graph(name, recipe.hyperparameters, params, grads, [tuple(each) for each in kept], first))
        updates, rest = flat[: len(params)], iter(flat[len(params) :])
        return updates, [Kept(*({key: next(rest) for key in part} for part in each)) for each in kept]
    arguments = (_scalars(recipe), params, grads, kept)
    watched = [tensor for tensor in _tensors(arguments) if is_watched(tensor)]
    if not watched:
        return _step(recipe, arguments, first)
    if _has_derivative(recipe):
        given = {**recipe.hyperparameters, "differentiable": True}
        return _step(recipe._replace(hyperparameters=given), arguments, first)
    updates, after = _step(recipe, tree.map(lambda leaf: leaf.detach(), arguments), first)
    return without_derivative(recipe.optimizer_class.__name__, updates, watched), after


def _numbers(recipe: Recipe) -> dict[str, Any]:
    """The hyperparameters without tensors, and stand-ins for those tensors that the class cannot do without."""
    parameters, scalars = inspect.signature(recipe.optimizer_class).parameters, _scalars(recipe)
    numbers = {name: value for name, value in recipe.hyperparameters.items() if name not in scalars}
    for name in scalars:
        if name in parameters and parameters[name].default is inspect.Parameter.empty:
            numbers[name] = 0.5  # valid as a rate and as a decay
    return numbers


def _has_derivative(recipe: Recipe) -> bool:
    """Whether the class takes `differentiable`, and nothing given says otherwise."""
    given = recipe.hyperparameters
    takes = "differentiable" in inspect.signature(recipe.optimizer_class).parameters
    return takes and given.get("differentiable", True) and not given.get("fused")


@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]
def _step_in_graph(name: str, hyperparameters: Any, params: Any, grads: Any, kept: Any, first: bool) -> Any:
    """`step` as a node of a graph: Dynamo refuses constructors and steps of optimizers, what follows it does not."""
    recipe = Recipe(pkgutil.resolve_name(name), hyperparameters)
    updates, after = step(recipe, params, grads, [Kept(*each) for each in kept], first=first)
    return (*updates, *(value for each in after for part in each for value in part.values()))


def _step(recipe: Recipe, arguments: tuple[Any, ...], first: bool) -> Stepped:
    def take(scalars: Any, params: Any, grads: Any, kept: Any) -> Stepped:
        return _difference(recipe, scalars, params, grads, kept, first)

    if not torch.compiler.is_compiling() and not arguments[0] and not any(map(is_watched, _tensors(arguments))):
        return take(*arguments)
    return _take_watched(recipe, take, arguments)


def _take_watched(recipe: Recipe, take: Callable[..., Result], arguments: tuple[Any, ...]) -> Result:
    try:
        return take_watched(take, arguments)
    except RuntimeError as error:
        if "vmap" not in str(error) and "functionaliz" not in str(error) and "symbol" not in str(error):
            raise
        raise RuntimeError(
            f"functionalize: the step of {recipe.optimizer_class.__name__} does what vmap, derivatives and the "
            f"compiler do not follow, such as a branch on a tensor ({str(error).splitlines()[0]}). Take a "
            "transformation of funcopt instead, or numbers for its hyperparameters."
        ) from error


def _scalars(recipe: Recipe) -> dict[str, Any]:
    """The hyperparameters that are, or contain, tensors; numbers beside a tensor become tensors."""

    def tensor(leaf: Any) -> Tensor:
        return leaf if isinstance(leaf, Tensor) else torch.tensor(leaf, dtype=torch.float64)

    return {name: tree.map(tensor, value) for name, value in recipe.hyperparameters.items() if _tensors(value)}


def _tensors(arguments: Any) -> list[Tensor]:
    return [leaf for leaf in tree.leaves(arguments) if isinstance(leaf, Tensor)]


def _difference(
    recipe: Recipe,
    scalars: dict[str, Any],
    params: list[Tensor],
    grads: list[Tensor],
    kept: list[Kept],
    first: bool,
) -> Stepped:
    leaves = [param.clone() for param in params]
    optimizer = _construct(recipe, scalars, leaves)
    for leaf, grad in zip(leaves, grads):
        leaf.grad = grad.to(leaf.dtype).clone()
    if not first:
        optimizer.state = defaultdict(dict, zip(leaves, map(_thawed, kept)))
    _step_in_place(optimizer)
    after = [_like(recipe, _frozen(recipe, optimizer.state[leaf], leaf), each) for leaf, each in zip(leaves, kept)]
    return [_subtract(leaf, param, grad.dtype) for leaf, param, grad in zip(leaves, params, grads)], after


def _subtract(new: Tensor, old: Tensor, dtype: torch.dtype) -> Tensor:
    wide = compute_dtype(new.dtype)
    return (new.to(wide) - old.to(wide)).to(dtype)


def _construct(recipe: Recipe, scalars: dict[str, Any], leaves: list[Tensor]) -> torch.optim.Optimizer:
    """An optimizer of `leaves`. Constructors check ranges, which no tensor bears: it enters the group afterwards."""
    optimizer = recipe.optimizer_class(leaves, **_numbers(recipe))
    for name, value in scalars.items():
        if name not in optimizer.param_groups[0]:
            raise TypeError(
                f"functionalize: {recipe.optimizer_class.__name__} keeps no {name} in its param_groups; give a number."
            )
        optimizer.param_groups[0][name] = value
    return optimizer


def _step_in_place(optimizer: torch.optim.Optimizer) -> None:
    """`optimizer.step()`, which must leave the groups as they are.

    Raises:
        RuntimeError: it does not.
    """
    before = dict(optimizer.param_groups[0])
    optimizer.step()
    changed = [name for name, value in optimizer.param_groups[0].items() if value is not before.get(name)]
    if changed:
        raise RuntimeError(
            f"functionalize: the step of {type(optimizer).__name__} changes {changed} of its param_groups, but only "
            "what it keeps in its state is carried from step to step."
        )


def _thawed(kept: Kept) -> dict[str, Any]:
    """A state as the class keeps it, which it may write into."""
    tensors = {name: tensor.clone() for name, tensor in kept.tensors.items()}
    return tensors | {name: _number(tensor) for name, tensor in kept.numbers.items()}


def _number(tensor: Tensor) -> Any:
    if not torch.compiler.is_compiling() and not is_watched(tensor):
        return tensor.item()
    # A power of an integer tensor would be rounded to float32.
    return tensor.clone() if tensor.dtype == torch.bool else tensor.to(scalar_dtype(tensor.device), copy=True)


def _frozen(recipe: Recipe, state: dict[str, Any], leaf: Tensor) -> Kept:
    """A state of the class, in tensors.

    Raises:
        TypeError: there is something else in it than tensors and numbers.
    """
    tensors, numbers = {}, {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            tensors[name] = value
        elif isinstance(value, (bool, int, float)):
            numbers[name] = torch.as_tensor(value, dtype=_NUMBERS[type(value)], device=leaf.device)
        else:
            raise TypeError(
                f"functionalize: {recipe.optimizer_class.__name__} keeps {name}={value!r} in its state; only tensors "
                "and numbers can be carried from step to step."
            )
    return Kept(tensors, numbers)


_NUMBERS = {bool: torch.bool, int: torch.int64, float: torch.float64}


def _like(recipe: Recipe, after: Kept, before: Kept) -> Kept:
    """`after` with the names and dtypes of `before`."""
    values = after.tensors | after.numbers
    if set(values) != set(before.tensors) | set(before.numbers):
        raise RuntimeError(
            f"functionalize: a step of {recipe.optimizer_class.__name__} makes the state {sorted(values)} of "
            f"{sorted(before.tensors | before.numbers)}; what it keeps must be the same from the first step on."
        )
    return Kept(*({name: values[name].to(old.dtype) for name, old in part.items()} for part in before))


def first_states(recipe: Recipe, params: list[Tensor]) -> list[Kept]:
    """What an optimizer keeps before its first step: what it puts there first, in a step that is thrown away."""

    def watch(scalars: dict[str, Any], params: list[Tensor]) -> list[Kept]:
        leaves = [param.clone() for param in params]
        optimizer = _construct(recipe, scalars, leaves)
        notes = [_FirstValues(optimizer.state.get(leaf, {})) for leaf in leaves]
        optimizer.state = defaultdict(dict, zip(leaves, notes))
        for leaf in leaves:
            leaf.grad = _in_layout(recipe, torch.zeros_like(leaf))
        _step_in_place(optimizer)
        return [_owned(_frozen(recipe, note.first, leaf), leaf, recipe) for note, leaf in zip(notes, leaves)]

    with torch.no_grad():
        return _take_watched(recipe, watch, tree.map(lambda leaf: leaf.detach(), (_scalars(recipe), params)))


def _in_layout(recipe: Recipe, grad: Tensor) -> Tensor:
    return grad.to_sparse() if issubclass(recipe.optimizer_class, torch.optim.SparseAdam) else grad


def _owned(kept: Kept, leaf: Tensor, recipe: Recipe) -> Kept:
    """In memory of their own, and batched by vmap where the parameter is; bias corrections need `step` in float64."""

    def own(name: str, value: Tensor) -> Tensor:
        counts = name == "step" and value.is_floating_point() and not recipe.hyperparameters.get("fused")
        dtype = scalar_dtype(value.device) if counts else value.dtype
        return leaf.new_zeros((), dtype=dtype) + value.to(dtype)

    return Kept(*({name: own(name, value) for name, value in part.items()} for part in kept))


class _FirstValues(dict[str, Any]):
    """A dict that remembers what each key was first set to."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__()
        self.first: dict[str, Any] = {}
        self.update(values)

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in self.first:
            self.first[key] = value.detach().clone() if isinstance(value, Tensor) else value
        super().__setitem__(key, value)

    def update(self, *values: Any, **named: Any) -> None:
        for key, value in dict(*values, **named).items():
            self[key] = value

    def setdefault(self, key: str, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]


def start(recipe: Recipe, device: torch.device) -> Callable[[list[Kept]], list[Kept]] | None:
    """What makes of `first_states` those from which any step, the first too, is taken alike; None if nothing does.

    Found by trying on one small matrix. Zeros are the start of a buffer of gradients, which its class does not make
    before the first step, when it adds the decay.
    """
    trial = Recipe(recipe.optimizer_class, _numbers(recipe))
    params = [torch.tensor([[0.5, -1.25], [2.0, 0.75]], device=device)]
    grads = [_in_layout(recipe, torch.tensor([[1.5, 0.25], [-0.5, -2.0]], device=device))]
    with torch.no_grad():
        kept = first_states(trial, params)
        expected = tree.leaves(step(trial, params, grads, kept, first=True))
        for candidate in (_as_they_are, _zeroed):
            if all(map(torch.equal, tree.leaves(step(trial, params, grads, candidate(kept))), expected)):
                return candidate
    return None


def _as_they_are(kept: list[Kept]) -> list[Kept]:
    return kept


def _zeroed(kept: list[Kept]) -> list[Kept]:
    zeros: list[Kept] = tree.map(torch.zeros_like, kept)
    return zeros
