"""The Trainer of Hugging Face: a tiny language model made from its configuration, trained and resumed."""

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from torch.optim.lr_scheduler import LinearLR
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from tests.interop.runs import assert_moved, assert_same, every_pair

pytestmark = [pytest.mark.slow]


@pytest.fixture(autouse=True)
def no_state_is_left():
    """The Trainer runs on Accelerate, which keeps what it found in the class."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def language_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=1,
        num_attention_heads=2,
        hidden_size=8,
        intermediate_size=16,
        vocab_size=16,
        max_position_embeddings=8,
        use_cache=False,
    )
    return LlamaForCausalLM(config).double()


def sentences() -> list[dict[str, torch.Tensor]]:
    tokens = torch.randint(16, (16, 8), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row} for row in tokens]


def arguments(folder) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=8,
        per_device_train_batch_size=4,
        learning_rate=0.01,
        weight_decay=0.1,
        warmup_steps=2,
        save_steps=4,
        logging_steps=2,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        seed=3,
    )


def trained(folder, resume=None, **how):
    model = language_model()
    trainer = Trainer(model=model, args=arguments(folder), train_dataset=sentences(), **how)
    trainer.train(resume_from_checkpoint=resume)
    return model, trainer


@every_pair
def test_class_and_arguments(pair, tmp_path):
    """The Trainer makes the optimizer, with groups that decay and groups that do not, and a schedule."""
    kwargs = {key: value for key, value in pair.kwargs.items() if key != "weight_decay"}
    mine, trainer = trained(tmp_path / "mine", optimizer_cls_and_kwargs=(pair.mine, kwargs))
    theirs, _ = trained(tmp_path / "theirs", optimizer_cls_and_kwargs=(pair.theirs, kwargs))
    assert isinstance(trainer.optimizer.optimizer, pair.mine)
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [0.1, 0.0]
    assert_same(mine, theirs, tolerance=1e-9)
    assert_moved(mine, language_model())

    checkpoint = str(tmp_path / "mine" / "checkpoint-4")
    resumed, _ = trained(tmp_path / "resumed", checkpoint, optimizer_cls_and_kwargs=(pair.mine, kwargs))
    assert_same(resumed, mine, tolerance=1e-9)


@every_pair
def test_an_optimizer_and_a_scheduler(pair, tmp_path):
    models = []
    for number, make in enumerate(pair.makers()):
        model = language_model()
        optimizer = make(model.parameters())
        scheduler = LinearLR(optimizer, 1.0, 0.1, total_iters=8)
        Trainer(
            model=model,
            args=arguments(tmp_path / str(number)),
            train_dataset=sentences(),
            optimizers=(optimizer, scheduler),
        ).train()
        models.append(model)
    assert_same(*models, tolerance=1e-9)
    assert_moved(models[0], language_model())
