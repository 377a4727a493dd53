"""examples/property_test.py: it tells what the wrong Adam breaks and why, and passes the repaired one."""

import re
import runpy
import sys
from pathlib import Path

import property_test
import pytest

SCRIPT = Path(property_test.__file__)


def test_it_catches_explains_and_passes(capsys):
    property_test.main(["--no-compile", "--examples", "3"])
    out = capsys.readouterr().out
    caught = re.findall(r"^(\w+): .*\n  found: .+\n  why: .+$", out, re.MULTILINE)
    assert caught == [law for law in property_test.WHY if law != "compiled"]
    assert "not known to this example" not in out
    assert "naive_adam breaks 12 of 42 laws." in out
    assert re.search(r"by naive_adam\(\)\n  in the smallest case found\n    params = \{'a': torch.tensor\(", out)
    losses = re.findall(r"^(\w+): the loss falls from 8\.5 to (\S+) in 200 steps\.$", out, re.MULTILINE)
    assert [name for name, _ in losses] == ["naive_adam", "repaired_adam"]
    assert max(float(loss) for _, loss in losses) < 1e-6
    assert out.endswith("repaired_adam obeys all of them that apply to it.\n")


@pytest.mark.slow
def test_as_a_script(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    out = capsys.readouterr().out
    assert all(f"\n{law}: " in out for law in property_test.WHY)


def test_a_missing_package(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert exit.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "hypothesis" in err and 'pip install "funcopt[testing]"' in err


def test_a_bad_flag_is_one_line(capsys):
    with pytest.raises(SystemExit) as exit:
        property_test.main(["--examples", "0"])
    assert exit.value.code == 2
    assert "argument --examples: must be at least 1, got 0" in capsys.readouterr().err
