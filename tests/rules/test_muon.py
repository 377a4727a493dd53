"""Muon against torch.optim, to the bit of its bfloat16, and what leaves it takes."""

import pytest
import torch

import funcopt as fo
from funcopt import MuonDimensionNumbers, tree
from tests.rules.torch_trajectory import assert_same, gradients, trajectories
from tests.trees import assert_close, draw

SHAPES = [(4, 3), (3, 4), (5, 5), (1, 7), (16, 8)]
AS_IN_TORCH = {"eps": 1e-7, "ns_dtype": torch.bfloat16, "eps_mode": "floor", "bias_correction": False}
CASES = {
    "default": ({}, {}),
    "plain momentum": ({"nesterov": False}, {"nesterov": False}),
    "coefficients": (
        {"ns_coeffs": (3.4, -4.7, 2.0), "ns_steps": 6, "beta": 0.8},
        {"ns_coefficients": (3.4, -4.7, 2.0), "ns_steps": 6, "momentum": 0.8},
    ),
    "rms of adamw": ({"consistent_rms": 0.2}, {"adjust_lr_fn": "match_rms_adamw"}),
    "no decay": ({"weight_decay": 0.0}, {"weight_decay": 0.0}),
}


@pytest.mark.parametrize("name", CASES)
def test_as_in_torch(name):
    arguments, options = CASES[name]
    params, *grads = gradients(SHAPES, 21)
    ours, theirs, _ = trajectories(
        fo.muon(0.01, **{"weight_decay": 0.1, **AS_IN_TORCH, **arguments}),
        lambda p: torch.optim.Muon(p, lr=0.01, **options),
        params,
        grads,
    )
    assert_same(ours, theirs, 1e-12)


def test_momentum_in_bfloat16_is_not_normalised():
    """torch's iteration divides its buffer in place, where that is bfloat16 already: its norm becomes 1."""
    params = [torch.ones(4, 4, dtype=torch.bfloat16)]
    grads = [torch.full((4, 4), 4.0, dtype=torch.bfloat16)]
    optimizer = fo.scale_by_muon(nesterov=False, mu_dtype=torch.bfloat16, ns_dtype=torch.bfloat16)
    _, state = optimizer.update(grads, optimizer.init(params))
    assert state.mu[0].norm().item() == pytest.approx(0.05 * 16, rel=1e-2)
    leaf = params[0].clone().requires_grad_()
    leaf.grad = grads[0]
    theirs = torch.optim.Muon([leaf], nesterov=False)
    theirs.step()
    assert theirs.state[leaf]["momentum_buffer"].norm().item() == pytest.approx(1.0, rel=1e-2)


def test_layouts_are_transposes_of_each_other():
    params = {"w": draw(1, shapes={"w": (5, 2)})["w"]}
    transposed = {"w": params["w"].mT.contiguous()}
    updates = []
    for values, layout in ((params, "out_in"), (transposed, "in_out")):
        optimizer = fo.muon(0.1, layout=layout)
        updates.append(optimizer.update(values, optimizer.init(values), values)[0])
    assert_close({"w": updates[1]["w"].mT}, updates[0], rtol=1e-12)
    wide = fo.muon(0.1, layout="in_out")
    factor = updates[0]["w"].norm() / wide.update(params, wide.init(params), params)[0]["w"].norm()
    assert factor.item() == pytest.approx((5 / 2) ** 0.5)


@pytest.mark.parametrize(
    "spec, permutation, matrices",
    [
        (MuonDimensionNumbers((1, 2, 3), 0), (0, 1, 2, 3), (4, 18)),  # a convolution
        (MuonDimensionNumbers((1,), (0,)), (2, 3, 0, 1), (2, 3, 4, 3)),  # each position of its kernel
        (MuonDimensionNumbers(-1, (0, 2)), (1, 0, 2, 3), (3, 8, 3)),
    ],
)
def test_leaves_of_more_axes_are_matrices_of_some(spec, permutation, matrices):
    g = draw(1, shapes={"w": (4, 3, 2, 3)})["w"]
    as_matrices = g.permute(permutation).reshape(matrices)
    expected = fo.newton_schulz(as_matrices, eps=0.0)
    expected = expected.reshape([g.shape[axis] for axis in permutation]).permute(
        [permutation.index(axis) for axis in range(4)]
    )
    optimizer = fo.scale_by_muon(eps=0.0, weight_dimension_numbers=spec)
    assert_close(optimizer.update(g, optimizer.init(g))[0], expected, rtol=1e-9)


def test_other_leaves_go_to_nadamw():
    params, grads = draw(1), draw(2)
    optimizer = fo.muon(0.1, adam_learning_rate=0.03, adam_b1=0.8, eps=1e-3)
    others = fo.nadamw(0.03, 0.8, eps=1e-3, weight_decay=0.0)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    expected, _ = others.update(grads, others.init(params), params)
    for (path, mine), (_, other) in zip(tree.leaves_with_path(updates), tree.leaves_with_path(expected)):
        assert torch.equal(mine, other) or path == "a.weight", path
    assert not torch.equal(updates["a"]["weight"], expected["a"]["weight"])


def test_none_leaves_a_matrix_to_nadamw():
    params = {"embedding": torch.ones(5, 2), "hidden": torch.ones(2, 2)}
    specs = {"embedding": None, "hidden": MuonDimensionNumbers(1, 0)}
    state = fo.muon(0.1, muon_weight_dimension_numbers=specs).init(params)
    seen = {key: tree.leaves_with_path(part) for key, part in state.inner_states.items()}
    moments = {key: [path for path, leaf in leaves if leaf.ndim] for key, leaves in seen.items()}
    assert moments == {"muon": ["0.mu.hidden"], "adam": ["0.mu.embedding", "0.nu.embedding"]}


def test_wide_and_tall_updates_have_a_root_mean_square_of_choice():
    params = draw(1, shapes={"tall": (64, 16), "wide": (16, 64)})
    converging = [(3.4445, -4.775, 2.0315)] * 5 + [(2, -1.5, 0.5)] * 4
    optimizer = fo.muon(1.0, consistent_rms=0.2, ns_steps=9, ns_coeffs=converging)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    for leaf in updates.values():
        assert leaf.square().mean().sqrt().item() == pytest.approx(0.2, rel=1e-3)


BAD = [
    (lambda: fo.scale_by_muon().init({"b": torch.ones(3)}), "the leaf 'b' must be a matrix, got shape \\(3,\\)"),
    (lambda: fo.scale_by_shape().update(torch.ones(1, 1, 1), fo.EmptyState()), "scale_by_shape: the leaf '' must be"),
    (
        lambda: fo.scale_by_muon(weight_dimension_numbers=MuonDimensionNumbers(0, -2)).init(torch.ones(2, 2)),
        "the axes of MuonDimensionNumbers.* must differ",
    ),
    (lambda: fo.muon(0.1, layout="rows"), "layout must be one of 'out_in', 'in_out'"),
    (lambda: fo.muon(0.1, beta=1.0), r"scale_by_muon: beta must lie in \[0, 1\)"),
    (lambda: fo.muon(0.1, ns_coeffs=[(1.0, 2.0, 3.0)] * 3), "coefficients must be given for all 5 steps, got 3"),
]


@pytest.mark.parametrize("call, message", BAD, ids=[message for _, message in BAD])
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_dimension_numbers_are_checked():
    with pytest.raises(TypeError, match="scale_by_muon: dimension numbers must be MuonDimensionNumbers, got 3"):
        fo.scale_by_muon(weight_dimension_numbers={"w": 3}).init({"w": torch.ones(2, 2)})
