"""Sweeps: a thousand AdamW configurations on a test function, at once or one after the other."""

import functools
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import funcopt as fo
from funcopt.testing import problems
from tests.benchmarks import measure

PROBLEMS = {"rosenbrock": problems.rosenbrock, "beale": problems.beale}
SEQUENTIAL_A_TURN = 2
"""How many of the configurations torch runs in a turn; its time is scaled to all of them."""


def hyperparams(size: int) -> dict[str, Tensor]:
    return {"learning_rate": torch.logspace(-4, -1, size), "weight_decay": torch.logspace(-6, -2, size)}


def funcopt_sweep(name: str, size: int, steps: int, **options: Any) -> Callable[[], Any]:
    problem, values = PROBLEMS[name](), hyperparams(size)
    params = problem.params.float()
    train = fo.sweep(fo.adamw, problem.loss, steps=steps, **options)
    return lambda: train(params, values)


def torch_sequential(name: str, size: int, steps: int) -> Callable[[], Any]:
    """Some of the runs, taken evenly from all; `race` scales."""
    problem, values = PROBLEMS[name](), hyperparams(size)
    rows = torch.linspace(0, size - 1, SEQUENTIAL_A_TURN).long().tolist()

    def run() -> list[Tensor]:
        return [_train(problem, {key: value[i].item() for key, value in values.items()}, steps) for i in rows]

    return run


def _train(problem: problems.Problem, settings: dict[str, float], steps: int) -> Tensor:
    params = torch.nn.Parameter(problem.params.float())
    optimizer = torch.optim.AdamW([params], lr=settings["learning_rate"], weight_decay=settings["weight_decay"])
    for _ in range(steps):
        optimizer.zero_grad()
        problem.loss(params).backward()
        optimizer.step()
    return params.detach()


def optax_sweep(name: str, size: int, steps: int) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp
    import optax

    def rosenbrock(p: Any) -> Any:
        return (100 * (p[1:] - p[:-1] ** 2) ** 2 + (1 - p[:-1]) ** 2).sum()

    def beale(p: Any) -> Any:
        x, y = p
        return sum((constant - x + x * y**power) ** 2 for power, constant in enumerate((1.5, 2.25, 2.625), 1))

    loss = {"rosenbrock": rosenbrock, "beale": beale}[name]
    start = jnp.asarray(PROBLEMS[name]().params.float().numpy())
    values = {key: jnp.asarray(value.numpy()) for key, value in hyperparams(size).items()}

    def train(settings: Any) -> Any:
        optimizer = optax.adamw(**settings)

        def step(carry: Any, _: None) -> Any:
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        (params, _), losses = jax.lax.scan(step, (start, optimizer.init(start)), None, length=steps)
        return params, losses

    compiled = jax.jit(jax.vmap(train))
    return lambda: jax.block_until_ready(compiled(values))


def race(name: str, turns: int, size: int = 1000, steps: int = 2000) -> measure.Race:
    runs = {"funcopt sweep": funcopt_sweep(name, size, steps), "torch sequential": torch_sequential(name, size, steps)}
    if importlib.util.find_spec("optax") is None:
        print("  without optax: it is not installed (pip install -e '.[bench-optax]')", file=sys.stderr)
    else:
        runs["optax sweep"] = optax_sweep(name, size, steps)
    timings = {key: measure.start(key, functools.partial(run)) for key, run in runs.items()}
    scale = {"torch sequential": size / SEQUENTIAL_A_TURN}
    for _ in range(turns):
        for key, run in runs.items():
            timings[key].turns.append(1e3 * measure.seconds_of(run) * scale.get(key, 1))
    return measure.Race("sweep", name, "adamw", timings)
