"""What train_digits.py reports: a line while training, a table of epochs, metrics.json, curves.png, predictions.png."""

import io
import json
import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import torch
from digits_checkpoint import write_atomically
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

# Okabe & Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"
SHOWN = 12  # of the wrong predictions, at most

History = list[dict[str, Tensor]]


def one_line(metrics: dict[str, Tensor]) -> str:
    """The metrics of an epoch: means over its steps, and over the members of an ensemble."""
    loss, accuracy, rate, norm = (
        metrics[name].mean().item() for name in ("loss", "accuracy", "learning_rate", "gradient_norm")
    )
    return f"loss {loss:.3f} acc {accuracy:.0%} lr {rate:.1e} grad norm {norm:.2f}"


def publish(
    folder: Path, config: dict[str, Any], history: History, test: tuple[Tensor, Tensor], loss: Tensor, logits: Tensor
) -> None:
    """Print the table of epochs and the result on the test images; write metrics.json and the two pictures."""
    images, labels = test
    metrics = summarise(config, history, loss, logits, labels)
    print(epoch_table(metrics["epochs"]))
    print(result_lines(metrics))
    write_atomically(folder / "metrics.json", (json.dumps(metrics, indent=1) + "\n").encode())
    _save(curves(config, history, metrics["test"]["accuracy"]["mean"]), folder / "curves.png")
    _save(predictions(images, labels, logits), folder / "predictions.png")
    print(f"written to {folder}: curves.png, predictions.png, metrics.json, checkpoint.pt")


# --------------------------------------------------------------------------------------------------- numbers


def series(history: History, name: str) -> Tensor:
    """All values of a metric in order, (steps or epochs, members)."""
    return torch.stack([record[name] for record in history]).reshape(-1, members_of(history))


def members_of(history: History) -> int:
    return history[0]["validation_loss"].numel()


def per_epoch(history: History, name: str) -> Tensor:
    """The mean of a metric in each epoch, (epochs, members)."""
    return series(history, name).unflatten(0, (len(history), -1)).mean(1)


EPOCH_COLUMNS = {
    "train_loss": "loss",
    "train_accuracy": "accuracy",
    "validation_loss": "validation_loss",
    "validation_accuracy": "validation_accuracy",
    "learning_rate": "learning_rate",
    "gradient_norm": "gradient_norm",
    "update_norm": "update_norm",
}


def summarise(config: dict[str, Any], history: History, loss: Tensor, logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """The contents of metrics.json: nothing in it depends on time or place."""
    columns = {column: per_epoch(history, name).mean(1).tolist() for column, name in EPOCH_COLUMNS.items()}
    logits = logits.reshape(-1, *logits.shape[-2:])  # (members, images, 10)
    right = logits.argmax(-1) == labels
    return {
        "config": config,
        "epochs": [{"epoch": i + 1, **dict(zip(columns, row))} for i, row in enumerate(zip(*columns.values()))],
        "test": {
            "images": len(labels),
            "accuracy": spread(right.double().mean(1)),
            "loss": spread(loss.reshape(-1)),
            "accuracy_of_mean_probabilities": (mean_probabilities(logits).argmax(-1) == labels).double().mean().item(),
        },
    }


def spread(values: Tensor) -> dict[str, Any]:
    """Mean, sample standard deviation, extremes and single values over the members of an ensemble, or of one run."""
    std = values.std().item() if len(values) > 1 else 0.0
    extremes = {"min": values.min().item(), "max": values.max().item()}
    return {"mean": values.mean().item(), "std": std, **extremes, "members": values.tolist()}


def mean_probabilities(logits: Tensor) -> Tensor:
    """Class probabilities, (images, 10): of one run, or averaged over the members of an ensemble."""
    return logits.softmax(-1).reshape(-1, *logits.shape[-2:]).mean(0)


# ----------------------------------------------------------------------------------------------------- tables


def epoch_table(epochs: list[dict[str, float]], most: int = 40) -> str:
    """The epochs as a table, evenly thinned out to about `most` rows; the first and the last are always there."""
    stride = math.ceil(len(epochs) / most)
    lines = [
        "Means over each epoch's steps; validation is at its end.",
        "       |     training      |    validation     | learning | norm of  | norm of",
        " epoch |   loss | accuracy |   loss | accuracy |   rate   | gradient | update",
    ]
    form = (
        "{epoch:6d} | {train_loss:6.4f} | {train_accuracy:8.2%} | {validation_loss:6.4f} | {validation_accuracy:8.2%} "
        "| {learning_rate:8.2e} | {gradient_norm:8.4f} | {update_norm:7.5f}"
    )
    for row in epochs:
        if row["epoch"] in (1, len(epochs)) or row["epoch"] % stride == 0:
            lines.append(form.format(**row))
    return "\n".join(lines)


def result_lines(metrics: dict[str, Any]) -> str:
    test, accuracy = metrics["test"], metrics["test"]["accuracy"]
    members = len(accuracy["members"])
    wrong = [round((1 - value) * test["images"]) for value in accuracy["members"]]
    head = f"\ntest accuracy, {test['images']} images used for nothing else: {accuracy['mean']:.2%}"
    if members == 1:
        return f"{head} ({wrong[0]} wrong)"
    return (
        f"{head} on average over {members} seeds, standard deviation {accuracy['std']:.2%}, "
        f"from {accuracy['min']:.2%} to {accuracy['max']:.2%}\n"
        f"wrong by seed: {', '.join(map(str, wrong))}; "
        f"with their probabilities averaged: {test['accuracy_of_mean_probabilities']:.2%}"
    )


# --------------------------------------------------------------------------------------------------- pictures


def curves(config: dict[str, Any], history: History, test_accuracy: float) -> Figure:
    """Loss, accuracy, learning rate and norms over the epochs; lines are means, bands span an ensemble's members."""
    figure, ((loss, accuracy), (rate, norms)) = plt.subplots(2, 2, figsize=(11, 7.5), sharex=True, layout="constrained")
    by_epoch = torch.arange(1.0, len(history) + 1)
    by_step = (torch.arange(len(series(history, "loss"))) + 1) / len(history[0]["loss"])

    _plot(loss, by_epoch, per_epoch(history, "loss"), BLUE, "training (mean over the epoch)", marker=".")
    _plot(loss, by_epoch, series(history, "validation_loss"), ORANGE, "validation", marker=".")
    loss.set(title="Loss", ylabel="cross-entropy (nats)", yscale="log")

    training, validation = 100 * per_epoch(history, "accuracy"), 100 * series(history, "validation_accuracy")
    _plot(accuracy, by_epoch, training, BLUE, "training (mean over the epoch)", marker=".")
    _plot(accuracy, by_epoch, validation, ORANGE, "validation", marker=".")
    accuracy.axhline(100 * test_accuracy, color=GREEN, linestyle="--", label=f"test, at the end: {test_accuracy:.1%}")
    lowest = min(training[-1].min().item(), validation[-1].min().item())
    accuracy.set(title="Accuracy", ylabel="images right (%)", ylim=(min(90, lowest - 8), 100.5))

    _plot(rate, by_step, series(history, "learning_rate"), BLUE, "warm-up, then cosine")
    rate.set(title="Learning rate", ylabel="learning rate")

    _plot(norms, by_step, series(history, "gradient_norm"), BLUE, "gradient, before clipping", linewidth=0.8)
    _plot(norms, by_step, series(history, "update_norm"), ORANGE, "update", linewidth=0.8)
    norms.axhline(config["max_norm"], color=GREY, linestyle="--", label="clipping threshold")
    norms.set(title="Norms over all parameters", ylabel="2-norm")
    norms.set_yscale("log", nonpositive="mask")

    for axes in (loss, accuracy, rate, norms):
        axes.legend(edgecolor="none")
        axes.grid(alpha=0.25)
    for axes in (rate, norms):
        axes.set_xlabel(f"epoch ({len(history[0]['loss'])} steps each)")
    figure.suptitle(_run_title(config))
    return figure


def _run_title(config: dict[str, Any]) -> str:
    if config["ensemble"] == 1:
        return f"Training on handwritten digits, seed {config['seed']}"
    last = config["seed"] + config["ensemble"] - 1
    return f"Training on handwritten digits, seeds {config['seed']} to {last}: mean, lowest and highest"


def _plot(axes: Axes, x: Tensor, values: Tensor, colour: str, label: str, **style: Any) -> None:
    axes.plot(x.numpy(), values.mean(1).numpy(), color=colour, label=label, **style)
    if values.shape[1] > 1:
        low, high = values.amin(1).numpy(), values.amax(1).numpy()
        axes.fill_between(x.numpy(), low, high, color=colour, alpha=0.2, linewidth=0)


def predictions(images: Tensor, labels: Tensor, logits: Tensor) -> Figure:
    """The wrong test images, most confident first, each above the probabilities that it was given."""
    probabilities = mean_probabilities(logits)
    confidence, guess = probabilities.max(-1)
    wrong = (guess != labels).nonzero().flatten()
    if len(wrong):
        chosen = wrong[confidence[wrong].argsort(descending=True)][:SHOWN]
        shown = "" if len(wrong) <= SHOWN else f"; the {SHOWN} most confident mistakes"
        title = f"{len(wrong)} of {len(labels)} test images wrong{shown}"
    else:
        chosen = confidence.argsort()[:SHOWN]
        title = f"None of {len(labels)} test images wrong; the {SHOWN} least certain"
    columns = min(6, len(chosen))
    rows = math.ceil(len(chosen) / columns)
    figure = plt.figure(figsize=(max(6, 1.9 * columns), 0.6 + 2.9 * rows), layout="constrained")
    for place, i in zip(figure.add_gridspec(rows, columns), chosen.tolist()):
        above, below = place.subgridspec(2, 1, height_ratios=(3, 1)).subplots()
        above.imshow(images[i, 0].numpy(), cmap="gray_r", vmin=0, vmax=1)
        above.set(xticks=[], yticks=[])
        above.set_title(f"{labels[i]} taken for {guess[i]}\n({confidence[i]:.0%} sure)", fontsize=10)
        colours = [GREEN if k == labels[i] else ORANGE if k == guess[i] else GREY for k in range(10)]
        below.bar(range(10), probabilities[i].tolist(), color=colours)
        below.set(ylim=(0, 1), xticks=range(10), yticks=[])
        below.tick_params(labelsize=7, length=0)
    figure.suptitle(f"{title}\n(bars: probability of each digit; green is true, orange predicted)", fontsize=11)
    return figure


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    plt.close(figure)
    write_atomically(path, buffer.getvalue())
