"""Accelerate: prepared optimizers and schedulers, accumulation and clipping, states saved and loaded."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader, TensorDataset

from tests.interop.runs import assert_moved, assert_same, data, every_pair, network

pytestmark = [pytest.mark.slow]


@pytest.fixture(autouse=True)
def no_state_is_left():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    assert not PartialState._shared_state


class Session:
    """Accelerate's loop around one optimizer."""

    def __init__(self, make, folder) -> None:
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, project_dir=folder)
        model = network()
        optimizer = make(model.parameters())
        loader = DataLoader(TensorDataset(*data()), batch_size=4)
        scheduler = ExponentialLR(optimizer, 0.9)
        self.model, self.optimizer, self.loader, self.scheduler = self.accelerator.prepare(
            model, optimizer, loader, scheduler
        )

    def train(self, epochs: int) -> None:
        for _ in range(epochs):
            for x, y in self.loader:
                with self.accelerator.accumulate(self.model):
                    loss = torch.nn.functional.mse_loss(self.model(x), y)
                    self.accelerator.backward(loss)
                    if self.accelerator.sync_gradients:
                        self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
                    self.optimizer.step()
                    self.scheduler.step()
                    self.optimizer.zero_grad()


@every_pair
def test_training_and_resuming(pair, tmp_path):
    mine, theirs = (Session(make, tmp_path) for make in pair.makers())
    for session in (mine, theirs):
        session.train(2)
    assert_same(mine.model, theirs.model)
    mine.accelerator.save_state(tmp_path / "half")
    for session in (mine, theirs):
        session.train(2)
    assert_same(mine.model, theirs.model)
    assert_moved(mine.model, network())
    assert mine.scheduler.get_last_lr() == theirs.scheduler.get_last_lr()

    resumed = Session(pair.makers()[0], tmp_path)
    resumed.accelerator.load_state(tmp_path / "half")
    resumed.train(2)
    assert_same(resumed.model, mine.model, tolerance=0)
