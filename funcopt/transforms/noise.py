"""Noise added to the updates, from a key in the state."""

from typing import Any, NamedTuple

from torch import Tensor

from funcopt import random, tree
from funcopt.checks import check_within
from funcopt.numerics import increment, realise, safe_sqrt, scalar_dtype
from funcopt.pack import numbered, unpack
from funcopt.transform import GradientTransformation, Params, Updates, factory, zero_count


class AddNoiseState(NamedTuple):
    count: Tensor  # type: ignore[assignment]  # steps taken
    rng_key: Tensor  # key of the next step's noise


@factory
def add_noise(eta: float | Tensor, gamma: float | Tensor, key: Tensor | int = 0) -> GradientTransformation:
    """Add annealed Gaussian noise (Neelakantan et al. 2015, https://arxiv.org/abs/1511.06807).

        u = g + √(η / tᵞ) z,    z ~ N(0, 1) for every number,    t = 1, 2, ...

    `key` is a key of `funcopt.random`, or a seed; the same key gives the same noise, in optax too if the dicts of the
    tree have sorted keys. Each leaf draws from a key of its own, in its own dtype (of half precision: few values).
    """
    check_within("add_noise", "[0, inf)", eta=eta)
    check_within("add_noise", "(-inf, inf)", gamma=gamma)
    first_key = random.as_key("add_noise", key)

    def init(params: Params) -> AddNoiseState:
        count = zero_count(params)
        return AddNoiseState(count, first_key.to(count.device) + count)  # a sum: in memory of its own, also under vmap

    def update(
        updates: Updates, state: AddNoiseState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, AddNoiseState]:
        count = increment(state.count)
        steps = count.to(scalar_dtype(count.device))
        deviation = realise(safe_sqrt(eta / steps**gamma))
        next_key, key = random.split(state.rng_key).unbind(0)
        keys = random.split(key, len(tree.leaves(unpack(updates))))
        noise = tree.map_leafwise(lambda g, i: random.normal(keys[i], g.shape, g.dtype), updates, numbered(updates))
        updates = tree.map_rule(lambda g, z: g + deviation * z, updates, reads=(noise,), elementwise=True)
        return updates, AddNoiseState(count, next_key.clone())

    return GradientTransformation(init, update, "leafwise")
