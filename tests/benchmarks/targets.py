"""The figures that the library is to reach, and what was measured for them."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from tests.benchmarks.contenders import PACKED, SEPARATE
from tests.benchmarks.measure import Race

Results = dict[str, Any]
FUSED = "torch fused"
BEST_OF_TORCH = (FUSED, "torch foreach", "torch loop", "torch compiled")


class Verdict(NamedTuple):
    """One line of the table; `low` and `high` are quartiles, equal to `value` where there are none."""

    figure: str
    where: str
    value: float
    low: float
    high: float
    target: float
    unit: str = ""

    @property
    def met(self) -> bool:
        return self.value <= self.target


class Ratio(NamedTuple):
    """A target for the ratio of `ours` to the fastest of `opponents` in the races of a rule."""

    figure: str
    rule: str
    ours: str
    opponents: tuple[str, ...]
    bounds: dict[str, float]
    kind: str = "step"


def everywhere(bound: float) -> dict[str, float]:
    return dict.fromkeys(("mlp", "many", "gpt", "big"), bound)


RATIOS = (
    Ratio(
        "adamw, gradients packed / torch fused",
        "adamw",
        PACKED,
        (FUSED,),
        {"mlp": 0.6, "many": 0.15, "gpt": 0.85, "big": 0.75},
    ),
    Ratio(
        "adamw, gradients separate / torch fused",
        "adamw",
        SEPARATE,
        (FUSED,),
        {"mlp": 0.9, "many": 0.45, "gpt": 0.9, "big": 0.8},
    ),
    Ratio("clip + adamw, packed / clip_grad_norm_ + torch fused", "clip+adamw", PACKED, (FUSED,), everywhere(0.8)),
    Ratio("rmsprop, packed / the best of torch", "rmsprop", PACKED, BEST_OF_TORCH, everywhere(0.5)),
    Ratio("adamw, packed / optax jitted and donated", "adamw", PACKED, ("optax jitted",), everywhere(1.0)),
    Ratio("adamw, packed / TorchOpt", "adamw", PACKED, ("TorchOpt",), everywhere(0.2)),
    Ratio("adamw, packed / memory limit", "adamw", PACKED, ("memory limit",), {"big": 1.25}),
    Ratio("eager adamw / torch for-loop", "adamw", "funcopt eager", ("torch loop",), {"mlp": 1.0, "many": 1.0}),
    *(
        Ratio(f"funcopt.optim, {rule} / torch for-loop", rule, "funcopt.optim", ("torch loop",), everywhere(1.0))
        for rule in ("sgd", "adamw", "adagrad", "rmsprop")
    ),
    Ratio(
        "training step / torch.compile(model) + fused AdamW",
        "clip+adamw",
        PACKED,
        ("torch compiled, fused AdamW",),
        {"small gpt": 0.9},
        "training",
    ),
    Ratio("training step / eager torch", "clip+adamw", PACKED, ("torch eager",), {"small gpt": 0.75}, "training"),
    Ratio(
        "sweep of 1000 / 1000 runs of torch.optim",
        "adamw",
        "funcopt sweep",
        ("torch sequential",),
        {"rosenbrock": 0.01, "beale": 0.01},
        "sweep",
    ),
    Ratio(
        "sweep of 1000 / optax (vmap, jit, scan)",
        "adamw",
        "funcopt sweep",
        ("optax sweep",),
        {"rosenbrock": 1.0, "beale": 1.0},
        "sweep",
    ),
)
COLD_SECONDS, LEAVES_1000_TO_10 = 20.0, 1.5


def verdicts(results: Results) -> list[Verdict]:
    """What the results say about every target that was measured."""
    races: list[Race] = results["races"]
    found = [verdict for target in RATIOS for verdict in _of_ratio(target, races)]
    found += _of_compile_times(results["compile"])
    if results.get("recompiles") is not None:
        found.append(_exact("recompiles in 100 steps", "mlp", results["recompiles"], 0))
    return found


def _of_ratio(target: Ratio, races: Iterable[Race]) -> Iterable[Verdict]:
    for race in races:
        bound = target.bounds.get(race.workload)
        opponent = race.fastest(target.opponents)
        if (race.kind, race.rule) != (target.kind, target.rule) or bound is None or opponent is None:
            continue
        measured = race.ratio(target.ours, opponent)
        if measured is not None:
            low, value, high = measured
            yield Verdict(target.figure, race.workload, value, low, high, bound)


def _of_compile_times(rows: list[dict[str, Any]]) -> Iterable[Verdict]:
    for row in rows:
        yield _exact(f"cold compile of adamw, {row['contender']}", row["workload"], row["cold"], COLD_SECONDS, " s")
    cold = {(row["workload"], row["contender"]): row["cold"] for row in rows}
    for contender in dict.fromkeys(row["contender"] for row in rows):
        few, lots = cold.get(("leaves-10", contender)), cold.get(("leaves-1000", contender))
        if few and lots:
            figure = f"cold compile, 1000 leaves / 10, {contender}"
            yield _exact(figure, "leaves-N", lots / few, LEAVES_1000_TO_10)


def _exact(figure: str, where: str, value: float, target: float, unit: str = "") -> Verdict:
    return Verdict(figure, where, value, value, value, target, unit)
