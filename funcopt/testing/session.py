"""A training session as a state machine: whatever a user does in between, the run is that of a plain loop."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch import Tensor

from funcopt import tree
from funcopt.compile import compile
from funcopt.testing.check import fixed_case
from funcopt.testing.comparison import largest_so_far, require_close
from funcopt.testing.purity import through_a_file
from funcopt.testing.trajectory import generic, times
from funcopt.testing.violation import LawViolation
from funcopt.transform import GradientTransformation, apply_updates

_RATES = (0.1, 0.03, 0.5, 0.0)
_SIZES = (1.0, 0.0, 10.0, -1.0)


class TrainingSession(RuleBasedStateMachine):
    """Steps, skips, changes of the learning rate, saves and loads, eager and compiled, in any order.

    At every point params and state equal those of a plain run: a new transformation at each step, with the learning
    rate as a number, which never saves, loads or compiles. Subclasses, made by `session`, fill in what is trained.
    """

    make: ClassVar[Callable[..., GradientTransformation]]
    start: ClassVar[tree.Tree]
    backend: ClassVar[str]
    factor: ClassVar[float]
    compiled: ClassVar[Callable[..., Any] | None] = None

    def __init__(self) -> None:
        super().__init__()
        kind = type(self)
        self.rate = 0.1
        self.params, self.plain_params = tree.clone(kind.start), tree.clone(kind.start)
        self.state, self.plain_state = kind.make(self.rate).init(self.params), kind.make(self.rate).init(self.params)
        self.is_compiled = False
        self.saved: Any = None
        self.steps = 0
        self.largest = largest_so_far(self._plain())

    @rule(seed=st.integers(0, 7), size=st.sampled_from(_SIZES))
    def step(self, seed: int, size: float) -> None:
        self._step(times(size, self._gradients(seed)))

    @rule(seed=st.integers(0, 7), data=st.data())
    def step_without_a_leaf(self, seed: int, data: st.DataObject) -> None:
        """A step in which one gradient is None."""
        leaves, structure = tree.flatten(self._gradients(seed))
        absent = data.draw(st.integers(0, len(leaves) - 1), label="absent leaf")
        self._step(tree.unflatten([None if i == absent else leaf for i, leaf in enumerate(leaves)], structure))

    @rule(seed=st.integers(0, 7))
    def refuse(self, seed: int) -> None:
        """An update that is computed, and thrown away."""
        self._advance(times(1000.0, self._gradients(seed)))

    @rule(rate=st.sampled_from(_RATES))
    def change_learning_rate(self, rate: float) -> None:
        self.rate = rate

    @rule()
    def save(self) -> None:
        held = through_a_file((self.params, self.state), (self.params, self.state))
        self.saved = held, tree.clone((self.plain_params, self.plain_state)), self.rate

    @precondition(lambda self: self.saved is not None)
    @rule()
    def load(self) -> None:
        held, plain, self.rate = self.saved
        self.params, self.state = tree.clone(held)
        self.plain_params, self.plain_state = tree.clone(plain)

    @rule()
    def switch(self) -> None:
        """From eager to compiled, or back."""
        self.is_compiled = not self.is_compiled

    # Freezing, added groups, accumulation and the adapter are rules that follow here once funcopt has them.

    @invariant()
    def is_the_plain_run(self) -> None:
        what = f"after {self.steps} steps, {'compiled' if self.is_compiled else 'eager'}:"
        params_scale, state_scale = self.largest  # what cancels now has the roundings of what it was before
        try:
            require_close(self.params, self.plain_params, f"{what} params", factor=self.factor, scales=params_scale)
            require_close(self.state, self.plain_state, f"{what} state", factor=self.factor, scales=state_scale)
        except LawViolation as violation:
            violation.law, violation.statement = "session", "Whatever happens in between, the run is that of a loop."
            violation.transformation = type(self).make(self.rate)
            raise

    def _plain(self) -> tuple[tree.Tree, tree.Tree]:
        return self.plain_params, self.plain_state

    def _gradients(self, seed: int) -> tree.Tree:
        return tree.map(lambda leaf, g: g.to(leaf.dtype), self.start, generic(self.start, 20 + seed))

    def _step(self, gradients: tree.Tree) -> None:
        self.params, self.state = self._advance(gradients)
        plain = type(self).make(self.rate)
        updates, self.plain_state = plain.update(tree.clone(gradients), self.plain_state, self.plain_params)
        self.plain_params = apply_updates(self.plain_params, updates)
        self.largest = largest_so_far(self._plain(), self.largest)
        self.steps += 1

    def _advance(self, gradients: tree.Tree) -> Any:
        rate = torch.tensor(self.rate, dtype=torch.float64)
        with torch.no_grad():
            return (self._compiled_step() if self.is_compiled else self._eager_step)(
                rate, self.params, self.state, gradients
            )

    @classmethod
    def _eager_step(cls, rate: Tensor, params: tree.Tree, state: tree.Tree, gradients: tree.Tree) -> Any:
        updates, state = cls.make(rate).update(gradients, state, params)
        return apply_updates(params, updates), state

    @classmethod
    def _compiled_step(cls) -> Callable[..., Any]:
        if cls.compiled is None:
            cls.compiled = staticmethod(compile(cls._eager_step, backend=cls.backend))
        return cls.compiled


def session(
    factory: Callable[..., GradientTransformation],
    params: tree.Tree = None,
    *,
    backend: str = "aot_eager",
    factor: float = 50.0,
) -> type[TrainingSession]:
    """The state machine of a factory that takes the learning rate, as a number or a 0-d tensor.

    Let pytest run its test case, or hypothesis the machine itself:

    >>> from hypothesis import stateful
    >>> TestSgd = session(sgd).TestCase
    >>> stateful.run_state_machine_as_test(session(sgd))

    Args:
        factory: called with the learning rate alone.
        params: what is trained; unless given, a small tree of float32.
        backend: of `compile`.
        factor: how much more than one rounding compiled and eager steps may differ, which adds up.

    Raises:
        LawViolation: at some point, params or state are not those of a plain run.
    """
    start = fixed_case(torch.float32)[0] if params is None else params
    names = {"make": staticmethod(factory), "start": start, "backend": backend, "factor": factor}
    return type("Session", (TrainingSession,), names)
