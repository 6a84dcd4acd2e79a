"""Reads and checks the files of runs and traces."""

from __future__ import annotations

import datetime
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dps_jax import _json, _npz, traces
from dps_jax.traces.replay import Visits, visits_of
from dps_jax.training import _folder, _options, read_metrics

PHASES = ("select_s", "rollout_s", "update_s", "observe_s")
# The entries of metrics.jsonl that the page shows.
NUMBERS = (
    *("rollouts", "completion_tokens", "effective_sample_ratio", "reward", "loss", "entropy", "grad_norm"),
    *("brier", "test_accuracy", "test_accuracy_error", *PHASES),
)


class Run(NamedTuple):
    """A run, or a trace without a run.

    Attributes:
      name: name on the page.
      path: path of the folder or file.
      config: options of the run as JSON values; None for a trace without a run.
      records: records of the rounds, as in metrics.jsonl; empty for a trace without a run.
      summary: contents of summary.json, or None.
      visits: visits of the trace, over all N prompts of a run if prompts.npz exists, and otherwise over prompts with a
        visit; None without a trace.
      rounds: number in the trace of each round of `visits`, [T]; empty without a trace.
      names: texts of the prompts by id, for a trace without a run whose log names prompts by text; otherwise None.
      groups: prompt group of every prompt, int [N], or None.
      features: features of every prompt, [N, D], or None.
      status: "finished", "unfinished" or "trace".
      progress: text about the progress of an unfinished run; "" otherwise.
      when: text of the time of the last change, UTC.
    """

    name: str
    path: Path
    config: Mapping[str, Any] | None
    records: list[dict[str, Any]]
    summary: Mapping[str, Any] | None
    visits: Visits | None
    rounds: np.ndarray
    names: list[str] | None
    groups: np.ndarray | None
    features: np.ndarray | None
    status: str
    progress: str
    when: str


def read_run(path: Path, columns: traces.ColumnNames | None = None, threshold: float | None = None) -> Run:
    """Returns the run in a folder, or a trace.

    Args:
      path: path of the folder of a run, or of a trace: a file or folder that `traces.read_trace` reads.
      columns: names of the columns of a trace; see `traces.read_trace`.
      threshold: smallest reward in a trace that counts as correct; see `traces.read_trace`.

    Raises:
      ValueError: if a file is missing, damaged or does not fit the others; the message names the file.
      OSError: if a file cannot be read.
    """
    if not path.exists():
        raise ValueError(f"{path}: expected the folder of a run or a trace, got nothing there; check the path")
    if path.is_dir() and any((path / name).exists() for name in ("config.json", "metrics.jsonl")):
        return _read_folder(path)
    trace, names = traces.read_named_trace(path, columns, threshold=threshold)
    visits, rounds = _checked_visits(path, trace, None)
    if visits is None:
        raise ValueError(f"{path}: expected a trace with at least one row, got none; log some rounds first")
    return Run(
        name=_trace_name(path.resolve()),
        path=path,
        config=None,
        records=[],
        summary=None,
        visits=visits,
        rounds=rounds,
        names=names,
        groups=None,
        features=None,
        status="trace",
        progress="",
        when=_changed(path),
    )


def _trace_name(path: Path) -> str:
    """Returns the name of a trace: the name of its file, or of its folder if the file is called trace.npz."""
    if path.is_dir():
        return path.name
    return path.parent.name if path.name == "trace.npz" else path.name.split(".")[0]


def _read_folder(folder: Path) -> Run:
    config = _options.read(folder)
    records = _checked_records(folder / "metrics.jsonl")
    summary = None
    if (folder / "summary.json").exists():
        remedy = "remove it, or put it back from a copy"
        summary = _json.read_object(folder / "summary.json", "the results of a run", remedy)
    groups, features = _read_prompts(folder / "prompts.npz")
    visits, rounds = None, np.zeros(0, np.int64)
    if (folder / "trace.npz").exists():
        trace = traces.read_trace(folder / "trace.npz")
        visits, rounds = _checked_visits(folder / "trace.npz", trace, None if groups is None else len(groups))
    done = 1 + max((record["round"] for record in records), default=-1)
    planned = config.get("num_rounds")
    is_finished = summary is not None and (not isinstance(planned, int) or done >= planned)
    written = [folder / name for name in ("summary.json", "metrics.jsonl", "config.json")]
    return Run(
        name=folder.resolve().name,
        path=folder,
        config=config,
        records=records,
        summary=summary,
        visits=visits,
        rounds=rounds,
        names=None,
        groups=groups,
        features=features,
        status="finished" if is_finished else "unfinished",
        progress="" if is_finished else _progress(folder, done, planned),
        when=max(_changed(path) for path in written if path.exists()),
    )


def _progress(folder: Path, done: int, planned: Any) -> str:
    """Returns a text about the progress of an unfinished run, and about whether its process is running."""
    words = f"{done} of {planned} rounds are done"
    try:
        lock = json.loads((folder / _folder.LOCK).read_bytes())
        process, host = int(lock["process"]), lock["host"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return f"{words}; the command that started it continues from the last checkpoint."
    if host != socket.gethostname():
        return f"{words}; it was last started on another machine."
    if _is_alive(process):
        return f"{words}, and its process is running."
    return f"{words}, and its process has ended; the same command continues from the last checkpoint."


def _is_alive(process: int) -> bool:
    """Returns whether a process with this id exists on this machine."""
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def _checked_records(path: Path) -> list[dict[str, Any]]:
    """Returns the records of metrics.jsonl, in which all entries that the page shows are numbers or null.

    Raises:
      ValueError: for another entry; the message names the file and the round.
    """
    records = read_metrics(path)
    remedy = "correct the line or remove it"
    for record in records:
        for name in NUMBERS:
            value = record.get(name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
                where = f"in round {record['round']}"
                raise ValueError(f"{path}: expected a number or null as {name!r} {where}, got {value!r}; {remedy}")
        confusion = record.get("confusion")
        if confusion is not None and not _is_square(confusion):
            raise ValueError(
                f"{path}: expected counts [3, 3] as 'confusion' in round {record['round']}, got {confusion!r:.60}; "
                f"{remedy}"
            )
    return records


def _is_square(value: Any) -> bool:
    is_row = lambda row: isinstance(row, list) and len(row) == 3 and all(type(entry) is int for entry in row)
    return isinstance(value, list) and len(value) == 3 and all(map(is_row, value))


def _read_prompts(path: Path) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Returns groups [N] and features [N, D] of the prompts, or None twice if there is no file."""
    if not path.exists():
        return None, None
    expected, remedy = "groups [N] and features [N, D] of prompts", "remove it, or put it back from a copy"
    with open(path, "rb") as file:
        arrays = _npz.read(path, file, expected, remedy=remedy)
    groups, features = arrays.get("groups"), arrays.get("features")
    if groups is None or groups.ndim != 1 or groups.dtype.kind not in "iu":
        raise ValueError(f"{path}: expected {expected}, got no whole numbers 'groups' [N]; {remedy}")
    if features is None or features.ndim != 2 or len(features) != groups.size or features.dtype.kind not in "iuf":
        raise ValueError(f"{path}: expected {expected}, got no numbers 'features' [{groups.size}, D]; {remedy}")
    return groups, features


def _checked_visits(path: Path, trace: traces.Trace, num_prompts: int | None) -> tuple[Visits | None, np.ndarray]:
    """Returns the visits of a trace (None for an empty trace) and the numbers of its rounds, [T]."""
    if not trace.rounds.size:
        return None, np.zeros(0, np.int64)
    try:
        return visits_of(trace, num_prompts), np.unique(trace.rounds)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; take trace and prompts.npz from one run") from None


def _changed(path: Path) -> str:
    """Returns the text of the time of a file's last change, UTC."""
    moment = datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC)
    return moment.strftime("%Y-%m-%d %H:%M UTC")


def with_own_names(runs: list[Run]) -> list[Run]:
    """Returns the runs; runs that share a name are named by their paths instead."""
    names = [run.name for run in runs]
    return [run if names.count(run.name) == 1 else run._replace(name=str(run.path)) for run in runs]
