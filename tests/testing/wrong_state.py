"""Wrong states: shared, hidden, rounded, of another structure than before; and absent leaves mistaken for zeros."""

import functools
import random

import torch

import funcopt as fo
from funcopt import tree
from funcopt.testing.declared import Declared
from funcopt.transform import zero_count
from tests.testing.wrong import Mutant, of_functions, of_rule, stateless

RATE = 0.1
SGD = functools.partial(fo.sgd, RATE)
HEAVY_BALL = functools.partial(fo.sgd, RATE, 0.9)
PLAIN = Declared()


def buffer_returned_as_update():
    """The momentum buffer is handed out as the update (optax's trace, Signum)."""

    def update(updates, state, params):
        _, m = tree.map_rule(lambda g, old: (g, 0.9 * old + g), updates, state)
        return m, m

    return of_functions(tree.zeros_like, update)


def gradients_kept():
    """The state keeps the gradient tensors of the caller (optimistic gradient descent, Adan, L-BFGS)."""
    difference = lambda updates, last: tree.map_rule(lambda g, old: 2 * g - old, updates, reads=(last,))  # noqa: E731
    return of_functions(lambda params: tree.map(torch.zeros_like, params), lambda u, last, p: (difference(u, last), u))


def parameters_kept():
    """The state keeps the parameter tensors themselves (Prodigy, DoG, MADGRAD, lookahead in optax's form)."""
    pull = lambda u, start, p: tree.map_rule(lambda g, x0: -RATE * g + 0.0 * x0, u, reads=(start,))  # noqa: E731
    return of_functions(lambda params: params, lambda u, x0, p: (pull(u, x0, p), tree.clone(x0)))


def one_zero_for_all_buffers():
    """Several buffers of the state are one tensor (COCOB, L-BFGS)."""

    def init(params):
        zeros = tree.zeros_like(params)
        return zeros, zeros

    def update(updates, state, params):
        new = tree.map_rule(lambda g, a, b: (-RATE * g, 0.9 * a + g, 0.9 * b + g), updates, *state)
        return new[0], new[1:]

    return of_functions(init, update)


def gradient_overwritten():
    """Weight decay is added to the gradient in place (torch.optim.SGD with a tensor weight_decay)."""
    decay = lambda g, p: -RATE * g.add_(0.1 * p)  # noqa: E731
    return stateless(lambda updates, params: tree.map(decay, updates, params))


def decayed_sgd():
    return fo.chain(fo.add_decayed_weights(0.1), fo.sgd(RATE))


def state_overwritten():
    """The averages are updated in place (the functional form copied from a torch optimizer)."""

    def update(updates, state, params):
        m = tree.map(lambda old, g: old.mul_(0.9).add_(g), state, updates)
        return _steps(m, updates), tree.clone(m)

    return of_functions(tree.zeros_like, update)


def _steps(m, updates):
    return tree.map(lambda g, each: (-RATE * each).to(g.dtype), updates, m)


def noise_from_the_global_generator():
    """Noise from the global random state: not to be reproduced, and refused by vmap (SGLD, add_noise)."""
    return of_rule(lambda t, g: -RATE * (g + 0.01 * torch.randn_like(g)))


def coin_from_python():
    """A random choice by Python's generator: another one at every call, frozen when compiled (dropped updates)."""
    return stateless(lambda u, p: tree.map_rule(lambda g: -RATE * (random.random() < 0.5) * g, u))


NOISY = Declared(odd=False, zero_fixpoint=None, order_matters=True, complex=False, float32_tolerance=None)


def first_call_flag():
    """A flag in the closure tells the first call (TorchOpt's sgd with momentum)."""
    first = True

    def rule(t, g, m):
        nonlocal first
        m, first = (g if first else 0.9 * m + g), False
        return -RATE * m, m

    return of_rule(rule, buffers=1)


def count_in_the_closure():
    """Steps are counted in the closure: a loaded run starts anew (learning rates of hand-written loops)."""
    steps = 0

    def update(updates, state, params):
        nonlocal steps
        steps += 1
        return tree.map(lambda g: -RATE / steps * g, updates), ()

    return of_functions(lambda params: (), update)


def decaying_sgd():
    return fo.sgd(lambda count: RATE / (1 + count.to(torch.float64)))


def initial_parameters_in_the_closure():
    """init leaves the first parameters with the instance, not in the state (LBFGS caches its parameter list)."""
    start = None

    def init(params):
        nonlocal start
        start = tree.clone(params)
        return ()

    def update(updates, state, params):
        return tree.map(lambda g, x0: -RATE * g - 0.0 * x0, updates, start), ()

    return of_functions(init, update)


def state_by_identity():
    """The buffer of a leaf is looked up by the identity of its tensor (torch.optim's state, kept on the side)."""
    buffers = {}

    def init(params):
        for leaf in tree.leaves(params):
            buffers[id(leaf)] = 0.9
        return ()

    def update(updates, state, params):
        given = updates if params is None else params
        return tree.map(lambda g, p: -RATE * g * buffers.get(id(p), 1.0), updates, given), ()

    return of_functions(init, update)


def count_as_an_int():
    """The step is a Python int: another graph, and not to be vmapped (TorchOpt's radam and adamax)."""
    return of_functions(
        lambda params: {"step": 0}, lambda u, s, p: (tree.map_rule(lambda g: -RATE * g, u), {"step": s["step"] + 1})
    )


def state_in_half_precision():
    """Moments in the parameters' bfloat16, where a second moment stalls at half its value (torch.optim, optax)."""

    def update(updates, m, params):
        m = tree.map(lambda old, g: (0.9 * old + g).to(old.dtype), m, updates)
        return tree.map(lambda leaf: -RATE * leaf, m), m

    return of_functions(lambda params: tree.map(torch.zeros_like, params), update)


def dtype_that_drifts():
    """mu_dtype holds at init and is lost at the first update (optax, scale_by_ademamix; scale_by_adam's nu)."""

    def update(updates, m, params):
        m = tree.map(lambda old, g: 0.9 * old + g, m, updates)
        return _steps(m, updates), m

    return of_functions(lambda params: tree.zeros_like(params, torch.bfloat16), update)


def counter_that_turns_to_float():
    """A counter that is an integer at init is a float from the first step on (accumulated weights of averaging)."""
    return of_functions(
        lambda params: zero_count(params),
        lambda u, count, p: (tree.map_rule(lambda g: -RATE * g, u), count + torch.ones(())),
    )


def hyperparameters_in_the_parameters_dtype():
    """Hyperparameters in the state take the parameters' dtype: 0.999 becomes 1 (optax, inject_hyperparams, 1414)."""

    def init(params):
        first = next(iter(tree.leaves(params)), torch.zeros(()))
        return first.real.new_full((), 0.999)

    def update(updates, decay, params):
        return tree.map_rule(lambda g: -RATE * decay.to(torch.float32) * g, updates), decay.clone()

    return of_functions(init, update)


def measurements_from_the_first_step_on():
    """The state is empty at init and filled by the first update (optax's monitor)."""
    return of_functions(
        lambda params: {}, lambda u, s, p: (tree.map_rule(lambda g: -RATE * g, u), {"norm": tree.global_norm(u)})
    )


def none_counted_as_zero():
    """An absent gradient decays the moments as a zero would (zero_grad(set_to_none=False); JAX's trees)."""

    def update(updates, m, params):
        m = tree.unflatten(
            [
                old if old is None else 0.9 * old + (0 if g is None else g)
                for old, g in zip(tree.flatten(m)[0], tree.flatten(updates)[0])
            ],
            tree.flatten(m)[1],
        )
        return tree.map(lambda each, p: (-RATE * each).to(p.dtype), m, m if params is None else params), m

    return of_functions(tree.zeros_like, update)


def none_is_an_error():
    """An absent gradient of a present parameter fails (optax: TypeError, or a buffer turned None)."""
    leaves = lambda u: [None if g is None else -RATE * g for g in tree.flatten(u)[0]]  # noqa: E731

    def rule(updates):
        if any(g is None for g in tree.flatten(updates)[0]):
            raise TypeError("unsupported operand type(s) for *: 'float' and 'NoneType'")
        return tree.unflatten(leaves(updates), tree.flatten(updates)[1])

    return stateless(lambda updates, params: rule(updates))


def buffers_for_absent_parameters():
    """init makes a buffer for a parameter that is None (frozen layers of a partitioned model)."""

    def init(params):
        leaves, structure = tree.flatten(params)
        return tree.unflatten([torch.zeros(()) if x is None else torch.zeros_like(x) for x in leaves], structure)

    def update(updates, state, params):
        kept = tree.unflatten([leaf.clone() for leaf in tree.flatten(state)[0]], tree.flatten(state)[1])
        return tree.map_rule(lambda g: -RATE * g, updates), kept

    return of_functions(init, update)


def columns_of_an_empty_tree():
    """zip(*...) splits the results into columns, and fails where there are none (metaopt/torchopt)."""

    def update(updates, state, params):
        leaves, structure = tree.flatten(updates)
        pairs = [(None, None) if g is None else (-RATE * g, g.clone()) for g in leaves]
        first, _ = zip(*pairs)
        return tree.unflatten(list(first), structure), ()

    return of_functions(lambda params: (), update)


def sum_of_squares_with_an_axis():
    """A 0-d leaf gets an update of shape (1,) (optax, scale_by_distance_over_gradients)."""
    return stateless(
        lambda u, p: tree.map(lambda g: -RATE * g * torch.ones(1, dtype=g.dtype).sum(0, keepdim=True), u), "leafwise"
    )


def promoted_scalar_leaf():
    """A 0-d leaf of bfloat16 times a 0-d float32 is float32 (type promotion in torch)."""
    rate = torch.tensor(RATE)
    return stateless(lambda u, p: tree.map(lambda g: -rate * g, u))


def maximum_of_an_empty_leaf():
    """max() of a leaf without numbers raises (every rule with an infinity norm: Adamax variants, quantisation)."""
    return stateless(lambda u, p: tree.map_rule(lambda g: -RATE * g * (1 + 0 * g.abs().max()), u), "leafwise")


def matched_by_position():
    """Gradients and buffers are matched by position, whatever the order of keys (torch.optim's lists)."""

    def update(updates, m, params):
        leaves, structure = tree.flatten(updates)
        old_leaves, m_structure = tree.flatten(m)
        new = [old if g is None else 0.9 * old + g for g, old in zip(leaves, old_leaves)]
        steps = [None if g is None else (-RATE * each).to(g.dtype) for g, each in zip(leaves, new)]
        return tree.unflatten(steps, structure), tree.clone(tree.unflatten(new, m_structure))

    return of_functions(tree.zeros_like, update)


def rule_by_name():
    """Leaves called "bias" are treated otherwise, and nothing says so (weight-decay exclusions by substring)."""

    def update(updates, params):
        leaves = [
            None if g is None else (-RATE if "bias" in path else -2 * RATE) * g
            for path, g in tree.leaves_with_path(updates)
        ]
        return tree.unflatten(leaves, tree.flatten(updates)[1])

    return stateless(update)


def decay_without_params_is_skipped():
    """Without params the decay is silently left out (optional params in hand-written chains)."""
    decay = lambda u, p: u if p is None else tree.map(lambda g, x: g + 0.1 * x, u, p)  # noqa: E731
    return stateless(lambda updates, params: tree.map_rule(lambda g: -RATE * g, decay(updates, params)))


DECAYS = Declared(zero_fixpoint="at zero")

STATE = (
    Mutant(buffer_returned_as_update, lambda: fo.trace(0.9), PLAIN),
    Mutant(gradients_kept, SGD, PLAIN),
    Mutant(parameters_kept, SGD, PLAIN),
    Mutant(one_zero_for_all_buffers, SGD, PLAIN),
    Mutant(gradient_overwritten, decayed_sgd, DECAYS),
    Mutant(state_overwritten, HEAVY_BALL, PLAIN),
    Mutant(noise_from_the_global_generator, lambda: fo.add_noise(0.01, 0.5), NOISY),
    Mutant(coin_from_python, SGD, NOISY),
    Mutant(first_call_flag, HEAVY_BALL, PLAIN),
    Mutant(count_in_the_closure, decaying_sgd, PLAIN),
    Mutant(initial_parameters_in_the_closure, SGD, PLAIN),
    Mutant(state_by_identity, SGD, PLAIN),
    Mutant(count_as_an_int, SGD, PLAIN),
    Mutant(state_in_half_precision, HEAVY_BALL, PLAIN),
    Mutant(dtype_that_drifts, HEAVY_BALL, Declared(stored_in=torch.bfloat16)),
    Mutant(counter_that_turns_to_float, SGD, PLAIN),
    Mutant(hyperparameters_in_the_parameters_dtype, SGD, PLAIN),
    Mutant(measurements_from_the_first_step_on, SGD, PLAIN),
    Mutant(none_counted_as_zero, HEAVY_BALL, PLAIN),
    Mutant(none_is_an_error, SGD, PLAIN),
    Mutant(buffers_for_absent_parameters, SGD, PLAIN),
    Mutant(columns_of_an_empty_tree, SGD, PLAIN),
    Mutant(sum_of_squares_with_an_axis, SGD, PLAIN),
    Mutant(promoted_scalar_leaf, SGD, PLAIN),
    Mutant(maximum_of_an_empty_leaf, SGD, PLAIN),
    Mutant(matched_by_position, HEAVY_BALL, PLAIN),
    Mutant(rule_by_name, SGD, PLAIN),
    Mutant(decay_without_params_is_skipped, decayed_sgd, DECAYS),
)
