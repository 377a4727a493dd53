"""Laws of modes: compiled, vmapped, and with tensors for hyperparameters, a transformation is the same function."""

from typing import Any

import torch
from torch.func import vmap

from funcopt import tree
from funcopt.compile import compile
from funcopt.testing.comparison import at, require, require_close, require_close_run, storage_factor
from funcopt.testing.law import law
from funcopt.testing.remake import hyperparameters, remake, remaker
from funcopt.testing.trajectory import Step, drawn_case, follow, generic_case, zeros
from funcopt.transform import apply_updates

BACKEND = "aot_eager"
"""Traces and functionalises as Inductor does, without generating code."""
_MODELS = 3


@law(share=0.1)
def compiled(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any, backend: str = BACKEND) -> None:
    """Compiled, a step is one graph that serves all steps, and gives the eager numbers."""

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params, **extra)
        return updates, state, apply_updates(params, updates)

    params, gradients = drawn_case(params, gradients[:4], torch.float32, more=2)
    with torch.no_grad():
        expected = follow(tx, params, gradients, extra)
        start = _start(tx, params)
        run, found = _fresh(step, backend), [start]
        for number, grads in enumerate(gradients):
            stance = "default" if number == 0 else "fail_on_recompile"
            with torch.compiler.set_stance(stance):
                found.append(Step(*run(found[-1].params, found[-1].state, grads)))
        factor = storage_factor(declared, torch.float32)
        require_close_run(found[1:], expected, "compiled", start=start, factor=factor)


def _start(tx: Any, params: Any) -> Step:
    """What is there before the first step."""
    return Step(zeros(params), tx.init(params), params)


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
    params, gradients = drawn_case(params, gradients[:1], torch.float32, more=2)

    def updates_of(values: Any, params: Any, grads: Any) -> Any:
        made = make(values)
        return made.update(grads, made.init(params), params, **extra)[0]

    run = _fresh(updates_of, backend)
    for number, (factor, grads) in enumerate(zip((1.0, 0.9, 0.5), gradients)):
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
    models = [drawn_case(params, gradients)]
    for shift in range(100, 100 * _MODELS, 100):
        models.append(generic_case(*models[0], shift=shift))
    stacked = _stack([start for start, _ in models])
    state = vmap(tx.init)(stacked)
    for path, leaf in tree.leaves_with_path(state):
        expanded = any(stride == 0 for stride in leaf.stride()) and leaf.numel() > 0
        require(not expanded, f"{at('vmap(init) gives an expanded state', path)}; make it from a leaf of params.")
    update = vmap(lambda grads, state, params: tx.update(grads, state, params, **extra))
    found = [Step(zeros(stacked), state, stacked)]
    for grads in zip(*(gradients for _, gradients in models)):
        updates, state = update(_stack(list(grads)), *found[-1][1:])
        found.append(Step(updates, state, vmap(apply_updates)(found[-1].params, updates)))
    loop = zip(*(follow(tx, *model, extra) for model in models))
    expected = [_stack(list(steps)) for steps in loop]
    require_close_run(found[1:], expected, "vmapped", start=found[0], factor=storage_factor(declared, torch.float64))


def _stack(trees: list[Any]) -> Any:
    return tree.map(lambda *leaves: torch.stack(leaves), *trees)


@law(_has_hyperparameters, share=0.25, remedy="Declared(hyperparameters=...) with those that may be tensors")
def vmap_over_hyperparameters(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """vmap over a hyperparameter gives what a loop over its values gives."""
    params, gradients = drawn_case(params, gradients, more=1)
    factor, start = storage_factor(declared, torch.float64), _start(tx, params)
    for name, value in hyperparameters(tx, declared).items():
        values = value * torch.tensor([1.0, 0.7, 0.4], dtype=torch.float64)

        def trained(value: Any, name: str = name) -> Any:
            return follow(remake(tx, **{name: value}), params, gradients, extra)

        loop = _stack([trained(each.item()) for each in values])
        require_close_run(vmap(trained)(values), loop, f"over {name}", start=start, factor=factor)


@law(_has_hyperparameters, share=0.25, remedy="Declared(hyperparameters=...) with those that may be tensors")
def tensors_mean_numbers(tx: Any, params: Any, gradients: Any, *, extra: Any, declared: Any) -> None:
    """A hyperparameter given as a 0-d tensor means what its number means."""
    params, gradients = drawn_case(params, gradients, more=1)
    expected, start = follow(tx, params, gradients, extra), _start(tx, params)
    factor = storage_factor(declared, torch.float64)
    for name, value in hyperparameters(tx, declared).items():
        made = remake(tx, **{name: torch.tensor(value, dtype=torch.float64)})
        found = follow(made, params, gradients, extra)
        require_close_run(found, expected, f"{name} a tensor", start=start, factor=factor)
