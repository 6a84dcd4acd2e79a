"""What the trainer needs to know of a run, whatever its prompts are and wherever they are graded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from dps_jax.hmm._transitions import TransitionPrior
from dps_jax.training._mesh import StateForm
from dps_jax.training._phases import CollectFn
from dps_jax.training._policy_files import Policies
from dps_jax.training._round import Round


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunParts:
    """The parts of a run; `setup.Parts` of a task, `text_setup.TextParts` of a data file.

    Attributes:
      params: of the policy before training.
      round: one round.
      collect: what its rounds collect.
      prior: that the selector starts with; None for methods without one.
      with_prior: (state of the selector, prior) -> its state under another prior; None for methods without one.
      groups: level or source of every prompt, index into `group_names`, int32 [N].
      features: what a selector may know of every prompt, [N, D].
      group_names: of the groups.
      predicted_success_rates: `TrainState` -> shares of all prompts by predicted success rate, in ten bins, [10].
      evaluate: (params, round_index) -> test results, of JSON types.
      answers: (params, key) -> a prompt, an answer and whether it is correct, of some held-out problems.
      policies: how the policy is written.
      fingerprint: of the training prompts, which a resumed run must share; None where the config says what they are.
      close: ends what the run has started.
      notes: what is worth saying before training.
      form: how the state is saved; None as it is.
    """

    params: Any
    round: Round
    collect: CollectFn
    prior: TransitionPrior | None
    with_prior: Callable[[Any, TransitionPrior], Any] | None
    groups: np.ndarray
    features: np.ndarray
    group_names: Sequence[str]
    predicted_success_rates: Callable[[Any], np.ndarray]
    evaluate: Callable[[Any, int], dict[str, Any]]
    answers: Callable[[Any, jax.Array], list[tuple[str, str, bool]]]
    policies: Policies
    fingerprint: int | None = None
    close: Callable[[], None] = lambda: None
    notes: tuple[str, ...] = ()
    form: StateForm | None = None
