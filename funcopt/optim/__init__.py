"""The face of torch.optim: `import funcopt.optim as optim` in the place of `import torch.optim as optim`."""

from torch.optim import (
    lr_scheduler as lr_scheduler,
    swa_utils as swa_utils,
    swap_in_optimizer_params_and_state as swap_in_optimizer_params_and_state,
)

from funcopt.optim.adagrad import Adagrad as Adagrad
from funcopt.optim.adam import Adam as Adam, AdamW as AdamW
from funcopt.optim.functionalize import (
    FunctionalizedState as FunctionalizedState,
    functionalize as functionalize,
)
from funcopt.optim.lbfgs import LBFGS as LBFGS
from funcopt.optim.optimizer import Optimizer as Optimizer
from funcopt.optim.rmsprop import RMSprop as RMSprop
from funcopt.optim.sgd import SGD as SGD
from funcopt.optim.sparse_adam import SparseAdam as SparseAdam
