"""Train a small convolutional network on handwritten digits with funcopt, in a functional loop.

    python examples/train_digits.py                 writes runs/digits: curves.png, predictions.png, metrics.json, ...
    python examples/train_digits.py --resume        goes on where an interrupted run stopped, bit for bit
    python examples/train_digits.py --no-compile --out runs/eager            without waiting for the compiler
    python examples/train_digits.py --ensemble 5 --out runs/ensemble         five seeds at once, by torch.func.vmap

From top to bottom: data, model, optimizer, step, training loop, command line. Everything random comes from keys made
of --seed; checkpoints are in digits_checkpoint.py, tables and pictures in digits_report.py. A run with the options of
the one before replaces its results, which are the same; results of other options are kept unless told --overwrite.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

try:
    import matplotlib  # noqa: F401 (for digits_report)
    import torch
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from torch import Tensor, nn
    from torch.func import functional_call, grad_and_value, vmap
    from tqdm import tqdm

    import funcopt as fo
except ModuleNotFoundError as missing:
    sys.stderr.write(f'train_digits: {missing}; install what the examples need: pip install "funcopt[examples]"\n')
    sys.exit(2)

import digits_checkpoint as checkpoint
import digits_report as report
from digits_checkpoint import Progress, UsageError

# ---------------------------------------------------------------------------------------------------------------- data


TRAIN, VALIDATION, TEST = 1257, 180, 360  # images


class Split(NamedTuple):
    images: Tensor  # (n, 1, 8, 8), ink in [0, 1]
    labels: Tensor  # (n,), 0 to 9


def load_splits() -> tuple[Split, Split, Split]:
    """scikit-learn's 1,797 digits to train on, to validate on and to test on: a fixed, stratified split."""
    digits = load_digits()
    images, labels = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(digits.target)
    rest, test = train_test_split(range(len(labels)), test_size=TEST, stratify=labels, random_state=0)
    train, validation = train_test_split(rest, test_size=VALIDATION, stratify=labels[rest], random_state=0)
    return tuple(Split(images[part], labels[part]) for part in (train, validation, test))


def draw_epoch(key: Tensor, train: Split, batch_size: int) -> tuple[Tensor, Tensor]:
    """The batches of one epoch, (steps, batch, 1, 8, 8) and (steps, batch): shuffled, and shifted by up to a pixel.

    The remainder is dropped, so that all batches have one size, and the step is compiled once.
    """
    order_key, shift_key = fo.random.split(key).unbind(0)
    order = fo.random.bits(order_key, (len(train.labels),)).argsort(stable=True)
    order = order[: len(order) // batch_size * batch_size].unflatten(0, (-1, batch_size))
    # All nine windows of the padded images, (n, 1, 3, 3, 8, 8); one is drawn for each image.
    windows = nn.functional.pad(train.images, (1, 1, 1, 1)).unfold(2, 8, 1).unfold(3, 8, 1)
    down, right = fo.random.uniform(shift_key, (2, *order.shape), maxval=3).long().unbind(0)
    return windows[order, :, down, right], train.labels[order]


# --------------------------------------------------------------------------------------------------------------- model


def make_model(width: int) -> nn.Module:
    """Three convolutions and a linear layer, as a shape only: tensors on "meta" hold no numbers, the params do."""
    with torch.device("meta"):
        return nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.GELU(),
            nn.MaxPool2d(2),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(2 * width * 4 * 4, 10),
        )


def init_params(model: nn.Module, key: Tensor) -> dict[str, Tensor]:
    """Weights from a normal distribution of variance 2 / fan-in (He et al. 2015), biases zero."""
    params = {}
    for i, (name, shape) in enumerate((name, param.shape) for name, param in model.named_parameters()):
        scale = math.sqrt(2 / math.prod(shape[1:])) if len(shape) > 1 else 0.0
        params[name] = scale * fo.random.normal(fo.random.fold_in(key, i), tuple(shape))
    return params


# ----------------------------------------------------------------------------------------------------------- optimizer


def make_optimizer(args: argparse.Namespace, steps: int) -> tuple[fo.GradientTransformation, fo.Schedule]:
    """Clipped AdamW whose learning rate warms up for a tenth of the steps and then falls along a cosine."""
    schedule = fo.warmup_cosine_decay_schedule(0.0, args.learning_rate, warmup_steps=steps // 10, decay_steps=steps)
    optimizer = fo.chain(
        fo.clip_by_global_norm(args.max_norm),
        fo.adamw(schedule, weight_decay=args.weight_decay, mask=is_decayed),
    )
    return optimizer, schedule


def is_decayed(params: dict[str, Tensor]) -> dict[str, bool]:
    """Weight decay is for kernels and matrices, not for biases."""
    return {name: param.ndim > 1 for name, param in params.items()}


# ---------------------------------------------------------------------------------------------------------------- step


def make_loss(model: nn.Module) -> Callable[..., tuple[Tensor, Tensor]]:
    def loss_fn(params, images, labels):
        logits = functional_call(model, params, (images,))
        return nn.functional.cross_entropy(logits, labels), logits

    return loss_fn


def accuracy_of(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(-1) == labels).float().mean(-1)


def make_step(loss_fn: Callable, optimizer: fo.GradientTransformation, schedule: fo.Schedule) -> Callable:
    """One step of training as a pure function of tensors: it can be compiled, and vmapped over seeds."""

    def step(params, state, images, labels):
        grads, (loss, logits) = grad_and_value(loss_fn, has_aux=True)(params, images, labels)
        updates, new_state = optimizer.update(grads, state, params)
        _, (_, _, rate_state) = state  # of clip_by_global_norm, and of the three links of adamw
        metrics = {
            "loss": loss,
            "accuracy": accuracy_of(logits, labels),
            "learning_rate": schedule(rate_state.count),
            "gradient_norm": fo.global_norm(grads),
            "update_norm": fo.global_norm(updates),
        }
        return fo.apply_updates(params, updates), new_state, metrics

    return step


class Program(NamedTuple):
    """The functions of a run. In an ensemble each works on all members at once, along a leading axis."""

    init: Callable  # key -> params, state
    draw: Callable  # key, epoch -> images, labels: all batches of the epoch
    step: Callable  # params, state, images, labels -> params, state, metrics
    evaluate: Callable  # params, images, labels -> loss, logits


def make_program(args: argparse.Namespace, data: Split) -> Program:
    model = make_model(args.width)
    optimizer, schedule = make_optimizer(args, steps=args.epochs * (TRAIN // args.batch_size))
    evaluate = make_loss(model)
    step = make_step(evaluate, optimizer, schedule)

    def init(key):
        params = init_params(model, fo.random.fold_in(key, 0))
        return params, optimizer.init(params)

    def draw(key, epoch):
        return draw_epoch(fo.random.fold_in(key, epoch), data, args.batch_size)  # epochs count from 1

    if args.ensemble > 1:
        init, step = vmap(init), vmap(step)
        draw = vmap(draw, in_dims=(0, None), out_dims=1)  # the steps stay in front
        evaluate = vmap(evaluate, in_dims=(0, None, None))
    if args.compile:
        step = fo.compile(step, donate_argnums=(0, 1))
    return Program(init, draw, step, evaluate)


# ------------------------------------------------------------------------------------------------------- training loop


def make_keys(args: argparse.Namespace) -> Tensor:
    """The key of --seed, (2,); in an ensemble those of --seed, --seed + 1, ..., (members, 2)."""
    if args.ensemble == 1:
        return fo.random.key(args.seed)
    return torch.stack([fo.random.key(args.seed + i) for i in range(args.ensemble)])


def train(args: argparse.Namespace, program: Program, keys: Tensor, validation: Split, start: Progress) -> Progress:
    """Train from `start` to the last epoch, or to --stop-after, leaving a checkpoint after each."""
    params, state, history = start
    steps = TRAIN // args.batch_size
    layout = "{desc}|{bar:8}| {elapsed}<{remaining}{postfix}"
    with tqdm(total=args.epochs * steps, initial=len(history) * steps, bar_format=layout) as bar:
        for epoch in range(len(history) + 1, min(args.epochs, args.stop_after or args.epochs) + 1):
            bar.set_description(f"epoch {epoch}/{args.epochs}")
            metrics = []
            for images, labels in zip(*program.draw(keys, epoch)):
                params, state, step_metrics = program.step(params, state, images, labels)
                metrics.append(step_metrics)  # tensors still: reading a number would wait for the step to finish
                bar.update()
            record = {name: torch.stack([entry[name] for entry in metrics]) for name in metrics[0]}
            bar.set_postfix_str(report.one_line(record))
            if not record["loss"].isfinite().all():
                raise UsageError(f"the loss is not finite in epoch {epoch}; lower --learning-rate")
            loss, logits = program.evaluate(params, *validation)
            record |= {"validation_loss": loss, "validation_accuracy": accuracy_of(logits, validation.labels)}
            history = [*history, record]
            checkpoint.save(args.out, config_of(args), Progress(params, state, history))
    return Progress(params, state, history)


def run(args: argparse.Namespace) -> None:
    """Train, then report; a run that ended early leaves its checkpoint only."""
    torch.set_num_threads(1)  # so small a network is no faster on two, and much slower where cores are shared
    data, validation, test = load_splits()
    program, keys, config = make_program(args, data), make_keys(args), config_of(args)
    progress = Progress(*program.init(keys), history=[])
    if args.resume:
        progress = checkpoint.load(args.out, config, progress)
    elif not args.overwrite:
        checkpoint.check_free(args.out, config)
    checkpoint.check_writable(args.out)

    size = sum(param.numel() for param in progress.params.values()) // args.ensemble
    print(f"{TRAIN:,} images to train on, {VALIDATION} to validate, {TEST} to test; {size:,} parameters")
    if args.compile:
        print("compiling in the first step, which takes about a minute")
    began = time.perf_counter()
    progress = train(args, program, keys, validation, progress)
    if len(progress.history) < args.epochs:
        print(f"stopped after epoch {len(progress.history)} of {args.epochs}; --resume goes on from {args.out}")
        return
    print(f"trained in {time.perf_counter() - began:.0f} s\n")
    report.publish(args.out, config, progress.history, test, *program.evaluate(progress.params, *test))


# -------------------------------------------------------------------------------------------------------- command line


class Parser(argparse.ArgumentParser):
    """argparse with one line for an error, instead of the usage before it."""

    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: error: {message}\n")


def number(kind: type, interval: str) -> Callable[[str], Any]:
    """An argparse type: an int or a float in an interval such as "(0, 10]"."""
    low, high = (float(bound) for bound in interval[1:-1].split(","))

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        above = value > low if interval[0] == "(" else value >= low
        below = value < high if interval[-1] == ")" else value <= high
        if not (above and below):
            raise argparse.ArgumentTypeError(f"must be {kind.__name__} in {interval}, got {text!r}")
        return value

    return parse


def parse_args(argv: list[str] | None) -> tuple[Parser, argparse.Namespace]:
    parser = Parser(prog="train_digits.py", description=__doc__.split("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    positive, whole = number(float, "(0, inf)"), number(int, "[1, 10000]")
    add("--epochs", type=whole, default=30, help="passes over the training images (%(default)s)")
    add("--batch-size", type=number(int, f"[1, {TRAIN}]"), default=64, help="images for one step (%(default)s)")
    add("--learning-rate", type=positive, default=3e-3, help="at the end of the warm-up (%(default)s)")
    add("--weight-decay", type=number(float, "[0, inf)"), default=1e-2, help="on kernels and matrices (%(default)s)")
    add("--max-norm", type=positive, default=1.0, help="to which gradients are clipped (%(default)s)")
    add("--width", type=number(int, "[1, 256]"), default=16, help="channels of the first convolution (%(default)s)")
    add("--seed", type=number(int, "[0, 4294967295]"), default=0, help="of weights, order and shifts (%(default)s)")
    add(
        "--ensemble", type=number(int, "[1, 100]"), default=1, metavar="N", help="train N seeds at once, from --seed on"
    )
    add("--out", type=Path, default=Path("runs/digits"), help="folder of the results (%(default)s)")
    former = parser.add_mutually_exclusive_group()
    former.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    former.add_argument("--overwrite", action="store_true", help="replace results of other options in --out")
    add("--stop-after", type=whole, metavar="K", help="end early, after epoch K")
    add("--no-compile", dest="compile", action="store_false", help="run the step as it is, without torch.compile")
    return parser, parser.parse_args(argv)


def config_of(args: argparse.Namespace) -> dict[str, Any]:
    """The options that a result depends on."""
    elsewhere = {"out", "resume", "overwrite", "stop_after"}
    return {name: value for name, value in vars(args).items() if name not in elsewhere}


def main(argv: list[str] | None = None) -> None:
    parser, args = parse_args(argv)
    try:
        run(args)
    except (UsageError, OSError) as error:
        parser.error(str(error))
    except RuntimeError as error:
        if "C++ compiler" not in str(error):
            raise
        parser.error("torch.compile finds no C++ compiler; install one, or pass --no-compile")
    except KeyboardInterrupt:
        saved = (args.out / checkpoint.CHECKPOINT).exists()
        hint = "--resume goes on after the last finished epoch" if saved else "no epoch was finished, nothing is saved"
        parser.exit(130, f"{parser.prog}: interrupted; {hint}\n")


if __name__ == "__main__":
    main()
