"""Many training steps in one call."""

from collections.abc import Callable
from typing import Any

import torch

from funcopt import tree
from funcopt.transform import Params, State

Step = Callable[[Params, State, tree.Tree], tuple[Params, State, tree.Tree]]


def loop(step: Step) -> Step:
    """Turn one training step into as many as there are batches.

    `step(params, state, batch) -> (params, state, result)` becomes a function of `(params, state, batches)`. The leaves
    of `batches` have one more axis in front, along which they are taken apart; the results of the steps (a loss,
    metrics: a tree of tensors) are stacked along such an axis. Compiled, the steps are one graph whatever their number:
    that saves the call of each step, for models that are so small that it counts.

    The gradient within a step is `torch.func.grad`'s. Compiled, the loop as a whole can be neither differentiated nor
    vmapped (torch 2.13); vmap the step, and loop over that.

    >>> train = funcopt.compile(funcopt.loop(train_step), donate_argnums=(0, 1))

    Raises:
        TypeError: `step` is not callable.
        ValueError: at the call: `batches` has no leaf, no step, or leaves of different lengths.
    """
    if not callable(step):
        raise TypeError(f"loop: step must be a function, got {step!r}.")

    def looped(params: Params, state: State, batches: tree.Tree) -> tuple[Params, State, tree.Tree]:
        lengths = {len(leaf) if leaf.ndim else 0 for leaf in tree.leaves(batches)}
        if len(lengths) != 1 or lengths == {0}:
            raise ValueError(
                f"loop: the leaves of batches must have a first axis of one length, the steps; got {sorted(lengths)}."
            )
        run = _scanned if torch.compiler.is_compiling() else _one_by_one
        return run(step, params, state, batches)

    return looped


def _one_by_one(step: Step, params: Params, state: State, batches: tree.Tree) -> tuple[Params, State, tree.Tree]:
    results = []
    for i in range(len(tree.leaves(batches)[0])):
        params, state, result = step(params, state, tree.map(lambda leaf, i=i: leaf[i], batches))
        results.append(result)
    return params, state, tree.map(lambda *parts: torch.stack(parts), *results)


def _scanned(step: Step, params: Params, state: State, batches: tree.Tree) -> tuple[Params, State, tree.Tree]:
    leaves, structure = tree.flatten((params, state))
    places = [i for i, leaf in enumerate(leaves) if leaf is not None]

    def trees(carry: list[torch.Tensor]) -> tuple[Params, State]:
        whole: list[Any] = [None] * len(leaves)
        for place, leaf in zip(places, carry):
            whole[place] = leaf
        params, state = tree.unflatten(whole, structure)
        return params, state

    def body(carry: list[torch.Tensor], batch: tree.Tree) -> tuple[list[torch.Tensor], tree.Tree]:
        params, state, result = step(*trees(carry), batch)
        # Copies: scan refuses what it carries on unchanged, and a result that is also carried.
        return [leaf.clone() for leaf in tree.leaves((params, state))], tree.map(torch.clone, result)

    # Contiguous: scan refuses a carry whose strides change, as those of a counter made by vmap do.
    start = [leaves[place].contiguous() for place in places]
    carry, results = torch._higher_order_ops.scan(body, start, batches)
    return *trees(carry), results
