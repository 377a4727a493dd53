"""The two-loop recursion against the inverse BFGS matrix written out."""

import torch
from torch.func import vmap

from funcopt.rules.lbfgs import apply_inverse_hessian, curvature


def pairs(count=4, size=6):
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    steps = torch.randn(count, size, generator=generator, dtype=torch.float64)
    return steps, steps @ (root @ root.T + torch.eye(size))


def test_it_is_the_bfgs_matrix():
    steps, changes = pairs()
    matrix = 0.3 * torch.eye(6, dtype=torch.float64)
    for s, y in zip(steps, changes):
        v = torch.eye(6, dtype=torch.float64) - torch.outer(y, s) / y.dot(s)
        matrix = v.T @ matrix @ v + torch.outer(s, s) / y.dot(s)
    found = [curvature(s, y) for s, y in zip(steps, changes)]
    vector = torch.linspace(-1, 2, 6, dtype=torch.float64)
    result, alphas = apply_inverse_hessian(vector, steps, changes, [each.inverse for each in found], 0.3)
    torch.testing.assert_close(result, matrix @ vector)
    assert len(alphas) == 4
    torch.testing.assert_close(
        apply_inverse_hessian(changes[-1], steps, changes, [e.inverse for e in found], 0.3)[0], steps[-1]
    )


def test_a_pair_without_curvature_has_no_effect():
    steps, changes = pairs()
    changes[2] = -changes[2]
    found = [curvature(s, y) for s, y in zip(steps, changes)]
    assert [bool(each.accepted) for each in found] == [True, True, False, True]
    vector = torch.ones(6, dtype=torch.float64)
    kept = [0, 1, 3]
    inverses = torch.stack([each.inverse for each in found])
    expected, _ = apply_inverse_hessian(vector, steps[kept], changes[kept], inverses[kept], 0.3)
    torch.testing.assert_close(apply_inverse_hessian(vector, steps, changes, inverses, 0.3)[0], expected)


def test_vmapped():
    steps, changes = pairs()
    inverses = torch.stack([curvature(s, y).inverse for s, y in zip(steps, changes)])
    vectors = torch.eye(6, dtype=torch.float64)
    matrix = vmap(lambda v: apply_inverse_hessian(v, steps, changes, inverses, 0.3)[0])(vectors)
    torch.testing.assert_close(matrix, matrix.T)
