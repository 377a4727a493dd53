"""torch.optim.swa_utils, where a script looks for it that says funcopt.optim for torch.optim."""

from torch.optim.swa_utils import *  # noqa: F403
