"""The drop-in classes beside torch's own, which are the reference, with the configurations that torch tests them on."""

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.testing._internal.common_optimizers import OptimizerInfo, optim_db

import funcopt.optim

SHAPES: dict[str, list[tuple[int, ...]]] = {"Muon": [(4, 5), (5, 4)]}
EXTRA: dict[str, list[dict[str, Any]]] = {
    "Adam": [
        {"betas": (0.5, 0.9), "weight_decay": 0.1, "decoupled_weight_decay": True},
        {"lr": 0.02, "eps": 1e-3, "amsgrad": True, "betas": (0.0, 0.5)},
    ],
    "AdamW": [{"betas": (0.5, 0.9), "eps": 1e-4, "weight_decay": 0.2, "amsgrad": True, "maximize": True}],
    "SGD": [
        {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1, "maximize": True},
        {"momentum": 0.5, "nesterov": True},
    ],
    "RMSprop": [{"momentum": 0.9}, {"centered": True}, {"alpha": 0.5, "eps": 1e-2}],
    "Rprop": [{"lr": 0.1, "etas": (0.3, 1.7), "step_sizes": (0.05, 0.2)}],
    "ASGD": [
        {"lr": 0.1, "lambd": 0.3, "alpha": 0.6, "t0": 1},
        {"lr": 0.1, "t0": -2, "weight_decay": 0.1, "maximize": True},
    ],
    "Adafactor": [
        {"lr": 0.5},
        {"lr": 0.3, "eps": (0.5, 0.7), "d": 1.5, "weight_decay": 0.2},
        {"eps": (1e-30, 1e-3), "beta2_decay": -0.5, "maximize": True},
    ],
    "Muon": [
        {"lr": 0.1, "adjust_lr_fn": "match_rms_adamw", "nesterov": False},
        {"momentum": 0.5, "adjust_lr_fn": "original", "weight_decay": 0.0},
    ],
    "Adagrad": [{"lr_decay": 0.1, "maximize": True}],
    "Adadelta": [{"rho": 0.5, "eps": 1e-3}, {"rho": 1.0}, {"rho": 0.0, "weight_decay": 0.1}],
    "Adamax": [{"betas": (0.8, 0.5), "eps": 1e-2}, {"betas": (0, 0)}],
    "NAdam": [
        {"betas": (0.8, 0.95), "eps": 1e-3, "momentum_decay": 0.5},
        {"betas": (0, 0.9), "decoupled_weight_decay": True, "weight_decay": 0.3, "maximize": True},
    ],
    "RAdam": [
        {"betas": (0.8, 0.9), "eps": 1e-3},  # rectified from the sixth step on
        {"betas": (0.5, 2 / 3)},  # never: its limit is 5
        {"betas": (0, 0.95), "decoupled_weight_decay": True, "weight_decay": 0.3, "maximize": True},
    ],
}
"""Configurations that torch's own data leave out."""


class Case(NamedTuple):
    """A configuration of a class."""

    info: OptimizerInfo
    kwargs: dict[str, Any]

    @property
    def name(self) -> str:
        return self.info.optim_cls.__name__

    @property
    def theirs(self) -> type[torch.optim.Optimizer]:
        return self.info.optim_cls

    @property
    def mine(self) -> type[torch.optim.Optimizer]:
        return getattr(funcopt.optim, self.name)

    def __str__(self) -> str:
        described = ",".join(f"{key}={value}" for key, value in self.kwargs.items())
        return f"{self.name}({described})"


INFOS = {info.optim_cls.__name__: info for info in optim_db if hasattr(funcopt.optim, info.optim_cls.__name__)}
OWN_TESTS = ("LBFGS", "SparseAdam")  # the one wants a closure, the other sparse gradients
DENSE = [name for name in INFOS if name not in OWN_TESTS]


def retargeted(name: str) -> OptimizerInfo:
    """Torch's description of the class, for ours."""
    info = copy.copy(INFOS[name])
    info.optim_cls = getattr(funcopt.optim, name)
    return info


def _cases() -> Iterator[Case]:
    for name in DENSE:
        info = INFOS[name]
        for given in info.optim_inputs_func("cpu"):
            yield Case(info, given.kwargs)
        for kwargs in EXTRA.get(name, []):
            yield Case(info, kwargs)


CASES = list(_cases())
FIRST = [next(case for case in CASES if case.name == name) for name in DENSE]


def random(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """The same numbers in every dtype, but for rounding."""
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(shape, generator=generator, dtype=wide).to(dtype)


def parameters(name: str, dtype: torch.dtype = torch.float64) -> list[torch.nn.Parameter]:
    """Parameters of shapes that the class allows."""
    generator = torch.Generator().manual_seed(0)
    shapes = SHAPES.get(name, [(), (3,), (4, 5), (2, 3, 4)])
    return [torch.nn.Parameter(random(shape, dtype, generator)) for shape in shapes]


def give_gradients(params: list[torch.nn.Parameter], step: int, *, late: bool = False) -> None:
    """Gradients that are the same for the same step, large and small; with `late`, some are missing."""
    generator = torch.Generator().manual_seed(step)
    for number, param in enumerate(params):
        size = 1e-4 if (step + number) % 3 == 0 else 1.0
        grad = size * random(param.shape, param.dtype, generator)
        param.grad = None if late and (step + number) % 4 == 0 else grad


def built(cls: Callable[..., torch.optim.Optimizer], params: Any, kwargs: dict[str, Any]) -> torch.optim.Optimizer:
    """An optimizer; a tensor among the arguments is copied, since schedulers write into it."""
    kwargs = {key: value.clone() if isinstance(value, Tensor) else value for key, value in kwargs.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cls(params, **kwargs)


def trajectory(
    cls: Callable[..., torch.optim.Optimizer], case: Case, *, steps: int = 8, late: bool = False, **options: Any
) -> tuple[list[list[Tensor]], torch.optim.Optimizer]:
    """The parameters after each step, and the optimizer."""
    dtype = options.pop("dtype", torch.float64)
    params = parameters(case.name, dtype)
    optimizer = built(cls, params, case.kwargs | options)
    history = []
    for step in range(steps):
        give_gradients(params, step, late=late)
        optimizer.step()
        history.append([param.detach().clone() for param in params])
    return history, optimizer


TOLERANCE = {"ASGD": 2e-6, "Muon": 1e-2}
"""Relative to the way travelled, 1e-9 elsewhere. Torch keeps scalars of ASGD in float32, Muon in bfloat16."""


def assert_same_way(mine: list[list[Tensor]], theirs: list[list[Tensor]], tolerance: float) -> None:
    """The two histories differ by no more than `tolerance` times the way from the first to the last."""
    way = max(float((a - b).abs().max()) for a, b in zip(theirs[0], theirs[-1]) if a.numel())
    for step, (ours, reference) in enumerate(zip(mine, theirs)):
        for number, (a, b) in enumerate(zip(ours, reference)):
            torch.testing.assert_close(
                a, b, rtol=0, atol=tolerance * way, msg=lambda m, s=step, n=number: f"step {s}, parameter {n}: {m}"
            )
