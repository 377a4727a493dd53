"""Who takes part: each turns a problem and a rule into a function of no arguments that makes one step."""

import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import funcopt as fo
import funcopt.optim
from tests.benchmarks.workloads import Problem

Step = Callable[[], Any]
RATE, DECAY, MAX_NORM = 1e-3, 1e-2, 1.0
PACKED, GATHERED, SEPARATE = "funcopt packed", "funcopt gathered", "funcopt separate"


# ------------------------------------------------------------------------------------------------------ funcopt


def transformation(rule: str) -> fo.GradientTransformation:
    return {
        "sgd": lambda: fo.sgd(RATE, momentum=0.9),
        "adam": lambda: fo.adam(RATE),
        "adamw": lambda: fo.adamw(RATE, weight_decay=DECAY),
        "clip+adamw": lambda: fo.chain(fo.clip_by_global_norm(MAX_NORM), fo.adamw(RATE, weight_decay=DECAY)),
        "adagrad": lambda: fo.adagrad(RATE),
        "rmsprop": lambda: fo.rmsprop(RATE, decay=0.99, eps_in_sqrt=False),
    }[rule]()


def update_step(optimizer: fo.GradientTransformation) -> Callable[..., Any]:
    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return fo.apply_updates(params, updates), state

    return step


def looped(step: Callable[..., Any], params: Any, state: Any, grads: Any) -> Step:
    carried = [params, state]

    def once() -> None:
        carried[:] = step(*carried, grads)

    return once


def funcopt_eager(problem: Problem, rule: str) -> Step:
    params, grads = problem.copies()
    optimizer = transformation(rule)
    return looped(update_step(optimizer), params, optimizer.init(params), grads)


def funcopt_separate(problem: Problem, rule: str) -> Step:
    """Parameters, state and gradients are separate tensors, and stay so."""
    params, grads = problem.copies()
    optimizer = transformation(rule)
    return looped(fo.compile_update(optimizer), params, optimizer.init(params), grads)


def funcopt_packed(problem: Problem, rule: str) -> Step:
    """The gradients arrive packed, as `torch.func.grad` of a packed tree gives them."""
    params, grads = problem.copies()
    packed, optimizer = fo.pack(params), transformation(rule)
    step = fo.compile(update_step(optimizer), donate_argnums=(0, 1))
    return looped(step, packed, optimizer.init(packed), fo.pack_like(grads, packed))


def funcopt_gathered(problem: Problem, rule: str) -> Step:
    """The gradients arrive as separate tensors, and are gathered within the step."""
    params, grads = problem.copies()
    packed, optimizer = fo.pack(params), transformation(rule)
    inner = update_step(optimizer)

    def step(params: Any, state: Any, grads: Any) -> Any:
        return inner(params, state, fo.pack_like(grads, params))

    return looped(fo.compile(step, donate_argnums=(0, 1)), packed, optimizer.init(packed), grads)


# -------------------------------------------------------------------------------------------------- torch.optim


def imperative(rule: str, params: list[Tensor], module: Any, **options: Any) -> torch.optim.Optimizer:
    return {
        "sgd": lambda: module.SGD(params, RATE, momentum=0.9, **options),
        "adam": lambda: module.Adam(params, RATE, **options),
        "adamw": lambda: module.AdamW(params, RATE, weight_decay=DECAY, **options),
        "clip+adamw": lambda: module.AdamW(params, RATE, weight_decay=DECAY, **options),
        "adagrad": lambda: module.Adagrad(params, RATE, initial_accumulator_value=0.1, eps=1e-7, **options),
        "rmsprop": lambda: module.RMSprop(params, RATE, **options),
    }[rule]()


def torch_step(compiled: bool = False, module: Any = torch.optim, **options: Any) -> Callable[[Problem, str], Step]:
    def build(problem: Problem, rule: str) -> Step:
        values, grads = problem.copies()
        params = [torch.nn.Parameter(value) for value in values.values()]
        optimizer = imperative(rule, params, module, **options)
        step = torch.compile(optimizer.step) if compiled else optimizer.step

        def once() -> None:
            for param, grad in zip(params, grads.values()):
                param.grad = grad
            if rule == "clip+adamw":
                torch.nn.utils.clip_grad_norm_(params, MAX_NORM)
            step()

        return once

    return build


# -------------------------------------------------------------------------------------------------------- others


def optax_jitted(problem: Problem, rule: str) -> Step:
    import jax
    import jax.numpy as jnp
    import optax

    optimizer = {
        "sgd": lambda: optax.sgd(RATE, momentum=0.9),
        "adam": lambda: optax.adam(RATE),
        "adamw": lambda: optax.adamw(RATE, weight_decay=DECAY),
        "clip+adamw": lambda: optax.chain(optax.clip_by_global_norm(MAX_NORM), optax.adamw(RATE, weight_decay=DECAY)),
        "adagrad": lambda: optax.adagrad(RATE),
        "rmsprop": lambda: optax.rmsprop(RATE, decay=0.99, eps_in_sqrt=False),
    }[rule]()
    params, grads = ({name: jnp.asarray(leaf.numpy()) for name, leaf in part.items()} for part in problem.copies())

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    jitted = jax.jit(step, donate_argnums=(0, 1))
    carried = [params, optimizer.init(params)]

    def once() -> None:
        carried[:] = jitted(*carried, grads)
        jax.block_until_ready(carried)

    return once


def torchopt_eager(problem: Problem, rule: str) -> Step | None:
    import torchopt

    factories = {"sgd": torchopt.sgd, "adam": torchopt.adam, "adamw": torchopt.adamw, "rmsprop": torchopt.rmsprop}
    if rule not in factories:
        return None
    options = {"sgd": {"momentum": 0.9}, "adamw": {"weight_decay": DECAY}}.get(rule, {})
    optimizer = factories[rule](RATE, **options)
    params, grads = problem.copies()
    carried = [params, optimizer.init(params)]

    def once() -> None:
        updates, carried[1] = optimizer.update(grads, carried[1], params=carried[0], inplace=False)
        carried[0] = torchopt.apply_updates(carried[0], updates, inplace=False)

    return once


def heavyball_step(problem: Problem, rule: str) -> Step | None:
    import heavyball

    if rule != "adamw":
        return None
    values, grads = problem.copies()
    params = [torch.nn.Parameter(value) for value in values.values()]
    optimizer = heavyball.AdamW(params, lr=RATE, betas=(0.9, 0.999), weight_decay=DECAY)

    def once() -> None:
        for param, grad in zip(params, grads.values()):
            param.grad = grad.clone()  # it may write into the gradient, and takes it away
        optimizer.step()

    return once


STREAMS = {"sgd": 5, "adam": 7, "adamw": 7, "clip+adamw": 8, "adagrad": 5, "rmsprop": 5}
"""How often each number must be moved: p, g and the state read, p and the state written; g twice to clip."""


def memory_limit(problem: Problem, rule: str) -> Step:
    """No contender: a sum of two vectors that moves as many bytes as the rule must."""
    a, b, c = (torch.ones(STREAMS[rule] * problem.size // 3) for _ in range(3))
    return lambda: torch.add(a, b, out=c)


CONTENDERS: dict[str, Callable[[Problem, str], Step | None]] = {
    PACKED: funcopt_packed,
    GATHERED: funcopt_gathered,
    SEPARATE: funcopt_separate,
    "funcopt eager": funcopt_eager,
    "funcopt.optim": torch_step(module=funcopt.optim),
    "funcopt.optim compiled": torch_step(module=funcopt.optim, compile=True),
    "torch fused": torch_step(fused=True),
    "torch foreach": torch_step(foreach=True),
    "torch loop": torch_step(foreach=False),
    "torch compiled": torch_step(compiled=True),
    "optax jitted": optax_jitted,
    "TorchOpt": torchopt_eager,
    "HeavyBall": heavyball_step,
    "memory limit": memory_limit,
}
NEEDS = {"optax jitted": "optax", "TorchOpt": "torchopt", "HeavyBall": "heavyball"}
FUSED = ("sgd", "adam", "adamw", "clip+adamw", "adagrad")
"""The rules for which torch.optim has a fused kernel on the CPU."""
ONLY_ADAMW = ("funcopt eager", "funcopt.optim compiled", "TorchOpt", "HeavyBall")
"""Raced with one rule only, unless all is wanted: that of the targets."""
COMPILED_BY_LEAF = ("torch compiled",)
MANY_LEAVES = 60


def takes_part(name: str, problem: Problem, rule: str, everything: bool = False) -> str | None:
    """Why a contender does not take part, or None."""
    package = NEEDS.get(name)
    if package and importlib.util.find_spec(package) is None:
        return f"{package} is not installed (pip install -e '.[bench-{package}]')"
    if name == "torch fused" and rule not in FUSED:
        return f"torch has no fused {rule}"
    if name == "memory limit" and problem.name != "big":
        return "smaller workloads stay in the caches"
    if everything:
        return None
    if (name in ONLY_ADAMW and rule != "adamw") or (name == "torch compiled" and rule not in ("adamw", "rmsprop")):
        return "in the race of adamw (--all)"
    if name in COMPILED_BY_LEAF and len(problem.params) > MANY_LEAVES:
        return f"{len(problem.params)} leaves may compile for minutes (--all)"
    return None


def steps_for(names: list[str], problem: Problem, rule: str, everything: bool) -> dict[str, Step]:
    """The steps of all who take part; who does not is told on the terminal."""
    steps = {}
    for name in names:
        reason = takes_part(name, problem, rule, everything)
        step = None if reason else CONTENDERS[name](problem, rule)
        if step is None:
            print(f"  without {name}: {reason or 'it does not have this rule'}", file=sys.stderr)
        else:
            steps[name] = step
    return steps
