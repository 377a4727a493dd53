"""Right in the loop that its author ran, and wrong compiled, vmapped, differentiated, or in half precision."""

import functools

import torch

import funcopt as fo
from funcopt import tree
from funcopt.numerics import increment
from funcopt.testing.declared import Declared
from funcopt.transform import zero_count
from tests.testing.wrong import Mutant, of_functions, of_rule, stateless

RATE = 0.1
SGD = functools.partial(fo.sgd, RATE)
PLAIN = Declared()


def counter_without_a_device():
    """init makes the counter from nothing: vmap gives an expanded tensor, a GPU run one on the CPU (torch.zeros)."""

    def update(updates, count, params):
        return tree.map_rule(lambda g: -RATE * g, updates), increment(count)

    return of_functions(lambda params: torch.zeros((), dtype=torch.int32), update)


def branch_on_a_value():
    """`if norm > 1` on a tensor: a graph break, and an error under vmap (clipping in plain torch)."""

    def clip(updates, params):
        norm = tree.global_norm(updates)
        return tree.map_rule(lambda g: g / norm, updates) if norm > 1 else tree.map_rule(lambda g: g * 1, updates)

    return stateless(clip, "treewise")


def rate_read_from_the_device():
    """`.item()` in the update (torch.optim.Adafactor)."""

    def update(updates, count, params):
        rate = RATE / (1 + count.item())
        return tree.map_rule(lambda g: -rate * g, updates), increment(count)

    return of_functions(zero_count, update)


def rate_as_a_keyword(learning_rate=RATE):
    """`alpha=rate` is no operand: it is neither vmapped nor differentiated (torch.optim's add_(g, alpha=-lr))."""
    return of_rule(lambda t, g: torch.add(torch.zeros_like(g), g, alpha=-learning_rate))


def rate_without_gradient(learning_rate=RATE):
    """The rate is detached: no gradient, and no error (differentiable=True of torch's Adamax and Rprop)."""
    rate = learning_rate.detach() if isinstance(learning_rate, torch.Tensor) else learning_rate
    return of_rule(lambda t, g: -rate * g)


def rate_made_a_number(learning_rate=RATE):
    """float(learning_rate) at construction: vmap fails, and a derivative is zero (argument checks of torch.optim)."""
    rate = learning_rate.item() if isinstance(learning_rate, torch.Tensor) else learning_rate
    return of_rule(lambda t, g: -rate * g)


def rate_checked_by_comparison(learning_rate=RATE):
    """`if learning_rate < 0: raise` on a tensor: data-dependent control flow under vmap and in a graph."""
    if learning_rate < 0:
        raise ValueError("learning_rate")
    return of_rule(lambda t, g: -learning_rate * g)


def decay_in_float32(decay=0.999):
    """A hyperparameter that is a tensor is rounded to float32, where 1 - 0.999 is off by 1e-5 (injected ones)."""
    decay = decay.to(torch.float32) if isinstance(decay, torch.Tensor) else decay

    def rule(t, g, m):
        m = decay * m + (1 - decay) * g
        return -RATE * m, m

    return of_rule(rule, buffers=1)


def averaged(decay=0.999):
    return fo.chain(fo.ema(decay, debias=False), fo.scale(-RATE))


def root_at_zero():
    """√ν has an infinite derivative at 0, and 0 · ∞ is NaN (torch.optim's differentiable=True)."""

    def rule(t, g, nu):
        nu = 0.9 * nu + 0.1 * (g.conj() * g).real
        return -RATE * g / (nu.real.sqrt() + 1e-3), nu

    return of_rule(rule, buffers=1)


def smooth_rms():
    def rule(t, g, nu):
        nu = 0.9 * nu + 0.1 * (g.conj() * g).real
        positive = nu.real > 0
        return -RATE * g / (torch.where(positive, nu.real.where(positive, 1).sqrt(), 0) + 1e-3), nu

    return of_rule(rule, buffers=1)


def one_where_for_a_root():
    """where(ν > 0, √ν, 0): the branch not taken leaks NaN into the derivative."""

    def rule(t, g, nu):
        nu = 0.9 * nu + 0.1 * (g.conj() * g).real
        return -RATE * g / (torch.where(nu.real > 0, nu.real.sqrt(), 0) + 1e-3), nu

    return of_rule(rule, buffers=1)


REAL = Declared(complex=False)


def decay_without_gradient():
    """Parameters are detached in the update: the derivative in the initial parameters misses a term (`p.data`)."""
    return of_rule(lambda t, g, p: -RATE * (g + 0.1 * p.detach()), reads=True)


def decayed_sgd():
    return fo.chain(fo.add_decayed_weights(0.1), fo.sgd(RATE))


class _Scaled(torch.autograd.Function):
    """A fused kernel whose backward is right and whose forward-mode rule is not."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return -RATE * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return -RATE * grad

    @staticmethod
    def jvp(ctx, tangent):
        return torch.zeros_like(tangent)


def kernel_without_forward_mode():
    """A custom kernel passes a tangent of zero, silently (torch.library.custom_op under jvp)."""
    return of_rule(lambda t, g: _Scaled.apply(g))


def square_in_float16():
    """g² in the gradient's float16 overflows at 256, and is zero below 2e-4 (torch.optim in pure half precision)."""

    def update(updates, nu, params):
        nu = tree.map(lambda old, g: 0.9 * old + 0.1 * (g.conj() * g).real.to(old.dtype), nu, updates)
        return tree.map(lambda g, v: (-RATE * g / (fo_root(v) + 1e-3)).to(g.dtype), updates, nu), nu

    return of_functions(lambda params: tree.full_like(params, 0.0, real=True), update)


def fo_root(x):
    positive = x > 0
    return torch.where(positive, x.where(positive, 1).sqrt(), 0)


def eps_lost_in_float16():
    """ε = 1e-8 is zero in float16: 0 / 0 for a zero gradient (optax and torch; optax issues 1754, 1784)."""

    def update(updates, nu, params):
        nu = tree.map(lambda old, g: 0.9 * old + 0.1 * g.abs().to(old.dtype).square(), nu, updates)
        return tree.map(lambda g, v: -RATE * g / (fo_root(v).to(g.real.dtype) + 1e-8), updates, nu), nu

    return of_functions(lambda params: tree.full_like(params, 0.0, real=True), update)


def buffers_cached_by_shape():
    """Work buffers are cached by shape and written to: two leaves of one shape share them (foreach with caches)."""
    cache = {}

    def rule(t, g):
        key = (tuple(g.shape), g.dtype)
        buffer = cache.setdefault(key, torch.zeros(g.shape, dtype=g.dtype))
        buffer.copy_(-RATE * g)
        return buffer

    return of_rule(rule)


MODES = (
    Mutant(counter_without_a_device, SGD, PLAIN),
    Mutant(branch_on_a_value, functools.partial(fo.clip_by_global_norm, 1.0), Declared(norm_bounded=1.0)),
    Mutant(rate_read_from_the_device, lambda: fo.sgd(lambda count: RATE / (1 + count.to(torch.float64))), PLAIN),
    Mutant(rate_as_a_keyword, SGD, PLAIN),
    Mutant(rate_without_gradient, SGD, PLAIN),
    Mutant(rate_made_a_number, SGD, PLAIN),
    Mutant(rate_checked_by_comparison, SGD, PLAIN),
    Mutant(decay_in_float32, averaged, PLAIN),
    Mutant(root_at_zero, smooth_rms, REAL),
    Mutant(one_where_for_a_root, smooth_rms, REAL),
    Mutant(decay_without_gradient, decayed_sgd, Declared(zero_fixpoint="at zero")),
    Mutant(kernel_without_forward_mode, SGD, PLAIN),
    Mutant(square_in_float16, smooth_rms, REAL),
    Mutant(eps_lost_in_float16, smooth_rms, Declared(complex=False)),
    Mutant(buffers_cached_by_shape, SGD, PLAIN),
)
