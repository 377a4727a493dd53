"""Adagrad: the gradient over the root of the sum of its squares."""

from typing import Any, NamedTuple

from torch import Tensor

from funcopt import tree
from funcopt.checks import check_within
from funcopt.numerics import abs_square, root
from funcopt.transform import GradientTransformation, Params, ScalarOrSchedule, Updates, chain, factory
from funcopt.transforms.scaling import scale_by_learning_rate


class ScaleByRssState(NamedTuple):
    sum_of_squares: tree.Tree  # sum of |g|² over all steps, and its initial value


@factory
def scale_by_rss(
    initial_accumulator_value: float | Tensor = 0.1, eps: float | Tensor = 1e-7, *, eps_in_sqrt: bool = True
) -> GradientTransformation:
    """Replace gradients by the direction of `adagrad`."""
    check_within("scale_by_rss", "[0, inf)", initial_accumulator_value=initial_accumulator_value, eps=eps)

    def init(params: Params) -> ScaleByRssState:
        return ScaleByRssState(tree.full_like(params, initial_accumulator_value, real=True))

    def rule(g: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        total = total + abs_square(g)
        return g / (root(total + eps) if eps_in_sqrt else root(total) + eps), total

    def update(
        updates: Updates, state: ScaleByRssState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByRssState]:
        updates, total = tree.map_rule(rule, updates, state.sum_of_squares, elementwise=True)
        return updates, ScaleByRssState(total)

    return GradientTransformation(init, update)


@factory
def adagrad(
    learning_rate: ScalarOrSchedule,
    initial_accumulator_value: float | Tensor = 0.1,
    eps: float | Tensor = 1e-7,
    *,
    eps_in_sqrt: bool = True,
) -> GradientTransformation:
    """Adagrad (Duchi et al. 2011, https://jmlr.org/papers/v12/duchi11a.html).

        s ← s + |g|²        u = -α g / √(s + ε), or -α g / (√s + ε) without `eps_in_sqrt`

    `s` starts at `initial_accumulator_value`. torch.optim.Adagrad starts at 0, with an ε of 1e-10 outside of the root;
    its `lr_decay` η is a rate of α / (1 + η (t - 1)).

    >>> optimizer = adagrad(learning_rate=0.1)
    """
    return chain(
        scale_by_rss(initial_accumulator_value, eps, eps_in_sqrt=eps_in_sqrt), scale_by_learning_rate(learning_rate)
    )
