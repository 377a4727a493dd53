"""The laws are about optimizers, not about funcopt: optax under them, and what they find there (optax 0.2.8)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import funcopt as fo
from funcopt.testing import EAGER, Declared, fixed_case, violations
from funcopt.testing.leaves import packed

DTYPES = {
    torch.bfloat16: jnp.bfloat16,
    torch.float16: jnp.float16,
    torch.float32: jnp.float32,
    torch.float64: jnp.float64,
    torch.complex64: jnp.complex64,
    torch.complex128: jnp.complex128,
    torch.int32: jnp.int32,
    torch.int64: jnp.int64,
    torch.bool: jnp.bool_,
}
BACK = {np.dtype(theirs): ours for ours, theirs in DTYPES.items()}


def to_jax(values):
    def convert(leaf):
        wide = leaf.float() if leaf.dtype == torch.bfloat16 else leaf
        return jnp.asarray(wide.resolve_conj().numpy().copy(), dtype=DTYPES[leaf.dtype])

    return jax.tree.map(convert, values, is_leaf=lambda leaf: isinstance(leaf, torch.Tensor))


def to_torch(values):
    def convert(leaf):
        dtype = BACK[np.dtype(leaf.dtype)]
        array = np.array(leaf.astype(jnp.float32) if dtype == torch.bfloat16 else leaf)
        return torch.from_numpy(array).to(dtype)

    return jax.tree.map(convert, values)


def wrapped(transformation):
    """A transformation of optax as one of torch tensors, for the laws that only call init and update."""

    def init(params):
        with jax.enable_x64(True):
            return to_torch(transformation.init(to_jax(params)))

    def update(updates, state, params=None, **extra):
        with jax.enable_x64(True):
            given = None if params is None else to_jax(params)
            return to_torch(transformation.update(to_jax(updates), to_jax(state), given))

    return fo.GradientTransformation(init, update)


LAWS = [law for law in EAGER if law is not packed]  # what packs is a container of funcopt's own
HALVES, NONE, ZERO = "half_precision", "absent_gradient", "zero_gradients"
FOUND = {
    "sgd": (lambda: optax.sgd(0.1), Declared(linear=True, descends=True), set()),
    "lion": (lambda: optax.lion(0.1, weight_decay=0.0), Declared(magnitude=0.1, complex=False), {HALVES, NONE}),
}
"""What makes it, what is declared of it, and the laws that it breaks.

- half_precision: states are kept in the parameters' bfloat16; the squares of a norm overflow in float16.
- absent_gradient: a gradient of None is an error, or turns the state of its leaf into None.
- zero_gradients: ε = 1e-8 is zero in float16, and the update 0 / 0.
- descent: the first step of rprop is the update of the step before, and moves nothing.
"""
DECAYS = Declared(zero_fixpoint="at zero")
LEAFWISE = Declared(coupling="leafwise", zero_fixpoint="at zero")
FOUND_AS_WELL = {
    "adam": (lambda: optax.adam(0.1), Declared(descends=True), {HALVES, NONE, ZERO}),
    "rprop": (lambda: optax.rprop(0.1), Declared(descends=True, complex=False), {HALVES, NONE, "descent"}),
    "clip_by_global_norm": (
        lambda: optax.clip_by_global_norm(1.0),
        Declared(coupling="treewise", norm_bounded=1.0, direction="tree", idempotent=True, orthogonal=True),
        {HALVES},
    ),
    "sgd with momentum": (lambda: optax.sgd(0.1, 0.9), Declared(linear=True, descends=True), {HALVES, NONE}),
    "adamw": (lambda: optax.adamw(0.1, weight_decay=0.1), DECAYS, {HALVES, NONE, ZERO}),
    "nadam": (lambda: optax.nadam(0.1), Declared(descends=True), {HALVES, NONE, ZERO}),
    "adamax": (lambda: optax.adamax(0.1), Declared(descends=True), {HALVES, NONE, ZERO}),
    "amsgrad": (lambda: optax.amsgrad(0.1), Declared(descends=True), {HALVES, NONE, ZERO}),
    "radam": (lambda: optax.radam(0.1), Declared(descends=True), {HALVES, NONE}),
    "rmsprop": (lambda: optax.rmsprop(0.1), Declared(descends=True), {HALVES, NONE, ZERO}),
    "adagrad": (lambda: optax.adagrad(0.1), Declared(descends=True), {HALVES, NONE}),
    "adadelta": (lambda: optax.adadelta(0.1), Declared(descends=True), {HALVES, NONE, "complex_phase"}),
    "adabelief": (lambda: optax.adabelief(0.1), Declared(descends=True), {HALVES, NONE, ZERO}),
    "adan": (lambda: optax.adan(0.1), DECAYS, {HALVES, NONE, ZERO}),
    "yogi": (lambda: optax.yogi(0.1), Declared(descends=True), {HALVES, NONE, ZERO, "sign_flip", "complex_phase"}),
    "novograd": (lambda: optax.novograd(0.1), LEAFWISE, {HALVES, NONE, ZERO, "params_or_none"}),
    "lars": (lambda: optax.lars(0.1), LEAFWISE, {HALVES, NONE}),
    "lamb": (lambda: optax.lamb(0.1), LEAFWISE, {HALVES, NONE}),
    "fromage": (lambda: optax.fromage(0.1), LEAFWISE, {HALVES, NONE, ZERO}),
    "normalize_by_update_norm": (
        lambda: optax.normalize_by_update_norm(),
        Declared(coupling="treewise", direction="tree"),
        {HALVES, ZERO},
    ),
    "clip": (lambda: optax.clip(0.7), Declared(bounded=0.7, idempotent=True, complex=False), set()),
    "centralize": (
        lambda: optax.centralize(),
        Declared(coupling="leafwise", linear=True, idempotent=True),
        set(),
    ),
    "zero_nans": (lambda: optax.zero_nans(), Declared(absorbs=(float("nan"),), linear=True), set()),
}
FINDINGS = {**FOUND, **FOUND_AS_WELL}


def check_found(make, declared, broken):
    found = {v.law: str(v) for v in violations(wrapped(make()), LAWS, declared, *fixed_case())}
    assert set(found) == broken, "\n\n".join(found.values())


@pytest.mark.parametrize("name", FOUND)
def test_laws_of_optax(name):
    check_found(*FOUND[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUND_AS_WELL)
def test_laws_of_more_of_optax(name):
    check_found(*FOUND_AS_WELL[name])
