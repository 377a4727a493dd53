"""Consumers of torch.optim are installed with the extra `interop`, for the slow tests; the others do without."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is imported; nothing is to be downloaded

NEED_THE_EXTRA = ("test_accelerate.py", "test_lightning.py", "test_transformers.py")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Without the slow tests, their files are not even imported; with them, what is missing is an error."""
    if collection_path.name in NEED_THE_EXTRA and config.getoption("markexpr") == "not slow":
        return True
    return None


@pytest.fixture(autouse=True)
def own_random_numbers():
    """Trainers seed torch's global generator, which is given back as it was."""
    with torch.random.fork_rng():
        yield


@pytest.fixture
def one_rank(tmp_path):
    """A process group of this process alone, which meets itself in a file."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
