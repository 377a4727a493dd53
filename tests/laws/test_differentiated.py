"""Learning to learn: the gradient of a loss after training. That every entry has derivatives is a law of the kit."""

import torch
from torch.func import grad, jvp

import funcopt as fo
from funcopt import tree
from tests.trees import draw, finite_difference


def test_the_learning_rate_has_a_gradient():
    target = draw(5)

    def loss(params):
        return sum(((p - t) ** 2).sum() for p, t in zip(tree.leaves(params), tree.leaves(target)))

    def final_loss(learning_rate):
        optimizer = fo.chain(fo.clip_by_global_norm(1.0), fo.adamw(learning_rate))
        params = draw(1)
        state = optimizer.init(params)
        for _ in range(4):
            updates, state = optimizer.update(grad(loss)(params), state, params)
            params = fo.apply_updates(params, updates)
        return loss(params)

    rate = torch.tensor(0.1, dtype=torch.float64)
    expected, reverse = finite_difference(final_loss, rate), grad(final_loss)(rate)
    assert abs(reverse - expected) < 1e-6 * max(1.0, abs(expected))
    assert abs(jvp(final_loss, (rate,), (torch.ones_like(rate),))[1] - reverse) < 1e-9 * max(1.0, abs(reverse))
