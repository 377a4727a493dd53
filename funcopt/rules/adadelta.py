"""Adadelta: the gradient in units of its running root mean square, times that of the updates."""

from typing import Any, NamedTuple

from torch import Tensor

from funcopt import tree
from funcopt.checks import check_within
from funcopt.numerics import abs_square, ema, root
from funcopt.transform import GradientTransformation, Mask, Params, ScalarOrSchedule, Updates, chain, factory
from funcopt.transforms.scaling import scale_by_learning_rate
from funcopt.transforms.weight_decay import add_decayed_weights


class ScaleByAdaDeltaState(NamedTuple):
    e_g: tree.Tree  # running mean of |g|²
    e_x: tree.Tree  # running mean of |u|², before the learning rate


@factory
def scale_by_adadelta(rho: float | Tensor = 0.9, eps: float | Tensor = 1e-6) -> GradientTransformation:
    """Replace gradients by the direction of `adadelta`."""
    check_within("scale_by_adadelta", "[0, 1]", rho=rho)
    check_within("scale_by_adadelta", "[0, inf)", eps=eps)

    def init(params: Params) -> ScaleByAdaDeltaState:
        return ScaleByAdaDeltaState(tree.full_like(params, 0.0, real=True), tree.full_like(params, 0.0, real=True))

    def rule(g: Tensor, e_g: Tensor, e_x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        e_g = ema(e_g, abs_square(g), rho)
        direction = root(e_x + eps) / root(e_g + eps) * g
        return direction, e_g, ema(e_x, abs_square(direction), rho)

    def update(
        updates: Updates, state: ScaleByAdaDeltaState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByAdaDeltaState]:
        updates, e_g, e_x = tree.map_rule(rule, updates, state.e_g, state.e_x, elementwise=True)
        return updates, ScaleByAdaDeltaState(e_g, e_x)

    return GradientTransformation(init, update)


@factory
def adadelta(
    learning_rate: ScalarOrSchedule | None = None,
    rho: float | Tensor = 0.9,
    eps: float | Tensor = 1e-6,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
) -> GradientTransformation:
    """Adadelta (Zeiler 2012, https://arxiv.org/abs/1212.5701).

        v ← ρ v + (1 - ρ) |g|²        d = √(x + ε) / √(v + ε) · g        x ← ρ x + (1 - ρ) |d|²
        u = -α d        with weight decay, g + λ p in place of g

    `learning_rate=None` means α = 1, downhill (optax goes uphill then), which is also the default of
    torch.optim.Adadelta. Unless λ is the number 0, `update` needs params. The paper's ρ is 0.95. Squares of complex
    numbers are of their magnitudes (optax squares the numbers).

    >>> optimizer = adadelta()
    """
    return chain(
        add_decayed_weights(weight_decay, weight_decay_mask),
        scale_by_adadelta(rho, eps),
        scale_by_learning_rate(learning_rate),
    )
