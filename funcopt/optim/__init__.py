"""The face of torch.optim: `import funcopt.optim as optim` in the place of `import torch.optim as optim`."""

from torch.optim import swap_in_optimizer_params_and_state as swap_in_optimizer_params_and_state

from funcopt.optim import lr_scheduler as lr_scheduler, swa_utils as swa_utils
from funcopt.optim.adadelta import Adadelta as Adadelta
from funcopt.optim.adafactor import Adafactor as Adafactor
from funcopt.optim.adagrad import Adagrad as Adagrad
from funcopt.optim.adam import Adam as Adam, AdamW as AdamW
from funcopt.optim.adamax import Adamax as Adamax
from funcopt.optim.adapter import TransformationOptimizer as TransformationOptimizer
from funcopt.optim.asgd import ASGD as ASGD
from funcopt.optim.classes import as_optimizer as as_optimizer
from funcopt.optim.conversion import state_from_torch as state_from_torch, state_to_torch as state_to_torch
from funcopt.optim.functionalize import FunctionalizedState as FunctionalizedState, functionalize as functionalize
from funcopt.optim.lbfgs import LBFGS as LBFGS
from funcopt.optim.muon import Muon as Muon
from funcopt.optim.nadam import NAdam as NAdam
from funcopt.optim.optimizer import Optimizer as Optimizer
from funcopt.optim.radam import RAdam as RAdam
from funcopt.optim.rmsprop import RMSprop as RMSprop
from funcopt.optim.rprop import Rprop as Rprop
from funcopt.optim.sgd import SGD as SGD
from funcopt.optim.sparse_adam import SparseAdam as SparseAdam
