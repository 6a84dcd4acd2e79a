"""Measures what a selector costs in the process of a torch trainer: time, memory and start-up.

    python experiments/integrations/overhead.py            # N = 1e4, 1e5, 1e6, some minutes
    python experiments/integrations/overhead.py --small    # to check that it works
    python experiments/integrations/overhead.py --step-s 21.4    # adds the share of a training step that takes 21.4 s

Every row of the table is measured in a separate process that imports torch, builds a selector as the integrations do,
with JAX on the CPU, and runs rounds that select prompts and observe every completion. Writes results.json and table.md.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from dps_jax import _json
from dps_jax.integrations import _building, _outcomes

METHODS = (_building.DEFAULT_METHOD, "dps", "binomial_hmm")
GROUP_SIZE = 8


def memory_mib() -> float:
    """Returns the memory that this process holds, in MiB; 0 where the system does not report it."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


def measure(num_prompts: int, batch_size: int, method: str, rounds: int) -> dict[str, Any]:
    """Returns times in seconds and memory in MiB that a selector takes in this process; JAX must not have started."""
    torch = importlib.import_module("torch")
    torch.ones(64, 64).matmul(torch.ones(64, 64))
    before = memory_mib()
    start = time.perf_counter()
    _building.keep_jax_on_cpu()
    selector_type = importlib.import_module("dps_jax").PromptSelector
    import_s = time.perf_counter() - start
    selector = selector_type(num_prompts, method, group_size=GROUP_SIZE, device="cpu")
    build_s = time.perf_counter() - start - import_s
    rng = np.random.default_rng(0)
    rates = rng.beta(0.5, 0.5, num_prompts)
    wall, processor, first = [], [], []
    for number in range(rounds + 2):
        begin = time.perf_counter(), time.process_time()
        ids = selector.select(batch_size)
        between = time.perf_counter(), time.process_time()
        rewards = (rng.random((batch_size, GROUP_SIZE)) < rates[ids, None]).astype(np.float32).ravel()
        rows = np.repeat(ids, GROUP_SIZE)
        later = time.perf_counter(), time.process_time()
        _outcomes.observe(selector, rows, rewards, None, "reward")
        selector.commit()
        selector.metrics()  # waits for the round
        end = time.perf_counter(), time.process_time()
        spent = [end[i] - later[i] + between[i] - begin[i] for i in range(2)]
        # The first two rounds compile programs: one without prompts in flight, and one with them.
        (first if number < 2 else wall).append(spent[0])
        processor.append(spent[1])
    return {
        "num_prompts": num_prompts,
        "batch_size": batch_size,
        "method": method,
        "import_s": import_s,
        "build_s": build_s,
        "first_rounds_s": sum(first),
        "round_s": statistics.median(wall),
        "least_round_s": min(wall),
        "round_processor_s": statistics.median(processor[2:]),
        "memory_before_mib": before,
        "memory_growth_mib": memory_mib() - before,
    }


def table(rows: list[dict[str, Any]], step_s: float | None) -> str:
    """Returns the results as a Markdown table."""
    lines = [
        "| method | N | B | round | CPU time | start | memory |" + (" share of a step |" if step_s else ""),
        "|---|---:|---:|---:|---:|---:|---:|" + ("---:|" if step_s else ""),
    ]
    for row in rows:
        start_s = row["import_s"] + row["build_s"] + row["first_rounds_s"]
        line = (
            f"| {row['method']} | {row['num_prompts']:,} | {row['batch_size']} | {1e3 * row['round_s']:.1f} ms | "
            f"{1e3 * row['round_processor_s']:.1f} ms | {start_s:.1f} s | {row['memory_growth_mib']:,.0f} MiB |"
        )
        lines.append(line + (f" {100 * row['round_s'] / step_s:.2f} % |" if step_s else ""))
    return "\n".join(lines)


def main(small: bool = False, rounds: int = 30, step_s: float | None = None, out: Path = Path("runs/overhead")) -> Any:
    """Measures all cases, writes results.json and table.md, and returns the rows of results.json."""
    # Without the variables of JAX, no process reads compiled programs from a cache, which would shorten its start.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    cases = [
        {"num_prompts": num_prompts, "batch_size": batch_size, "method": method, "rounds": 3 if small else rounds}
        for num_prompts in ((1_000,) if small else (10_000, 100_000, 1_000_000))
        for batch_size in ((32,) if small else (256, 32))
        for method in METHODS
    ]
    rows = []
    for case in cases:
        command = [sys.executable, str(Path(__file__).resolve()), "--case", json.dumps(case)]
        found = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        rows.append(json.loads(found.stdout.splitlines()[-1]))
        print(".", end="", flush=True)
    print("\n" + table(rows, step_s))
    machine = importlib.import_module("_machine").describe_machine()
    out.mkdir(parents=True, exist_ok=True)
    _json.write(out / "results.json", {"machine": machine, "step_s": step_s, "rows": rows}, indent=2)
    words = (
        "N: number of prompts; B: prompts per round. A round consists of select, observe and commit: median time, and "
        "median CPU time of all threads. Start: import of dps_jax, construction of the selector, and the first two "
        "rounds, in which programs are compiled. Memory: growth of the memory of the process. "
    )
    words += f"Machine: {machine['cpu']}, {machine['cores']} cores; {machine['date']}."
    if step_s:
        words += (
            f" A training step took {step_s:.1f} s; the share of a step is the time of a round divided by this time."
        )
    (out / "table.md").write_text(f"{table(rows, step_s)}\n\n{words}\n", encoding="utf-8")
    return rows


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="measure one small N with few rounds")
    parser.add_argument("--rounds", type=int, default=30, help="rounds per row of the table (default: %(default)s)")
    parser.add_argument(
        "--step-s", type=float, help="duration of a training step in seconds; adds the share of it that a round takes"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/overhead"), help="folder for results.json and table.md")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    options = vars(parsed())
    if case := options.pop("case"):
        print(json.dumps(measure(**case)))
    else:
        sys.path.append(str(Path(__file__).resolve().parents[1]))
        main(**options)
