"""Settings for all tests."""

import hypothesis
import torch

torch.set_num_threads(1)  # the tests run in two processes, and their tensors are small

hypothesis.settings.register_profile("tests", derandomize=True, deadline=None)  # a run says the same again
hypothesis.settings.load_profile("tests")
