"""Compose an optimizer of parts, look at it, and train a small network on handwritten digits with it.

    python examples/compose.py                  clipping, AdamW and SGD by group, a schedule, averages, metrics
    python examples/compose.py --no-compile     without waiting for the compiler

From top to bottom: data, model, optimizer, step, training loop. The optimizer is the subject; a training script with
checkpoints and pictures is train_digits.py.
"""

import argparse
import sys

try:
    import torch
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from torch import Tensor, nn
    from torch.func import grad_and_value

    import funcopt as fo
except ModuleNotFoundError as missing:
    sys.stderr.write(f'compose: {missing}; install what the examples need: pip install "funcopt[examples]"\n')
    sys.exit(2)

BATCH, WIDTH = 128, 64


def load() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """scikit-learn's 1,797 digits: images to train on and to test on, (n, 64) in [0, 1], and their labels."""
    digits = load_digits()
    parts = train_test_split(digits.data / 16, digits.target, test_size=360, stratify=digits.target, random_state=0)
    train, test, train_labels, test_labels = (torch.as_tensor(part) for part in parts)
    return train.float(), train_labels, test.float(), test_labels


def init_params(key: Tensor) -> dict[str, dict[str, Tensor]]:
    first, second = fo.random.split(key).unbind(0)
    return {
        "body": {"weight": fo.random.normal(first, (WIDTH, 64)) / 4, "bias": torch.zeros(WIDTH)},
        "head": {"weight": fo.random.normal(second, (10, WIDTH)) / 8, "bias": torch.zeros(10)},
    }


def logits_of(params, images):
    hidden = torch.relu(images @ params["body"]["weight"].T + params["body"]["bias"])
    return hidden @ params["head"]["weight"].T + params["head"]["bias"]


def loss_fn(params, images, labels):
    return nn.functional.cross_entropy(logits_of(params, images), labels)


def make_optimizer(steps: int) -> fo.GradientTransformation:
    """Clipping over all leaves; AdamW for matrices, SGD for biases; averages of all parameters; metrics around it."""
    schedule = fo.warmup_cosine_decay_schedule(0.0, 0.01, warmup_steps=steps // 10, decay_steps=steps)
    by_group = fo.partition(
        {"matrices": fo.adamw(schedule, weight_decay=0.01), "biases": fo.sgd(0.05, momentum=0.9)},
        {"*weight": "matrices", "*bias": "biases"},
    )
    return fo.with_metrics(fo.ema_params(fo.chain(fo.clip_by_global_norm(1.0), by_group), decay=0.98))


def make_step(optimizer: fo.GradientTransformation):
    def step(params, state, images, labels):
        grads, loss = grad_and_value(loss_fn)(params, images, labels)
        updates, state = optimizer.update(grads, state, params)
        return fo.apply_updates(params, updates), state, loss

    return step


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="compose.py", description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=20, help="passes over the training images (%(default)s)")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="run without torch.compile")
    args = parser.parse_args(argv)
    if args.epochs < 1:
        parser.error(f"argument --epochs: must be at least 1, got {args.epochs}")

    torch.set_num_threads(1)  # so small a network is no faster on two
    images, labels, test_images, test_labels = load()
    per_epoch = len(images) // BATCH
    optimizer = make_optimizer(args.epochs * per_epoch)
    params = init_params(fo.random.key(0))
    print(f"{optimizer}\n\n{fo.describe(optimizer, params)}\n")

    state = optimizer.init(params)
    step = fo.compile(make_step(optimizer), donate_argnums=(0, 1)) if args.compile else make_step(optimizer)
    print("epoch |   loss | " + " | ".join(short(name) for name in fo.metrics(state)))
    for epoch in range(1, args.epochs + 1):
        order = fo.random.bits(fo.random.fold_in(fo.random.key(1), epoch), (len(images),)).argsort()
        for batch in order[: per_epoch * BATCH].split(BATCH):
            params, state, loss = step(params, state, images[batch], labels[batch])
        shown = " | ".join(f"{value.item():{len(short(name))}.4g}" for name, value in fo.metrics(state).items())
        print(f"{epoch:5} | {loss.item():6.4f} | {shown}")

    averaged = fo.eval_params(state, params)
    for name, chosen in (("last", params), ("averaged", averaged)):
        right = (logits_of(chosen, test_images).argmax(-1) == test_labels).float().mean().item()
        print(f"test accuracy with the {name} parameters: {right:.2%}")


def short(name: str) -> str:
    """The heading of a metric's column."""
    return name.replace("learning_rate", "rate").replace("gradient", "grad").replace("_", " ").rjust(8)


if __name__ == "__main__":
    main()
