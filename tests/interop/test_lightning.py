"""Lightning: automatic and manual optimisation, a scheduler, a checkpoint from which training goes on."""

import lightning
import pytest
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

from tests.interop.runs import assert_moved, assert_same, data, every_pair, network

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
]


class Automatic(lightning.LightningModule):
    def __init__(self, make) -> None:
        super().__init__()
        self.network = network()
        self.make = make

    def configure_optimizers(self):
        optimizer = self.make(self.parameters())
        return {"optimizer": optimizer, "lr_scheduler": StepLR(optimizer, 1, 0.7)}

    def training_step(self, batch, index):
        x, y = batch
        return nn.functional.mse_loss(self.network(x), y)


class Manual(Automatic):
    automatic_optimization = False

    def training_step(self, batch, index):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, index))
        optimizer.step()

    def on_train_epoch_end(self):
        self.lr_schedulers().step()


def fitted(module, folder, epochs: int, checkpoint=None, **options):
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, DataLoader(TensorDataset(*data()), batch_size=8), ckpt_path=checkpoint)
    return trainer


@every_pair
@pytest.mark.parametrize("kind", [Automatic, Manual])
def test_training_and_resuming(pair, kind, tmp_path):
    modules = [kind(make) for make in pair.makers()]
    for module in modules:
        trainer = fitted(module, tmp_path, epochs=4)
        assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(pair.kwargs["lr"] * 0.7**4)
    assert type(trainer.optimizers[0]) is pair.theirs
    assert_same(*modules)
    assert_moved(modules[0].network, network())

    make, _ = pair.makers()
    fitted(kind(make), tmp_path, epochs=2).save_checkpoint(tmp_path / "half.ckpt")
    resumed = kind(make)
    fitted(resumed, tmp_path, epochs=4, checkpoint=tmp_path / "half.ckpt")
    assert_same(resumed, modules[0], tolerance=0)


@every_pair
def test_clipping_and_accumulation(pair, tmp_path):
    modules = [Automatic(make) for make in pair.makers()]
    for module in modules:
        fitted(module, tmp_path, epochs=3, gradient_clip_val=0.5, accumulate_grad_batches=2)
    assert_same(*modules)
    assert_moved(modules[0].network, network())
