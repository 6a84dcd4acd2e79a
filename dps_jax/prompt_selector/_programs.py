"""The compiled functions of a `PromptSelector`."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dps_jax.prompt_selector import _arguments
from dps_jax.prompt_selector._states import LAST_ROUND
from dps_jax.selectors._judgement import judged
from dps_jax.selectors._picking import TURN_SCORE
from dps_jax.types import Prediction, SelectInfo, Selector


class Programs:
    """The functions of one selector, each compiled once per size.

    Attributes:
      select: (state, key, index of the call, B, candidates, exclusion) -> ids, [B], and whether `max_wait` selected
        them, [B]; the exclusion is None or the arguments `exclude` and `is_firm` of a selector.
      judge: (state, ids, successes, counts) -> metrics of the round in the order of `_states.LAST_ROUND`, float32 [3].
      observe: (state, ids, successes, counts) -> state; the argument is donated.
      predict: state -> `Prediction` of all prompts.
      with_prior: (state, prior) -> state; the argument is donated. None for methods without a prior.
    """

    def __init__(self, selector: Selector):
        # New partial objects, so that two selectors with equal functions do not share a cache of compiled programs.
        self.select = jax.jit(functools.partial(_select, selector), static_argnums=3)
        self.judge = jax.jit(functools.partial(_judge, selector))
        self.observe = jax.jit(functools.partial(_observe, selector), donate_argnums=0)
        self.predict = jax.jit(functools.partial(_predict, selector))
        with_prior = selector.with_prior
        self.with_prior = None if with_prior is None else jax.jit(with_prior, donate_argnums=0)
        self._accepted: set[tuple[int, int | None]] = set()

    def check_sizes(self, state: Any, key: jax.Array, batch_size: int, candidates: np.ndarray | None) -> None:
        """Raises the error that `select` would raise for a batch size and a number of candidates.

        It traces `select` without running it; the first call reuses this trace.

        Args:
          state: state of the selector.
          key: random key of the object.
          batch_size: number of prompts to pick, B.
          candidates: padded ids of the candidates, or None.
        """
        sizes = (batch_size, None if candidates is None else candidates.size)
        if sizes not in self._accepted:
            self.select.eval_shape(state, key, np.uint32(0), batch_size, candidates, None)
            self._accepted.add(sizes)

    def compile(self, state: Any, key: jax.Array, batch_size: int, candidates: np.ndarray | None) -> None:
        """Compiles the functions for rounds of B prompts; the arguments are those of `check_sizes`."""
        padding = np.full(_arguments.padded_size(batch_size), -1, np.int32)
        zeros = np.zeros_like(padding)
        for exclusion in (None, (padding, zeros.astype(bool))):
            self.select(state, key, np.uint32(0), batch_size, candidates, exclusion)
        self.judge(state, padding, zeros, zeros)
        # Compiled but not run, since it would count as a round.
        self.observe.lower(state, padding, zeros, zeros).compile()


def _select(
    selector: Selector,
    state: Any,
    key: jax.Array,
    index: jax.Array,
    batch_size: int,
    candidates: jax.Array | None,
    exclusion: tuple[jax.Array, jax.Array] | None,
) -> tuple[jax.Array, jax.Array]:
    """Returns the ids that a selector picks with the key of one call, and whether `max_wait` selected them."""
    picked: tuple[jax.Array, SelectInfo] = selector.select(
        state, jax.random.fold_in(key, index), batch_size, candidates, *(exclusion or ())
    )
    ids, info = picked
    return ids, info.scores >= TURN_SCORE


def _judge(selector: Selector, *arrays: Any) -> jax.Array:
    """Returns the metrics of `LAST_ROUND` in one array; other fields of `Judgement` are not computed."""
    judgement = judged(selector, *arrays)
    return jnp.stack([getattr(judgement, name) for name in LAST_ROUND])


def _observe(selector: Selector, *arrays: Any) -> Any:
    return selector.observe(*arrays)


def _predict(selector: Selector, state: Any) -> Prediction:
    return selector.predict(state)
