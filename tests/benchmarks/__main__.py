"""Run the benchmarks: a table on the terminal, and a JSON file and a picture in a folder.

python -m tests.benchmarks --quick                       a few minutes
python -m tests.benchmarks --workloads gpt --rules adamw
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks import contenders, measure, report, workloads

SLOW_TO_COMPILE = {"funcopt compiled", "torch compiled", "funcopt gathered"}
"""Left out where there are more than 60 leaves, unless --all is given: minutes each."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small workloads, one rule, few turns")
    parser.add_argument(
        "--workloads", nargs="+", default=list(workloads.WORKLOADS), help="mlp, many, gpt, big, leaves-N"
    )
    parser.add_argument("--rules", nargs="+", default=list(workloads.RULES), choices=workloads.RULES)
    parser.add_argument("--contenders", nargs="+", default=list(contenders.CONTENDERS), choices=contenders.CONTENDERS)
    parser.add_argument("--turns", type=int, default=11, help="how often each contender has its turn (%(default)s)")
    parser.add_argument("--seconds", type=float, default=0.2, help="length of a turn (%(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--all", action="store_true", help="with what compiles for minutes")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    args = parser.parse_args()
    args.workloads = args.workloads or (["mlp", "many"] if args.quick else list(workloads.WORKLOADS))
    args.rules = args.rules or (["adamw"] if args.quick else list(workloads.RULES))
    args.turns = 5 if args.quick else args.turns
    return args


def steps_for(args: argparse.Namespace, problem: workloads.Problem, rule: str) -> dict[str, Callable[[], Any]]:
    """The steps of all who take part; who does not is told on the terminal."""
    steps = {}
    for name in args.contenders:
        reason = contenders.takes_part(name, rule)
        if reason is None and not args.all and name in SLOW_TO_COMPILE and len(problem.params) > 60:
            reason = f"{len(problem.params)} leaves compile for minutes (--all)"
        step = None if reason else contenders.CONTENDERS[name](problem, rule)
        if step is None:
            print(f"  without {name}: {reason or 'it does not have this rule'}", file=sys.stderr)
        else:
            steps[name] = step
    return steps


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for workload in args.workloads:
        problem = workloads.make(workload)
        for rule in args.rules:
            print(f"{workload}, {rule}: {len(problem.params)} leaves, {problem.size:,} numbers", file=sys.stderr)
            torch._dynamo.reset()
            steps = steps_for(args, problem, rule)
            timings = measure.race(steps, args.turns, args.seconds)
            reference = timings.get("torch fused") or timings.get("torch foreach") or next(iter(timings.values()))
            for name, timing in timings.items():
                low, middle, high = measure.ratio(timing, reference)
                rows.append(
                    {
                        "workload": workload,
                        "rule": rule,
                        "contender": name,
                        "milliseconds": timing.median,
                        "ratio": middle,
                        "quartiles": [low, high],
                        "reference": reference.name,
                        "first_call_seconds": timing.first,
                        "allocated_bytes": None if name == "optax jitted" else measure.bytes_allocated(steps[name]),
                    }
                )
            print(report.table(rows[-len(timings) :]))
    return rows


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    # Cold: every first call compiles from nothing.
    torch._inductor.config.force_disable_caches = True
    began = time.perf_counter()
    rows = run(args)
    facts = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": args.threads,
        "bandwidth_gigabytes_per_second": measure.stream_bandwidth() / 1e9,
        "seconds": time.perf_counter() - began,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "benchmarks.json").write_text(json.dumps({"facts": facts, "rows": rows}, indent=1))
    report.picture(rows, args.out / "benchmarks.png")
    print(f"written to {args.out}: benchmarks.json, benchmarks.png", file=sys.stderr)


if __name__ == "__main__":
    main()
