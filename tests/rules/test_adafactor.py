"""Adafactor against torch.optim and optax: what is factored, and how ε keeps denominators from 0."""

import jax
import jax.numpy as jnp
import optax
import pytest
import torch

import funcopt as fo
from tests.rules.torch_trajectory import assert_same, gradients, trajectories

SHAPES = [(3,), (4, 3), (), (2, 3, 2), (3, 2, 1, 5)]
AS_IN_TORCH = {"min_dim_size_to_factor": 0, "factored_dims": "last", "eps_mode": "floor", "relative_cap": True}
CASES = {
    "default": (0.01, {}, {}),
    "above the cap": (0.5, {}, {}),
    "eps": (0.3, {"eps": 0.5, "min_scale": 0.7}, {"eps": (0.5, 0.7)}),
    "an eps that is not reached": (0.3, {"eps": 1e-30}, {"eps": (1e-30, 1e-3)}),
    "d": (0.3, {"clipping_threshold": 1.5}, {"d": 1.5}),
    "decay of β": (0.3, {"decay_rate": 1.0}, {"beta2_decay": -1.0}),
    "weight decay": (0.3, {"weight_decay_rate": 0.3 * 0.2}, {"weight_decay": 0.2}),
}


@pytest.mark.parametrize("scale", [1.0, 1e-6], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_as_in_torch(name, scale):
    rate, arguments, options = CASES[name]
    params, *grads = gradients(SHAPES, 21)
    grads = [[scale * g for g in step] for step in grads]
    ours, theirs, _ = trajectories(
        fo.adafactor(rate, **{**AS_IN_TORCH, "eps": None, **arguments}),
        lambda p: torch.optim.Adafactor(p, lr=rate, **options),
        params,
        grads,
    )
    assert_same(ours, theirs, 1e-12)


def test_each_leaf_has_the_epsilon_of_its_own_dtype():
    """torch takes that of the first leaf for all: after one in bfloat16 the second moves 8 thousandths of this."""
    g = torch.full((4, 3), 1e-5)
    optimizer = fo.adafactor(0.1, eps=None, **AS_IN_TORCH)
    alone = optimizer.update([g], optimizer.init([g]), [torch.ones(4, 3)])[0][0]
    params = [torch.ones(4, 3, dtype=torch.bfloat16), torch.ones(4, 3)]
    after = optimizer.update([g.bfloat16(), g], optimizer.init(params), params)[0][1]
    assert torch.equal(alone, after)
    theirs = [p.clone().requires_grad_() for p in params]
    for p in theirs:
        p.grad = g.to(p.dtype)
    torch.optim.Adafactor(theirs, lr=0.1).step()
    assert (theirs[1] - 1).abs().max() < 0.02 * alone.abs().max()


def test_only_large_matrices_are_factored():
    shapes = {"large": (128, 200), "narrow": (127, 500), "batch": (3, 130, 140), "vector": (500,)}
    params = {name: torch.ones(shape) for name, shape in shapes.items()}
    state = fo.scale_by_factored_rms().init(params)
    sizes = {name: (state.v_row[name].shape, state.v_col[name].shape, state.v[name].shape) for name in shapes}
    assert sizes == {
        "large": ((128, 1), (1, 200), (0,)),
        "narrow": ((0,), (0,), (127, 500)),
        "batch": ((3, 130, 1), (3, 1, 140), (0,)),
        "vector": ((0,), (0,), (500,)),
    }


@pytest.mark.parametrize(
    "dims, row, col", [("largest", (7, 1, 2, 5), (1, 9, 2, 5)), ("last", (7, 9, 2, 1), (7, 9, 1, 5))]
)
def test_which_axes_are_factored(dims, row, col):
    state = fo.scale_by_factored_rms(min_dim_size_to_factor=2, factored_dims=dims).init(torch.ones(7, 9, 2, 5))
    assert (state.v_row.shape, state.v_col.shape) == (row, col)


def test_a_square_is_factored_as_in_optax():
    """Of equal sizes, the later axis counts as the larger."""
    grads = torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = fo.scale_by_factored_rms(min_dim_size_to_factor=2, epsilon=0.0)
    updates = ours.update(grads, ours.init(grads), grads)[0]
    with jax.enable_x64(True):
        theirs, g = optax.scale_by_factored_rms(min_dim_size_to_factor=2, epsilon=0.0), jnp.asarray(grads.numpy())
        expected = torch.from_numpy(jax.device_get(theirs.update(g, theirs.init(g), g)[0]).copy())
    assert (updates - expected).abs().max() < 1e-14


def test_an_offset_above_the_count_is_the_first_step():
    """optax raises a negative number to a power, and gives NaN for good."""
    g = torch.ones(3)
    ours = fo.scale_by_factored_rms(step_offset=5)
    assert torch.equal(ours.update(g, ours.init(g), g)[0], torch.ones(3))
    theirs = optax.scale_by_factored_rms(step_offset=5)
    assert not jnp.isfinite(theirs.update(jnp.ones(3), theirs.init(jnp.ones(3)), jnp.ones(3))[0]).all()


def test_half_precision_sees_the_epsilon():
    """1e-30 is 0 in float16, where optax divides 0 by 0."""
    params = torch.ones(3, dtype=torch.float16)
    optimizer = fo.adafactor(0.1)
    updates, _ = optimizer.update(torch.zeros_like(params), optimizer.init(params), params)
    assert torch.equal(updates, torch.zeros_like(params))


def test_no_epsilon_at_all():
    params = torch.ones(2, 2)
    optimizer = fo.scale_by_factored_rms(min_dim_size_to_factor=2, epsilon=0.0)
    updates, _ = optimizer.update(torch.tensor([[0.0, 0.0], [0.0, 2.0]]), optimizer.init(params), params)
    torch.testing.assert_close(updates, torch.tensor([[0.0, 0.0], [0.0, 1.0]]))


BAD = [
    ({"eps": None}, ValueError, "scale_by_factored_rms: epsilon must be a number with eps_mode='add'"),
    ({"factored_dims": "first"}, ValueError, "factored_dims must be one of 'largest', 'last'"),
    ({"eps_mode": "max"}, ValueError, "eps_mode must be one of 'add', 'floor'"),
    ({"min_dim_size_to_factor": 2.0}, TypeError, "min_dim_size_to_factor must be an int"),
    ({"min_scale": -1.0}, ValueError, "scale_by_param_block_rms: min_scale must lie in"),
    ({"learning_rate": -1.0, "relative_cap": True}, ValueError, "adafactor: learning_rate must lie in"),
]


@pytest.mark.parametrize("arguments, error, message", BAD, ids=str)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        fo.adafactor(**arguments)
