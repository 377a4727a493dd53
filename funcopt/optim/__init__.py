"""The names of `torch.optim`, with the mathematics of funcopt; and the bridges between the two."""

from funcopt.optim.functionalize import (
    FunctionalizedState as FunctionalizedState,
    functionalize as functionalize,
)
