"""Laws of modes: compiled, vmapped, and with tensors for hyperparameters, a transformation is the same function."""

from typing import Any

import torch
from torch.func import vmap

from funcopt import tree
from funcopt.compile import compile
from funcopt.testing.comparison import require, require_close, storage_factor
from funcopt.testing.law import law
from funcopt.testing.remake import hyperparameters, remake, remaker
from funcopt.testing.trajectory import filled, follow, generic, generic_case, in_dtype
from funcopt.transform import apply_updates

BACKEND = "aot_eager"
"""Traces and functionalises as Inductor does, without generating code."""
_STEPS = 6  # a graph for an int that has become dynamic appears at the second or third
_MODELS = 3


@law(share=0.1)
def compiled(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any, backend: str = BACKEND) -> None:
    """Compiled, a step is one graph that serves all steps, and gives the eager numbers."""

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params, **extra)
        return updates, state, apply_updates(params, updates)

    params, gradients = generic_case(params, gradients, torch.float32, steps=_STEPS)
    with torch.no_grad():
        expected = follow(tx, params, gradients, extra)
        run, state = _fresh(step, backend), tx.init(params)
        for number, grads in enumerate(gradients):
            stance = "default" if number == 0 else "fail_on_recompile"
            with torch.compiler.set_stance(stance):
                updates, state, params = run(params, state, grads)
            factor = storage_factor(declared, torch.float32)
            require_close((updates, state), expected[number][:2], f"step {number}: updates and state", factor=factor)


def _fresh(step: Any, backend: str) -> Any:
    """Compiled anew: Dynamo keeps, and counts, what it compiled for the same code with other transformations."""
    torch.compiler.reset()
    return compile(step, backend=backend)


def _has_hyperparameters(tx: Any, declared: Any) -> bool:
    return bool(hyperparameters(tx, declared))


@law(_has_hyperparameters, share=0.1, remedy="Declared(hyperparameters=...) with those that may be tensors")
def compiled_hyperparameters(
    tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any, backend: str = BACKEND
) -> None:
    """Compiled with its construction, a hyperparameter that is a tensor changes without a new graph."""
    values, make = hyperparameters(tx, declared), remaker(tx)
    params, (grads, *_) = generic_case(params, gradients, torch.float32, steps=1)

    def updates_of(values: Any, params: Any, grads: Any) -> Any:
        made = make(values)
        return made.update(grads, made.init(params), params, **extra)[0]

    run = _fresh(updates_of, backend)
    for number, factor in enumerate((1.0, 0.9, 0.5)):
        # Not float64: a 0-d float64 input lets Dynamo trace everything twice.
        scaled = {name: torch.tensor(factor * value, dtype=torch.float32) for name, value in values.items()}
        with torch.compiler.set_stance("default" if number == 0 else "fail_on_recompile"):
            found = run(scaled, params, grads)
        what = f"with {factor} times {list(values)}: updates"
        expected = updates_of(scaled, params, grads)
        require_close(found, expected, what, factor=storage_factor(declared, torch.float32))


@law(share=0.25)
def vmap_over_models(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """vmap of init and of update over models gives what a loop over them gives."""
    models = [(in_dtype(filled(params), torch.float64), generic_case(params, gradients)[1])]
    for seed in range(1, _MODELS):
        shift = 100 * seed
        models.append((generic(models[0][0], shift), [generic(g, shift + i) for i, g in enumerate(models[0][1], 1)]))
    stacked, all_gradients = (
        _stack([model[0] for model in models]),
        [_stack(list(g)) for g in zip(*(m[1] for m in models))],
    )
    loop = [follow(tx, *model, extra) for model in models]
    state = vmap(tx.init)(stacked)
    for path, leaf in tree.leaves_with_path(state):
        expanded = any(stride == 0 for stride in leaf.stride()) and leaf.numel() > 0
        require(not expanded, f"vmap(init) gives an expanded state at {path!r}; make it from a leaf of params.")
    update = vmap(lambda grads, state, params: tx.update(grads, state, params, **extra))
    for step, grads in enumerate(all_gradients):
        updates, state = update(grads, state, stacked)
        stacked = vmap(apply_updates)(stacked, updates)
        expected = _stack([tuple(run[step]) for run in loop])
        factor = storage_factor(declared, torch.float64)
        require_close((updates, state, stacked), expected, f"step {step}: updates, state and params", factor=factor)


def _stack(trees: list[Any]) -> Any:
    return tree.map(lambda *leaves: torch.stack(leaves), *trees)


@law(_has_hyperparameters, share=0.25, remedy="Declared(hyperparameters=...) with those that may be tensors")
def vmap_over_hyperparameters(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """vmap over a hyperparameter gives what a loop over its values gives."""
    params, gradients = generic_case(params, gradients)
    factor = storage_factor(declared, torch.float64)
    for name, value in hyperparameters(tx, declared).items():
        values = value * torch.tensor([1.0, 0.7, 0.4], dtype=torch.float64)

        def trained(value: Any, name: str = name) -> Any:
            return [tuple(step) for step in follow(remake(tx, **{name: value}), params, gradients, extra)]

        loop = [trained(each.item()) for each in values]
        require_close(vmap(trained)(values), _stack(loop), f"over {name}: step", factor=factor)


@law(_has_hyperparameters, share=0.25, remedy="Declared(hyperparameters=...) with those that may be tensors")
def tensors_mean_numbers(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """A hyperparameter given as a 0-d tensor means what its number means."""
    params, gradients = generic_case(params, gradients)
    expected, factor = follow(tx, params, gradients, extra), storage_factor(declared, torch.float64)
    for name, value in hyperparameters(tx, declared).items():
        made = remake(tx, **{name: torch.tensor(value, dtype=torch.float64)})
        require_close(follow(made, params, gradients, extra), expected, f"{name} a tensor: step", factor=factor)
