"""How often a compiled step is compiled anew, where rates move and states are replaced."""

import torch
from torch._dynamo.utils import counters

import funcopt as fo
from funcopt import tree
from tests.benchmarks import workloads
from tests.benchmarks.contenders import update_step


def count(workload: str = "mlp", steps: int = 100, **options: object) -> int:
    """Graphs beyond the first in `steps` steps: a moving schedule, then rates that are set, then a resumed state."""
    optimizer = fo.inject_hyperparams(fo.adamw)(fo.cosine_decay_schedule(0.1, steps), b1=0.9)
    params, grads = workloads.make(workload).copies()
    packed = fo.pack(params)
    state, grads = optimizer.init(packed), fo.pack_like(grads, packed)
    torch._dynamo.reset()
    step = fo.compile(update_step(optimizer), donate_argnums=(0, 1), **options)
    before = counters["stats"]["unique_graphs"]
    for i in range(steps):
        if i > steps // 3:
            state = fo.set_hyperparams(state, b1=torch.tensor(0.9 - i / 1000))
        if i == 2 * steps // 3:
            packed, state = tree.clone((packed, state))
        packed, state = step(packed, state, grads)
    return counters["stats"]["unique_graphs"] - before - 1
