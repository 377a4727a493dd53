"""`check`: a transformation under all laws that apply to it; `given_optimizer`: cases for tests of one's own."""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from hypothesis import HealthCheck, Phase, given, seed as seeded, settings, strategies as st

from funcopt import tree
from funcopt.testing.declared import Declared
from funcopt.testing.law import Law
from funcopt.testing.laws import LAWS
from funcopt.testing.remake import as_transformation
from funcopt.testing.strategies import gradient_sequences_for, hyperparameters, params as drawn_params
from funcopt.testing.trajectory import dtype_of, generic
from funcopt.testing.violation import LawViolation
from funcopt.transform import GradientTransformation

Subject: TypeAlias = GradientTransformation | Callable[..., GradientTransformation]
"""A transformation, or a factory that makes one from its defaults: only then are its hyperparameters tested too.

What a function decorated with `funcopt.factory` returns remembers how it was made, and counts as either.
"""
Case: TypeAlias = tuple[tree.Tree, list[tree.Tree]]
Cases: TypeAlias = Iterable[Case] | st.SearchStrategy[Case]
"""Pairs of params and gradients: a few given ones, or a hypothesis strategy."""


def check(
    tx_or_factory: Subject,
    laws: Iterable[Law] | None = None,
    declared: Declared | None = None,
    params: tree.Tree = None,
    gradients: list[tree.Tree] | None = None,
    *,
    cases: Cases | None = None,
    max_examples: int = 20,
    seed: int | None = None,
) -> None:
    """Check a transformation against the laws that apply to it, and raise at the first that does not hold.

    Args:
        tx_or_factory: the transformation, or a function that makes it when called without arguments.
        laws: those to check; unless given, all.
        declared: what the transformation is declared to be; unless given, a plain optimizer.
        params: the params to check it on; unless given, cases are drawn.
        gradients: the gradients of a few steps, trees like `params`; unless given, normal numbers.
        cases: pairs of params and gradients, or a strategy that draws them.
        max_examples: how many cases a law is checked on, if they are drawn; slow laws take a share.
        seed: of the draws; unless given, they are always the same.

    Raises:
        LawViolation: a law does not hold; it tells which, where, by how much, and in which case.
        TypeError: `tx_or_factory` is neither a transformation nor a factory.

    >>> check(adam(0.1), max_examples=2)
    """
    for violation in violations(
        tx_or_factory, laws, declared, params, gradients, cases=cases, max_examples=max_examples, seed=seed
    ):
        raise violation


def violations(
    tx_or_factory: Subject,
    laws: Iterable[Law] | None = None,
    declared: Declared | None = None,
    params: tree.Tree = None,
    gradients: list[tree.Tree] | None = None,
    *,
    cases: Cases | None = None,
    max_examples: int = 20,
    seed: int | None = None,
) -> Iterator[LawViolation]:
    """Like `check`, but yield the violation of every law that does not hold."""
    tx, declared = as_transformation(tx_or_factory), declared or Declared()
    if params is not None:
        cases = [(params, gradients or [generic(params, 1 + i, dtype_of(params)) for i in range(3)])]
    elif cases is None:
        cases = default_cases()
    if not isinstance(cases, st.SearchStrategy):
        cases = list(cases)
    for law in LAWS if laws is None else laws:
        if law.applies(tx, declared):
            examples = math.ceil(law.share * max_examples)
            violation = _violation(law, tx, declared, cases, examples, seed)
            if violation is not None:
                yield violation


def _violation(
    law: Law,
    tx: GradientTransformation,
    declared: Declared,
    cases: Sequence[Case] | st.SearchStrategy[Case],
    max_examples: int,
    seed: int | None,
) -> LawViolation | None:
    try:
        if isinstance(cases, st.SearchStrategy):
            _search(law, tx, declared, cases, max_examples, seed)
        else:
            for params, gradients in cases:
                law(tx, params, gradients, declared=declared)
    except LawViolation as violation:
        violation.smallest = isinstance(cases, st.SearchStrategy)
        return violation
    return None


def _search(
    law: Law,
    tx: GradientTransformation,
    declared: Declared,
    cases: st.SearchStrategy[Case],
    max_examples: int,
    seed: int | None,
) -> None:
    """Look for a case in which the law does not hold, and shrink it; raise the violation of the smallest."""

    @_quiet(max_examples, seed)
    @given(cases)
    def holds(case: Case) -> None:
        law(tx, *case, declared=declared)

    holds()


def _quiet(max_examples: int, seed: int | None) -> Callable[[Any], Any]:
    """Settings under which a search is a function of its arguments, and says nothing itself."""
    chosen = settings(
        max_examples=max_examples,
        derandomize=seed is None,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
        phases=[phase for phase in Phase if phase is not Phase.explain],
    )
    return lambda test: chosen(test if seed is None else seeded(seed)(test))


def default_cases() -> st.SearchStrategy[Case]:
    """The cases that `check` draws: params of any kind, and the gradients of a few steps."""
    return _drawn_cases()


@st.composite
def _drawn_cases(draw: st.DrawFn) -> Case:
    drawn = draw(drawn_params())
    return drawn, draw(gradient_sequences_for(drawn, st.integers(2, 4)))


def fixed_case(dtype: torch.dtype = torch.float64, steps: int = 3) -> Case:
    """A small case without randomness: a nested dict, a list, a 0-d leaf, an empty one; normal numbers."""
    shapes: Any = {"a": {"bias": (3,), "weight": (4, 3)}, "b": [(), (0, 3)], "c": (2, 3, 2)}

    def fill(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: fill(below) for key, below in part.items()}
        return [fill(below) for below in part] if isinstance(part, list) else torch.empty(part)

    like = fill(shapes)
    return generic(like, 1, dtype), [generic(like, 2 + step, dtype) for step in range(steps)]


def given_optimizer(
    *subjects: Subject | st.SearchStrategy[GradientTransformation],
    cases: Cases | None = None,
    max_examples: int = 20,
    seed: int | None = None,
) -> Callable[[Callable[..., None]], Callable[[], None]]:
    """Decorate a test: it is called with drawn cases of a transformation, which it takes by name.

    The test names what it wants of `tx`, `params` and `gradients`. A subject is a transformation, a factory, whose
    hyperparameters are then drawn, or a strategy for transformations; each is drawn from all that are given. Laws can
    be called in the test, and anything else asserted; pytest shows the smallest case that fails.

    >>> @given_optimizer(sgd(0.1), adam(0.1), max_examples=5)
    ... def test_moves_no_further_than_its_rate(tx, params, gradients):
    ...     bounded(tx, params, gradients, declared=Declared(bounded=1e7))

    Raises:
        TypeError: there is no subject, or the test takes another argument.
    """
    if not subjects:
        raise TypeError("given_optimizer: give at least one transformation, factory or strategy for transformations.")
    strategies = [_transformations_of(each) for each in subjects]
    drawn = default_cases() if cases is None else cases
    case_strategy = drawn if isinstance(drawn, st.SearchStrategy) else st.sampled_from(list(drawn))

    def decorate(test: Callable[..., None]) -> Callable[[], None]:
        wanted = list(inspect.signature(test).parameters)
        unknown = [name for name in wanted if name not in ("tx", "params", "gradients")]
        if unknown:
            raise TypeError(f"given_optimizer: a test takes tx, params and gradients, but {test.__name__} {unknown}.")

        @_quiet(max_examples, seed)
        @given(tx=st.one_of(strategies), case=case_strategy)
        def run(tx: GradientTransformation, case: Case) -> None:
            values = {"tx": tx, "params": case[0], "gradients": case[1]}
            test(**{name: values[name] for name in wanted})

        run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
        return run  # type: ignore[no-any-return]

    return decorate


def _transformations_of(subject: Subject | st.SearchStrategy[GradientTransformation]) -> st.SearchStrategy[Any]:
    if isinstance(subject, st.SearchStrategy):
        return subject
    if isinstance(subject, GradientTransformation):
        return st.just(subject)
    return hyperparameters(subject).map(lambda arguments: subject(**arguments))
