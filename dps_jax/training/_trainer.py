"""The trainer: the loop over rounds, with its files, clocks, signals and progress bars."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from rich.console import Console

from dps_jax import _files, priors, traces
from dps_jax.hmm._transitions import TransitionPrior
from dps_jax.rl._partly_trained import trained_part, with_trained_part
from dps_jax.training import (
    _failures,
    _interrupts,
    _mesh,
    _options,
    _policy_files,
    _processes,
    _reporting,
    _results,
    _resuming,
    _run_log,
    _setup,
    _text_setup,
)
from dps_jax.training import _folder as folders
from dps_jax.training._checkpoints import Checkpoints
from dps_jax.training._interrupts import LeftBehind, Terminated
from dps_jax.training._parts import RunParts
from dps_jax.training._phases import Phases
from dps_jax.training._round import TrainState
from dps_jax.training._run_config import RunConfig
from dps_jax.training._text_config import TextConfig

__all__ = ["Terminated", "TrainingError", "train"]

# Folded into the key of the run; rounds and evaluations use other numbers.
_ANSWERS_STREAM = 0xA45


class TrainingError(RuntimeError):
    """Raised if training cannot continue, since optimiser steps were not finite in too many rounds in a row.

    Example:
      >>> from dps_jax import training
      >>> def accuracy(config):
      ...     try:
      ...         return training.train(config)["test_accuracy"]
      ...     except training.TrainingError:  # this learning rate diverges
      ...         return float("nan")
      >>> issubclass(training.TrainingError, RuntimeError)
      True
    """


def _kept(state: TrainState) -> TrainState:
    """Returns the part of a state that checkpoints store: all but the frozen parameters."""
    return state._replace(params=trained_part(state.params))


def _whole(kept: TrainState, params: Any) -> TrainState:
    """Returns a whole state, given what `_kept` returned and parameters with the frozen part; inverse of `_kept`."""
    return kept._replace(params=with_trained_part(params, kept.params))


class _Run:
    """One training run: its state, logs and checkpoints."""

    def __init__(
        self,
        config: RunConfig,
        parts: RunParts,
        reporter: _reporting.Reporter,
        signals: _interrupts.Interrupts,
        files: contextlib.ExitStack,
        checkpoints: Path,
    ):
        self.config, self.parts, self.reporter, self.signals = config, parts, reporter, signals
        self.phases = Phases(parts.round, parts.collect)
        self.prior = parts.prior
        with_prior = parts.with_prior
        self.with_prior = None if with_prior is None else jax.jit(with_prior, donate_argnums=0)
        folder = config.folder
        store = Checkpoints(checkpoints, keep_last=config.keep_last, report=reporter.say)
        self.checkpoints = files.enter_context(store)
        make = lambda params: _kept(parts.round.init(params, jax.random.key(config.seed)))
        self.form = parts.form
        self.template = jax.eval_shape(make, parts.params)
        if self.form is not None:
            self.template = self.form.template(self.template)
        found, self.progress = _resuming.restore(
            config, self.checkpoints, self.template, reporter.say, fingerprint=parts.fingerprint
        )
        if found is not None and found.facts["prior"] is not None:
            self.prior = TransitionPrior.from_dict(found.facts["prior"])
        self.round_index = 0 if found is None else found.round_index
        is_saved = found is not None and self.progress.record is None
        self.saved_round: int | None = self.round_index if is_saved else None
        state = jax.jit(make)(parts.params) if found is None else found.state
        if found is not None and self.form is not None:
            state = self.form.from_saved(state)
        self.state: TrainState = _whole(state, parts.params)
        logs: dict[str, Any] = {"metrics": None, "trace": None} if found is None else found.facts["logs"]
        position = None if logs["metrics"] is None else _run_log.Position(*logs["metrics"])
        start = {"start_round": self.round_index}
        board = folder / "tensorboard"
        log = _run_log.MetricsLog(folder / "metrics.jsonl", position=position, tensorboard_directory=board, **start)
        self.metrics = files.enter_context(log)
        self.trace = traces.TraceLog(folder / "trace.npz", checksum=logs["trace"], **start)
        self.weights_checksum = _options.weights_checksum(config) if found is None else found.facts["weights_checksum"]
        # Information about the prompts, for experiments/fit_prior.py.
        content = io.BytesIO()
        np.savez_compressed(content, groups=parts.groups, features=parts.features)
        _files.write_atomically(folder / "prompts.npz", content.getvalue())
        _options.write(config, self.progress.changes, self.weights_checksum)

    def evaluate(self) -> None:
        """Measures accuracy on the held-out prompts."""
        result = self.signals.run(lambda: self.parts.evaluate(self.state.params, self.round_index))
        progress, accuracy = self.progress, result["test_accuracy"]
        if self.round_index == 0:
            progress.answers_before = self.answers()
        progress.evaluation = result
        progress.accuracies[self.round_index] = accuracy
        if progress.is_best(self.round_index):
            progress.best = {"round": self.round_index, "checksum": self._write_policy(self.parts.policies.best)}
        if not self.reporter.has_bar:
            known = "unknown" if accuracy is None else f"{accuracy:.4f}"
            self.reporter.say(f"after {self.round_index} rounds: test accuracy {known}")

    def answers(self) -> list[list[Any]]:
        """Returns prompt, answer and correctness of some held-out problems, of JSON types."""
        key = jax.random.fold_in(jax.random.key(self.config.seed), _ANSWERS_STREAM)
        found = self.signals.run(lambda: self.parts.answers(self.state.params, key))
        return [list(row) for row in found]

    def _write_policy(self, name: str, params: Any = None, round_index: int | None = None) -> int:
        """Writes the policy to the folder of the run, and returns its checksum."""
        round_index = self.round_index if round_index is None else round_index
        params = self.state.params if params is None else params
        if _processes.are_several():
            params = _mesh.fetch(params)
            if not _processes.is_first():
                return 0
        path, accuracy = self.config.folder / name, self.progress.accuracies.get(round_index)
        return self.parts.policies.write(path, params, round_index, accuracy)

    def save(self) -> None:
        """Starts writing a checkpoint, after the logs of all its rounds have been written.

        No checkpoint is written while steps are skipped, so that the run can continue from before the first of them.
        """
        if self.progress.num_skipped:
            return
        self.trace.save()
        self.metrics.sync()
        facts = {
            "config": _options.to_json(self.config),
            "weights_checksum": self.weights_checksum,
            "logs": {"metrics": list(self.metrics.position), "trace": self.trace.checksum()},
            "progress": self.progress.to_json(),
            "prior": None if self.prior is None else self.prior.to_dict(),
            "fingerprint": self.parts.fingerprint,
        }
        kept = _kept(self.state)
        state = kept if self.form is None else self.form.to_saved(kept)
        self.checkpoints.save(self.round_index, state, facts, score=self.progress.accuracies.get(self.round_index))
        self.saved_round = self.round_index

    def run_round(self) -> None:
        """Runs one round; its record is logged by `close_round`.

        Raises:
          LeftBehind: if the round did not end in time after a signal.
          TrainingError: after too many rounds with steps that were not finite.
        """
        start = time.perf_counter()

        def work() -> tuple[Any, ...]:
            state, collection, info, more = self.phases.run(self.state)
            probs = collection.batch.inclusion_probs
            return state, *_mesh.fetch((collection._replace(batch=None), info, probs)), more

        state, collection, info, probs, more = self.signals.run(work)
        record = _results.round_record(self.round_index, info, more)
        progress = self.progress
        self.state, self.round_index = state, self.round_index + 1
        self.phases.take_over()
        self.trace.append(record["round"], collection.ids, collection.successes, collection.counts, probs)
        every = self.config.selector.refit_every
        if every and self.round_index % every == 0:
            record["refit_s"] = self.refit()
        progress.seconds += time.perf_counter() - start
        progress.add_round(record, is_silent=record["effective_sample_ratio"] == 0 or record["grad_norm"] == 0)
        if warning := progress.warning(record["accuracy"]):
            self.reporter.say(warning)
        progress.record = _run_log.to_json(record)
        if progress.num_skipped >= self.config.learner.max_skipped:
            self.checkpoints.wait()
            saved = self.checkpoints.rounds()
            raise TrainingError(progress.refusal(record, saved[-1] if saved else 0))

    def refit(self) -> float:
        """Fits the prior to the last rounds, passes it to the selector, and returns the time this took, in seconds."""
        assert self.prior is not None
        assert self.with_prior is not None
        start = time.perf_counter()
        self.prior = priors.refit(self.prior, self.trace.trace(), last_rounds=self.config.selector.refit_window)
        self.state = self.state._replace(selector=self.with_prior(self.state.selector, self.prior))
        jax.block_until_ready(self.state.selector)
        seconds = time.perf_counter() - start
        self.progress.refit_seconds += seconds
        return seconds

    def close_round(self) -> None:
        """Logs the round, after an evaluation and before a checkpoint if these are due."""
        config, progress, index = self.config, self.progress, self.round_index
        is_last = index == config.num_rounds
        is_due = (index % config.eval_every == 0 or is_last) and index not in progress.accuracies
        if is_due:
            self.evaluate()
        record = progress.record
        if record is not None:
            if index in progress.accuracies:
                shares = _mesh.fetch(self.parts.predicted_success_rates(self.state)).astype(np.float64)
                record = {**record, **progress.evaluation, "predicted_success_rates": shares.round(6).tolist()}
            self.metrics.append({**record, "total_rollouts": progress.totals["rollouts"]})
            progress.record = None
        is_scheduled = index % config.checkpoint_every == 0 or is_last or (is_due and progress.is_best(index))
        if is_scheduled and self.saved_round != index:
            self.save()
        ratio = None if record is None else record["effective_sample_ratio"]
        self.reporter.update(self.standing(ratio))

    def standing(self, ratio: float | None = None) -> _reporting.Standing:
        """Returns the numbers for a progress report."""
        progress = self.progress
        accuracy = progress.accuracies[max(progress.accuracies)] if progress.accuracies else None
        return _reporting.Standing(self.round_index, ratio, accuracy, progress.totals["rollouts"])

    def loop(self) -> None:
        """Runs the remaining rounds.

        Raises:
          Terminated: after a signal, when the run has been saved.
        """
        with self.signals.held(), self.reporter.shown(self.standing()):
            try:
                self.close_round()
                while self.round_index < self.config.num_rounds:
                    self.check_signal()
                    self.run_round()
                    self.check_signal()
                    self.close_round()
                self.check_signal()
            except LeftBehind:
                raise self.stopped(is_state_there=self.phases.stop()) from None

    def check_signal(self) -> None:
        """Saves the run and raises Terminated if this or another of its processes has received a signal."""
        if _processes.any_of_all(self.signals.signum is not None):
            raise self.stopped(is_state_there=True)

    def stopped(self, *, is_state_there: bool) -> Terminated:
        """Saves the run after a signal, if its state still exists, and returns the error to raise."""
        if is_state_there and self.saved_round != self.round_index:
            self.save()
        self.checkpoints.wait()
        saved = self.checkpoints.rounds()
        error = self.signals.terminated()
        error.message = (
            f"{self.signals.name}: saved after {saved[-1] if saved else 0} rounds; the same command goes on from there"
        )
        return error

    def finish(self) -> dict[str, Any]:
        """Writes the results, and returns the summary."""
        self.checkpoints.wait()
        folder, progress = self.config.folder, self.progress
        after = self.answers() if progress.answers_before else []
        summary = {
            "rounds": self.round_index,
            **progress.totals,
            "seconds": progress.seconds,
            "refit_seconds": progress.refit_seconds,
            **_results.means(folder / "metrics.jsonl"),
            **progress.evaluation,
            "test_accuracies": {str(index): value for index, value in sorted(progress.accuracies.items())},
            "best_round": None if progress.best is None else progress.best["round"],
            "changes": progress.changes,
            "examples": _results.examples(progress.answers_before, after),
        }
        self._write_policy(self.parts.policies.last)
        if not _processes.is_first():
            return summary
        _results.write(folder, summary, self.parts.groups, self.parts.group_names)
        if self.prior is not None:
            self.prior.save(folder / "prior.json")
        if progress.best is not None:
            policies = self.parts.policies
            _policy_files.ensure_best(folder / policies.best, progress.best, policies.checksum, self._rewrite_best)
        return summary

    def _rewrite_best(self) -> int | None:
        """Writes the best policy from its checkpoint, and returns the checksum; None without an intact checkpoint."""
        best = self.progress.best
        if _processes.are_several():
            return None  # all processes would have to read the checkpoint, and the others have finished
        found = self.checkpoints.restore(self.template, is_best=True)
        if best is None or found is None or found.round_index != best["round"]:
            return None
        params = _whole(found.state, self.state.params).params
        return self._write_policy(self.parts.policies.best, params, found.round_index)


def train(
    config: RunConfig, console: Console | None = None, *, build: Callable[[Any], RunParts] | None = None
) -> dict[str, Any]:
    """Trains a policy, or continues a run that was interrupted, and returns the summary of the run.

    The function writes config.json, metrics.jsonl, trace.npz, prompts.npz, checkpoints/, summary.json, prior.json, the
    trained policies and figures to `config.folder`. Nothing is written there until the config has been checked and all
    data have been read.

    In the main thread of a program, `train` runs its rounds in another thread, in which context managers of JAX such as
    `jax.default_device` have no effect; use `jax.config.update` or environment variables instead.

    Args:
      config: config of the run: a `TrainConfig` for a task, or a `TextConfig` for a data file.
      console: console that progress is reported to; None is standard output.
      build: function that builds the parts of the run from the config; None is the function for the type of the config.

    Returns:
      The contents of summary.json, such as "test_accuracy", "rollouts" and "seconds".

    Raises:
      ValueError: for options that do not fit together, a folder that holds other files or another run, another process
        that writes to it, or a damaged file.
      OSError: if the folder cannot be written to.
      TrainingError: if optimiser steps that were not finite were skipped in too many rounds in a row.
      CheckpointError: if a checkpoint cannot be written, or if no checkpoint of the run being resumed can be read.
      Terminated: after SIGINT or SIGTERM.

    Example:
      >>> import io
      >>> from rich.console import Console
      >>> from dps_jax import training
      >>> config = training.TrainConfig(
      ...     num_rounds=1, eval_samples=2, task=training.TaskConfig(num_train=16, num_test=4),
      ...     model=training.ModelConfig(size="0.1m"), selector=training.SelectorConfig(method="uniform"),
      ...     rollout=training.RolloutConfig(batch_size=2, group_size=2))
      >>> summary = training.train(config, Console(file=io.StringIO()))
      >>> len(training.read_metrics(config.folder / "metrics.jsonl"))
      1
    """
    _processes.connect(config.mesh)
    console = console or _reporting.default_console()
    if not _processes.is_first():
        console = Console(quiet=True)
    reporter = _reporting.Reporter(console, config.name, config.num_rounds)
    default = _text_setup.build if isinstance(config, TextConfig) else _setup.build
    make_parts = cast(Callable[[Any], RunParts], build or default)
    with _failures.shared(), _interrupts.watched() as signals:
        if _processes.are_several():
            signals.grace_s = float("inf")  # the other processes would wait for work that is abandoned here
        try:
            folders.check(config.folder)
            parts = signals.run(lambda: make_parts(config))
            with _processes.opened(config, reporter.say) as own, contextlib.ExitStack() as files:
                files.callback(parts.close)
                for note in parts.notes:
                    reporter.say(note)
                run = _Run(own, parts, reporter, signals, files, config.folder / "checkpoints")
                run.loop()
                summary = run.finish()
        except Terminated as error:
            reporter.say(error.message or f"{signals.name}: stopped; the same command goes on from what was saved")
            raise
    reporter.say(_results.conclusion(summary, Path(config.folder)))
    return summary
