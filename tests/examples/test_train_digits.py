"""examples/train_digits.py: what it writes, that it repeats and resumes exactly, and how it refuses."""

import io
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

from funcopt import tree

for package in ("matplotlib", "sklearn", "tqdm"):
    pytest.importorskip(package)

import digits_checkpoint  # noqa: E402
import digits_report  # noqa: E402
import train_digits  # noqa: E402

SCRIPT = Path(train_digits.__file__)
SMALL = ("--epochs", "2", "--batch-size", "256", "--width", "4", "--no-compile")  # 4 steps an epoch
FILES = {"checkpoint.pt", "metrics.json", "curves.png", "predictions.png"}


@pytest.fixture(autouse=True)
def same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(folder, *options):
    """The script with small options (later ones win) and empty pictures, and the checkpoint that it leaves."""
    with mock.patch.multiple(digits_report, curves=blank, predictions=blank):
        train_digits.main([*SMALL, "--out", str(folder), *map(str, options)])
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def blank(*args):
    return digits_report.plt.figure(figsize=(1, 1))


def refused(capsys, *argv):
    """The one line that the script says when it refuses these arguments."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        train_digits.main([str(argument) for argument in argv])
    assert exit.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("\n") and err.count("\n") == 1, err
    return err


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_same_bits(first, second):
    pairs = zip(tree.leaves_with_path(first), tree.leaves_with_path(second), strict=True)
    for (path, a), (other, b) in pairs:
        assert path == other
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    train_digits.main([*SMALL, "--out", str(folder)])
    return folder, torch.load(folder / "checkpoint.pt", weights_only=True)


# --- what a run leaves


def test_files(finished):
    folder, saved = finished
    assert set(contents(folder)) == FILES
    assert len(saved["history"]) == 2
    for picture in ("curves.png", "predictions.png"):
        pixels = digits_report.plt.imread(folder / picture)
        assert min(pixels.shape[:2]) > 300 and pixels[..., :3].std() > 0.05


def test_metrics(finished):
    metrics = json.loads((finished[0] / "metrics.json").read_text())
    assert metrics["config"] == {
        "epochs": 2, "batch_size": 256, "learning_rate": 3e-3, "weight_decay": 1e-2, "max_norm": 1.0, "width": 4,
        "seed": 0, "ensemble": 1, "compile": False,
    }  # fmt: skip
    assert [row["epoch"] for row in metrics["epochs"]] == [1, 2]
    assert set(metrics["epochs"][0]) == {"epoch", *digits_report.EPOCH_COLUMNS}
    test = metrics["test"]
    assert test["images"] == 360
    assert set(test["accuracy"]) == set(test["loss"]) == {"mean", "std", "min", "max", "members"}
    assert 0 <= test["accuracy"]["mean"] <= 1 and test["accuracy"]["members"] == [test["accuracy"]["mean"]]


def test_printed(tmp_path, capsys):
    run(tmp_path)
    out, err = capsys.readouterr()
    assert "1,257 images to train on, 180 to validate, 360 to test" in out
    assert "training" in out and "validation" in out and "test accuracy, 360 images used for nothing else" in out
    for word in ("epoch 2/2", "loss", "acc", "lr", "grad norm"):
        assert word in err.split("\r")[-1]


def test_as_a_script_without_warnings(tmp_path):
    root = SCRIPT.parents[1]
    command = [sys.executable, "-W", "error", str(SCRIPT), *SMALL, "--out", "runs/digits"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert set(contents(tmp_path / "runs/digits")) == FILES
    assert "arning" not in done.stderr


# --- the numbers


def test_split():
    splits = train_digits.load_splits()
    assert [len(split.labels) for split in splits] == [1257, 180, 360]
    shares = [torch.bincount(split.labels) / len(split.labels) for split in splits]
    assert max((share - shares[0]).abs().max() for share in shares) < 0.01
    images = torch.cat([split.images for split in splits]).flatten(1)
    assert images.unique(dim=0).shape[0] == 1797  # no image is in two splits
    assert images.min() == 0 and images.max() == 1


def test_an_epoch_is_a_shifted_permutation():
    train = train_digits.load_splits()[0]
    numbered = train_digits.Split(train.images, torch.arange(1257))
    images, index = train_digits.draw_epoch(train_digits.fo.random.key(3), numbered, 64)
    assert images.shape == (19, 64, 1, 8, 8) and index.shape == (19, 64)
    assert index.unique().numel() == 19 * 64
    padded = torch.nn.functional.pad(train.images[index.flatten()], (1, 1, 1, 1))
    shifted = torch.stack([padded[..., y : y + 8, x : x + 8] for y in range(3) for x in range(3)])
    equal = (shifted == images.flatten(0, 1)).flatten(2).all(2)
    assert equal.any(0).all()
    assert (equal.double().mean(1) > 0.08).all()  # each of the nine shifts occurs


def test_equals_torch_optim(finished):
    """The same training with torch's own AdamW, clipping and autograd, in place."""
    _, args = train_digits.parse_args([*SMALL])
    train = train_digits.load_splits()[0]
    program, key = train_digits.make_program(args, train), train_digits.make_keys(args)
    model = train_digits.make_model(args.width).to_empty(device="cpu")
    model.load_state_dict(program.init(key)[0])
    kernels = [param for param in model.parameters() if param.ndim > 1]
    biases = [param for param in model.parameters() if param.ndim == 1]
    groups = [{"params": kernels, "weight_decay": args.weight_decay}, {"params": biases, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups)
    schedule = train_digits.make_optimizer(args, steps=8)[1]
    batches = [batch for epoch in (1, 2) for batch in zip(*program.draw(key, epoch))]
    for count, (images, labels) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = schedule(count).item()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_norm)
        optimizer.step()
    for name, param in model.state_dict().items():
        torch.testing.assert_close(finished[1]["params"][name], param, rtol=1e-4, atol=1e-5)


def test_the_seed_decides_everything(finished, tmp_path):
    before = torch.get_rng_state()
    torch.rand(())
    assert_same_bits(run(tmp_path / "again"), finished[1])
    torch.set_rng_state(before)
    other = run(tmp_path / "other", "--seed", 1)
    assert not torch.equal(other["params"]["0.weight"], finished[1]["params"]["0.weight"])
    assert torch.equal(torch.get_rng_state(), before)  # no global random number was drawn


def test_an_ensemble_is_its_members(finished, tmp_path):
    ensemble = run(tmp_path / "ensemble", "--ensemble", 3)
    for i in range(3):
        single = run(tmp_path / str(i), "--seed", i)
        for name, value in single["params"].items():
            torch.testing.assert_close(ensemble["params"][name][i], value, rtol=1e-3, atol=1e-4)
        for record, joint in zip(single["history"], ensemble["history"], strict=True):
            for name, value in record.items():
                torch.testing.assert_close(joint[name][..., i], value, rtol=1e-3, atol=1e-4)
    metrics = json.loads((tmp_path / "ensemble/metrics.json").read_text())
    accuracy = metrics["test"]["accuracy"]
    assert len(accuracy["members"]) == 3 and accuracy["min"] < accuracy["mean"] < accuracy["max"]
    assert accuracy["std"] == pytest.approx(torch.tensor(accuracy["members"]).double().std().item())


# --- ending early and going on


@pytest.mark.parametrize("members", [1, 2])
def test_resumes_bit_for_bit(tmp_path, members):
    options = ("--epochs", 3, "--ensemble", members)
    whole = run(tmp_path / "whole", *options)
    parts = tmp_path / "parts"
    assert len(run(parts, *options, "--stop-after", 1)["history"]) == 1
    assert set(contents(parts)) == {"checkpoint.pt"}
    assert len(run(parts, *options, "--stop-after", 2, "--resume")["history"]) == 2
    assert_same_bits(run(parts, *options, "--resume"), whole)
    assert (parts / "metrics.json").read_bytes() == (tmp_path / "whole/metrics.json").read_bytes()


def test_resuming_a_finished_run_reports_again(finished, tmp_path):
    folder = finished[0]
    tmp_path.joinpath("checkpoint.pt").write_bytes((folder / "checkpoint.pt").read_bytes())
    train_digits.main([*SMALL, "--out", str(tmp_path), "--resume"])
    assert contents(tmp_path) == contents(folder)


def test_interrupted(finished, tmp_path, capsys, monkeypatch):
    def save_and_interrupt(*args):
        digits_checkpoint_save(*args)
        raise KeyboardInterrupt

    digits_checkpoint_save = digits_checkpoint.save
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as exit:
        patch.setattr(digits_checkpoint, "save", save_and_interrupt)
        run(tmp_path)
    assert exit.value.code == 130
    assert capsys.readouterr().err.split("\n")[-2].endswith("--resume goes on after the last finished epoch")
    assert_same_bits(run(tmp_path, "--resume"), finished[1])


def test_interrupted_before_the_first_epoch_ends(tmp_path, capsys, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_digits, "draw_epoch", interrupt)
    with pytest.raises(SystemExit) as exit:
        run(tmp_path)
    assert exit.value.code == 130
    assert capsys.readouterr().err.split("\n")[-2].endswith("no epoch was finished, nothing is saved")


# --- refusals: one line, exit code 2, nothing overwritten


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--epochs", "0"), "--epochs: must be int in [1, 10000], got '0'"),
        (("--epochs", "many"), "--epochs: must be int in [1, 10000], got 'many'"),
        (("--epochs", "2.5"), "--epochs: must be int"),
        (("--batch-size", "1258"), "--batch-size: must be int in [1, 1257], got '1258'"),
        (("--learning-rate", "nan"), "--learning-rate: must be float in (0, inf), got 'nan'"),
        (("--learning-rate", "inf"), "--learning-rate: must be float in (0, inf), got 'inf'"),
        (("--learning-rate", "0"), "--learning-rate: must be float in (0, inf), got '0'"),
        (("--weight-decay", "-1"), "--weight-decay: must be float in [0, inf), got '-1'"),
        (("--max-norm", "-1"), "--max-norm: must be float in (0, inf), got '-1'"),
        (("--seed", "-1"), "--seed: must be int"),
        (("--seed", "4294967296"), "--seed: must be int"),
        (("--ensemble", "0"), "--ensemble: must be int in [1, 100], got '0'"),
        (("--width", "0"), "--width: must be int"),
        (("--stop-after", "0"), "--stop-after: must be int"),
        (("--epoch", "3"), "unrecognized arguments: --epoch 3"),
        (("--epochs",), "--epochs: expected one argument"),
        (("digits",), "unrecognized arguments: digits"),
        (("--resume", "--overwrite"), "not allowed with argument"),
    ],
)
def test_bad_options(tmp_path, capsys, options, said):
    assert said in refused(capsys, "--out", tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/digits", "/dev/null/digits"])
def test_a_folder_that_cannot_be_written(tmp_path, capsys, place):
    if place.startswith("/") and not sys.platform.startswith("linux"):
        pytest.skip("a folder of Linux")
    (tmp_path / "file").write_text("kept")
    assert "cannot write into" in refused(capsys, *SMALL, "--out", tmp_path / place)
    assert (tmp_path / "file").read_text() == "kept"


def test_no_checkpoint_to_resume(tmp_path, capsys):
    assert "there is no checkpoint" in refused(capsys, *SMALL, "--out", tmp_path / "run", "--resume")
    assert not (tmp_path / "run").exists()


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def with_one_bit_flipped(data):
    """In the numbers of a tensor: its bytes are in the file as they are."""
    place = data.index(torch.load(io.BytesIO(data), weights_only=True)["params"]["2.weight"].numpy().tobytes())
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


DAMAGE = {
    "empty": lambda data: b"",
    "text": lambda data: b"not a checkpoint\n",
    "truncated": lambda data: data[: len(data) // 2],
    "one bit": with_one_bit_flipped,
    "of something else": lambda data: saved({"weight": torch.zeros(3)}),
    "no dict": lambda data: saved(torch.zeros(3)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_checkpoint(finished, tmp_path, capsys, damage):
    (tmp_path / "checkpoint.pt").write_bytes(DAMAGE[damage]((finished[0] / "checkpoint.pt").read_bytes()))
    before = contents(tmp_path)
    assert "checkpoint" in refused(capsys, *SMALL, "--out", tmp_path, "--resume")
    assert "of unknown origin" in refused(capsys, *SMALL, "--out", tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "option",
    [("--width", 8), ("--epochs", 3), ("--seed", 1), ("--ensemble", 2), ("--learning-rate", 0.1), ("--batch-size", 64)],
)
def test_a_run_with_other_options(finished, capsys, option):
    folder = finished[0]
    before = contents(folder)
    name = option[0].removeprefix("--").replace("-", "_")
    for flags in ((), ("--resume",)):
        assert f"({name} " in refused(capsys, *SMALL, "--out", folder, *option, *flags)
    assert contents(folder) == before


def test_a_checkpoint_of_another_model(finished, tmp_path, capsys, monkeypatch):
    (tmp_path / "checkpoint.pt").write_bytes((finished[0] / "checkpoint.pt").read_bytes())
    before = contents(tmp_path)
    make_model = train_digits.make_model
    monkeypatch.setattr(train_digits, "make_model", lambda width: make_model(width + 1))
    assert "is of another model" in refused(capsys, *SMALL, "--out", tmp_path, "--resume")
    assert contents(tmp_path) == before


def test_the_same_options_again(finished, tmp_path):
    first = run(tmp_path)
    before = contents(tmp_path)
    assert_same_bits(run(tmp_path), first)
    assert contents(tmp_path) == before


def test_overwrite(tmp_path):
    run(tmp_path)
    assert run(tmp_path, "--seed", 1, "--overwrite")["config"]["seed"] == 1
    assert json.loads((tmp_path / "metrics.json").read_text())["config"]["seed"] == 1


def test_reports_of_unknown_origin(tmp_path, capsys):
    (tmp_path / "metrics.json").write_text("mine")
    assert "holds metrics.json of unknown origin" in refused(capsys, *SMALL, "--out", tmp_path)
    assert contents(tmp_path) == {"metrics.json": b"mine"}


def test_divergence_leaves_the_folder_as_it_was(finished, capsys):
    folder = finished[0]
    before = contents(folder)
    with pytest.raises(SystemExit) as exit:
        run(folder, "--learning-rate", 1e30, "--overwrite")
    assert exit.value.code == 2
    assert "the loss is not finite in epoch 1; lower --learning-rate" in capsys.readouterr().err.split("\n")[-2]
    assert contents(folder) == before


def test_a_full_disk_leaves_the_old_checkpoint(finished, capsys, monkeypatch):
    def fail(*args):
        raise OSError(28, "No space left on device")

    folder = finished[0]
    before = contents(folder)
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(SystemExit) as exit:
        run(folder)
    assert exit.value.code == 2
    assert "No space left on device" in capsys.readouterr().err.split("\n")[-2]
    assert contents(folder) == before


@pytest.mark.parametrize("package", ["matplotlib", "sklearn", "tqdm"])
def test_a_missing_package(package, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert exit.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and package in err and 'pip install "funcopt[examples]"' in err


# --- the report by itself


def test_a_long_table_is_thinned():
    row = dict.fromkeys(digits_report.EPOCH_COLUMNS, 0.5)
    table = digits_report.epoch_table([{"epoch": i, **row} for i in range(1, 1002)])
    rows = [int(line.split("|")[0]) for line in table.splitlines()[3:]]
    assert rows[0] == 1 and rows[-1] == 1001 and len(rows) <= 42


def test_predictions_without_mistakes():
    labels = torch.arange(20) % 10
    logits = 5 * torch.nn.functional.one_hot(labels).float()
    figure = digits_report.predictions(torch.zeros(20, 1, 8, 8), labels, logits)
    assert "None of 20 test images wrong" in figure.get_suptitle()
    digits_report.plt.close(figure)


# --- the real thing


def assert_accurate(folder):
    assert json.loads((folder / "metrics.json").read_text())["test"]["accuracy"]["min"] >= 0.98


def test_accuracy(tmp_path):
    train_digits.main(["--no-compile", "--out", str(tmp_path)])
    assert_accurate(tmp_path)


@pytest.mark.slow
def test_accuracy_compiled(tmp_path):
    train_digits.main(["--out", str(tmp_path)])
    assert_accurate(tmp_path)


@pytest.mark.slow
def test_accuracy_of_an_ensemble(tmp_path):
    train_digits.main(["--ensemble", "5", "--out", str(tmp_path)])
    assert_accurate(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("members", [1, 2])
def test_resumes_bit_for_bit_compiled(tmp_path, members):
    options = ["--epochs", "3", "--batch-size", "256", "--width", "4", "--ensemble", str(members)]
    train_digits.main([*options, "--out", str(tmp_path / "whole")])
    train_digits.main([*options, "--out", str(tmp_path / "parts"), "--stop-after", "2"])
    torch._dynamo.reset()
    train_digits.main([*options, "--out", str(tmp_path / "parts"), "--resume"])
    whole, parts = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "parts"))
    assert_same_bits(parts, whole)
