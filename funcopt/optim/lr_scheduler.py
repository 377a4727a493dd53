"""torch.optim.lr_scheduler, where a script looks for it that says funcopt.optim for torch.optim."""

from torch.optim.lr_scheduler import *  # noqa: F403
from torch.optim.lr_scheduler import _LRScheduler as _LRScheduler  # the name of old scripts
