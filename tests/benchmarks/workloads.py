"""What is optimised: trees of parameters like those of real models, and the update rules that are compared."""

from dataclasses import dataclass

import torch
from torch import Tensor

Shapes = list[tuple[int, ...]]


def mlp() -> Shapes:
    """784-128-128-10."""
    return [(128, 784), (128,), (128, 128), (128,), (10, 128), (10,)]


def many() -> Shapes:
    """300 small leaves."""
    return [(64, 64), (64,)] * 150


def gpt(layers: int = 12, width: int = 384, vocabulary: int = 8192) -> Shapes:
    """A transformer: 148 leaves, 24.5 million numbers."""
    block = [
        *[(width,), (width,)],
        *[(3 * width, width), (3 * width,), (width, width), (width,)],
        *[(width,), (width,)],
        *[(4 * width, width), (4 * width,), (width, 4 * width), (width,)],
    ]
    return [(vocabulary, width), (256, width), *(block * layers), (width,), (width,)]


def big() -> Shapes:
    """Two matrices of 4096 x 4096, and two vectors."""
    return [(4096, 4096), (4096,)] * 2


def leaves(n: int) -> Shapes:
    return [(64, 64)] * n


WORKLOADS = {"mlp": mlp, "many": many, "gpt": gpt, "big": big}
RULES = ("sgd", "adam", "adamw", "clip+adamw", "adagrad", "rmsprop")


@dataclass
class Problem:
    """Parameters and one gradient, as a dict of tensors."""

    name: str
    params: dict[str, Tensor]
    grads: dict[str, Tensor]

    @property
    def size(self) -> int:
        return sum(param.numel() for param in self.params.values())

    def copies(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        params, grads = ({name: leaf.clone() for name, leaf in part.items()} for part in (self.params, self.grads))
        return params, grads


def is_workload(name: str) -> bool:
    number = name.removeprefix("leaves-")
    return name in WORKLOADS or (number != name and number.isdecimal() and int(number) > 0)


def make(name: str) -> Problem:
    """The workload of that name; `leaves-N` has N leaves of 64 x 64."""
    shapes = leaves(int(name.removeprefix("leaves-"))) if name.startswith("leaves-") else WORKLOADS[name]()
    generator = torch.Generator().manual_seed(0)

    def draw(scale: float) -> dict[str, Tensor]:
        return {str(i): scale * torch.randn(shape, generator=generator) for i, shape in enumerate(shapes)}

    return Problem(name, draw(0.02), draw(0.01))
