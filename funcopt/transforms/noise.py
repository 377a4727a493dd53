"""Noise added to the updates, from a key in the state."""

from typing import Any, NamedTuple

from torch import Tensor

from funcopt import random, tree
from funcopt.checks import check_within
from funcopt.numerics import increment, realise, scalar_dtype
from funcopt.transform import GradientTransformation, Params, Updates, zero_count


class AddNoiseState(NamedTuple):
    count: Tensor  # type: ignore[assignment]  # steps taken
    rng_key: Tensor  # key of the next step's noise


def add_noise(eta: float | Tensor, gamma: float | Tensor, key: Tensor | int = 0) -> GradientTransformation:
    """Add annealed Gaussian noise (Neelakantan et al. 2015, https://arxiv.org/abs/1511.06807).

        u = g + √(η / tᵞ) z,    z ~ N(0, 1) for every number,    t = 1, 2, ...

    `key` is a key of `funcopt.random` or a seed for one; the same key gives the same noise. Leaves draw from keys of
    their own, in the order of the tree.
    """
    check_within("add_noise", "[0, inf)", eta=eta)
    check_within("add_noise", "(-inf, inf)", gamma=gamma)

    def init(params: Params) -> AddNoiseState:
        count = zero_count(params)
        start = key.clone() if isinstance(key, Tensor) else random.key(key)
        return AddNoiseState(count, start.to(count.device))

    def update(
        updates: Updates, state: AddNoiseState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, AddNoiseState]:
        count = increment(state.count)
        steps = count.to(scalar_dtype(count.device))
        deviation = realise((eta / steps**gamma) ** 0.5)
        leaves, structure = tree.flatten(updates)
        next_key, *keys = random.split(state.rng_key, len(leaves) + 1).unbind(0)
        keys = tree.unflatten([None if g is None else k for g, k in zip(leaves, keys)], structure)
        updates = tree.map_rule(lambda g, k: g + deviation * random.normal(k, g.shape, g.dtype), updates, reads=(keys,))
        return updates, AddNoiseState(count, next_key.clone())

    return GradientTransformation(init, update, "leafwise")
