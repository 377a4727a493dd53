"""Wrong clipping, signs, projections and wrappers: bounds, directions, zeros that divide, numbers that leak."""

import functools
import math

import torch

import funcopt as fo
from funcopt import tree
from funcopt.testing.declared import Declared
from tests.testing.wrong import Mutant, of_rule, stateless

RATE = 0.1
CLIP = functools.partial(fo.clip_by_global_norm, 1.0)
CLIPS = Declared(norm_bounded=1.0, direction="tree", idempotent=True, orthogonal=True)
LIKE_CLIP = Declared(norm_bounded=1.0, direction="tree", idempotent=True, reference=CLIP())


def norm_of(updates):
    """The norm of a tree whose derivative at zero is not defined."""
    squares = [
        (g.conj() * g).real.to(torch.promote_types(g.real.dtype, torch.float32)).sum() for g in tree.leaves(updates)
    ]
    return sum(squares, torch.zeros(())).sqrt()


def scaled(factor):
    return lambda updates, params: tree.map_rule(lambda g: factor(updates) * g, updates)


def zero_norm_divides():
    """0 / 0 for zero gradients under a bound (optax, contrib.normalize and clip_by_global_norm(0), PR 1743, 1752)."""
    return stateless(scaled(lambda u: norm_of(u).clamp(max=1.0) / norm_of(u)), "treewise")


def clip_without_gradient():
    """The factor is computed under no_grad: the derivative treats it as a constant (torch's clip_grad_norm_)."""

    def factor(updates):
        norm = tree.global_norm(updates).detach()
        return torch.where(norm < 1, torch.ones_like(norm), 1 / norm.where(norm > 0, 1))

    return stateless(scaled(factor), "treewise")


def clip_of_each_leaf():
    """Each leaf is clipped by itself where the norm of all is meant (clip_by_norm against clip_by_global_norm)."""

    def rule(g):
        norm = tree.global_norm([g])
        return g * torch.where(norm < 1, 1.0, 1 / norm.where(norm > 0, 1))

    return stateless(lambda updates, params: tree.map_rule(rule, updates), "leafwise")


def always_normalised():
    """Gradients shorter than the bound are stretched to it (normalize in place of clip)."""
    return stateless(scaled(lambda u: 1 / tree.global_norm(u).where(tree.global_norm(u) > 0, 1)), "treewise")


def squared_norm_compared():
    """The root of the sum of squares is forgotten in the comparison."""

    def factor(updates):
        square = tree.global_norm(updates) ** 2
        return torch.where(square < 1, torch.ones_like(square), 1 / square.sqrt().sqrt().where(square > 0, 1))

    return stateless(scaled(factor), "treewise")


def clip_from_above_only():
    """clamp(max=δ) without the lower bound."""
    return of_rule(lambda t, g: torch.where(g > 0.7, 0.7, g) if not g.is_complex() else g)


def norm_over_all_leaves_declared_leafwise():
    """A norm per leaf is promised, that of the tree is taken."""
    return stateless(scaled(lambda u: 1 / (1 + tree.global_norm(u))), "leafwise")


def norm_per_leaf():
    return stateless(lambda u, p: tree.map_rule(lambda g: g / (1 + tree.global_norm([g])), u), "leafwise")


def mean_of_a_leaf_declared_elementwise():
    """Packing would mix what a leaf keeps apart: centralisation declared elementwise."""

    def rule(t, g):
        return g if g.ndim < 2 or g.numel() == 0 else g - g.mean(dim=tuple(range(1, g.ndim)), keepdim=True)

    return of_rule(rule)


def sign_of_zero_is_one():
    """2 (g >= 0) - 1 moves where the gradient is zero (signs packed in one bit)."""
    return of_rule(lambda t, g: torch.where(g >= 0, -RATE, RATE) if not g.is_complex() else -RATE * torch.sgn(g))


def sign_with_eps():
    """g / (|g| + ε) in place of the sign: small gradients take small steps (quantised signs)."""
    return of_rule(lambda t, g: -RATE * g / (g.abs() + 1e-2))


def sign_descent():
    return fo.chain(fo.scale_by_sign(), fo.scale(-RATE))


def projection_of_the_step():
    """The update is projected in place of the parameter that it leads to (keep_params_nonnegative misread)."""
    return of_rule(lambda t, g, p: torch.where(p + g < 0, -0.5 * p, g), reads=True)


PROJECTION = Declared(
    idempotent=True, odd=False, complex=False, zero_fixpoint=None, reference=fo.keep_params_nonnegative()
)


def row_norms_for_a_matrix_sign():
    """Rows are normalised where the matrix is to be orthogonalised (Muon's fallback taken for all leaves)."""

    def rule(g):
        return g if g.ndim != 2 or g.numel() == 0 else g / (1e-30 + (g.conj() * g).real.sum(1, keepdim=True)).sqrt()

    return stateless(lambda u, p: tree.map_rule(rule, u), "leafwise")


def orthogonalised():
    """Newton-Schulz by the plain cubic iteration, for small matrices."""

    def rule(g):
        if g.ndim != 2 or g.numel() == 0:
            return g
        x = g / (1e-30 + (g.conj() * g).real.sum()).sqrt()
        for _ in range(30):
            x = 1.5 * x - 0.5 * x @ x.mH @ x
        return x

    return stateless(lambda u, p: tree.map_rule(rule, u), "leafwise")


MATRIX = Declared(orthogonal=True, differentiable=False, float32_tolerance=1e-3)


def trust_ratio_of_zero_weights():
    """‖p‖ / ‖u‖ is 0 / 0 for zero parameters without a gradient (LARS and LAMB)."""

    def rule(t, g, p):
        return -RATE * g * ((p.conj() * p).real.sum() / (g.conj() * g).real.sum()).sqrt()

    return of_rule(rule, coupling="leafwise", reads=True)


def adaptive():
    def rule(t, g, p):
        size, length = tree.global_norm([p]), tree.global_norm([g])
        return -RATE * g * torch.where(length > 0, size / length.where(length > 0, 1), 0.0)

    return of_rule(rule, coupling="leafwise", reads=True)


RATIO = Declared(scale="invariant")


def mask_by_multiplication():
    """NaN times a mask of zero is NaN (optax, MultiSteps and apply_every: `emit * u`)."""
    return of_rule(lambda t, g: torch.isfinite(g) * g)


def zero_nonfinite():
    return of_rule(lambda t, g: torch.where(torch.isfinite(g), g, 0.0))


ABSORBING = Declared(absorbs=(math.nan, math.inf), linear=True)


def skipped_step_that_is_remembered():
    """Updates of a bad step are zeroed, and the moments have taken it all the same (apply_if_finite's order)."""

    def rule(t, g, m):
        m = 0.9 * m + g
        return torch.where(torch.isfinite(m), -RATE * m, 0.0), m

    return of_rule(rule, buffers=1)


def guarded_momentum():
    return fo.chain(zero_nonfinite(), fo.sgd(RATE, 0.9))


def no_op_mask():
    """The mask is taken, and never looked at (mask arguments of several wrappers)."""
    return fo.chain(fo.add_decayed_weights(0.1), fo.scale(-RATE))


def only_matrices(params):
    return tree.map(lambda leaf: leaf.ndim >= 2, params)


def masked_decay():
    return fo.chain(fo.add_decayed_weights(0.1, only_matrices), fo.scale(-RATE))


def accumulating(average, inner_each_step=False):
    """Two micro-batches to a step of sgd with momentum; `average(total, g, first)` is their running average."""

    def rule(t, g, total, m):
        first = t % 2 == 1
        total = average(torch.where(first, 0, total), g, first)
        new = 0.9 * m + total
        return torch.where(first, 0, -RATE * new), total, new if inner_each_step else torch.where(first, m, new)

    return of_rule(rule, buffers=2)


def mean_of_two():
    return accumulating(lambda total, g, first: total + g / 2)


def sum_in_place_of_the_mean():
    """Micro-batches are added up: the rate grows with their number (accumulation in plain training loops)."""
    return accumulating(lambda total, g, first: total + g)


def running_mean_of_one_too_many():
    """The running mean divides by n + 1 of the wrong n: the first micro-batch counts half as much."""
    return accumulating(lambda total, g, first: total + (g - total) / torch.where(first, 2, 3))


def inner_update_at_every_micro_batch():
    """The inner optimizer advances at every micro-batch, not once a batch (optax, apply_every; MultiSteps' waste)."""
    return accumulating(lambda total, g, first: total + g / 2, inner_each_step=True)


ACCUMULATES = Declared(accumulates=(2, fo.sgd(RATE, 0.9)), linear=True)

SIZES = (
    Mutant(zero_norm_divides, CLIP, CLIPS),
    Mutant(clip_without_gradient, CLIP, CLIPS),
    Mutant(clip_of_each_leaf, CLIP, CLIPS),
    Mutant(always_normalised, CLIP, LIKE_CLIP),
    Mutant(squared_norm_compared, CLIP, CLIPS),
    Mutant(
        clip_from_above_only, functools.partial(fo.clip, 0.7), Declared(bounded=0.7, idempotent=True, complex=False)
    ),
    Mutant(norm_over_all_leaves_declared_leafwise, norm_per_leaf, Declared()),
    Mutant(mean_of_a_leaf_declared_elementwise, fo.centralize, Declared(linear=True, idempotent=True)),
    Mutant(sign_of_zero_is_one, sign_descent, Declared(magnitude=RATE, scale="invariant", descends=True)),
    Mutant(sign_with_eps, sign_descent, Declared(magnitude=RATE, scale="invariant", bounded=RATE)),
    Mutant(projection_of_the_step, fo.keep_params_nonnegative, PROJECTION),
    Mutant(row_norms_for_a_matrix_sign, orthogonalised, MATRIX),
    Mutant(trust_ratio_of_zero_weights, adaptive, RATIO),
    Mutant(mask_by_multiplication, zero_nonfinite, ABSORBING),
    Mutant(skipped_step_that_is_remembered, guarded_momentum, Declared(absorbs=(math.nan,), linear=True)),
    Mutant(no_op_mask, masked_decay, Declared(reference=masked_decay(), zero_fixpoint="at zero", linear=True)),
    Mutant(sum_in_place_of_the_mean, mean_of_two, ACCUMULATES),
    Mutant(running_mean_of_one_too_many, mean_of_two, ACCUMULATES),
    Mutant(inner_update_at_every_micro_batch, mean_of_two, ACCUMULATES),
)
