"""Run the benchmarks: tables on the terminal, and a JSON file and a picture in a folder.

python -m tests.benchmarks --quick                          two workloads with adamw
python -m tests.benchmarks --output docs/performance.md     everything, and the tables and picture of that page
python -m tests.benchmarks --parts races --workloads gpt leaves-100 --rules adamw
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks import compiling, contenders, measure, recompiles, report, sweeps, training, workloads
from tests.benchmarks.measure import Race

PARTS = ("races", "compile", "recompiles", "training", "sweep")
COMPILED = [
    *((workload, contenders.PACKED) for workload in (*workloads.WORKLOADS, "leaves-10", "leaves-1000")),
    *((workload, contenders.SEPARATE) for workload in ("gpt", "leaves-10", "leaves-1000")),
]
QUICK = {"workloads": ["mlp", "many"], "rules": ["adamw"], "turns": 3, "seconds": 0.05, "parts": ["races", "sweep"]}
FULL = {
    "workloads": [*workloads.WORKLOADS, "leaves-10", "leaves-100", "leaves-1000"],
    "rules": list(workloads.RULES),
    "turns": 9,
    "seconds": 0.1,
    "parts": list(PARTS),
}


def parse(arguments: list[str]) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m tests.benchmarks", description=__doc__, formatter_class=formatter)
    parser.add_argument("--quick", action="store_true", help="other defaults: small workloads, adamw, few turns")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="what to measure (everything)")
    parser.add_argument("--workloads", nargs="+", metavar="NAME", help="mlp, many, gpt, big, leaves-N")
    parser.add_argument("--rules", nargs="+", choices=workloads.RULES, help="leaves-N run with adamw only")
    parser.add_argument("--contenders", nargs="+", default=list(contenders.CONTENDERS), choices=contenders.CONTENDERS)
    parser.add_argument("--turns", type=int, help="how often each contender has its turn (9)")
    parser.add_argument("--seconds", type=float, help="length of a turn (0.1)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--all", action="store_true", help="with what compiles for minutes, in all rules")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of JSON and picture")
    parser.add_argument("--output", type=Path, help="a page whose tables and picture are to be replaced")
    parser.add_argument("--results", type=Path, help="measure nothing; report the JSON file of another run")
    args = parser.parse_args(arguments)
    for name, value in (QUICK if args.quick else FULL).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    for name in args.workloads:
        if not workloads.is_workload(name):
            parser.error(f"--workloads: {name!r} is none of {', '.join(workloads.WORKLOADS)}, leaves-N")
    return args


def run_races(args: argparse.Namespace) -> list[Race]:
    races = []
    for workload in args.workloads:
        problem = workloads.make(workload)
        for rule in args.rules if workload in workloads.WORKLOADS else ["adamw"]:
            print(f"{workload}, {rule}: {len(problem.params)} leaves, {problem.size:,} numbers", file=sys.stderr)
            torch._dynamo.reset()
            steps = contenders.steps_for(args.contenders, problem, rule, args.all)
            if not steps:
                continue
            race = Race("step", workload, rule, measure.race(steps, args.turns, args.seconds))
            for name in steps.keys() - {"optax jitted", "memory limit"}:
                race.timings[name].peak = measure.peak_memory(steps[name])
            print(report.table(race))
            races.append(race)
    return races


def run_compilations(args: argparse.Namespace) -> list[compiling.Row]:
    rows = []
    for workload, contender in COMPILED:
        rows.append(compiling.measure(workload, "adamw", contender, args.threads))
        print("first call of {contender}, {workload}: cold {cold:.1f} s, warm {warm:.1f} s".format(**rows[-1]))
    return rows


def run(args: argparse.Namespace) -> report.Results:
    began = time.perf_counter()
    results: report.Results = {"races": [], "compile": [], "recompiles": None}
    if "races" in args.parts:
        results["races"] += run_races(args)
    torch._dynamo.reset()
    if "training" in args.parts:
        timings = measure.race(training.steps(), args.turns, 3 * args.seconds)
        results["races"].append(Race("training", "small gpt", "clip+adamw", timings))
        print(report.table(results["races"][-1]))
    if "sweep" in args.parts:
        for name in sweeps.PROBLEMS:
            results["races"].append(sweeps.race(name, turns=min(args.turns, 5)))
            print(report.table(results["races"][-1]))
    if "recompiles" in args.parts:
        results["recompiles"] = recompiles.count()
    if "compile" in args.parts:
        results["compile"] = run_compilations(args)
    results["facts"] = facts(args) | {"minutes": (time.perf_counter() - began) / 60}
    return results


def facts(args: argparse.Namespace) -> dict[str, Any]:
    models = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": models[0] if models else platform.machine(),
        "threads": args.threads,
        "turns": args.turns,
        "seconds_a_turn": args.seconds,
        "bandwidth": measure.stream_bandwidth(),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def save(results: report.Results, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    data = results | {"races": [race.to_json() for race in results["races"]]}
    (folder / "benchmarks.json").write_text(json.dumps(data, indent=1))


def load(path: Path) -> report.Results:
    data = json.loads(path.read_text())
    return data | {"races": [Race.from_json(race) for race in data["races"]]}


def main(arguments: list[str]) -> None:
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    results = load(args.results) if args.results else run(args)
    if not args.results:
        save(results, args.out)
    print(report.summary(results))
    args.out.mkdir(parents=True, exist_ok=True)
    report.picture(results, args.out / "benchmarks.png")
    if args.output:
        image = args.output.with_suffix(".png")
        report.picture(results, image)
        report.write_page(results, args.output, image.name)
    print(f"{results['facts']['minutes']:.1f} minutes; written to {args.out}", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
