"""The checkpoint of train_digits.py: one file, replaced as a whole, and refused where it does not belong to the run."""

import io
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcopt import tree

FORMAT = "funcopt/train_digits/1"
CHECKPOINT = "checkpoint.pt"
REPORTS = ("metrics.json", "curves.png", "predictions.png")


class UsageError(Exception):
    """Something that the user can put right: told in one line, before anything is overwritten."""


class Progress(NamedTuple):
    """All that a run needs to go on."""

    params: dict[str, Tensor]
    state: tree.Tree
    history: list[dict[str, Tensor]]  # one record for each finished epoch


def save(folder: Path, config: dict[str, Any], progress: Progress) -> None:
    """Replace the checkpoint, and remove the reports of an earlier run, which no longer fit it."""
    contents = {
        "format": FORMAT,
        "config": config,
        "params": progress.params,
        "state": dict(tree.leaves_with_path(progress.state)),
        "history": progress.history,
    }
    buffer = io.BytesIO()
    torch.save(contents, buffer)
    write_atomically(folder / CHECKPOINT, buffer.getvalue())
    for name in REPORTS:
        (folder / name).unlink(missing_ok=True)


def load(folder: Path, config: dict[str, Any], start: Progress) -> Progress:
    """The progress of the checkpoint in `folder`, for a run of this config whose progress would begin with `start`."""
    contents = _read(folder / CHECKPOINT)
    if contents["config"] != config:
        raise UsageError(
            f"{folder / CHECKPOINT} is of another run ({_difference(contents['config'], config)}); "
            "--resume goes with the same options as the run that it continues"
        )
    paths, structure = dict(tree.leaves_with_path(start.state)), tree.flatten(start.state)[1]
    for name, expected in (("params", start.params), ("state", paths)):
        if _shapes(contents[name]) != _shapes(expected):
            raise UsageError(f"{folder / CHECKPOINT} is of another model: its {name} differ in names, shapes or dtypes")
    params = {path: contents["params"][path] for path in start.params}
    state = tree.unflatten([contents["state"][path] for path in paths], structure)
    return Progress(params, state, contents["history"])


def check_free(folder: Path, config: dict[str, Any]) -> None:
    """Refuse a folder whose results this run could not reproduce: those of other options, or of unknown origin."""
    present = [name for name in (CHECKPOINT, *REPORTS) if (folder / name).exists()]
    if not present:
        return
    try:
        former = _read(folder / CHECKPOINT)["config"]
    except UsageError:
        raise UsageError(
            f"{folder} holds {', '.join(present)} of unknown origin; choose another --out, or pass --overwrite"
        ) from None
    if former != config:
        raise UsageError(
            f"{folder} holds a run with other options ({_difference(former, config)}); "
            "choose another --out, or pass --overwrite"
        )


def check_writable(folder: Path) -> None:
    """Make `folder`, and refuse if no file can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"cannot write into {folder}: {error.strerror}") from None


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that at any moment it is either the old one or the new one, whole."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UsageError(f"there is no checkpoint {path}; start without --resume")
    try:
        with zipfile.ZipFile(path) as archive:
            intact = archive.testzip() is None  # torch.load takes altered numbers without a word
        contents = torch.load(path, weights_only=True) if intact else None
    except Exception:  # which one depends on the byte that is wrong
        intact = False
    if not intact:
        raise UsageError(f"{path} is no checkpoint, or it is damaged")
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        raise UsageError(f"{path} is a checkpoint, but not one of this program ({FORMAT})")
    return contents


def _difference(former: dict[str, Any], config: dict[str, Any]) -> str:
    changed = [name for name in config if former.get(name) != config[name]]
    return ", ".join(f"{name} {former.get(name)} there, {config[name]} here" for name in changed)


def _shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[Any, ...]]:
    return {path: (tensor.shape, tensor.dtype) for path, tensor in tensors.items()}
