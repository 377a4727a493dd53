"""Settings for all tests."""

import torch

torch.set_num_threads(1)  # the tests run in two processes, and their tensors are small
