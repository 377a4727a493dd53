"""The states of an optimizer: which runs a step needs, and the states that they lack."""

from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from funcopt import tree
from funcopt.optim.layout import Layout, layout_of
from funcopt.optim.recipe import Recipe
from funcopt.optim.runs import Run, as_tree
from funcopt.optim.settings import Settings
from funcopt.transform import State

States: TypeAlias = MutableMapping[Tensor, dict[str, Any]]
Group: TypeAlias = dict[str, Any]


class Model(NamedTuple):
    """The parameters of some groups, numbered through."""

    params: list[Tensor]
    gradients: list[Tensor | None]
    names: tuple[str, ...] | None
    members: list[range]  # for each group, its parameters
    known: tuple[bool, ...]  # whether a parameter is there for the transformation; frozen ones are not
    sizes: tuple[int, ...]  # how many entries the state of each has
    signature: Any  # all that the structure of a state may depend on

    def tree(self) -> tree.Tree:
        """What the transformation sees."""
        return as_tree(self.names, [p.detach() if known else None for p, known in zip(self.params, self.known)])


def gather(groups: Sequence[Group], states: States) -> Model:
    """The parameters of the groups, in order. One that is frozen is unknown until it has a gradient."""
    params: list[Tensor] = []
    names: list[str] = []
    members: list[range] = []
    for group in groups:
        members.append(range(len(params), len(params) + len(group["params"])))
        params += group["params"]
        names += group.get("param_names", ())
    gradients = [param.grad for param in params]
    sizes = state_sizes(params, states)
    known = tuple([gradient is not None for gradient in gradients])
    if not all(known):
        known = tuple([has or size > 0 or p.requires_grad for has, size, p in zip(known, sizes, params)])
    named = tuple(names) if names else None
    shapes = tuple([param.shape for param in params])
    return Model(params, gradients, named, members, known, sizes, (named, known, shapes))


def state_sizes(params: Sequence[Tensor], states: States) -> tuple[int, ...]:
    """How many entries the states have."""
    return tuple([len(state) if state else 0 for state in map(states.get, params)])


class Kind(NamedTuple):
    """What is the same in all steps of a group, up to numbers."""

    key: Any
    static: dict[str, Any]
    layout: Layout
    sees_all: bool  # whether what a parameter does depends on others


class Share(NamedTuple):
    """Groups that are moved by one run."""

    lead: int  # the first of them
    kind: Kind
    moves: list[int]  # their parameters
    keeper: int  # the parameter that keeps what is shared


class Arrangement(NamedTuple):
    """The runs of a step, each with the first group that it moves; equal keys, equal runs."""

    key: Any
    runs: tuple[Run, ...]
    leads: tuple[int, ...]


class StateMaker:
    """Arranges runs, and makes the states that they lack. It remembers layouts, not states."""

    def __init__(self) -> None:
        self._kinds: dict[Any, Kind] = {}

    def arrange(
        self, recipe: Recipe, model: Model, states: States, settings: Sequence[Settings], *, apart: bool
    ) -> Arrangement:
        """The runs of a step, with all states that they need.

        A group is moved with the first one while it has the same arguments and always had them; once they differ, it
        has what is shared for itself. With `apart` every group is.
        """
        arguments = [each.arguments for each in settings]
        used = used_groups(model)
        kinds = {g: self._kind(recipe, model, settings[g]) for g in used}
        _check_alike(recipe.name, list(kinds.values()))
        shares: list[Share] = []
        source = None
        for g in used:
            kind, members = kinds[g], [i for i in model.members[g] if model.known[i]]
            keeper = _keeper(model, states, members, kind.layout)
            if not shares:
                source = keeper
            elif not apart and keeper is None and _same(arguments[g], arguments[shares[0].lead]):
                shares[0].moves.extend(members)
                _fill(recipe, arguments[g], model, states, kind.layout, dict.fromkeys(members, kind.layout.own), None)
                continue
            keeper = members[0] if keeper is None else keeper
            wanted = dict.fromkeys(members, kind.layout.own)
            wanted[keeper] = kind.layout.own | kind.layout.shared
            _fill(recipe, arguments[g], model, states, kind.layout, wanted, keeper, source)
            shares.append(Share(g, kind, members, keeper))
        key = tuple((share.kind.key, tuple(share.moves), share.keeper) for share in shares)
        return Arrangement((model.signature, key), tuple(map(_run(recipe), shares)), tuple(s.lead for s in shares))

    def _kind(self, recipe: Recipe, model: Model, settings: Settings) -> Kind:
        kind = self._kinds.get((model.signature, settings.key))
        if kind is None:
            transformation, params = recipe.make(**settings.arguments), model.tree()
            state = transformation.init(params)
            layout = layout_of(state, params)
            sees_all = transformation.coupling == "treewise" or _shares_more_than_numbers(layout, state)
            kind = Kind(settings.key, settings.static, layout, sees_all)
            self._kinds[model.signature, settings.key] = kind
        return kind


def used_groups(model: Model) -> list[int]:
    """The groups with a parameter that is there."""
    return [g for g, members in enumerate(model.members) if any(model.known[members.start : members.stop])]


def likeness(model: Model, settings: Sequence[Settings]) -> tuple[bool, ...]:
    """Which groups have the arguments of the first one that is used."""
    used = used_groups(model)
    return tuple([_same(settings[g].arguments, settings[used[0]].arguments) for g in used[1:]])


def _run(recipe: Recipe) -> Callable[[Share], Run]:
    def run(share: Share) -> Run:
        kind = share.kind
        return Run(recipe.make, kind.static, kind.sees_all, frozenset(share.moves), kind.layout, share.keeper)

    return run


def _shares_more_than_numbers(layout: Layout, state: State) -> bool:
    """Whether all parameters share a key, from which each draws in its turn, or a vector of all their numbers."""
    leaves = zip(layout.places, tree.flatten(state)[0])
    return any(place.owner is None and isinstance(leaf, Tensor) and leaf.ndim > 0 for place, leaf in leaves)


def _keeper(model: Model, states: States, members: Sequence[int], layout: Layout) -> int | None:
    """The parameter among `members` that keeps what is shared, if there is one already."""
    return next((i for i in members if layout.shared & states.get(model.params[i], {}).keys()), None)


def _fill(
    recipe: Recipe,
    arguments: dict[str, Any],
    model: Model,
    states: States,
    layout: Layout,
    wanted: dict[int, frozenset[str]],
    keeper: int | None,
    source: int | None = None,
) -> None:
    """Make the states of the names wanted that parameters lack: by `init`, or shared ones as they are at `source`."""
    lacking = {i: names - states[model.params[i]].keys() for i, names in wanted.items()}
    if not any(lacking.values()):
        return
    fresh = tree.flatten(recipe.make(**arguments).init(model.tree()))[0]
    for (owner, name), leaf in zip(layout.places, fresh):
        place = keeper if owner is None else owner
        if leaf is None or place is None or name not in lacking.get(place, ()):
            continue
        known = None if owner is not None or source is None else states[model.params[source]].get(name)
        states[model.params[place]][name] = leaf if known is None else tree.clone(known)


def _same(arguments: dict[str, Any], others: dict[str, Any]) -> bool:
    def equal(a: Any, b: Any) -> bool:
        return a is b or (type(a) is type(b) and not isinstance(a, Tensor) and bool(a == b))

    return all(equal(value, others[name]) for name, value in arguments.items())


def _check_alike(name: str, kinds: Sequence[Kind]) -> None:
    """Raise ValueError where groups are moved together, but make different transformations."""
    for kind in kinds[1:]:
        first = kinds[0]
        if (kind.sees_all or first.sees_all) and kind.layout != first.layout:
            numbers = kind.static.keys() ^ first.static.keys()  # of the one, and none of the other
            differing = [
                key
                for key in {**first.static, **kind.static}
                if key in numbers or first.static[key] != kind.static[key]
            ]
            raise ValueError(
                f"{name}: it acts on the parameters of all groups together, so that groups may differ in numbers only, "
                f"but they differ in {', '.join(differing) or 'their states'}; "
                'give the same to all groups, or scope="group".'
            )
