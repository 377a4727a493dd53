"""Hyperparameters in the state."""

from typing import Any

import torch
from torch import Tensor

import funcopt as fo
from tests.catalogue.entry import DECAY_MASK, Entry, decaying
from tests.catalogue.optimizers import ADAM

SCALARS = ("max_norm", "learning_rate", "b1", "b2", "eps", "eps_root", "weight_decay", "momentum")


@fo.factory
def clipped_momentum(
    max_norm: float | Tensor, learning_rate: fo.ScalarOrSchedule = 0.1, momentum: float | Tensor = 0.5, layers: int = 1
) -> fo.GradientTransformation:
    """What a user writes: a chain with arguments of its own, of which `layers` is no number to be tuned."""
    links = [fo.trace(momentum)] * layers
    return fo.chain(fo.clip_by_global_norm(max_norm), *links, fo.scale_by_learning_rate(learning_rate))


INJECTED = {make.__name__: fo.inject_hyperparams(make) for make in (fo.adamw, fo.sgd, clipped_momentum)}


def injected(
    factory: str,
    max_norm: Any = None,
    learning_rate: Any = None,
    b1: Any = None,
    b2: Any = None,
    eps: Any = None,
    eps_root: Any = None,
    weight_decay: Any = None,
    momentum: Any = None,
    **others: Any,
) -> fo.GradientTransformation:
    values = (max_norm, learning_rate, b1, b2, eps, eps_root, weight_decay, momentum)
    given = {name: value for name, value in zip(SCALARS, values) if value is not None}
    return INJECTED[factory](**given, **others)


def optax_injected(factory: str, **arguments: Any) -> Any:
    import optax

    def clipped_momentum(max_norm: Any, learning_rate: Any = 0.1, momentum: Any = 0.5, layers: int = 1) -> Any:
        links = [optax.trace(momentum)] * layers
        return optax.chain(optax.clip_by_global_norm(max_norm), *links, optax.scale_by_learning_rate(learning_rate))

    make = clipped_momentum if factory == "clipped_momentum" else getattr(optax, factory)
    static = {"clipped_momentum": "layers", "sgd": "accumulator_dtype", "adamw": ("mu_dtype", "mask")}[factory]
    return optax.inject_hyperparams(make, static_args=static)(**arguments)


HYPERPARAMS: tuple[Entry, ...] = (
    Entry(
        "inject_hyperparams",
        (
            {"factory": "adamw", "learning_rate": 0.05, "weight_decay": decaying, "mask": DECAY_MASK},
            {"factory": "adamw", "learning_rate": decaying, "b1": decaying, "mu_dtype": torch.bfloat16},
            {"factory": "sgd", "learning_rate": 0.05, "momentum": 0.8, "nesterov": True},
            {"factory": "clipped_momentum", "max_norm": 1.5, "momentum": decaying, "layers": 2},
            {"factory": "adamw", "learning_rate": 0.05, **ADAM, "weight_decay": 0.1},
        ),
        scalars=SCALARS,
        build=injected,
        optax=optax_injected,
    ),
)

HYPERPARAMS_ELSEWHERE: dict[str, str] = {
    "map_params": "tests/test_state_access.py",
    "get_hyperparams": "tests/wrappers/test_hyperparams.py",
    "set_hyperparams": "tests/wrappers/test_hyperparams.py",
}
"""Public functions that are no transformation, and the file that tests them."""
