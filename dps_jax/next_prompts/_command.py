"""The command: reads logs and a data file, chooses prompts, and then writes the files."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track

from dps_jax import _checks, selectors, traces
from dps_jax.next_prompts import _data_files, _memory, _rollouts
from dps_jax.traces import _tables

_PREDICTIONS = ("p_informative", "success_rate")
_DEFAULT_GROUP_SIZE = 8


@dataclasses.dataclass(frozen=True)
class Config:
    """The files to read and write, and how prompts are chosen."""

    prompts: Path
    """Data file with one row per prompt: .parquet, .jsonl or .jsonl.gz."""
    out: Path
    """File to write: the chosen rows with all their columns, best first, in the format of --prompts."""
    rollouts: tuple[Path, ...] = ()
    """Logs of rollouts, oldest first: files or folders in any format that docs/traces.md lists. Leave this option out
    before the first epoch."""
    columns: traces.ColumnNames = dataclasses.field(default_factory=traces.ColumnNames)
    """Names of the columns of the logs, where they differ from the names that trainers use."""
    threshold: float | None = None
    """Smallest reward that counts as correct; by default rewards must be 0 or 1."""
    key: str | None = None
    """Column of the data file whose entry identifies a prompt in the logs: an id, the text or the messages. By default
    the logs have row numbers, from 0 on."""
    num_prompts: int | None = None
    """Number of rows to choose, B; by default a quarter of all rows, rounded up."""
    method: str | None = None
    """Selection method, a name in dps_jax.selectors.SELECTORS; by default the method of the --state file, or
    "instructive" without one."""
    group_size: int | None = None
    """Number of completions per prompt, G; by default the number in the --state file, or else the most frequent number
    in the logs, or else 8."""
    seed: int = 0
    """Random seed of a new selector; ignored if the selector is read from --state. The number of rounds in the logs is
    added to the seed, so that epochs differ."""
    state: Path | None = None
    """File (.npz) that keeps the state of the selector between calls; the first call creates the file. Rounds that the
    selector has observed are not observed again. Without --state, every call needs all rollouts so far."""
    with_predictions: bool = False
    """Add the columns p_informative and success_rate with the predictions for the chosen rows."""

    def __post_init__(self):
        if self.method is not None:
            _checks.check_choice("method", self.method, selectors.SELECTORS)
        if self.group_size is not None:
            _checks.check_group_size(self.group_size)
        _checks.check_int("seed", self.seed, at_least=0, at_most=2**62)
        if self.threshold is not None:
            _checks.check_number("threshold", self.threshold)
        suffix = _tables.suffix_of(self.prompts, _data_files.SUFFIXES)
        if not self.out.name.lower().endswith(suffix) or self.out.is_dir():
            raise ValueError(
                f"out: expected a file that ends in {suffix}, as --prompts does, got {self.out}; rename it"
            )
        if self.state is not None and (self.state.suffix != ".npz" or self.state.is_dir()):
            raise ValueError(f"state: expected a file that ends in .npz, got {self.state}; rename it")
        read = {
            path.resolve(): name
            for name, path in [("prompts", self.prompts), *(("rollouts", p) for p in self.rollouts)]
        }
        for name, path in (("out", self.out), ("state", self.state)):
            if path is not None and path.resolve() in read:
                raise ValueError(f"{name}: expected another file than --{read[path.resolve()]}, got {path}; rename it")
            if path is not None and not path.parent.is_dir():
                raise ValueError(f"{name}: expected an existing folder {path.parent}, got none; create it")


class Report(NamedTuple):
    """The result of a call.

    Attributes:
      num_rows: number of rows of the data file, N.
      num_rounds: number of rounds observed in all calls.
      num_new_rounds: number of rounds observed in this call.
      num_observed: number of prompts with at least one visit.
      num_unknown: number of distinct prompts of the new rounds that are not in the data file.
      num_chosen: number of chosen prompts, B.
      num_unseen: number of chosen prompts without a visit.
      is_repeated: whether the rows are those of the last call, because there were no new rounds.
      group_size: number of completions per prompt, G.
      method: selection method.
      p_informative: mean predicted P(0 < m < G) of the chosen prompts, and of all prompts.
      success_rate: mean predicted success rate of the chosen prompts, and of all prompts.
    """

    num_rows: int
    num_rounds: int
    num_new_rounds: int
    num_observed: int
    num_unknown: int
    num_chosen: int
    num_unseen: int
    is_repeated: bool
    group_size: int
    method: str
    p_informative: tuple[float, float]
    success_rate: tuple[float, float]


def main(config: Config) -> Report:
    """Writes the chosen rows and the state, and returns the numbers that the command prints.

    Raises:
      ValueError: for files that cannot be used, or options that do not fit them; nothing is written.
      OSError: if a file cannot be read or written; each existing file is either unchanged or completely replaced.
    """
    console = Console(stderr=True)
    with console.status(f"reading {config.prompts}"):
        file = _data_files.read(config.prompts, config.key)
    size = -(-len(file) // 4)
    if config.num_prompts is not None:
        size = _checks.check_int("num_prompts", config.num_prompts, at_least=1, at_most=len(file))
    if config.with_predictions:
        _data_files.check_columns(file, _PREDICTIONS)
    rounds, rows = _read_rollouts(config, file, console)
    with console.status("starting JAX"):
        known = _recalled(config, file, rounds)
        kept = set(known.digests)
        fresh = [a_round for a_round in rounds if a_round.digest not in kept]
        _check_known(config, fresh, rows)
    num_unknown = _observe(known, fresh, rows, console)
    is_repeated = not fresh and known.chosen.size == size
    with console.status("choosing"):
        if not is_repeated:
            # The epoch is over: prompts without an outcome are not waited for.
            known.selector.release(np.arange(len(file)))
            known.chosen = known.selector.select(size)
        predicted = known.selector.predict()
        more = {name: predicted[name][known.chosen] for name in _PREDICTIONS if config.with_predictions}
        # In this order: if the second file is not written, the same call chooses the same rows once more.
        _data_files.write(config.out, file, known.chosen, more)
        if config.state is not None:
            _memory.write(config.state, known)
    both = lambda name: (float(predicted[name][known.chosen].mean()), float(predicted[name].mean()))
    return Report(
        num_rows=len(file),
        num_rounds=len(known.digests),
        num_new_rounds=len(fresh),
        num_observed=int(np.count_nonzero(known.visits)),
        num_unknown=num_unknown,
        num_chosen=size,
        num_unseen=int(np.count_nonzero(known.visits[known.chosen] == 0)),
        is_repeated=is_repeated,
        group_size=known.group_size,
        method=known.selector.method,
        p_informative=both("p_informative"),
        success_rate=both("success_rate"),
    )


def _read_rollouts(
    config: Config, file: _data_files.PromptFile, console: Console
) -> tuple[list[_rollouts.Round], dict[str, int]]:
    """Returns the distinct rounds of all logs, and the rows of their prompts by name."""
    rounds: dict[str, _rollouts.Round] = {}
    rows: dict[str, int] = {}
    for path in config.rollouts:
        with console.status(f"reading {path}"):
            found, found_rows = _rollouts.read_rounds(path, config.columns, config.threshold, file)
        rounds |= {a_round.digest: a_round for a_round in found if a_round.digest not in rounds}
        rows |= {name: row for name, row in found_rows.items() if rows.get(name, -1) < 0}
    return list(rounds.values()), rows


def _recalled(config: Config, file: _data_files.PromptFile, rounds: list[_rollouts.Round]) -> _memory.Memory:
    """Returns the memory in the state file, or a new one without a file; a selector without rounds may be replaced."""
    method = config.method
    if config.state is not None and config.state.exists():
        known = _memory.read(config.state)
        reason = _memory.difference(known, file, config.key, method, config.group_size)
        if known.digests:
            if reason is not None:
                raise ValueError(f"{config.state}: {reason}")
            return _memory.carried_over(known, file)
        # The selector has learned nothing yet, so that another can replace it.
        if reason is None and not rounds:
            return _memory.carried_over(known, file)
        method = method or known.selector.method
    counts = np.concatenate([np.zeros(0, np.int64), *(a_round.counts for a_round in rounds)])
    most_frequent = int(np.bincount(counts).argmax()) if counts.size else _DEFAULT_GROUP_SIZE
    group_size = config.group_size or most_frequent
    return _memory.begin(file, config.key, method, group_size, config.seed + len(rounds))


def _check_known(config: Config, fresh: list[_rollouts.Round], rows: dict[str, int]) -> None:
    names = {name for a_round in fresh for name in a_round.names}
    if names and all(rows[name] < 0 for name in names):
        example = min(names)
        raise ValueError(
            f"{', '.join(map(os.fspath, config.rollouts))}: expected prompts as in the column {config.key!r} of "
            f"{config.prompts}, got none of them, but {len(names):,} others such as {example[:80]!r}; name the column "
            "that holds these as --key, or log an id and name its column as --columns.prompt"
        )


def _observe(known: _memory.Memory, fresh: list[_rollouts.Round], rows: dict[str, int], console: Console) -> int:
    """Lets the selector observe rounds one after another; returns the number of prompts not in the data file."""
    unknown: set[str] = set()
    for a_round in track(fresh, "observing rounds", console=console, transient=True, disable=not console.is_terminal):
        ids = np.array([rows[name] for name in a_round.names], np.int64)
        unknown |= {name for name, row in zip(a_round.names, ids, strict=True) if row < 0}
        is_known = ids >= 0
        known.selector.observe(ids[is_known], a_round.successes[is_known], a_round.counts[is_known])
        known.selector.commit()
        known.visits[ids[is_known]] += 1
        known.digests.append(a_round.digest)
    return len(unknown)


def to_text(config: Config, report: Report) -> str:
    """Returns the result of a call as a table."""
    percent = lambda pair: f"{100 * pair[0]:.0f} % (all rows: {100 * pair[1]:.0f} %)"
    lines = [
        ("prompts", f"{report.num_rows:,} rows of {config.prompts}"),
        (
            "rollouts",
            f"{report.num_rounds:,} rounds, {report.num_new_rounds:,} of them new; groups of {report.group_size}",
        ),
        ("observed", f"{report.num_observed:,} prompts"),
        (
            "chosen",
            f"{report.num_chosen:,} rows by {report.method!r}, {report.num_unseen:,} never observed: {config.out}",
        ),
        ("predicted informative", percent(report.p_informative)),
        ("predicted correct", percent(report.success_rate)),
    ]
    if report.num_unknown:
        lines.append(("left out", f"{report.num_unknown:,} prompts of the logs that {config.prompts} does not have"))
    if report.is_repeated:
        lines.append(("note", "no rollouts since the last call: the same rows again"))
    return "\n".join(f"{name:<22} {text}" for name, text in lines)
