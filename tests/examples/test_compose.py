"""examples/compose.py: it trains, and shows what it is made of, where each leaf goes, and its metrics."""

import re
import subprocess
import sys
from pathlib import Path

import compose
import pytest
import torch

SCRIPT = Path(compose.__file__)


@pytest.fixture(autouse=True)
def same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_it_trains_and_shows(capsys):
    compose.main(["--no-compile", "--epochs", "10"])
    out = capsys.readouterr().out
    assert out.startswith("with_metrics(ema_params(chain(clip_by_global_norm(1.0), partition({'matrices': adamw(")
    assert re.search(r"body\.weight +\(64, 64\) +float32 +matrices .*adamw\(", out)
    assert re.search(r"head\.bias +\(10,\) +float32 +biases .*sgd\(0\.05, momentum=0\.9\)", out)
    header, *rows = re.findall(r"^ *(?:epoch|\d+) \|.*$", out, re.MULTILINE)
    assert len(rows) == 10
    assert [name.strip() for name in header.split("|")][2:] == [
        "grad norm",
        "update norm",
        "param norm",
        "update to param ratio",
        "nonfinite count",
        "clip fraction",
        "matrices.rate",
        "biases.rate",
    ]
    accuracies = [float(found) for found in re.findall(r"test accuracy with the \w+ parameters: ([\d.]+)%", out)]
    assert len(accuracies) == 2 and min(accuracies) > 95


@pytest.mark.slow
def test_compiled_as_a_script():
    result = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:funcopt", str(SCRIPT), "--epochs", "3"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "test accuracy with the averaged parameters" in result.stdout


def test_a_bad_flag_is_one_line(capsys):
    with pytest.raises(SystemExit) as exit:
        compose.main(["--epochs", "0"])
    assert exit.value.code == 2
    assert "argument --epochs: must be at least 1, got 0" in capsys.readouterr().err
