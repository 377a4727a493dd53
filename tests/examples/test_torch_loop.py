"""examples/torch_loop.py: with torch's import line in the place of ours it prints the same losses."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "examples" / "torch_loop.py"
OURS, THEIRS = "import funcopt.optim as optim", "import torch.optim as optim"


@pytest.fixture(autouse=True)
def same_random_numbers():
    with torch.random.fork_rng():
        yield


def printed_by(script, optimizer, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(script), "--optimizer", optimizer])
    used = runpy.run_path(str(script), run_name="__main__")["optim"]
    return used, capsys.readouterr().out


@pytest.mark.parametrize(
    "optimizer", ["SGD", pytest.param("Adam", marks=pytest.mark.slow), pytest.param("Adagrad", marks=pytest.mark.slow)]
)
def test_the_same_losses_as_with_torch(optimizer, monkeypatch, capsys, tmp_path):
    source = SCRIPT.read_text()
    assert len(re.findall(rf"^ *{OURS}$", source, re.MULTILINE)) == 1
    twin = tmp_path / "torch_loop.py"
    twin.write_text(re.sub(rf"^( *){OURS}$", rf"\1{THEIRS}", source, flags=re.MULTILINE))

    optim, ours = printed_by(SCRIPT, optimizer, monkeypatch, capsys)
    torch_optim, theirs = printed_by(twin, optimizer, monkeypatch, capsys)
    assert (optim.__name__, torch_optim.__name__) == ("funcopt.optim", "torch.optim")
    assert ours == theirs
    losses = [float(loss) for loss in re.findall(r"^epoch +\d+  loss ([\d.]+)$", ours, re.MULTILINE)]
    assert len(losses) == 10
    assert losses[-1] < 0.2 * losses[0]
    assert int(re.search(r"^(\d+) of 360 test images", ours, re.MULTILINE).group(1)) > 300


def test_a_bad_flag_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--optimizer", "LBFGS"])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert exit.value.code == 2
    assert "argument --optimizer: invalid choice: 'LBFGS'" in capsys.readouterr().err
