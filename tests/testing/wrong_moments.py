"""Wrong formulas of running averages: bias corrections, epsilons, orders of operations."""

import functools

import torch

import funcopt as fo
from funcopt import tree
from funcopt.numerics import increment, safe_sqrt
from funcopt.testing.declared import Declared
from tests.testing.wrong import Mutant, of_functions, of_rule

RATE = 0.1
ADAM = functools.partial(fo.adam, RATE, 0.9, 0.99, 1e-3)
LIKE_ADAM = Declared(reference=ADAM(), descends=True)
LIKE_SGD = Declared(reference=fo.sgd(RATE), linear=True, scale="equivariant", descends=True, orthogonal=True)
HEAVY_BALL = functools.partial(fo.sgd, RATE, 0.9)


def adam_from(mean, scale):
    """Adam from its two averages, `mean(t, mu)` over the root that `scale(t, nu)` gives."""

    def rule(t, g, mu, nu):
        mu, nu = 0.9 * mu + 0.1 * g, 0.99 * nu + 0.01 * (g.conj() * g)
        return -RATE * mean(t, mu) / scale(t, nu), mu, nu

    return of_rule(rule, buffers=2)


def corrected(t, average, decay):
    return average / -torch.expm1(t * torch.tensor(decay, dtype=torch.float64).log())


def corrected_mean(t, mu):
    return corrected(t, mu, 0.9)


def root(x):
    return safe_sqrt(x.real) if x.is_complex() else safe_sqrt(x)


def bias_correction_at_count_zero():
    """The correction is taken before the count is raised: 1 - b⁰ = 0 divides (a classic of hand-written Adam)."""
    return adam_from(lambda t, mu: corrected(t - 1, mu, 0.9), lambda t, nu: root(corrected(t - 1, nu, 0.99)) + 1e-3)


def no_bias_correction():
    """Moving averages that start at zero are used as they are (BertAdam; torch's Adamax and NAdam differ per term)."""
    return adam_from(lambda t, mu: mu, lambda t, nu: root(nu) + 1e-3)


def bias_correction_of_the_mean_only():
    """The second moment is not corrected (early TensorFlow ports of AMSGrad)."""
    return adam_from(corrected_mean, lambda t, nu: root(nu) + 1e-3)


def eps_inside_the_root():
    """ε is added under the root (the TensorFlow and torch variants of RMSprop mixed up)."""
    return adam_from(corrected_mean, lambda t, nu: root(corrected(t, nu, 0.99) + 1e-3))


def eps_before_the_correction():
    """ε is added before the correction: TensorFlow's ε̂ (optax and torch add it after)."""
    return adam_from(corrected_mean, lambda t, nu: (root(nu) + 1e-3) / safe_sqrt(1 - 0.99**t))


def power_in_the_default_dtype():
    """1 - b**t of an integer count is float32 whatever the leaves (torch.optim, capturable; optax without x64)."""

    def init(params):
        return torch.zeros((), dtype=torch.int32) + 0, tree.zeros_like(params), tree.zeros_like(params)

    def update(updates, state, params):
        count = increment(state[0])

        def rule(g, mu, nu):
            mu, nu = 0.9 * mu + 0.1 * g, 0.99 * nu + 0.01 * (g.conj() * g)
            c1, c2 = 1 - 0.9**count, 1 - 0.99**count
            return -RATE * (mu / c1) / (root(nu / c2) + 1e-3), mu, nu

        updates, mu, nu = tree.map_rule(rule, updates, state[1], state[2])
        return updates, (count, mu, nu)

    return of_functions(init, update)


def slow_rms(correction):
    """RMSprop with a decay so close to 1 that its first corrections are small numbers."""

    def rule(t, g, nu):
        nu = 0.9999 * nu + 1e-4 * (g.conj() * g)
        return -RATE * g / (root(nu / correction(t, g.real.dtype)) + 1e-3), nu

    return of_rule(rule, buffers=1)


def correction_in_the_leafs_dtype():
    """1 - b**t in the leaf's float32 loses four of seven digits where b is 0.9999 (torch.optim, capturable; optax)."""
    return slow_rms(lambda t, dtype: 1 - torch.tensor(0.9999, dtype=dtype) ** t.to(dtype))


def exact_correction():
    return slow_rms(lambda t, dtype: -torch.expm1(t * torch.tensor(0.9999, dtype=torch.float64).log()))


def square_of_a_complex_gradient():
    """g * g in place of |g|² for complex leaves (TorchOpt; torch.optim itself before 1.10)."""

    def rule(t, g, mu, nu):
        mu, nu = 0.9 * mu + 0.1 * g, 0.99 * nu + 0.01 * g * g
        scale = corrected(t, nu, 0.99)
        return -RATE * corrected_mean(t, mu) / ((scale.sqrt() if g.is_complex() else root(scale)) + 1e-3), mu, nu

    return of_rule(rule, buffers=2)


def eps_of_zero_is_falsy(eps=0.0):
    """`eps = eps or 1e-8` turns a zero that was asked for into the default (several hand-written optimizers)."""
    eps = eps or 1e-8

    def rule(t, g, nu):
        nu = 0.9 * nu + 0.1 * (g.conj() * g)
        return -RATE * g / (root(nu) + eps).where(root(nu) + eps > 0, 1), nu

    return of_rule(rule, buffers=1)


def scale_free_rms(eps=0.0):
    def rule(t, g, nu):
        nu = 0.9 * nu + 0.1 * (g.conj() * g)
        return -RATE * g / root(nu).where(root(nu) > 0, 1), nu

    return of_rule(rule, buffers=1)


def stale_update():
    """The update of the step before is returned, and the new one stored (optax, scale_by_rprop, PR 1725)."""
    return of_rule(lambda t, g, last: (last, -RATE * g), buffers=1)


def dropped_dampening():
    """m ← b m + (1 - b) g in place of b m + g (momentum ported between libraries)."""

    def rule(t, g, m):
        m = 0.9 * m + 0.1 * g
        return -RATE * m, m

    return of_rule(rule, buffers=1)


def rate_inside_the_momentum():
    """The momentum of Sutskever's form with torch's start: the first buffer lacks the rate."""

    def rule(t, g, m):
        m = torch.where(t == 1, g, 0.9 * m + RATE * g)
        return -torch.where(t == 1, RATE * m, m), m

    return of_rule(rule, buffers=1)


def maximum_before_the_correction():
    """AMSGrad's maximum of uncorrected second moments, corrected afterwards (torch before 1.13; Keras)."""

    def rule(t, g, mu, nu, largest):
        mu, nu = 0.9 * mu + 0.1 * g, 0.99 * nu + 0.01 * (g.conj() * g)
        largest = torch.maximum(largest.real, nu.real) + 0 * nu
        return -RATE * corrected_mean(t, mu) / (root(corrected(t, largest, 0.99)) + 1e-3), mu, nu, largest

    return of_rule(rule, buffers=3)


def difference_times_the_wrong_decay():
    """Adan's gradient difference times 1 - b₂ in place of b₂ (optax, scale_by_adan, PR 1715)."""
    return _adan(0.08)


@fo.factory
def _adan(factor):
    def rule(t, g, last, m, v):
        change = torch.where(t == 1, torch.zeros_like(g), g - last)
        m, v = 0.98 * m + 0.02 * g, 0.92 * v + 0.08 * change
        return -RATE * (m + factor * v), g, m, v

    return of_rule(rule, buffers=3)


def swapped_difference():
    """MARS's variance reduction with the old and the new gradient swapped."""
    return _mars(-1.0)


@fo.factory
def _mars(sign):
    def rule(t, g, last):
        return -RATE * (g + sign * 0.2 * torch.where(t == 1, torch.zeros_like(g), g - last)), g

    return of_rule(rule, buffers=1)


def nesterov_with_the_old_momentum():
    """Nesterov's look-ahead takes the buffer from before the step."""

    def rule(t, g, m):
        return -RATE * (g + 0.9 * m), 0.9 * m + g

    return of_rule(rule, buffers=1)


def schedule_one_step_ahead():
    """The schedule is asked at count + 1: its first value is never used (optax, schedule_free, PR 1744)."""
    return of_rule(lambda t, g: -(RATE / (1 + t)) * g)


def decaying(count):
    return RATE / (1 + count.to(torch.float64))


def hidden_clipping():
    """Gradients are clipped without a word (defaults of training frameworks)."""
    return of_rule(lambda t, g: -RATE * (g / g.abs().clamp(min=1.0)))


def uphill_without_a_rate():
    """With no learning rate the sign is not flipped either (optax, adadelta and scale_by_learning_rate(None))."""
    return of_rule(lambda t, g: g)


def absolute_in_place_of_the_step():
    """The new parameters are returned where the step was asked for (JAX's example optimizers ported to optax)."""
    return of_rule(lambda t, g, p: p - RATE * g, reads=True)


DECAYED = functools.partial(fo.adamw, RATE, 0.9, 0.99, 1e-3, weight_decay=0.2)
LIKE_ADAMW = Declared(reference=DECAYED(), zero_fixpoint="at zero")


def decay_without_the_rate():
    """Weight decay is not multiplied by the learning rate (the paper's AdamW against torch's)."""
    return fo.chain(fo.adam(RATE, 0.9, 0.99, 1e-3), of_rule(lambda t, u, p: u - 0.2 * p, reads=True))


def decay_in_the_gradient():
    """L2 regularisation through the moments in place of decoupled decay (torch.optim.Adam's weight_decay)."""
    return fo.chain(fo.add_decayed_weights(0.2), fo.adam(RATE, 0.9, 0.99, 1e-3))


def decay_upwards():
    """Decay with the wrong sign after the rate was applied: weights grow."""
    return fo.chain(fo.adam(RATE, 0.9, 0.99, 1e-3), fo.add_decayed_weights(0.2 * RATE))


AMSGRAD = functools.partial(fo.amsgrad, RATE, 0.9, 0.99, 1e-3)

MOMENTS = (
    Mutant(bias_correction_at_count_zero, ADAM, LIKE_ADAM),
    Mutant(no_bias_correction, ADAM, LIKE_ADAM),
    Mutant(bias_correction_of_the_mean_only, ADAM, LIKE_ADAM),
    Mutant(eps_inside_the_root, ADAM, LIKE_ADAM),
    Mutant(eps_before_the_correction, ADAM, LIKE_ADAM),
    Mutant(power_in_the_default_dtype, ADAM, LIKE_ADAM),
    Mutant(correction_in_the_leafs_dtype, exact_correction, Declared(descends=True)),
    Mutant(square_of_a_complex_gradient, ADAM, LIKE_ADAM),
    Mutant(eps_of_zero_is_falsy, scale_free_rms, Declared(scale="invariant", differentiable=False)),
    Mutant(stale_update, functools.partial(fo.sgd, RATE), LIKE_SGD),
    Mutant(dropped_dampening, HEAVY_BALL, Declared(reference=HEAVY_BALL(), linear=True, scale="equivariant")),
    Mutant(rate_inside_the_momentum, HEAVY_BALL, Declared(reference=HEAVY_BALL(), linear=True)),
    Mutant(maximum_before_the_correction, AMSGRAD, Declared(reference=AMSGRAD(), descends=True)),
    Mutant(difference_times_the_wrong_decay, functools.partial(_adan, 0.92), Declared(reference=_adan(0.92))),
    Mutant(swapped_difference, functools.partial(_mars, 1.0), Declared(reference=_mars(1.0), linear=True)),
    Mutant(
        nesterov_with_the_old_momentum,
        functools.partial(fo.sgd, RATE, 0.9, True),
        Declared(reference=fo.sgd(RATE, 0.9, True), linear=True),
    ),
    Mutant(
        schedule_one_step_ahead,
        functools.partial(fo.sgd, decaying),
        Declared(reference=fo.sgd(decaying), linear=True, descends=True),
    ),
    Mutant(hidden_clipping, functools.partial(fo.sgd, RATE), LIKE_SGD),
    Mutant(uphill_without_a_rate, fo.scale_by_learning_rate, Declared(linear=True, descends=True)),
    Mutant(absolute_in_place_of_the_step, functools.partial(fo.sgd, RATE), LIKE_SGD),
    Mutant(decay_without_the_rate, DECAYED, LIKE_ADAMW),
    Mutant(decay_in_the_gradient, DECAYED, LIKE_ADAMW),
    Mutant(decay_upwards, DECAYED, LIKE_ADAMW),
)
