"""The protocol: gradient transformations, their composition, and the application of updates."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, ParamSpec, Protocol, TypeAlias

import torch
from torch import Tensor

from funcopt import tree
from funcopt.calls import Call, explain
from funcopt.numerics import realise, scalar_dtype
from funcopt.pack import check_whole_leaves, per_buffer

Params: TypeAlias = tree.Tree
Updates: TypeAlias = tree.Tree
State: TypeAlias = tree.Tree
Schedule: TypeAlias = Callable[[Any], Tensor]
"""A step size as a function of the step count (a 0-d integer tensor, or an int), which starts at 0."""
ScalarOrSchedule: TypeAlias = float | Tensor | Schedule
Mask: TypeAlias = tree.Tree | Callable[[Params], tree.Tree]
"""A tree of bools with the structure of params or a prefix of it, or a function that makes one from params."""
Coupling: TypeAlias = Literal["elementwise", "leafwise", "treewise"]


class Init(Protocol):
    """`init(params) -> state`: the state before the first step. It does not keep any tensor of params."""

    def __call__(self, params: Params, /) -> State: ...


class Update(Protocol):
    """`update(updates, state, params=None, **extra) -> (updates, state)`: one step, which mutates nothing."""

    def __call__(
        self, updates: Updates, state: State, params: Params | None = None, /, **extra: Any
    ) -> tuple[Updates, State]: ...


@dataclass(frozen=True, eq=False)
class GradientTransformation:
    """A pair of pure functions that turns gradients into updates: `init, update = transformation`.

    Attributes:
        init: `init(params) -> state`.
        update: `update(updates, state, params=None, **extra) -> (updates, state)`. `params` are the values before
            the step; what comes out is added to them by `apply_updates`. Extra keyword arguments (the loss `value`,
            say) travel through every combinator; a transformation ignores those that it does not need.
        coupling: what one number of the result depends on: that number's own gradient, state and parameter
            ("elementwise"), its whole leaf ("leafwise"), or all leaves ("treewise").
        call: the call of the factory that made it, which is how it prints: see `factory`.
    """

    init: Callable[[Params], State]
    update: Callable[..., tuple[Updates, State]]
    coupling: Coupling = "elementwise"
    call: Call | None = None

    def __iter__(self) -> Iterator[Any]:
        return iter((self.init, self.update))

    def __repr__(self) -> str:
        return "GradientTransformation(init, update)" if self.call is None else repr(self.call)


P = ParamSpec("P")


def factory(make: Callable[P, GradientTransformation]) -> Callable[P, GradientTransformation]:
    """Decorate a function that makes a transformation: what it makes prints as the call, and explains its errors.

    >>> chain(clip_by_global_norm(1.0), adamw(0.001))
    chain(clip_by_global_norm(1.0), adamw(0.001))

    If `update` fails, and its arguments show why (an extra argument is missing; updates, params and state do not belong
    together), the error names the transformation, the path in the tree, and what was expected and given. All this
    happens when the transformation is made and when it fails: a step costs no more, and compiles as before.
    """

    @functools.wraps(make)
    def call(*args: "P.args", **kwargs: "P.kwargs") -> GradientTransformation:
        made = make(*args, **kwargs)
        record = Call(make, args, kwargs, made.call)
        if made.call is None or not made.call.guarded:
            made = _guarded(make.__name__, made)
        return GradientTransformation(made.init, made.update, made.coupling, record)

    return call


def schedule_factory(make: Callable[P, Schedule]) -> Callable[P, Schedule]:
    """Decorate a function that makes a schedule: what it makes prints as the call within a transformation.

    >>> adam(linear_schedule(0.1, 0.0, transition_steps=10))
    adam(linear_schedule(0.1, 0.0, transition_steps=10))
    """

    @functools.wraps(make)
    def call(*args: P.args, **kwargs: P.kwargs) -> Schedule:
        schedule = make(*args, **kwargs)
        schedule.call = Call(make, args, kwargs)  # type: ignore[attr-defined]
        return schedule

    return call


def _guarded(name: str, made: GradientTransformation) -> GradientTransformation:
    def init(params: Params) -> State:
        if made.coupling == "leafwise":
            check_whole_leaves(name, params)
        return made.init(params)

    def update(updates: Updates, state: State, params: Params | None = None, **extra: Any) -> tuple[Updates, State]:
        try:
            return made.update(updates, state, params, **extra)
        except Exception as error:
            if getattr(error, "explained", False) or str(error).startswith(f"{name}: "):
                raise
            better = explain(name, made.init, made.update, (updates, state, params), extra) or error
            better.explained = True  # type: ignore[attr-defined]  # enclosing transformations pass it on as it is
            if better is error:
                raise
            raise better from error

    return GradientTransformation(init, update, made.coupling)


class EmptyState(NamedTuple):
    """The state of a transformation that remembers nothing."""


def init_empty_state(params: Params) -> EmptyState:
    """The `init` of a transformation without state; it still refuses params that no optimizer can move."""
    tree.check_params(params)
    return EmptyState()


def zero_count(params: Params) -> Tensor:
    """A step counter at 0: an int32 0-d tensor on the device of the first parameter."""
    tree.check_params(params)
    first = next(iter(tree.leaves(params)), None)
    return torch.zeros((), dtype=torch.int32) if first is None else first.new_zeros((), dtype=torch.int32)


def scalar(params: Params, value: float | Tensor = 0.0) -> Tensor:
    """A 0-d state of the value given: float32, or float64 where a leaf of params is; in memory of its own.

    Whatever the parameters' dtype: a sum in bfloat16 stops growing, and 0.999 in bfloat16 is 1.
    """
    tree.check_params(params)
    leaves = tree.leaves(params)
    wide = any(leaf.dtype in (torch.float64, torch.complex128) for leaf in leaves)
    dtype = torch.float64 if wide else torch.float32
    zero = leaves[0].new_zeros((), dtype=dtype) if leaves else torch.zeros((), dtype=dtype)
    return zero + torch.as_tensor(value, dtype=dtype, device=zero.device)


def value_at(hyperparameter: ScalarOrSchedule, count: Tensor) -> float | Tensor:
    """The value of a hyperparameter at step `count`: itself, or what its schedule says, as a realised 0-d tensor."""
    if not callable(hyperparameter):
        return hyperparameter
    return realise(torch.as_tensor(hyperparameter(count), dtype=scalar_dtype(count.device), device=count.device))


def check_transformation(function: str, **arguments: object) -> None:
    """Raise TypeError unless every argument is a `GradientTransformation`; for functions that wrap one."""
    for name, value in arguments.items():
        if not isinstance(value, GradientTransformation):
            raise TypeError(f"{function}: {name} must be a GradientTransformation, got {name}={value!r}.")


def require_params(params: Params | None, name: str) -> Params:
    """`params`, or ValueError where the transformation `name` was updated without them."""
    if params is None:
        raise ValueError(f"{name}: update needs the parameters; call update(updates, state, params).")
    return params


def resolve_mask(mask: Mask, params: Params, name: str) -> tree.Tree:
    """The mask of the transformation `name` as a tree of bools with the structure of `params`.

    Raises:
        TypeError: a leaf of the mask is no bool.
        ValueError: the mask is not a prefix of `params`.
    """

    def resolve(params: Params) -> tree.Tree:
        prefix = mask(params) if callable(mask) else mask
        structure = tree.flatten(prefix)[1]
        chosen = []
        for (path, value), part in zip(tree.leaves_with_path(prefix), tree.leaves_up_to(structure, params)):
            if not isinstance(value, bool) and not (value is None and part is None):
                raise TypeError(f"{name}: a mask is a tree of bools, got {value!r} at {path!r}.")
            chosen.append(tree.map(lambda leaf, value=value: value, part))
        return tree.unflatten(chosen, structure)

    return per_buffer(name, resolve, params)


@factory
def chain(*transformations: GradientTransformation) -> GradientTransformation:
    """Apply transformations in sequence; the state is the tuple of their states. `chain()` is the identity.

    >>> optimizer = chain(clip_by_global_norm(1.0), adam(1e-3))

    Raises:
        TypeError: an argument is not a `GradientTransformation`.
        ValueError: `update` is given a state of another chain.
    """
    check_members("chain", dict(enumerate(transformations)))

    def init(params: Params) -> tuple[State, ...]:
        return tuple(member.init(params) for member in transformations)

    def update(updates: Updates, state: State, params: Params | None = None, **extra: Any) -> tuple[Updates, State]:
        if type(state) is not tuple or len(state) != len(transformations):
            raise ValueError(_wrong_state("chain", f"a tuple of {len(transformations)} states", state))
        updates, states = _update_in_turn(transformations, updates, state, params, extra)
        return updates, tuple(states)

    return GradientTransformation(init, update, joint_coupling(transformations))


@factory
def named_chain(*transformations: tuple[str, GradientTransformation]) -> GradientTransformation:
    """Like `chain`, of `(name, transformation)` pairs; the state is the dict of their states by name.

    >>> optimizer = named_chain(("clip", clip_by_global_norm(1.0)), ("adam", adam(1e-3)))

    Raises:
        TypeError: a member is not a pair of a str and a `GradientTransformation`.
        ValueError: a name occurs twice, or `update` is given a state of another chain.
    """
    for member in transformations:
        if not (isinstance(member, tuple) and len(member) == 2 and isinstance(member[0], str)):
            raise TypeError(f"named_chain: expected pairs (name, transformation), got {member!r}.")
    members = dict(transformations)
    if len(members) < len(transformations):
        raise ValueError(f"named_chain: names must differ, got {[name for name, _ in transformations]}.")
    check_members("named_chain", members)

    def init(params: Params) -> dict[str, State]:
        return {name: member.init(params) for name, member in members.items()}

    def update(updates: Updates, state: State, params: Params | None = None, **extra: Any) -> tuple[Updates, State]:
        if not isinstance(state, dict) or set(state) != set(members):
            raise ValueError(_wrong_state("named_chain", f"a dict with the keys {list(members)}", state))
        states = [state[name] for name in members]
        updates, states = _update_in_turn(members.values(), updates, states, params, extra)
        return updates, dict(zip(members, states))

    return GradientTransformation(init, update, joint_coupling(members.values()))


def _update_in_turn(
    members: Iterable[GradientTransformation],
    updates: Updates,
    states: Iterable[State],
    params: Params | None,
    extra: dict[str, Any],
) -> tuple[Updates, list[State]]:
    new_states: list[State] = []
    for member, state in zip(members, states):
        updates, new_state = member.update(updates, state, params, **extra)
        new_states.append(new_state)
    return (updates if new_states else tree.clone(updates)), new_states


def joint_coupling(members: Iterable[GradientTransformation]) -> Coupling:
    """The coupling of what is made of `members`: that of the most coupled one."""
    found = [member.coupling for member in members]
    if "treewise" in found:
        return "treewise"
    return "leafwise" if "leafwise" in found else "elementwise"


def check_members(caller: str, members: Mapping[Any, object]) -> None:
    """Raise TypeError, naming the member, unless all that `caller` is given are transformations."""
    for name, member in members.items():
        if not isinstance(member, GradientTransformation):
            raise TypeError(f"{caller}: member {name!r} must be a GradientTransformation, got {member!r}.")


def _wrong_state(caller: str, expected: str, state: State) -> str:
    size = f" of {len(state)}" if isinstance(state, (tuple, dict, list)) else ""
    return (
        f"{caller}: update expects {expected}, got a {type(state).__name__}{size}. "
        "Pass the state that this optimizer's init or its last update returned."
    )


@factory
def identity() -> GradientTransformation:
    """Leave the updates as they are."""
    return stateless_with_tree_map(lambda update, param: update, "elementwise")


@factory
def set_to_zero() -> GradientTransformation:
    """Replace the updates by zeros: what is not to be moved."""
    return stateless_with_tree_map(lambda update, param: torch.zeros_like(update), "elementwise")


def stateless(
    f: Callable[[Updates, Params | None], Updates], coupling: Coupling = "treewise"
) -> GradientTransformation:
    """A transformation without state from `f(updates, params) -> updates`, with params `None` if `update` got none.

    `coupling` declares what one number of the result depends on; unless told, all leaves.
    """

    def update(
        updates: Updates, state: EmptyState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, EmptyState]:
        return f(updates, params), state

    # Its errors are for the factory that uses it to explain, under that factory's name.
    return GradientTransformation(init_empty_state, update, coupling, Call(stateless, (f,), {}, guarded=False))


def stateless_with_tree_map(
    f: Callable[[Tensor, Tensor | None], Tensor], coupling: Coupling = "leafwise"
) -> GradientTransformation:
    """A transformation without state from a function of one leaf, `f(update, param) -> update`.

    `f` sees tensors of at least float32; its result is rounded to the dtype of the update. `param` is `None` if
    `update` got no params.
    """

    alone = coupling == "elementwise"

    def on_tree(updates: Updates, params: Params | None) -> Updates:
        if params is None:
            return tree.map_rule(lambda update: f(update, None), updates, elementwise=alone)
        return tree.map_rule(f, updates, reads=(params,), elementwise=alone)

    made = stateless(on_tree, coupling)
    return replace(made, call=Call(stateless_with_tree_map, (f,), {}, guarded=False))


def apply_updates(params: Params, updates: Updates) -> Params:
    """`params + updates`, leaf by leaf: added in the promoted dtype and rounded once to the parameter's.

    Where the parameter or the update is `None`, the parameter is kept. The result shares no memory with `params`.
    """
    return tree.add(params, updates)


def incremental_update(new_tensors: Params, old_tensors: Params, step_size: float | Tensor) -> Params:
    """`step_size * new + (1 - step_size) * old`: a moving average of parameters (a target network, an EMA).

    Polyak & Juditsky 1992. The result has the dtypes of `old_tensors`.
    """

    def average(new: Tensor, old: Tensor) -> Tensor:
        return (step_size * new + (1 - step_size) * old).to(old.dtype)

    return tree.map(average, new_tensors, old_tensors)


def periodic_update(
    new_tensors: Params, old_tensors: Params, steps: int | Tensor, update_period: int | Tensor
) -> Params:
    """`new_tensors` where `steps` is a multiple of `update_period`, else `old_tensors`: a target network.

    Mnih et al. 2015, https://www.nature.com/articles/nature14236. Both trees are copied, not shared.
    """

    def select(new: Tensor, old: Tensor) -> Tensor:
        due = torch.as_tensor(steps, device=old.device) % update_period == 0
        return torch.where(due, new, old)

    return tree.map(select, new_tensors, old_tensors)
