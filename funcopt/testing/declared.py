"""What a transformation is declared to be: the laws that apply to it, and its known quirks, as data."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch

from funcopt import tree
from funcopt.transform import Coupling, GradientTransformation

Reference: TypeAlias = GradientTransformation | Callable[[tree.Tree, list[tree.Tree]], list[tree.Tree]]
"""A transformation, or a function from params and all gradients to the updates of every step, params held fixed."""


@dataclass(frozen=True)
class Declared:
    """What holds for a transformation. The defaults are those of a plain optimizer such as Adam.

    Attributes:
        coupling: what one number of the result depends on, if not what the transformation itself says.
        extra: extra keyword arguments for every update.
        hyperparameters: the arguments of its factory that are vmapped and differentiated; unless given, all floats.
        differentiable: whether its derivatives are those of what it computes (rounding has none).
        margin: how far from zero, and from round numbers, those numbers stay at which it is differentiated: in a kink
            there is no derivative to agree with.
        complex: whether complex leaves are numbers of their own: turning their phase turns the updates.
        order_matters: whether the order of the leaves matters (to random numbers, say).
        fixed_structure: whether it is made for params of one structure (by a mask that is a tree, say).
        stored_in: a dtype below float32 that state is stored in on purpose.
        float32_tolerance: what float32 may deviate from float64, relative to the largest update so far; None if another
            dtype is another run (random numbers are).

        zero_fixpoint: where zero gradients give zero updates: everywhere, "at zero" params (weight decay), or nowhere.
        odd: whether negated gradients and params give negated updates.
        descends: whether the first update must not point uphill: it is an optimizer, with a positive rate.

        scale: what gradients times a constant do to the updates: the same ("equivariant"), nothing ("invariant"), or
            something else.
        linear: whether the updates are linear in the gradients.
        orthogonal: whether turning every matrix of gradients from the left and right turns the updates alike.
        idempotent: whether a second application changes nothing (clipping, projections).
        bounded: no update is larger than this.
        norm_bounded: the norm of all updates together is not larger than this.
        magnitude: every update is exactly that large, or zero where the gradient is.
        direction: updates are multiples of the gradients, and not negative ones, with one factor for the "tree" or one
            for each "leaf".
        reference: what its updates must agree with, in float64.
        absorbs: numbers, NaN or infinities, that may occur in gradients without a trace in later updates.
        accumulates: a number k and a transformation: k gradients give what their mean gives that transformation.
    """

    coupling: Coupling | None = None
    extra: dict[str, Any] | None = None
    hyperparameters: tuple[str, ...] | None = None
    differentiable: bool = True
    margin: float = 0.1
    complex: bool = True
    order_matters: bool = False
    fixed_structure: bool = False
    stored_in: torch.dtype | None = None
    float32_tolerance: float | None = 1e-5

    zero_fixpoint: Literal["everywhere", "at zero"] | None = "everywhere"
    odd: bool = True
    descends: bool = False

    scale: Literal["equivariant", "invariant"] | None = None
    linear: bool = False
    orthogonal: bool = False
    idempotent: bool = False
    bounded: float | None = None
    norm_bounded: float | None = None
    magnitude: float | None = None
    direction: Literal["tree", "leaf"] | None = None
    reference: Reference | None = None
    absorbs: tuple[float, ...] = ()
    accumulates: tuple[int, GradientTransformation] | None = None
