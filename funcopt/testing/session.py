"""A training session as a state machine: whatever a user does in between, the run is that of a plain loop."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch import Tensor

from funcopt import tree
from funcopt.testing.comparison import largest_so_far, require_close, require_identical
from funcopt.testing.purity import through_a_file
from funcopt.testing.runs import MODES, Adapted, Functional, Values
from funcopt.testing.trajectory import generic, times
from funcopt.testing.violation import LawViolation
from funcopt.transform import GradientTransformation, apply_updates
from funcopt.wrappers.accumulation import accumulate_gradients

_RATES = (0.125, 0.03125, 0.5, 0.0)  # as numbers and as tensors of float32 the same
_SIZES = (1.0, 0.0, 10.0, -1.0)
_SEEDS = st.integers(0, 7)
_ENDS = st.sampled_from((0, -1))  # the first leaf, or the last


class TrainingSession(RuleBasedStateMachine):
    """What happens to an optimizer, in any order, as functions, compiled, or behind the interface of torch.optim.

    Steps, some without the gradient of a leaf; updates that are thrown away; changes of the learning rate; saves and
    loads; leaves that are frozen and thawed; one step with the gradients of several batches; a group that is added.

    At every point params and state equal those of a plain run: a new transformation at each step, with the learning
    rate as a number, which never saves, loads or compiles, and has had the added group from the start, without
    gradients. Subclasses, made by `session`, fill in what is trained.
    """

    make: ClassVar[Callable[..., GradientTransformation]]
    start: ClassVar[dict[str, Tensor]]
    added: ClassVar[dict[str, Tensor]]
    grows: ClassVar[bool]
    factor: ClassVar[float]
    functional: ClassVar[Functional]

    def __init__(self) -> None:
        super().__init__()
        self.rate = _RATES[0]
        self.mode = "eager"
        self.history: list[tuple[float, tree.Tree]] = []
        self.plain = self._replayed(self.start)
        self.values = Values(*tree.clone(self.plain))
        self.adapted: Adapted | None = None
        self.frozen: dict[str, Tensor] = {}
        self.saved: Any = None

    # ---------------------------------------------------------------------------------------------------------- rules

    @rule(seed=_SEEDS, size=st.sampled_from(_SIZES))
    def step(self, seed: int, size: float) -> None:
        self._step(times(size, self._gradients(seed)))

    @rule(seed=_SEEDS, place=_ENDS)
    def step_without_a_leaf(self, seed: int, place: int) -> None:
        """A step in which one gradient is None."""
        name = list(self.plain.params)[place]
        self._step({**self._gradients(seed), name: None})

    @rule(seed=_SEEDS)
    def refuse(self, seed: int) -> None:
        """An update that is computed, and thrown away."""
        self.functional.step("eager", self.rate, self._held(), times(1000.0, self._gradients(seed)))

    @rule(rate=st.sampled_from(_RATES))
    def change_learning_rate(self, rate: float) -> None:
        self.rate = rate

    @rule(place=_ENDS)
    def freeze(self, place: int) -> None:
        """From now on a leaf has no gradient; or it has one again."""
        name = list(self.plain.params)[place]
        if self.frozen.pop(name, None) is None:
            self.frozen[name] = self._held().params[name].clone()

    @rule(seeds=st.lists(_SEEDS, min_size=2, max_size=3))
    def accumulate(self, seeds: list[int]) -> None:
        """One step with the gradients of several batches, one after the other, and of their mean in the plain run."""
        parts = [self._without_frozen(self._gradients(seed)) for seed in seeds]
        held, every = self._held(), accumulate_gradients(type(self).make(self.rate), len(seeds))
        state = every.init(held.params)._replace(inner_state=held.state)
        params = held.params
        for gradients in parts:
            updates, state = every.update(gradients, state, params)
            params = apply_updates(params, updates)
        self._put(Values(params, state.inner_state))
        self._plain_step(tree.map(lambda *leaves: sum(leaves) / len(leaves), *parts))

    @precondition(lambda self: self.grows and not self._has_grown())
    @rule()
    def add_group(self) -> None:
        """A group enters, with a state of its own from `init`; what was there stays."""
        grown = {**self.plain.params, **self.added}
        self.plain = self._replayed({**self.start, **self.added})
        if self.adapted is not None:
            self.adapted.add_group(tree.clone(self.added), self.rate)
        else:
            held = tree.clone({**self.values.params, **{name: grown[name] for name in self.added}})
            fresh = type(self).make(self.rate).init(held)
            known = dict(tree.leaves_with_path(self.values.state))
            leaves = [known.get(path, leaf) for path, leaf in tree.leaves_with_path(fresh)]
            self.values = Values(held, tree.unflatten(leaves, tree.flatten(fresh)[1]))

    @rule()
    def save(self) -> None:
        held = self._held() if self.adapted is None else self.adapted.through_a_file(self.rate)
        held = Values(*through_a_file(held, held))
        self.saved = tree.clone((held, self.plain, self.frozen, self.largest)), self.rate, list(self.history)

    @precondition(lambda self: self.saved is not None)
    @rule()
    def load(self) -> None:
        kept, self.rate, history = self.saved
        held, self.plain, self.frozen, self.largest = tree.clone(kept)
        self.history = list(history)
        self._put(held)

    @rule(mode=st.sampled_from(MODES))
    def switch(self, mode: str) -> None:
        """To functions, eager or compiled, or to an object of torch.optim."""
        held, self.mode = self._held(), mode
        self._put(tree.clone(held))

    # ----------------------------------------------------------------------------------------------------- invariants

    @invariant()
    def is_the_plain_run(self) -> None:
        what = f"after {len(self.history)} steps, {self.mode}: values"
        try:
            # What cancels now has the roundings of what it was before.
            require_close(self._held(), self.plain, what, factor=self.factor, scales=self.largest)
        except LawViolation as violation:
            violation.law, violation.statement = "session", "Whatever happens in between, the run is that of a loop."
            violation.transformation = type(self).make(self.rate)
            raise

    @invariant()
    def what_is_frozen_stays(self) -> None:
        held = self._held().params
        require_identical({name: held[name] for name in self.frozen}, self.frozen, "a frozen leaf")

    # ------------------------------------------------------------------------------------------------ the two runs

    def _step(self, gradients: tree.Tree) -> None:
        gradients = self._without_frozen(gradients)
        if self.adapted is not None:
            self.adapted.step(self.rate, gradients)
        else:
            self.values = self.functional.step(self.mode, self.rate, self.values, gradients)
        self._plain_step(gradients)

    def _held(self) -> Values:
        return self.values if self.adapted is None else self.adapted.values()

    def _put(self, values: Values) -> None:
        """Go on from these values, in the mode that is in force."""
        self.values, self.adapted = values, None
        if self.mode == "adapter":
            self.adapted = Adapted(type(self).make, values, self.rate)

    def _plain_step(self, gradients: tree.Tree) -> None:
        self.history.append((self.rate, gradients))
        self._advance_plain(self.rate, gradients)

    def _advance_plain(self, rate: float, gradients: tree.Tree) -> None:
        updates, state = type(self).make(rate).update(tree.clone(gradients), self.plain.state, self.plain.params)
        self.plain = Values(apply_updates(self.plain.params, updates), state)
        self.largest = largest_so_far(self.plain, self.largest)

    def _replayed(self, start: dict[str, Tensor]) -> Values:
        """The plain run from the beginning: what was not there then had no gradients."""
        params = tree.clone(start)
        self.plain = Values(params, type(self).make(_RATES[0]).init(params))  # a state may tell that rate
        self.largest = largest_so_far(self.plain)
        for rate, gradients in self.history:
            self._advance_plain(rate, {**dict.fromkeys(start), **gradients})
        return self.plain

    def _has_grown(self) -> bool:
        return len(self.plain.params) > len(self.start)

    def _gradients(self, seed: int) -> tree.Tree:
        return tree.map(lambda leaf, g: g.to(leaf.dtype), self.plain.params, generic(self.plain.params, 20 + seed))

    def _without_frozen(self, gradients: tree.Tree) -> tree.Tree:
        return {**gradients, **dict.fromkeys(self.frozen)}


def session(
    factory: Callable[..., GradientTransformation],
    params: tree.Tree = None,
    *,
    backend: str = "aot_eager",
    factor: float = 50.0,
    grows: bool = True,
) -> type[TrainingSession]:
    """The state machine of a factory that takes the learning rate, as a number or a 0-d tensor.

    Let pytest run its test case, or hypothesis the machine itself:

    >>> from hypothesis import stateful
    >>> TestSgd = session(sgd).TestCase
    >>> stateful.run_state_machine_as_test(session(sgd))

    Args:
        factory: called with the learning rate alone.
        params: what is trained, as a dict by path; unless given, a matrix, a vector and a number, of float32.
        backend: of `compile`.
        factor: how much more than one rounding compiled and eager steps may differ, which adds up.
        grows: whether a group may be added, for which a leaf without gradients must change nothing at the others.

    Raises:
        LawViolation: at some point, params or state are not those of a plain run.
    """
    shapes = {"bias": torch.empty(3), "scale": torch.empty(()), "weight": torch.empty(2, 3)}
    leaves = tree.leaves_with_path(generic(shapes, 1, torch.float32) if params is None else params)
    names = {
        "make": staticmethod(factory),
        "start": {path or "param": leaf for path, leaf in leaves if leaf is not None},
        "added": {"later": torch.tensor([0.5, -1.0])},
        "grows": grows,
        "factor": factor,
        "functional": Functional(factory, backend),
    }
    return type("Session", (TrainingSession,), names)
