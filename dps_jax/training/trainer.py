"""The trainer: what is around the rounds. The one place with files, clocks, signals and progress bars."""

from __future__ import annotations

import contextlib
import io
import json
import math
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dps_jax import _files, priors, traces
from dps_jax.hmm.transitions import TransitionPrior
from dps_jax.traces.replay import visits_of
from dps_jax.training import config as configs
from dps_jax.training import figures, run_log, setup
from dps_jax.training.checkpoints import Checkpoints
from dps_jax.training.round import Round, TrainState, round_info

# As many rounds without a single informative group are worth a warning.
_SILENT_ROUNDS = 10
# Apart from the keys of rounds and evaluations.
_ANSWERS_STREAM = 0xA45


class TrainingError(RuntimeError):
    """Training cannot go on."""


class Terminated(SystemExit):
    """SIGTERM came; everything was saved. The exit code is that of a process ended by it."""

    def __init__(self):
        super().__init__(128 + signal.SIGTERM)


class _Phases:
    """The phases of a round, compiled one by one and timed."""

    def __init__(self, parts: Round):
        self._select = jax.jit(parts.select)
        self._collect = jax.jit(parts.collect)
        self._update = jax.jit(parts.update, donate_argnums=0)
        self._observe = jax.jit(parts.observe, donate_argnums=0)

    def run(self, state: TrainState, problems: Any) -> tuple[TrainState, Any, Any, dict[str, float]]:
        """Returns the state of the next round, the collection, the `RoundInfo`, and seconds of the phases."""
        clock = [time.perf_counter()]

        def timed(value):
            jax.block_until_ready(value)
            clock.append(time.perf_counter())
            return value

        selection = timed(self._select(state))
        collection = timed(self._collect(state, problems, selection))
        state, update_info = timed(self._update(state, collection))
        state, judgement = timed(self._observe(state, collection))
        select_s, rollout_s, update_s, observe_s = np.diff(clock).tolist()
        seconds = {"select_s": select_s, "rollout_s": rollout_s, "update_s": update_s, "observe_s": observe_s}
        return state, collection, round_info(collection, update_info, judgement), seconds


@contextlib.contextmanager
def _terminate_gracefully() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether SIGTERM came."""
    came = []
    try:
        previous = signal.signal(signal.SIGTERM, lambda *_: came.append(True))
    except ValueError:  # not the main thread: whoever runs us there handles signals
        yield lambda: False
        return
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _start_folder(config: configs.TrainConfig) -> None:
    """Makes the run's folder, or checks that the one there is of the same run.

    Raises:
      ValueError: if it was started with other options.
    """
    folder = config.folder
    if folder.exists() and not config.resume:
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.json"
    if path.exists():
        configs.check_same(config, json.loads(path.read_text(encoding="utf-8")))
    _files.write_atomically(path, json.dumps(configs.to_json(config), indent=2) + "\n")


def _record(round_index: int, info: Any, seconds: dict[str, float]) -> dict[str, Any]:
    """Returns the line of a round in metrics.jsonl."""
    update = info.update
    return {
        "round": round_index,
        "rollouts": int(info.num_rollouts),
        "completion_tokens": int(info.num_tokens),
        "effective_sample_ratio": float(info.effective_sample_ratio),
        "accuracy": float(info.accuracy),
        "reward": float(info.reward),
        "loss": float(update.loss),
        "grad_norm": float(update.grad_norm),
        "entropy": float(update.sampled_entropy),
        "kl": float(update.kl),
        "clip_fraction": float(update.clip_fraction),
        "update_rows": int(update.num_rows),
        "predicted_informative": float(info.predicted_informative),
        "brier": float(info.brier),
        "confusion": np.asarray(info.confusion).tolist(),
        **seconds,
    }


def _progress(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rounds, {task.fields[left]} left"),
        TimeRemainingColumn(),
        TextColumn(
            "informative {task.fields[ratio]}, test accuracy {task.fields[accuracy]}, {task.fields[rollouts]} rollouts"
        ),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)


class _Run:
    """One training run: its state, its logs, its checkpoints."""

    def __init__(self, config: configs.TrainConfig, console: Console):
        self.config, self.console = config, console
        self.parts = setup.build(config)
        self.phases = _Phases(self.parts.round)
        self.totals = {"rollouts": 0, "completion_tokens": 0}
        self.accuracies: dict[int, float] = {}
        self.evaluation: dict[str, Any] = {}
        self.answers_before: list[Any] = []
        self.num_silent = 0
        self.seconds = 0.0
        self.refit_seconds = 0.0
        self.prior = self.parts.prior
        with_prior = self.parts.with_prior
        self.with_prior = None if with_prior is None else jax.jit(with_prior, donate_argnums=0)
        folder = config.folder
        self.checkpoints = Checkpoints(folder / "checkpoints", keep_last=config.keep_last, report=self.say)
        self.state, self.round_index = self._restore()
        start = {"start_round": self.round_index}
        self.metrics = run_log.MetricsLog(
            folder / "metrics.jsonl", tensorboard_directory=folder / "tensorboard", **start
        )
        self.trace = traces.TraceLog(folder / "trace.npz", **start)
        # What is known of the prompts, for experiments/fit_prior.py.
        problems, content = self.parts.problems, io.BytesIO()
        np.savez_compressed(content, groups=problems.groups, features=problems.facts)
        _files.write_atomically(folder / "prompts.npz", content.getvalue())

    def say(self, text: str) -> None:
        """Prints a line above the progress bar."""
        self.console.print(text, markup=False, highlight=False)

    def _restore(self) -> tuple[TrainState, int]:
        make = lambda params: self.parts.round.init(params, jax.random.key(self.config.seed))
        found = self.checkpoints.restore(jax.eval_shape(make, self.parts.params))
        if found is None:
            return jax.jit(make)(self.parts.params), 0
        facts = found.facts
        self.totals, self.seconds, self.num_silent = facts["totals"], facts["seconds"], facts["num_silent"]
        self.accuracies = {int(index): value for index, value in facts["accuracies"].items()}
        self.evaluation = facts["evaluation"]
        self.refit_seconds = facts["refit_seconds"]
        # Checkpoints of earlier versions have none.
        self.answers_before = facts.get("answers_before", [])
        if facts["prior"] is not None:
            self.prior = TransitionPrior.from_dict(facts["prior"])
        self.say(f"resuming {self.config.folder} after {found.round_index} rounds")
        return found.state, found.round_index

    def evaluate(self) -> None:
        """Measures accuracy on the held-out prompts, once for every round count."""
        if self.round_index in self.accuracies:
            return
        result = self.parts.evaluate(self.state.params, self.round_index)
        if self.round_index == 0:
            self.answers_before = self.answers()
        self.evaluation = result
        self.accuracies[self.round_index] = result["test_accuracy"]
        if not self.console.is_terminal:
            self.say(f"after {self.round_index} rounds: test accuracy {result['test_accuracy']:.4f}")

    def answers(self) -> list[list[Any]]:
        """Returns prompt, answer and correctness of some held-out problems, as JSON keeps them."""
        key = jax.random.fold_in(jax.random.key(self.config.seed), _ANSWERS_STREAM)
        found = self.parts.answers(self.state.params, key)
        return [list(row) for row in found]

    def examples(self) -> list[dict[str, Any]]:
        """Returns some held-out problems with the answers before and after training."""
        return [
            {
                "prompt": prompt,
                "before": before,
                "before_is_correct": was_correct,
                "after": after,
                "after_is_correct": is_correct,
            }
            for (prompt, before, was_correct), (_, after, is_correct) in zip(
                self.answers_before, self.answers() if self.answers_before else [], strict=True
            )
        ]

    def save(self) -> None:
        """Starts a checkpoint; the logs reach at least as far."""
        self.trace.save()
        self.metrics.sync()
        facts = {
            "totals": self.totals,
            "seconds": self.seconds,
            "num_silent": self.num_silent,
            "accuracies": {str(index): value for index, value in self.accuracies.items()},
            "evaluation": self.evaluation,
            "refit_seconds": self.refit_seconds,
            "answers_before": self.answers_before,
            "prior": None if self.prior is None else self.prior.to_dict(),
        }
        self.checkpoints.save(self.round_index, self.state, facts, score=self.accuracies.get(self.round_index))

    def run_round(self) -> dict[str, Any]:
        """Does one round and logs it.

        Raises:
          TrainingError: if the loss or its gradient is not finite; nothing of the round is kept.
        """
        start = time.perf_counter()
        state, collection, info, seconds = self.phases.run(self.state, self.parts.graded)
        probs = collection.batch.inclusion_probs
        info, collection, probs = jax.device_get((info, collection._replace(batch=None), probs))
        if not info.update.is_finite:
            saved = self.checkpoints.rounds()
            raise TrainingError(
                f"round {self.round_index}: expected a finite loss and gradient, got loss {float(info.update.loss)} "
                f"and gradient norm {float(info.update.grad_norm)}; the checkpoint after "
                f"{saved[-1] if saved else 0} rounds is kept. Lower --learner.learning-rate or "
                "--learner.max-grad-norm, under another --name"
            )
        record = _record(self.round_index, info, seconds)
        self.totals = {name: total + record[name] for name, total in self.totals.items()}
        self.state, self.round_index = state, self.round_index + 1
        self.trace.append(record["round"], collection.ids, collection.successes, collection.counts, probs)
        every = self.config.selector.refit_every
        if every and self.round_index % every == 0:
            record["refit_s"] = self.refit()
        self.seconds += time.perf_counter() - start
        self._warn_if_silent(info)
        due = self.round_index % self.config.eval_every == 0 or self.round_index == self.config.num_rounds
        if due:
            self.evaluate()
            shares = np.asarray(self.parts.predicted_success_rates(self.state), np.float64)
            record |= {**self.evaluation, "predicted_success_rates": shares.round(6).tolist()}
        record["total_rollouts"] = self.totals["rollouts"]
        self.metrics.append(record)
        return record

    def refit(self) -> float:
        """Fits the prior to the last rounds, gives it to the selector, and returns the seconds it took."""
        assert self.prior is not None
        assert self.with_prior is not None
        start = time.perf_counter()
        self.prior = priors.refit(self.prior, self.trace.trace(), last_rounds=self.config.selector.refit_window)
        self.state = self.state._replace(selector=self.with_prior(self.state.selector, self.prior))
        jax.block_until_ready(self.state.selector)
        seconds = time.perf_counter() - start
        self.refit_seconds += seconds
        return seconds

    def _warn_if_silent(self, info: Any) -> None:
        is_silent = float(info.effective_sample_ratio) == 0 or float(info.update.grad_norm) == 0
        self.num_silent = self.num_silent + 1 if is_silent else 0
        if self.num_silent == _SILENT_ROUNDS:
            solved = "always" if float(info.accuracy) > 0.5 else "never"
            self.say(
                f"warning: no prompt was partially solved in the last {_SILENT_ROUNDS} rounds (they are {solved} "
                "solved): there is nothing to learn from. Start from a better model (experiments/pretrain.py), or "
                f"choose {'harder' if solved == 'always' else 'easier'} problems or a larger --rollout.group-size"
            )

    def loop(self) -> None:
        """Does the rounds that are left.

        Raises:
          Terminated: after SIGTERM, when everything was saved.
        """
        config = self.config
        shown = {"left": config.num_rounds - self.round_index, "ratio": "-", "accuracy": "-", "rollouts": "0"}
        with _terminate_gracefully() as is_terminated, _progress(self.console) as progress:
            bar = progress.add_task(config.name, total=config.num_rounds, completed=self.round_index, **shown)
            self.evaluate()
            if self.round_index == 0:
                self.save()
            while self.round_index < config.num_rounds:
                record = self.run_round()
                if is_terminated():
                    self.save()
                    self.checkpoints.wait()
                    self.say(f"SIGTERM: saved after {self.round_index} rounds; the same command goes on from there")
                    raise Terminated
                if self.round_index % config.checkpoint_every == 0 or self.round_index == config.num_rounds:
                    self.save()
                progress.update(
                    bar,
                    completed=self.round_index,
                    left=config.num_rounds - self.round_index,
                    ratio=f"{record['effective_sample_ratio']:.2f}",
                    accuracy=f"{self.accuracies[max(self.accuracies)]:.3f}",
                    rollouts=f"{self.totals['rollouts']:,}",
                )

    def summary(self) -> dict[str, Any]:
        """Returns what summary.json holds."""
        records = run_log.read_metrics(self.config.folder / "metrics.jsonl")
        mean = lambda name: float(np.mean([record[name] for record in records]))
        return {
            "rounds": self.round_index,
            **self.totals,
            "seconds": self.seconds,
            "refit_seconds": self.refit_seconds,
            "effective_sample_ratio": mean("effective_sample_ratio"),
            **{f"mean_{name}": mean(name) for name in ("select_s", "rollout_s", "update_s", "observe_s")},
            **self.evaluation,
            "test_accuracies": {str(index): value for index, value in sorted(self.accuracies.items())},
            "examples": self.examples(),
        }

    def close(self) -> None:
        """Closes files and threads."""
        self.metrics.close()
        self.checkpoints.close()


def train(config: configs.TrainConfig, console: Console | None = None) -> dict[str, Any]:
    """Trains, or goes on training, and returns the summary.

    Writes config.json, metrics.jsonl, trace.npz, prompts.npz, checkpoints/, summary.json, prior.json and figures to
    `config.folder`.

    Args:
      config: of the run.
      console: to report to; standard output by default.

    Raises:
      ValueError: for options that do not fit together, or another run in the folder.
      TrainingError: if the loss is not finite.
      CheckpointError: if a checkpoint cannot be written or none can be read.
      Terminated: after SIGTERM.
    """
    console = console or (Console() if sys.stdout.isatty() else Console(width=150))
    _start_folder(config)
    run = _Run(config, console)
    try:
        run.loop()
        run.checkpoints.wait()
        summary = run.summary()
        write_results(config.folder, summary, run.parts.problems.groups, run.parts.task.group_names)
        if run.prior is not None:
            run.prior.save(config.folder / "prior.json")
    finally:
        run.close()
    before, after = summary["test_accuracies"].get("0", math.nan), summary["test_accuracy"]
    # One test problem has no standard error.
    error = "" if summary["test_accuracy_error"] is None else f" (standard error {summary['test_accuracy_error']:.3f})"
    run.say(
        f"test accuracy {before:.3f} -> {after:.3f}{error}, informative groups "
        f"{summary['effective_sample_ratio']:.0%}, "
        f"{summary['rollouts']:,} rollouts, {summary['seconds']:.0f} s; wrote {config.folder}"
    )
    return summary


def write_results(
    folder: Path, summary: dict[str, Any], groups: np.ndarray | None = None, group_names: Sequence[str] = ()
) -> None:
    """Writes summary.json and the figures of a run; with the level of every prompt [N], which were picked when too."""
    _files.write_atomically(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    levels = None
    if groups is not None:
        visits = visits_of(traces.read_trace(folder / "trace.npz"), groups.size)
        levels = visits.by_round(groups[visits.ids], -1)
    records = run_log.read_metrics(folder / "metrics.jsonl")
    figures.plot_run(records, summary, folder, levels=levels, level_names=group_names)
