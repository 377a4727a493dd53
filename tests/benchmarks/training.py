"""Whole training steps of a small GPT: loss, gradient, clipping and update."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from torch.nn import functional

import funcopt as fo
from tests.benchmarks.contenders import DECAY, MAX_NORM, RATE

Step = Callable[[], Any]
VOCABULARY, LENGTH, BATCH = 512, 64, 8


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.qkv(self.norms[0](x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(*parts.unbind(), is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.gelu(self.up(self.norms[1](x))))


class Gpt(nn.Module):
    """d = 128, 4 layers: 52 leaves, 0.9 million numbers."""

    def __init__(self, width: int = 128, layers: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, width), nn.Embedding(LENGTH, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def batch() -> tuple[Tensor, Tensor]:
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def model() -> Gpt:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Gpt()


def funcopt_step(**options: Any) -> Step:
    """All of it in one compiled graph, with the parameters in few buffers; the loss is what a call returns."""
    net, (inputs, targets) = model(), batch()
    params = fo.pack({name: leaf.detach() for name, leaf in net.named_parameters()})
    optimizer = fo.chain(fo.clip_by_global_norm(MAX_NORM), fo.adamw(RATE, weight_decay=DECAY))

    def loss_fn(params: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(functional_call(net, fo.unpack(params), (inputs,)), targets)

    def step(params: Any, state: Any, inputs: Tensor, targets: Tensor) -> Any:
        grads, loss = grad_and_value(loss_fn)(params, inputs, targets)
        updates, state = optimizer.update(grads, state, params)
        return fo.apply_updates(params, updates), state, loss

    compiled = fo.compile(step, donate_argnums=(0, 1), **options)
    carried = [params, optimizer.init(params)]

    def once() -> Tensor:
        carried[0], carried[1], loss = compiled(*carried, inputs, targets)
        return loss

    return once


def torch_step(compiled: bool, **options: Any) -> Step:
    net, (inputs, targets) = model(), batch()
    optimizer = torch.optim.AdamW(net.parameters(), RATE, weight_decay=DECAY, **options)
    forward = torch.compile(net) if compiled else net

    def once() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(forward(inputs), targets)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), MAX_NORM)
        optimizer.step()
        return loss.detach()

    return once


def steps() -> dict[str, Step]:
    return {
        "funcopt packed": funcopt_step(),
        "torch compiled, fused AdamW": torch_step(True, fused=True),
        "torch eager": torch_step(False),
    }
