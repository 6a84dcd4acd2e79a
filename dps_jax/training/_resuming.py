"""Resuming a run: its latest checkpoint, and the logs up to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dps_jax.training import _options
from dps_jax.training._checkpoints import Checkpoints, Restored
from dps_jax.training._progress import Progress
from dps_jax.training._run_config import RunConfig


def restore(
    config: RunConfig,
    store: Checkpoints,
    template: Any,
    say: Callable[[str], None],
    *,
    fingerprint: int | None = None,
) -> tuple[Restored | None, Progress]:
    """Returns the latest intact checkpoint and its progress; None and empty progress for a new run.

    Args:
      config: config of the run, whose folder may have been started with other options.
      store: checkpoints of the run.
      template: structure of the state.
      say: function that is called with messages about the resumed round, changed options and missing files.
      fingerprint: fingerprint of the training prompts, if these come from files.

    Raises:
      ValueError: for options that must not change, other training prompts, or damaged or missing files.
      CheckpointError: if all checkpoints are damaged.
    """
    saved, problem = None, ""
    try:
        saved = _options.read(config.folder)
    except ValueError as error:
        problem = str(error)
    refusal = None if saved is None else _options.refusal(config, saved)
    try:
        found = store.restore(template)
    except ValueError:
        if refusal is None:
            raise
        raise ValueError(refusal) from None
    if found is not None and "config" not in found.facts:
        raise ValueError(
            f"{config.folder / 'checkpoints'}: expected checkpoints of this version, got one of an earlier version; "
            "start anew with --no-resume, which moves the old run aside"
        )
    if refusal is not None and (found is None or _options.refusal(config, found.facts["config"]) is not None):
        raise ValueError(refusal)
    if found is None:
        _check_beginning(config, saved, problem, say)
        return None, Progress()
    was = found.facts["config"]
    _options.check_same(config, was)
    if found.facts.get("fingerprint") != fingerprint:
        raise ValueError(
            f"data: expected the training prompts that {config.folder} was started with, got others: the checkpoint "
            "holds the observations of each; put the files back, or start anew with --no-resume, which moves the old "
            "run aside"
        )
    if config.learner.lora_rank is not None:
        _options.check_weights(config, found.facts)  # checkpoints do not contain the frozen weights
    if saved is None or refusal is not None:
        problem = (
            problem or f"{config.folder / 'config.json'}: expected the options that the checkpoint has, got others"
        )
        say(f"{problem}; it is written again, as the checkpoint has the options too")
    progress = Progress.from_json(found.facts["progress"])
    changes = _options.changes(config, was, found.round_index)
    progress.changes = progress.changes + changes
    say(f"resuming {config.folder} after {found.round_index} rounds")
    if _options.has_other_weights(config, found.facts):
        say("model: not the weights that this run was started from; not used, as the checkpoint has the policy")
    for change in changes:
        say(f"{change['option']}: {change['was']} until now, {change['is']} from here on")
    return found, progress


def _check_beginning(config: RunConfig, saved: dict[str, Any] | None, problem: str, say: Callable[[str], None]) -> None:
    """Raises ValueError if a run without a checkpoint cannot begin again in its folder."""
    path = config.folder / "metrics.jsonl"
    num_rounds = path.read_bytes().count(b"\n") if path.is_file() else 0
    if saved is not None:
        _options.check_weights(config, saved)
    elif num_rounds:
        raise ValueError(
            f"{problem}. There is no checkpoint either, which would contain the options, and metrics.jsonl has "
            f"{num_rounds} rounds; or start anew with --no-resume, which moves this run aside"
        )
    if num_rounds:
        say(
            f"{config.folder / 'checkpoints'}: no checkpoint is left of the {num_rounds} rounds in metrics.jsonl; the "
            "run begins again at round 0"
        )
