"""The benchmarks: ratios and verdicts of given timings, the page between its marks, and one small run."""

import json

import pytest
import torch

from tests.benchmarks import __main__ as command, contenders, measure, recompiles, report, targets, training, workloads
from tests.benchmarks.measure import Race, Timing


def fake_race(workload="mlp", rule="adamw", kind="step", **turns):
    timings = {name.replace("_", " "): Timing(name.replace("_", " "), 1.0, list(t)) for name, t in turns.items()}
    return Race(kind, workload, rule, timings)


RESULTS = {
    "races": [
        fake_race(funcopt_packed=[1, 2, 3], torch_fused=[4, 4, 4], torch_loop=[9, 9, 9], TorchOpt=[2, 2, 2]),
        fake_race(rule="rmsprop", funcopt_packed=[1, 1, 1], torch_foreach=[4, 4, 4], torch_loop=[2, 2, 2]),
        fake_race("rosenbrock", kind="sweep", funcopt_sweep=[1, 1], torch_sequential=[1000, 50]),
    ],
    "compile": [
        {"workload": "leaves-10", "rule": "adamw", "contender": "funcopt packed", "cold": 4.0, "warm": 1.0},
        {"workload": "leaves-1000", "rule": "adamw", "contender": "funcopt packed", "cold": 21.0, "warm": 2.0},
    ],
    "recompiles": 0,
    "facts": {
        "torch": "2.13.0",
        "threads": 2,
        "processor": "a processor",
        "bandwidth": 1e10,
        "turns": 3,
        "seconds_a_turn": 0.1,
        "minutes": 1.0,
    },
}


def test_a_ratio_is_that_of_turns_not_of_medians():
    """A machine that is slow for one turn is slow for both."""
    one, other = Timing("a", turns=[1.0, 10.0, 3.0]), Timing("b", turns=[2.0, 20.0, 2.0])
    assert measure.ratio(one, other) == (0.5, 0.5, 1.0)
    assert measure.ratio(Timing("a", turns=[3.0]), Timing("b", turns=[2.0])) == (1.5, 1.5, 1.5)


def test_contenders_take_turns():
    calls = []
    timings = measure.race({name: lambda name=name: calls.append(name) for name in "ab"}, turns=2, seconds=0)
    assert calls == [*"aabb", *"ab", *"aaabbb" * 2]
    assert [len(timing.turns) for timing in timings.values()] == [2, 2]


def test_peak_memory_is_what_is_held_at_a_time():
    def step():
        for _ in range(3):
            torch.ones(1000)
        return torch.ones(500)

    step()
    assert measure.peak_memory(step) == 4000


def test_graphs_are_counted():
    torch._dynamo.reset()
    doubled = torch.compile(lambda x: 2 * x, backend="eager")
    assert measure.start("doubled", lambda: doubled(torch.ones(2))).graphs == 1
    assert measure.start("doubled", lambda: doubled(torch.ones(2))).graphs == 0


def test_verdicts():
    found = {(one.figure, one.where): (one.value, one.met) for one in targets.verdicts(RESULTS)}
    assert found == {
        ("adamw, gradients packed / torch fused", "mlp"): (0.5, True),
        ("adamw, packed / TorchOpt", "mlp"): (1.0, False),
        ("rmsprop, packed / the best of torch", "mlp"): (0.5, True),
        ("sweep of 1000 / 1000 runs of torch.optim", "rosenbrock"): (0.0105, False),
        ("cold compile of adamw, funcopt packed", "leaves-10"): (4.0, True),
        ("cold compile of adamw, funcopt packed", "leaves-1000"): (21.0, False),
        ("cold compile, 1000 leaves / 10, funcopt packed", "leaves-N"): (5.25, False),
        ("recompiles in 100 steps", "mlp"): (0, True),
    }


def test_what_targets_name_exists():
    ours = {target.ours for target in targets.RATIOS if target.kind == "step"}
    theirs = {name for target in targets.RATIOS if target.kind == "step" for name in target.opponents}
    assert ours | theirs <= set(contenders.CONTENDERS)
    assert {target.rule for target in targets.RATIOS} <= set(workloads.RULES) == set(contenders.STREAMS)


def test_the_page_is_rewritten_between_its_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\noutdated\n{report.END}\nafter\n")
    report.write_page(RESULTS, page, "page.png")
    once = page.read_text()
    assert once.startswith("before\n") and once.endswith("\nafter\n") and "outdated" not in once
    assert "| adamw, gradients packed / torch fused | mlp | 0.5 | 0.375 to 0.625 | 0.6 | met |" in once
    assert "| adamw, packed / TorchOpt | mlp | 1 | 0.75 to 1.25 | 0.2 | **missed** |" in once
    assert "| torch fused | 4 |" in once and "![Times as ratios, and compile times](page.png)" in once
    report.write_page(RESULTS, page, "page.png")
    assert page.read_text() == once


@pytest.mark.parametrize("text", ["", f"{report.END}{report.BEGIN}", f"{report.BEGIN}{report.END}{report.END}"])
def test_a_page_without_marks_is_left_alone(tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match="expected the lines"):
        report.write_page(RESULTS, page, "page.png")
    assert page.read_text() == text


def test_results_survive_the_file(tmp_path):
    command.save(RESULTS, tmp_path)
    assert command.load(tmp_path / "benchmarks.json") == RESULTS


def test_the_table_is_sorted_by_ratio():
    lines = report.table(RESULTS["races"][0]).splitlines()
    assert lines[0] == "step: mlp, adamw: ratios to torch fused"
    assert [line.split("|")[0].strip() for line in lines[3:]] == [
        "funcopt packed",
        "TorchOpt",
        "torch fused",
        "torch loop",
    ]


def test_options():
    full, quick = command.parse([]), command.parse(["--quick", "--turns", "4"])
    assert full.workloads[:4] == list(workloads.WORKLOADS) and full.rules == list(workloads.RULES)
    assert (quick.workloads, quick.rules, quick.turns) == (["mlp", "many"], ["adamw"], 4)
    for wrong in (["--workloads", "leaves-"], ["--workloads", "huge"], ["--rules", "lion"]):
        with pytest.raises(SystemExit):
            command.parse(wrong)


def test_who_takes_part(monkeypatch):
    small, lots = workloads.make("leaves-2"), workloads.make("leaves-61")
    monkeypatch.setattr(contenders.importlib.util, "find_spec", lambda name: None)
    assert contenders.takes_part("TorchOpt", small, "adamw") == (
        "torchopt is not installed (pip install -e '.[bench-torchopt]')"
    )
    assert contenders.takes_part("torch fused", small, "rmsprop") == "torch has no fused rmsprop"
    assert contenders.takes_part("torch compiled", small, "adamw") is None
    assert "--all" in contenders.takes_part("torch compiled", lots, "adamw")
    assert contenders.takes_part("torch compiled", lots, "adamw", everything=True) is None


@pytest.mark.parametrize("rule", workloads.RULES)
def test_contenders_do_the_same(rule, monkeypatch):
    """What is raced is one rule: two steps of funcopt and of torch agree, to rounding."""
    problem = workloads.make("leaves-2")
    ends = {}

    def looped(step, params, state, grads):
        ends["carried"] = step(*step(params, state, grads), grads)[0]
        return lambda: None

    monkeypatch.setattr(contenders, "looped", looped)
    contenders.funcopt_eager(problem, rule)
    values, grads = problem.copies()
    params = [torch.nn.Parameter(value) for value in values.values()]
    optimizer = contenders.imperative(rule, params, torch.optim)
    for _ in range(2):
        for param, grad in zip(params, grads.values()):
            param.grad = grad.clone()
        if rule == "clip+adamw":
            torch.nn.utils.clip_grad_norm_(params, contenders.MAX_NORM)
        optimizer.step()
    theirs = [param.detach() for param in params]
    moved = max(float((p - q).abs().max()) for p, q in zip(theirs, problem.params.values()))
    for one, other in zip(ends["carried"].values(), theirs):
        assert float((one - other).abs().max()) < 1e-3 * moved


@pytest.mark.slow
def test_training_steps_compute_the_same_losses():
    ours, theirs = training.funcopt_step(backend="eager"), training.torch_step(False)
    for _ in range(3):
        torch.testing.assert_close(ours(), theirs(), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_nothing_is_compiled_anew():
    assert recompiles.count("leaves-2", backend="aot_eager") == 0


@pytest.mark.slow
def test_a_small_run(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"{report.BEGIN}\n{report.END}\n")
    options = ["--quick", "--workloads", "leaves-3", "--parts", "races", "--turns", "2", "--seconds", "0.001"]
    names = ["funcopt packed", "torch fused", "torch loop"]
    command.main([*options, "--threads", "1", "--contenders", *names, "--out", str(tmp_path), "--output", str(page)])
    assert set(json.loads((tmp_path / "benchmarks.json").read_text())["races"][0]["timings"]) == set(names)
    assert (tmp_path / "page.png").stat().st_size > 10_000 and "| funcopt packed |" in page.read_text()
    assert "step: leaves-3, adamw: ratios to torch fused" in capsys.readouterr().out
