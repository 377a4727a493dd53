"""Laws of purity: results depend on the arguments alone, and change nothing."""

import io
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from funcopt import tree
from funcopt.testing.comparison import require, require_identical, require_tensors
from funcopt.testing.law import law
from funcopt.testing.remake import remake
from funcopt.testing.trajectory import copied, follow, generic, plus


@law()
def arguments_are_kept(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """Neither init nor update changes one of its arguments."""
    state = tx.init(params)
    for step, grads in enumerate(gradients):
        before = copied((params, grads, state))
        tx.init(params)
        require_identical(params, before[0], "params after init")
        _, new_state = tx.update(grads, state, params, **extra)
        what = f"step {step}: after update, the argument"
        for name, now, then in zip(("params", "updates", "state"), (params, grads, state), before):
            require_identical(now, then, f"{what} {name}")
        state = new_state


@law()
def nothing_is_shared(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """No result shares memory with an argument or with another result: in-place consumers do no harm."""
    state = tx.init(params)
    _overwrite("init", {"state": state}, {"params": params})
    state = tx.init(params)
    for step, grads in enumerate(gradients):
        updates, new_state = tx.update(grads, state, params, **extra)
        kept = copied(new_state)
        results = {"the new updates": updates, "the new state": new_state}
        results["what a second call gave"] = tx.update(grads, state, params, **extra)
        _overwrite(f"step {step}", results, {"updates": grads, "state": state, "params": params})
        state = kept


def _overwrite(where: str, results: dict[str, tree.Tree], arguments: dict[str, tree.Tree]) -> None:
    """Write a mark of its own into every result, and see that all marks are there, and all arguments as before."""
    before = copied(arguments)
    written: list[tuple[str, Tensor, Tensor]] = []
    for path, leaf in tree.leaves_with_path(results):
        if not isinstance(leaf, Tensor) or leaf.numel() == 0:
            continue
        repeated = any(stride == 0 and size > 1 for stride, size in zip(leaf.stride(), leaf.shape))
        require(not repeated, f"{where}: {path!r} is an expanded view, which cannot be written to.")
        mark = leaf.new_full(leaf.shape, len(written) % 2 if leaf.dtype == torch.bool else len(written) + 2)
        leaf.detach().copy_(mark)
        written.append((path, leaf, mark))
    for path, leaf, mark in written:
        require((leaf == mark).all(), f"{where}: {path!r} shares memory with another result.")
    require_identical(arguments, before, f"{where}: after a result was overwritten, the argument")


@contextmanager
def _random_states_kept() -> Iterator[None]:
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        random.setstate(python_state)


@law()
def determinism(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """The same arguments give the same result, whatever happened before, without a global random state."""
    with _random_states_kept():
        state = copied(tx.init(params))
        before = torch.get_rng_state(), random.getstate()
        first = [copied(tx.update(grads, state, params, **extra)) for grads in gradients]
        require(torch.equal(torch.get_rng_state(), before[0]), "torch's global random state was used.")
        require(random.getstate() == before[1], "Python's global random state was used.")
        torch.manual_seed(1)
        random.seed(1)
        follow(tx, params, gradients[::-1], extra)
        for step, grads in enumerate(gradients):
            again = tx.update(grads, state, params, **extra)
            require_identical(again, first[step], f"step {step}: updates and state, the second time,")
        require_identical(tx.init(params), state, "init, the second time,")


@law()
def surroundings(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """Neither the default dtype nor the gradient mode changes a result."""
    expected = follow(tx, params, gradients, extra)
    default = torch.get_default_dtype()
    for dtype in (torch.float64, torch.float32):
        torch.set_default_dtype(dtype)
        try:
            found = follow(remake(tx), params, gradients, extra)
        finally:
            torch.set_default_dtype(default)
        require_identical(found, expected, f"with the default dtype {dtype}: step")
    with torch.no_grad():
        require_identical(follow(tx, params, gradients, extra), expected, "under no_grad: step")


@law()
def no_hidden_state(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """The state is all there is: a second instance, given a copy, goes on like the first."""
    steps = follow(tx, params, gradients, extra)
    for step in range(1, len(gradients)):
        done = copied(steps[step - 1])
        rest = follow(remake(tx), done.params, gradients[step:], extra, done.state)
        require_identical(rest, steps[step:], f"continued after {step} steps: step")


@law()
def checkpoint(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """A run that is saved and loaded is the uninterrupted one."""
    gradients = [*gradients, plus(gradients[-1], generic(gradients[-1], 5, torch.float32), 0.1)]
    steps = follow(tx, params, gradients, extra)
    middle = (len(gradients) + 1) // 2
    done = steps[middle - 1]
    fresh = remake(tx)
    loaded = through_a_file((done.state, done.params), (fresh.init(params), copied(params)))
    rest = follow(fresh, loaded[1], copied(gradients[middle:]), extra, loaded[0])
    require_identical(rest, steps[middle:], f"loaded after {middle} steps: step")


def through_a_file(values: tree.Tree, template: tree.Tree) -> tree.Tree:
    """Saved as a dict of tensors by path, and put back into the structure of `template`."""
    pairs = tree.leaves_with_path(values)
    by_path = dict(pairs)
    require(len(by_path) == len(pairs), "two leaves of the state have the same path.")
    require_tensors(values, "the state")
    file = io.BytesIO()
    torch.save(by_path, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    paths = [path for path, _ in tree.leaves_with_path(template)]
    require(set(paths) == set(loaded), "init gives a state of another structure than the one saved.")
    return tree.unflatten([loaded[path] for path in paths], tree.flatten(template)[1])
