"""The pure step of a drop-in class: what all classes of torch.optim share, around the direction of each."""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcopt import tree
from funcopt.numerics import add_scaled, compute_dtype
from funcopt.optim.in_place import Row, written
from funcopt.optim.tape import Tape, record
from funcopt.transform import GradientTransformation

Hyper = dict[str, Any]
"""The hyperparameters of a group by torch's names: numbers, or 0-d tensors in their place."""
Scalars = dict[str, Tensor]
"""The 0-d states that the parameters of one update share, such as `step`, by torch's names."""
Update = Callable[[Scalars, Sequence[Row]], tuple[Scalars, list[list[Tensor]]]]
"""New scalars, and for each row (parameter, gradient, states) the new parameter and states."""


class Rule(NamedTuple):
    """The pure part of a class of torch.optim: what it subtracts, and where its state is kept.

    `state` has the structure of the state of `direction`, with the key of `optimizer.state[param]` at each leaf.
    """

    direction: GradientTransformation
    state: tree.Tree


@dataclass(frozen=True, eq=False)
class Definition:
    """What tells one class of torch.optim from another.

    Attributes:
        rule: the rule for given hyperparameters.
        learning_rate: the factor of the direction, from the hyperparameters and the number of steps taken.
        scalars: the keys of 0-d states, one number for all of a parameter.
        switches: hyperparameters whose 0 leaves out a part of the rule instead of being a number in it.
        constants: numbers that a compiled rule is made for.
        elementwise: whether the rule knows no shapes, so that many parameters can be one flat tensor.
        decoupled: whether weight decay shrinks the parameters, where no group says so, or joins the gradient.
        fresh: whether the first step of a parameter follows another rule; `hyper["fresh"]` tells.
    """

    rule: Callable[[Hyper], Rule]
    learning_rate: Callable[[Hyper, Tensor], float | Tensor] = lambda hyper, count: hyper["lr"]
    scalars: tuple[str, ...] = ("step",)
    switches: tuple[str, ...] = ("weight_decay",)
    constants: tuple[str, ...] = ()
    elementwise: bool = True
    decoupled: bool = False
    fresh: bool = False

    def keys(self, hyper: Hyper) -> list[str]:
        """The keys of the state that the rule needs, in the order of its leaves."""
        return self.recipe(hyper).made.keys

    def recipe(self, hyper: Hyper) -> "Recipe":
        """What a step needs to know of its hyperparameters; kept for the next step, where they are numbers."""
        items = tuple(hyper.items())
        if torch.compiler.is_compiling() or _has_tensor(hyper.values()):
            return _recipe(self, items)
        try:
            return _recipe_kept(self, items)
        except TypeError:  # as users write `betas=[0.9, 0.99]`
            return self.recipe({key: _frozen(value) for key, value in hyper.items()})

    def made(self, hyper: Hyper) -> "Made":
        """The rule, taken apart."""
        rule = self.rule(hyper)
        return Made(rule.direction, *tree.flatten(rule.state))


class Made(NamedTuple):
    """A rule: its direction, and the leaves (which are keys) and the structure of its state."""

    direction: GradientTransformation
    keys: list[str]
    structure: Any


class Recipe(NamedTuple):
    """Hyperparameters, prepared: the rule, which of its states are of one parameter alone, and what it depends on."""

    made: Made
    own: list[str]
    constant: tuple[tuple[str, Any], ...]  # that a compiled or recorded rule is made for
    numbers: list[Any]  # that it is given, and the structure of a dict of them
    structure: Any
    tapes: dict[Any, Tape | None]  # that have been looked up


def _recipe(definition: Definition, items: tuple[tuple[str, Any], ...]) -> Recipe:
    hyper = dict(items)
    made = definition.made(hyper)
    own = [key for key in made.keys if key not in definition.scalars]
    constant, numbers = _split(definition, hyper)
    return Recipe(made, own, tuple(constant.items()), *tree.flatten(numbers), {})


_recipe_kept = functools.lru_cache(maxsize=256)(_recipe)


def _frozen(value: Any) -> Any:
    """A value that can be looked up: lists are tuples."""
    return tuple(map(_frozen, value)) if isinstance(value, (tuple, list)) else value


def _has_tensor(values: Iterable[Any]) -> bool:
    for value in values:  # noqa: SIM110 (`any` takes twice the time)
        if isinstance(value, Tensor) or (isinstance(value, (tuple, list)) and _has_tensor(value)):
            return True
    return False


def updated(
    definition: Definition, hyper: Hyper, scalars: Scalars, rows: Sequence[Row], made: Made | None = None
) -> tuple[Scalars, list[list[Tensor]]]:
    """One step of torch.optim's form, for parameters θ that share the number of steps taken:

        g ← -g if `maximize`        g ← g + λ θ, or θ ← (1 - γ λ) θ where the decay is decoupled
        θ ← θ - γ d                 d the direction that the rule makes of g

    With `found_inf` (from a gradient scaler) set to 1 all stays as it is. Computed in at least float32. `made` is
    `definition.made(hyper)`, if that is at hand.
    """
    direction, leaves, structure = made or definition.made(hyper)
    params, grads, *columns = map(list, zip(*rows))
    wide = [param.to(compute_dtype(param.dtype)) for param in params]
    grads = _prepared(definition, hyper, grads, wide)
    count = scalars["step"].to(torch.int32) if "step" in scalars else torch.zeros((), dtype=torch.int32)

    before = {**scalars, "step": count}
    given = iter(columns)
    state = tree.unflatten([before[key] if key in before else next(given) for key in leaves], structure)
    directions, state = direction.update(grads, state, wide)
    after = dict(zip(leaves, tree.leaves_up_to(structure, state)))

    rate = definition.learning_rate(hyper, count)
    shrink = _decay(definition, hyper, decoupled=True)
    if shrink is not None:
        wide = [param * (1 - hyper["lr"] * shrink) for param in wide]
    moved = [add_scaled(param, -rate, step) for param, step in zip(wide, directions)]
    values = zip(moved, *(after[key] for key in leaves if key not in before))
    new_rows = [_settled(hyper, written(row), list(new)) for row, new in zip(rows, values)]
    after.setdefault("step", count + 1)
    old_scalars = list(scalars.values())
    return dict(zip(scalars, _settled(hyper, old_scalars, [after[key] for key in scalars]))), new_rows


def _prepared(definition: Definition, hyper: Hyper, grads: list[Tensor], params: list[Tensor]) -> list[Tensor]:
    """The gradients as the rule takes them: of the sign of descent, with the coupled decay."""
    grads = [grad.to(compute_dtype(grad.dtype)) for grad in grads]
    if hyper.get("maximize"):
        grads = [-grad for grad in grads]
    decay = _decay(definition, hyper, decoupled=False)
    return grads if decay is None else [add_scaled(grad, decay, param) for grad, param in zip(grads, params)]


def _decay(definition: Definition, hyper: Hyper, *, decoupled: bool) -> float | Tensor | None:
    """The weight decay, where there is one and it is meant in this way."""
    decay = hyper.get("weight_decay", 0)
    if hyper.get("decoupled_weight_decay", definition.decoupled) != decoupled:
        return None
    return decay if isinstance(decay, Tensor) or decay != 0 else None


def _settled(hyper: Hyper, old: Sequence[Tensor], new: Sequence[Tensor]) -> list[Tensor]:
    """The new values in the dtypes of the old, or the old ones where a gradient scaler has found infinities."""
    cast = [value.to(before.dtype) for before, value in zip(old, new)]
    found_inf = hyper.get("found_inf")
    if found_inf is None:
        return cast
    return [
        torch.where(found_inf.to(value.device) == 1, before.to(value.device), value) for before, value in zip(old, cast)
    ]


def recorded(
    definition: Definition, recipe: Recipe, scalars: Scalars, row: Row
) -> tuple[Tape, list[float], list[Any]] | None:
    """The tape of `updated` for rows like this one, new scalars, and the numbers to run it with.

    None where it cannot be recorded. One tape serves any values of numbers and scalars, as what `compiled` gives.
    """
    given = [value.item() if isinstance(value, Tensor) else value for value in (*recipe.numbers, *scalars.values())]
    kinds = (*scalars, *[tensor.dtype for tensor in (*scalars.values(), *row)])
    for floors in (False, True):
        key = (floors, *kinds)
        if key not in recipe.tapes:
            recipe.tapes[key] = _tape(definition, recipe, scalars, row, floors)
        tape = recipe.tapes[key]
        if tape is None:
            break
        after, numbers = tape.of_scalars(*given)
        if all(numbers[i] >= value for i, value in tape.least.items()):
            return tape, after, numbers
    return None


def _tape(definition: Definition, recipe: Recipe, scalars: Scalars, row: Row, floors: bool) -> Tape | None:
    kinds = [value.dtype if isinstance(value, Tensor) else torch.float64 for value in recipe.numbers]
    kinds += [tensor.dtype for tensor in (*scalars.values(), *row)]
    return _record(definition, recipe.constant, recipe.structure, tuple(scalars), tuple(kinds), floors)


@functools.lru_cache(maxsize=256)
def _record(
    definition: Definition,
    constant: tuple[tuple[str, Any], ...],
    structure: Any,
    names: tuple[str, ...],
    kinds: tuple[torch.dtype, ...],
    floors: bool,
) -> Tape | None:
    count = structure.num_leaves
    examples = [torch.zeros((), dtype=dtype) for dtype in kinds]

    def step(given: list[Tensor], row: list[Tensor]) -> list[Tensor]:
        hyper = {**dict(constant), **tree.unflatten(given[:count], structure)}
        after, (new,) = updated(definition, hyper, dict(zip(names, given[count:])), [row])
        return [*(after[name] for name in names), *new]

    return record(step, examples[: count + len(names)], examples[count + len(names) :], floors=floors)


def compiled(definition: Definition, recipe: Recipe, options: dict[str, Any]) -> Update:
    """`updated` as one compiled function that writes its results into the rows, for any values of the hyperparameters.

    Numbers are handed over as 0-d tensors, so that changing one compiles nothing. An elementwise rule is compiled for
    flat tensors of any length.
    """
    function = _compiled(definition, recipe.constant, tuple(options.items()))
    return functools.partial(function, tree.unflatten([*map(_as_vector, recipe.numbers)], recipe.structure))


@functools.lru_cache(maxsize=256)
def _compiled(
    definition: Definition, constant: tuple[tuple[str, Any], ...], options: tuple[tuple[str, Any], ...]
) -> Any:
    def run(numbers: Hyper, scalars: Scalars, rows: Sequence[Row]) -> tuple[Scalars, list[list[Tensor]]]:
        after, values = updated(definition, {**dict(constant), **_mapped(_as_scalar, numbers)}, scalars, rows)
        # What copy_ returns is returned: torch 2.13 drops a copy_ into a 0-d float64 tensor whose result is not used.
        return after, [[t.copy_(value) for t, value in zip(written(row), new)] for row, new in zip(rows, values)]

    options_ = {"fullgraph": True, "dynamic": definition.elementwise, "isolate_recompiles": True, **dict(options)}
    return torch.compile(run, **options_)


def _split(definition: Definition, hyper: Hyper) -> tuple[Hyper, Hyper]:
    """Hyperparameters that the compiled rule is made for, and those that it is given."""
    constant: Hyper = {}
    numbers: Hyper = {}
    for key, value in hyper.items():
        switched_off = key in definition.switches and not isinstance(value, Tensor) and value == 0
        if switched_off or key in definition.constants or value is None or isinstance(value, (bool, str)):
            constant[key] = _frozen(value)
        else:
            numbers[key] = value
    return constant, numbers


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """`function` of all tensors and numbers in a hyperparameter, or in a dict of them."""
    if isinstance(value, dict):
        return {key: _mapped(function, item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(_mapped(function, item) for item in value)
    return value if value is None else function(value)


def _as_vector(value: Any) -> Any:
    """A number as a tensor of one axis: one of none in float64 makes torch 2.13 compile everything twice."""
    if isinstance(value, Tensor):
        return value.reshape(1)
    return torch.full((1,), float(value), dtype=torch.float64) if isinstance(value, (int, float)) else value


def _as_scalar(value: Any) -> Any:
    return value.reshape(()) if isinstance(value, Tensor) else value
