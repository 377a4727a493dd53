"""A small network, and how the tests of the adapter train it."""

import torch

import funcopt as fo
from funcopt.optim import as_optimizer

AdamW = as_optimizer(fo.adamw)
SGD = as_optimizer(fo.sgd)


def network(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).to(dtype)


def two_groups(net, **overrides):
    return [{"params": [*net[0].parameters()]}, {"params": [*net[2].parameters()], **overrides}]


def train(net, optimizer, steps=3, start=0, after=lambda: None):
    dtype = next(net.parameters()).dtype
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        net(torch.randn(5, 3, generator=generator).to(dtype)).square().sum().backward()
        optimizer.step()
        after()


def numbers(net):
    return [p.detach().clone() for p in net.parameters()]
