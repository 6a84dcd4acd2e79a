"""The parts of a run that the trainer works with, for prompts and graders of any kind."""

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
    """The parts of a run: `_setup.Parts` for a task, `_text_setup.TextParts` for a data file.

    Attributes:
      params: parameters of the policy before training.
      round: one round, as pure functions.
      collect: function that collects the batch of a round.
      prior: prior that the selector starts with; None for methods without one.
      with_prior: (state of the selector, prior) -> its state with another prior; None for methods without one.
      groups: level or source of every prompt, index into `group_names`, int32 [N].
      features: features of every prompt that a selector may use, [N, D].
      group_names: names of the groups.
      predicted_success_rates: `TrainState` -> shares of all prompts by predicted success rate, in ten bins, [10].
      evaluate: (params, round_index) -> test results, of JSON types.
      answers: (params, key) -> prompt, answer and correctness of some held-out problems.
      policies: how the policy is written to files.
      fingerprint: fingerprint of the training prompts, which a resumed run must share; None if the config determines
        them.
      close: function that ends the processes of the run.
      notes: messages to print before training.
      form: the form in which the state is saved; None saves it as it is.
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
