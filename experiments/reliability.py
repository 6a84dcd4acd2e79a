"""Kills runs at random moments and damages their files, and checks that their results stay the same.

A run is killed by SIGKILL, at a random time or before a random operation on its files, and restarted until it is
finished. Then its summary, metrics, trace and policies must equal those of an uninterrupted run bit for bit, except for
measured times. After damage to a file, a run must give the same results or fail with an error that names the file (for
a file of a checkpoint, the folder checkpoints/). Writes results.json and table.md to runs/reliability/.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import _machine
import numpy as np
from rich.console import Console

from dps_jax import _checks, _cli, _files, traces, training
from dps_jax.training import CheckpointError, _policy_files, _reporting
from dps_jax.training import _folder as folders

DATA = Path(__file__).resolve().parent / "data"
_TIMES = re.compile(r"_s$|seconds$")
_NEST = 100_000
# A run that needs more starts than this counts as never finishing.
_MAX_STARTS = 200
_WRITES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink", "shutil.rmtree"}
CASES: dict[str, dict[str, Any]] = {
    "dps": {"selector": training.SelectorConfig(method="dps", pool_factor=4)},
    "binomial_hmm": {"selector": training.SelectorConfig(method="binomial_hmm", pool_factor=4)},
    "dynamic collection": {
        "selector": training.SelectorConfig(method="uniform"),
        "rollout": training.RolloutConfig(batch_size=4, group_size=4, collection="dynamic", max_batches=3),
    },
}


@dataclasses.dataclass(frozen=True)
class Config:
    """The runs to kill, and how often."""

    num_kills: int = 50
    """Number of kills of every case."""
    cases: tuple[str, ...] = tuple(CASES)
    """Cases to test: some of "dps", "binomial_hmm" (two methods) and "dynamic collection" (prompts are rolled out until
    enough completion groups have some correct and some wrong completions)."""
    num_rounds: int = 6
    """Number of rounds of a run. Runs are evaluated and saved after every second round."""
    has_damages: bool = True
    """Also test runs with damaged files."""
    weights: Path | None = DATA / "chain_sum.safetensors"
    """Weights of the policy before training, a .safetensors file; None is a tiny model with random weights."""
    seed: int = 0
    """Random seed of the times and operations at which runs are killed."""
    out_dir: Path = Path("runs/reliability")
    """Folder for results.json and table.md."""

    def __post_init__(self):
        _checks.check_int("num_kills", self.num_kills, at_least=0)
        _checks.check_int("num_rounds", self.num_rounds, at_least=4)
        for name in self.cases:
            _checks.check_choice("cases", name, CASES)

    def train_config(self, case: str, name: str, num_rounds: int | None = None) -> training.TrainConfig:
        """Returns the config of a run."""
        fields = {
            "task": training.TaskConfig(num_train=50, num_test=16, broken=0.0, format_reward=0.5),
            "model": training.ModelConfig(weights=self.weights, size="0.1m"),
            "rollout": training.RolloutConfig(batch_size=4, group_size=4),
            **CASES[case],
        }
        return training.TrainConfig(
            name=name,
            out_dir=self.out_dir,
            num_rounds=self.num_rounds if num_rounds is None else num_rounds,
            eval_every=2,
            eval_samples=2,
            checkpoint_every=2,
            **fields,
        )


def _watch_writes(folder: Path, kill_at: int | None) -> Callable[[], int]:
    """Counts operations that change a folder, and kills the process before operation `kill_at`; returns the counter."""
    inside = os.path.abspath(folder)
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            is_write = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            paths = arguments[:1] if is_write else ()
        else:
            paths = arguments if event in _WRITES else ()
        if any(isinstance(path, (str, os.PathLike)) and os.path.abspath(path).startswith(inside) for path in paths):
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return lambda: count


def _train(config: training.TrainConfig, report: Path, kill_at: int | None) -> None:
    """Trains, and writes the error (or None) and the number of writes to `report`; runs in a separate process."""
    num_writes = _watch_writes(config.folder, kill_at)
    found: dict[str, Any] = {"error": None}
    with open(report.with_suffix(".log"), "w", encoding="utf-8") as file:
        try:
            training.train(config, Console(file=file, width=200))
        except (ValueError, OSError, CheckpointError, training.TrainingError) as error:
            found["error"] = f"{type(error).__name__}: {error}"
    _files.write_atomically(report, json.dumps(found | {"num_writes": num_writes()}))


@functools.cache
def _processes() -> Any:
    """Returns a multiprocessing context whose processes have imported everything, without a running JAX backend."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__ if __name__ != "__main__" else "__main__", "dps_jax.training"])
    return context


def train_once(
    config: training.TrainConfig, *, kill_at: int | None = None, kill_after_s: float | None = None
) -> dict[str, Any] | None:
    """Trains in a separate process; returns its `error` (or None) and `num_writes`, or None if it was killed.

    Raises:
      RuntimeError: if the process ended in another way.
    """
    report = config.out_dir / f"{config.name}.report.json"
    config.out_dir.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    process = _processes().Process(target=_train, args=(config, report, kill_at))
    process.start()
    process.join(kill_after_s)
    if process.exitcode is None:
        process.kill()
        process.join()
    if process.exitcode == -signal.SIGKILL:
        return None
    if process.exitcode != 0 or not report.exists():
        raise RuntimeError(f"{config.folder}: expected a run that ends or is killed, got exit code {process.exitcode}")
    return json.loads(report.read_text(encoding="utf-8"))


def _timeless(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if not _TIMES.search(name)}


def differences(one: Path, other: Path) -> list[str]:
    """Returns the files in which two finished runs differ, apart from measured times."""
    metrics = lambda folder: [_timeless(record) for record in training.read_metrics(folder / "metrics.jsonl")]
    summary = lambda folder: _timeless(json.loads((folder / "summary.json").read_text(encoding="utf-8")))
    same = {
        "summary.json": summary(one) == summary(other),
        "metrics.jsonl": metrics(one) == metrics(other),
        "trace.npz": all(
            np.array_equal(left, right) if left is not None and right is not None else left is right
            for left, right in zip(*(traces.read_trace(folder / "trace.npz") for folder in (one, other)), strict=True)
        ),
    }
    for name in (_policy_files.LAST, _policy_files.BEST):
        same[name] = (one / name).read_bytes() == (other / name).read_bytes()
    return [name for name, is_same in same.items() if not is_same]


def kill_again_and_again(config: Config, case: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Returns the number of kills and of runs, and the differences between killed runs and an uninterrupted one."""
    whole, again = (config.train_config(case, f"{case.replace(' ', '_')}-{name}") for name in ("whole", "again"))
    # Two runs: the second finds everything compiled, as do all later runs, so its duration is representative.
    for run in (whole, again):
        shutil.rmtree(run.folder, ignore_errors=True)
        start = time.perf_counter()
        found = train_once(run)
        duration = time.perf_counter() - start
        if found is None or found["error"] is not None:
            raise ValueError(f"{run.folder}: expected a run that ends, got {found}")
    assert found is not None
    rng = random.Random(f"{config.seed} {case}")
    counts = {"time": 0, "operation": 0}
    different = differences(again.folder, whole.folder)
    num_runs = 0
    while sum(counts.values()) < config.num_kills:
        run = config.train_config(case, f"{case.replace(' ', '_')}-killed")
        shutil.rmtree(run.folder, ignore_errors=True)
        num_runs += 1
        for _ in range(_MAX_STARTS):
            kind = rng.choice(list(counts)) if sum(counts.values()) < config.num_kills else None
            moment = {
                "time": {"kill_after_s": rng.uniform(0.2, 1.0) * duration},
                "operation": {"kill_at": rng.randint(1, found["num_writes"])},
            }
            outcome = train_once(run, **({} if kind is None else moment[kind]))
            if outcome is None:
                counts[str(kind)] += 1
                continue
            different += [outcome["error"]] if outcome["error"] else differences(run.folder, whole.folder)
            break
        else:
            different.append(f"not finished after {_MAX_STARTS} starts")
        say(f"{case}: {sum(counts.values())} kills, {num_runs} runs, differences: {different or 'none'}")
    return {"kills": counts, "runs": num_runs, "writes": found["num_writes"], "different": different}


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))


KINDS: dict[str, Callable[[Path], object]] = {
    "a flipped bit": _flip,
    "cut in half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "zeros": lambda path: path.write_bytes(b"\0" * path.stat().st_size),
    "deleted": lambda path: path.unlink(),
    "JSON, nested deeply": lambda path: path.write_text("[" * _NEST + "]" * _NEST),
}


def _newest(folder: Path) -> Path:
    return max((folder / "checkpoints").glob("round_*"), key=lambda path: path.name)


def _largest_array(folder: Path) -> Path:
    return max((_newest(folder) / "state").rglob("d/*"), key=lambda path: path.stat().st_size)


FILES: dict[str, Callable[[Path], Path]] = {
    **{
        name: functools.partial(lambda name, folder: folder / name, name)
        for name in (
            *("config.json", "metrics.jsonl", "trace.npz", "prompts.npz", "summary.json", "prior.json", folders.LOCK),
            *(_policy_files.LAST, _policy_files.BEST),
        )
    },
    "manifest.json of a checkpoint": lambda folder: _newest(folder) / "manifest.json",
    "an array of a checkpoint": _largest_array,
    "_METADATA of a checkpoint": lambda folder: _newest(folder) / "state" / "_METADATA",
}


def _delete_checkpoints(folder: Path) -> None:
    shutil.rmtree(folder / "checkpoints")


def _stray_files(folder: Path) -> None:
    for name in ("x.pending", "round_0000000006.pending", "round_0000000006"):
        (folder / "checkpoints" / name).write_text("stray")
    (folder / "checkpoints" / "round_0000000002.pending").symlink_to(folder / "config.json")


# Further kinds of damage: what is damaged, how, and a function of the folder that does it.
OTHERS: tuple[tuple[str, str, Callable[[Path], None]], ...] = (
    ("checkpoints/", "deleted", _delete_checkpoints),
    ("checkpoints/", "stray files and links", _stray_files),
)


def all_damages() -> list[tuple[str, str, Callable[[Path], object]]]:
    """Returns all kinds of damage: what is damaged, how, and a function of the folder that does it."""
    damages: list[tuple[str, str, Callable[[Path], object]]] = []
    for file, find in FILES.items():
        for kind, spoil in KINDS.items():
            damages.append((file, kind, lambda folder, find=find, spoil=spoil: spoil(find(folder))))
    return [*damages, *OTHERS]


def judge(what: str, error: str | None, one: Path, other: Path) -> str:
    """Returns the outcome of a run with a damaged file; an outcome that begins with "wrong" is a failure."""
    if error is None:
        different = differences(one, other)
        return f"wrong: another end ({', '.join(different)})" if different else "same end"
    name = "checkpoints" if "checkpoint" in what else what
    return "error that names the file" if name in error else f"wrong: {error}"


def damage_everything(config: Config, say: Callable[[str], None]) -> list[dict[str, str]]:
    """Returns the outcome of every kind of damage to every file of an unfinished run."""
    case = config.cases[0]
    whole = config.train_config(case, f"{case.replace(' ', '_')}-whole")
    half = 2 * (config.num_rounds // 4)
    halfway = config.train_config(case, "halfway", half)
    shutil.rmtree(halfway.folder, ignore_errors=True)
    for run in (whole, halfway):
        found = train_once(run)
        if found is None or found["error"] is not None:
            raise ValueError(f"{run.folder}: expected a run that ends, got {found}")
    results = []
    for what, kind, spoil in all_damages():
        run = config.train_config(case, "damaged")
        shutil.rmtree(run.folder, ignore_errors=True)
        shutil.copytree(halfway.folder, run.folder)
        spoil(run.folder)
        found = train_once(run)
        assert found is not None
        outcome = judge(what, found["error"], run.folder, whole.folder)
        results.append({"file": what, "damage": kind, "outcome": outcome})
        say(f"{what}, {kind}: {outcome}")
    return results


def to_markdown(results: dict[str, Any]) -> str:
    """Returns the tables of docs/reliability.md."""
    machine = results["machine"]
    lines = [
        f"Runs of {results['num_rounds']} rounds, {machine['cores']} CPU cores, JAX {machine['jax']}:",
        "",
        "| run | killed at a random time | killed before a random file operation | finished runs "
        "| finished runs that differ |",
        "|---|---:|---:|---:|---:|",
    ]
    for case, found in results["kills"].items():
        kills = found["kills"]
        cells = (case, kills["time"], kills["operation"], found["runs"], len(found["different"]))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    if results["damages"]:
        kinds = list(dict.fromkeys(row["damage"] for row in results["damages"]))
        table = {(row["file"], row["damage"]): row["outcome"] for row in results["damages"]}
        lines += ["", f"| file | {' | '.join(kinds)} |", f"|---|{'---|' * len(kinds)}"]
        short = {"error that names the file": "error"}
        for file in dict.fromkeys(row["file"] for row in results["damages"]):
            outcomes = [str(table.get((file, kind), "")) for kind in kinds]
            lines.append(f"| {file} | {' | '.join(short.get(outcome, outcome) for outcome in outcomes)} |")
    return "\n".join(lines) + "\n"


def is_fine(results: dict[str, Any]) -> bool:
    """Returns whether all finished runs are equal to the uninterrupted ones, and all errors name the damaged file."""
    is_same = not any(found["different"] for found in results["kills"].values())
    return is_same and not any(row["outcome"].startswith("wrong") for row in results["damages"])


def main(config: Config) -> dict[str, Any]:
    """Kills runs and damages files, writes the results, and returns them."""
    # JAX warns about forks; they are safe here, because no backend has been started.
    os.environ["PYTHONWARNINGS"] = "ignore::RuntimeWarning"
    console = _reporting.default_console()
    say = functools.partial(_reporting.say, console)
    config.out_dir.mkdir(parents=True, exist_ok=True)
    # A new folder, which nothing else uses.
    work = Path(tempfile.mkdtemp(prefix="runs-", dir=config.out_dir))
    inside = dataclasses.replace(config, out_dir=work)
    kills = {case: kill_again_and_again(inside, case, say) for case in config.cases if config.num_kills}
    damages: Sequence[dict[str, str]] = damage_everything(inside, say) if config.has_damages else []
    results = {"machine": _machine.describe_machine(), "num_rounds": config.num_rounds}
    results |= {"kills": kills, "damages": list(damages)}
    _files.write_atomically(config.out_dir / "results.json", json.dumps(results, indent=1) + "\n")
    _files.write_atomically(config.out_dir / "table.md", to_markdown(results))
    if is_fine(results):
        shutil.rmtree(work, ignore_errors=True)
    else:
        say(f"all runs, including those that differ, are kept in {work}")
    say(to_markdown(results))
    return results


if __name__ == "__main__":
    try:
        sys.exit(0 if is_fine(main(_cli.cli(Config, description=__doc__))) else 1)
    except (ValueError, OSError, RuntimeError) as error:
        _reporting.say(Console(stderr=True), f"error: {error}")
        sys.exit(1)
