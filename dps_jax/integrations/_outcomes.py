"""Turns rewards of completions into outcomes that a selector observes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dps_jax import _checks

if TYPE_CHECKING:
    from dps_jax.prompt_selector import PromptSelector


def check_threshold(threshold: float | None) -> None:
    """Raises ValueError unless a threshold is None or a finite number."""
    if threshold is not None and not np.isfinite(_checks.as_numbers("threshold", threshold)).all():
        raise ValueError(f"threshold: expected a finite number or None, got {threshold!r}")


def observe(
    selector: PromptSelector, prompt_ids: Any, rewards: Sequence[Any] | np.ndarray, threshold: float | None, name: str
) -> None:
    """Lets a selector observe the outcomes of completions; completions without a reward are left out.

    Prompts without any rewarded completion are released: the selector may choose them again at once.

    Args:
      selector: selector over the prompts.
      prompt_ids: prompt id of each completion, int [R].
      rewards: rewards of the completions, [R]; None and NaN are missing rewards.
      threshold: smallest reward that counts as correct; None requires rewards of 1 (correct) and 0 (wrong). If the
        rewards are an array of floats, the threshold is rounded to their type, so that a float32 0.7 reaches 0.7.
      name: name of the source of the rewards, for messages.

    Raises:
      ValueError: for a wrong number of rewards, an infinite reward, or a reward other than 0 and 1 without a threshold;
        the selector is not changed.
    """
    ids = _checks.check_integer_array("prompt_ids", prompt_ids)
    if threshold is not None and isinstance(rewards, np.ndarray) and rewards.dtype.kind == "f":
        threshold = float(rewards.dtype.type(threshold))
    values = np.array([np.nan if reward is None else reward for reward in rewards], np.float64)
    if values.shape != ids.shape:
        raise ValueError(f"{name}: expected {ids.size} rewards, one per completion, got shape {list(values.shape)}")
    is_missing = np.isnan(values)
    is_bad = np.isinf(values) if threshold is not None else ~is_missing & ~np.isin(values, (0.0, 1.0))
    if np.any(is_bad):
        position = int(np.argmax(is_bad))
        expected = "finite rewards" if threshold is not None else "rewards of 0 (wrong) and 1 (correct)"
        raise ValueError(
            f"{name}: expected {expected}, got {values[position]} for prompt {ids[position]}; for shaped rewards give "
            "threshold=, the least reward that counts as correct, or name a function that returns 0 and 1"
        )
    is_correct = values == 1.0 if threshold is None else values >= threshold
    selector.observe_rows(ids[~is_missing], is_correct[~is_missing])
    selector.release(np.setdiff1d(ids, ids[~is_missing]))
