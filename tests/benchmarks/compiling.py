"""The time of the first call, in a process of its own: with empty caches, and again with those it has filled.

python -m tests.benchmarks.compiling gpt adamw "funcopt packed" 2
"""

import json
import os
import subprocess
import sys
import tempfile
from typing import Any

Row = dict[str, Any]


def measure(workload: str, rule: str, contender: str, threads: int) -> Row:
    """Seconds of the first call: `cold` compiles from nothing, `warm` finds the caches of the cold one."""
    with tempfile.TemporaryDirectory() as cache:
        cold, warm = (_first_call(workload, rule, contender, threads, cache) for _ in range(2))
    return {"workload": workload, "rule": rule, "contender": contender, "cold": cold, "warm": warm}


def _first_call(workload: str, rule: str, contender: str, threads: int, cache: str) -> float:
    command = [sys.executable, "-m", __spec__.name, workload, rule, contender, str(threads)]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    import torch

    from tests.benchmarks import contenders, workloads
    from tests.benchmarks.measure import seconds_of

    workload, rule, contender, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    step = contenders.CONTENDERS[contender](workloads.make(workload), rule)
    if step is None:
        raise SystemExit(f"{contender} does not have {rule}")
    print(json.dumps(seconds_of(step)))


if __name__ == "__main__":
    main()
