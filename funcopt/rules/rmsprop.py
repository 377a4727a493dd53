"""RMSProp: the gradient over its running root mean square, or over its running standard deviation."""

from typing import Any, NamedTuple

from torch import Tensor

from funcopt import numerics, tree
from funcopt.checks import check_within
from funcopt.numerics import abs_square, ema, increment, realise, root
from funcopt.transform import GradientTransformation, Params, ScalarOrSchedule, Updates, chain, factory, zero_count
from funcopt.transforms.momentum import trace
from funcopt.transforms.scaling import scale_by_learning_rate


def _root(square: Tensor, eps: float | Tensor, eps_in_sqrt: bool) -> Tensor:
    return root(square + eps) if eps_in_sqrt else root(square) + eps


class ScaleByRmsState(NamedTuple):
    count: Tensor  # type: ignore[assignment]  # steps taken
    nu: tree.Tree  # running mean of |g|²


@factory
def scale_by_rms(
    decay: float | Tensor = 0.9,
    eps: float | Tensor = 1e-8,
    initial_scale: float | Tensor = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
) -> GradientTransformation:
    """Divide by the root of the running mean of `|g|²`: the direction of `rmsprop`."""
    check_within("scale_by_rms", "[0, 1)", decay=decay)
    check_within("scale_by_rms", "[0, inf)", eps=eps, initial_scale=initial_scale)

    def init(params: Params) -> ScaleByRmsState:
        return ScaleByRmsState(zero_count(params), tree.full_like(params, initial_scale, real=True))

    def update(
        updates: Updates, state: ScaleByRmsState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByRmsState]:
        count = increment(state.count)
        inverse = realise(1 / numerics.bias_correction(decay, count)) if bias_correction else None

        def rule(g: Tensor, nu: Tensor) -> tuple[Tensor, Tensor]:
            nu = ema(nu, abs_square(g), decay)
            return g / _root(nu if inverse is None else inverse * nu, eps, eps_in_sqrt), nu

        updates, nu = tree.map_rule(rule, updates, state.nu, elementwise=True)
        return updates, ScaleByRmsState(count, nu)

    return GradientTransformation(init, update)


class ScaleByRStdDevState(NamedTuple):
    count: Tensor  # type: ignore[assignment]  # steps taken
    mu: tree.Tree  # running mean of g
    nu: tree.Tree  # running mean of |g|²


@factory
def scale_by_stddev(
    decay: float | Tensor = 0.9,
    eps: float | Tensor = 1e-8,
    initial_scale: float | Tensor = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
) -> GradientTransformation:
    """Divide by the running standard deviation: the direction of centered `rmsprop` (Graves 2013, arXiv:1308.0850).

    The variance `ν - |μ|²` is held at 0 from below, where optax lets rounding make it negative and the update NaN.
    """
    check_within("scale_by_stddev", "[0, 1)", decay=decay)
    check_within("scale_by_stddev", "[0, inf)", eps=eps, initial_scale=initial_scale)

    def init(params: Params) -> ScaleByRStdDevState:
        return ScaleByRStdDevState(
            zero_count(params), tree.zeros_like(params), tree.full_like(params, initial_scale, real=True)
        )

    def update(
        updates: Updates, state: ScaleByRStdDevState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByRStdDevState]:
        count = increment(state.count)
        inverse = realise(1 / numerics.bias_correction(decay, count)) if bias_correction else None

        def rule(g: Tensor, mu: Tensor, nu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            mu, nu = ema(mu, g, decay), ema(nu, abs_square(g), decay)
            mean, square = (mu, nu) if inverse is None else (inverse * mu, inverse * nu)
            return g / _root((square - abs_square(mean)).clamp(min=0), eps, eps_in_sqrt), mu, nu

        updates, mu, nu = tree.map_rule(rule, updates, state.mu, state.nu, elementwise=True)
        return updates, ScaleByRStdDevState(count, mu, nu)

    return GradientTransformation(init, update)


@factory
def rmsprop(
    learning_rate: ScalarOrSchedule,
    decay: float | Tensor = 0.9,
    eps: float | Tensor = 1e-8,
    initial_scale: float | Tensor = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: float | Tensor | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> GradientTransformation:
    """RMSProp (Hinton 2012, https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf).

        ν ← decay * ν + (1 - decay) |g|²        d = g / √(ν + ε), or g / (√ν + ε) without `eps_in_sqrt`
        u = -α d, or momentum over -α d (the rate goes into the momentum buffer)

    ν starts at `initial_scale`. `centered` takes ν - |μ|² in place of ν. torch.optim.RMSprop has a decay of 0.99, ε
    outside of the root, and the rate outside of the momentum buffer.
    """
    scale_by_x = scale_by_stddev if centered else scale_by_rms
    links = [scale_by_x(decay, eps, initial_scale, eps_in_sqrt, bias_correction), scale_by_learning_rate(learning_rate)]
    if momentum is not None:
        links.append(trace(momentum, nesterov))
    return chain(*links)
