"""What a law is: a function that raises LawViolation, with a statement, and a word on what it applies to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from funcopt import tree
from funcopt.testing.comparison import require_tensors
from funcopt.testing.declared import Declared
from funcopt.testing.trajectory import exact_copy
from funcopt.testing.violation import LawViolation
from funcopt.transform import Coupling, GradientTransformation


@dataclass(frozen=True)
class Law:
    """A law: `law(tx, params, gradients)` raises LawViolation where it does not hold.

    Attributes:
        function: the check itself.
        applies: whether it says anything about a transformation that is declared so.
        remedy: what to declare where it is not meant to hold, or "".
        share: of the examples asked for, the part that it is checked on: what takes long is checked on fewer.
    """

    function: Callable[..., None]
    applies: Callable[[GradientTransformation, Declared], bool]
    remedy: str = ""
    share: float = 1.0

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def statement(self) -> str:
        return (self.function.__doc__ or "").strip().splitlines()[0]

    def __repr__(self) -> str:
        return f"<law {self.name}: {self.statement}>"

    def __call__(
        self,
        tx: GradientTransformation,
        params: tree.Tree,
        gradients: list[tree.Tree],
        *,
        extra: Mapping[str, Any] | None = None,
        declared: Declared | None = None,
    ) -> None:
        """Check it in one case.

        Args:
            tx: a transformation.
            params: a tree of tensors.
            gradients: those of a few steps, trees like `params`; where a gradient is None, its leaf is skipped.
            extra: extra keyword arguments for every update.
            declared: what is known of the transformation.

        Raises:
            LawViolation: it does not hold, or the transformation fails.
        """
        declared = declared or Declared()
        given = {**(declared.extra or {}), **(extra or {})}
        declared = replace(declared, extra=given or None)
        kept = params, gradients
        params, gradients = exact_copy(kept)  # a wrong transformation writes into them
        try:
            self.function(tx, params, gradients, extra=given, declared=declared)
        except LawViolation as violation:
            raise self._explained(violation, tx, kept, declared) from violation.__cause__
        except Exception as error:
            failure = LawViolation(_reason(tx, exact_copy(kept[0])) or f"{type(error).__name__}: {error}")
            raise self._explained(failure, tx, kept, declared) from error

    def _explained(
        self, violation: LawViolation, tx: GradientTransformation, case: Any, declared: Declared
    ) -> LawViolation:
        violation.law, violation.statement, violation.remedy = self.name, self.statement, self.remedy
        violation.transformation, violation.case = tx, case
        violation.check, violation.declared = self, declared
        return violation


def _reason(tx: GradientTransformation, params: tree.Tree) -> str:
    """What explains most failures better than their own words: a state that holds something else than tensors."""
    try:
        require_tensors(tx.init(params), "the state")
    except LawViolation as violation:
        return violation.problem
    except Exception:  # init itself fails, and says why
        return ""
    return ""


def _always(tx: GradientTransformation, declared: Declared) -> bool:
    return True


def law(
    applies: Callable[[GradientTransformation, Declared], bool] = _always, *, remedy: str = "", share: float = 1.0
) -> Callable[[Callable[..., None]], Law]:
    """Make a law of a function `check(tx, params, gradients, *, extra, declared)`, stated by its first line of doc."""

    def make(function: Callable[..., None]) -> Law:
        return Law(function, applies, remedy, share)

    return make


def coupling_of(tx: GradientTransformation, declared: Declared) -> Coupling:
    """What one number of the result depends on: as declared, or as the transformation says."""
    return declared.coupling or tx.coupling
