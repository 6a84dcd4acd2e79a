"""Door 1: a selector for a trainer that already runs. NumPy in and out, a host object around the pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dps_jax import _checks, selectors
from dps_jax.hmm.transitions import resolve_prior
from dps_jax.selectors.judgement import judged

STATE_VERSION = 2

# Prompts whose outcome never comes (a failed rollout) must come back one day: only this many are kept back, those
# handed out last. In batches, because trainers read ahead by batches, and at least some for those that ask one by one.
_BATCHES_IN_FLIGHT = 16
_SMALLEST_IN_FLIGHT = 1024

# Options that belong to the one named `prior`: another prior is read with them, too.
_PRIOR_OPTIONS = ("initial", "decay", "num_states")

_COUNTERS = ("num_selects", "num_rounds", "num_observed", "max_in_flight")
_STATE_FIELDS = ("version", "method", "num_prompts", "key", "pending", "in_flight", "last_round", "leaves", *_COUNTERS)


def _padded_size(size: int) -> int:
    """Returns the next power of two, so that few shapes are ever compiled."""
    return 1 << max(size - 1, 0).bit_length()


def _padded(array: np.ndarray, fill: int) -> np.ndarray:
    padding = _padded_size(array.size) - array.size
    return np.concatenate([array, np.full(padding, fill)]).astype(np.int32)


class PromptSelector:
    """Chooses the prompts of every round, and learns from their outcomes.

    A round is `select`, rollouts, then any number of `observe` calls, in any order and with repeats; they are summed
    and become one round of the model at the next `select` (or `commit`). A refused call raises ValueError and changes
    nothing.

    Attributes:
      num_prompts: N.
      method: name of the method.
    """

    def __init__(
        self,
        num_prompts: int,
        method: str = "dps",
        seed: int = 0,
        groups: Any = None,
        features: Any = None,
        **options: Any,
    ):
        """Builds the selector; nothing was observed yet.

        Args:
          num_prompts: N; prompts are known by ids 0, ..., N - 1.
          method: a name of `dps_jax.selectors.SELECTORS`.
          seed: of the random stream that breaks ties.
          groups: int [N], a group id (level, source, topic) per prompt, for methods that use it; -1 is unknown.
          features: float [N, D], for methods that use them.
          **options: of the method; see `dps_jax.selectors`.

        Raises:
          ValueError: for an unknown method or option, with the known ones, or a value out of range.
        """
        self.num_prompts = _checks.check_int("num_prompts", num_prompts, at_least=1)
        seed = _checks.check_int("seed", seed, at_least=0, at_most=2**63 - 1)
        if groups is not None:
            _checks.check_groups(groups, self.num_prompts)
        if features is not None:
            _checks.check_features(features, self.num_prompts)
        for name, value in (("groups", groups), ("features", features)):
            if value is not None and name in selectors.option_names(method):
                options[name] = value
        self._selector = selectors.build(method, self.num_prompts, **options)
        self.method = method
        self._prior_options = {name: options[name] for name in _PRIOR_OPTIONS if name in options}
        self._key = jax.random.key(seed)
        # Wrapped, so that two selectors with equal functions do not share a cache of compiled programs.
        self._observe = jax.jit(lambda *arrays: self._selector.observe(*arrays), donate_argnums=0)
        self._select = jax.jit(lambda *arrays: self._selector.select(*arrays), static_argnums=2)
        with_prior = self._selector.with_prior
        self._with_prior = None if with_prior is None else jax.jit(with_prior, donate_argnums=0)
        self._predict = jax.jit(lambda state: self._selector.predict(state))
        self._judge = jax.jit(lambda *arrays: judged(self._selector, *arrays))
        self._state = self._selector.init(jax.random.fold_in(self._key, 0))
        self._accepted_sizes: set[tuple[int, int | None]] = set()
        self._num_selects = 0
        self._num_rounds = 0
        self._pending: list[np.ndarray] = []  # int64 [3, P] each: ids, successes, counts
        self._in_flight = np.zeros(0, np.int64)  # oldest first
        self._max_in_flight = _SMALLEST_IN_FLIGHT
        self._last_round = {"effective_sample_ratio": math.nan, "predicted_informative": math.nan, "brier": math.nan}
        self._num_observed = 0

    def select(self, batch_size: int, candidates: Any = None) -> np.ndarray:
        """Returns the prompts of the next round, best first; commits pending observations first.

        Prompts that were handed out and not observed yet are kept back while others are left.

        Args:
          batch_size: B.
          candidates: int [M], M >= B, distinct; None is all prompts.

        Returns:
          Distinct ids, int64 [B].

        Raises:
          ValueError: for a batch larger than N or M, or too small for `max_wait`, a bad id, or a repeated candidate.
        """
        if candidates is not None:
            candidates = _checks.check_ids("candidates", candidates, self.num_prompts, is_distinct=True)
            if candidates.size == 0:
                raise ValueError("candidates: expected at least batch_size ids, got none; None is all prompts")
        pool_size = self.num_prompts if candidates is None else candidates.size
        if isinstance(batch_size, (int, np.integer)) and batch_size > pool_size:
            pool = "num_prompts" if candidates is None else "the number of candidates"
            raise ValueError(f"batch_size: expected at most {pool_size} ({pool}), got {batch_size}")
        batch_size = _checks.check_int("batch_size", batch_size, at_least=1)
        self._check_sizes(batch_size, candidates)
        self.commit()
        key = jax.random.fold_in(self._key, self._num_selects + 1)
        exclude = _padded(self._in_flight, -1) if self._in_flight.size else None
        if candidates is not None:
            candidates = candidates.astype(np.int32)
        ids, _ = self._select(self._state, key, batch_size, candidates, exclude)
        ids = np.asarray(ids).astype(np.int64)
        self._num_selects += 1
        self._max_in_flight = max(self._max_in_flight, _BATCHES_IN_FLIGHT * batch_size)
        waiting = self._in_flight[~np.isin(self._in_flight, ids)]
        self._in_flight = np.concatenate([waiting, ids])[-self._max_in_flight :]
        return ids

    def _check_sizes(self, batch_size: int, candidates: np.ndarray | None) -> None:
        """Raises what the method's `select` raises for these sizes, before anything is committed; traces it once."""
        sizes = (batch_size, None if candidates is None else candidates.size)
        if sizes not in self._accepted_sizes:
            select = lambda state, key: self._selector.select(state, key, batch_size, candidates)
            jax.eval_shape(select, self._state, self._key)
            self._accepted_sizes.add(sizes)

    def observe(self, prompt_ids: Any, successes: Any, counts: Any) -> None:
        """Takes in outcomes; they become part of the model at the next `select` or `commit`.

        Args:
          prompt_ids: int [P]; repeats add up.
          successes: completions that were correct, int [P].
          counts: completions, int [P], or one int for all; at least 1.

        Raises:
          ValueError: for a bad id, a count below 1, a success above its count, a NaN, or lengths that differ.
        """
        ids = _checks.check_ids("prompt_ids", prompt_ids, self.num_prompts)
        successes, counts = _checks.check_outcomes(successes, counts, ids.size)
        if ids.size:
            self._pending.append(np.stack([ids, successes, counts]))

    def observe_rows(self, row_ids: Any, row_is_correct: Any) -> None:
        """Takes in one row per completion, in any order.

        Args:
          row_ids: prompt of each completion, int [R].
          row_is_correct: whether it was correct, bool or 0/1, [R].

        Raises:
          ValueError: for a bad id, a value other than 0 and 1, or lengths that differ.
        """
        ids = _checks.check_ids("row_ids", row_ids, self.num_prompts)
        is_correct = np.asarray(row_is_correct)
        if is_correct.shape != ids.shape:
            raise ValueError(f"row_is_correct: expected {ids.size} values, one per row, got {is_correct.size}")
        is_bad = ~np.isin(is_correct, (0, 1))
        if np.any(is_bad):
            position = int(np.argmax(is_bad))
            raise ValueError(
                f"row_is_correct: expected 0 or 1 (whether the answer is correct, not a shaped reward), "
                f"got {is_correct[position]} at position {position}"
            )
        self.observe(ids, is_correct.astype(np.int64), 1)

    def commit(self) -> None:
        """Makes one round of the model out of the pending observations; does nothing if there are none."""
        if not self._pending:
            return
        rows = np.concatenate(self._pending, axis=1)
        ids, position = np.unique(rows[0], return_inverse=True)
        successes = np.bincount(position, weights=rows[1], minlength=ids.size).astype(np.int64)
        counts = np.bincount(position, weights=rows[2], minlength=ids.size).astype(np.int64)
        padded = (_padded(ids, -1), _padded(successes, 0), _padded(counts, 0))
        judgement = self._judge(self._state, *padded)
        self._last_round = {name: float(getattr(judgement, name)) for name in self._last_round}
        self._state = self._observe(self._state, *padded)
        self._pending = []
        self._in_flight = self._in_flight[~np.isin(self._in_flight, ids)]
        self._num_rounds += 1
        self._num_observed += ids.size

    def predicted_probs(self) -> np.ndarray:
        """Returns the belief about every prompt's state in the next round, float32 [N, K].

        Pending observations are not included.

        Raises:
          ValueError: for a method that keeps no such belief.
        """
        if self._selector.predicted_probs is None:
            raise ValueError(f"method: expected one with solve states, as 'dps', got {self.method!r}; use predict()")
        return np.ascontiguousarray(np.asarray(self._selector.predicted_probs(self._state)).T)

    def predict(self) -> dict[str, np.ndarray]:
        """Returns {"p_informative": [N], "success_rate": [N]}, float32, for the next round.

        Pending observations are not included.
        """
        prediction = self._predict(self._state)
        return {name: np.asarray(getattr(prediction, name)) for name in ("p_informative", "success_rate")}

    def set_prior(self, prior: Any) -> None:
        """Replaces what is believed about transitions; what was learned from observed prompts stays.

        Prompts that were never observed are believed to be what they would be, had the selector been built with this
        prior. Pending observations stay pending. The options `initial`, `decay` and `num_states`, if they were given,
        hold for this prior too.

        Args:
          prior: whatever the option `prior` takes, built like the present one: the same states and emission, as many
            groups, and trained_concentration exactly if that has it.

        Raises:
          ValueError: for a method without a prior, or a prior that is unknown, bad or built otherwise.
        """
        if self._with_prior is None:
            raise ValueError(f"method: expected one with a prior, as 'dps', got {self.method!r}")
        self._state = self._with_prior(self._state, resolve_prior(prior, **self._prior_options))

    def metrics(self) -> dict[str, float]:
        """Returns figures to log.

        Counts over the run, and for the last committed round its effective sample ratio (share of groups with
        0 < m < G), the ratio that was predicted for it, and the Brier score of those predictions.
        """
        num_impossible = 0
        if self._selector.num_impossible is not None:
            num_impossible = int(self._selector.num_impossible(self._state))
        return {
            "num_rounds": float(self._num_rounds),
            "num_observed": float(self._num_observed),
            "num_in_flight": float(self._in_flight.size),
            "num_pending": float(sum(rows.shape[1] for rows in self._pending)),
            "num_impossible": float(num_impossible),
            **self._last_round,
        }

    def state_dict(self) -> dict[str, Any]:
        """Returns everything the selector knows, as NumPy arrays and Python values; safe to keep and to pickle."""
        leaves = [np.array(leaf) for leaf in jax.tree.leaves(self._state)]
        return {
            "version": STATE_VERSION,
            "method": self.method,
            "num_prompts": self.num_prompts,
            "key": np.array(jax.random.key_data(self._key)),
            "pending": np.concatenate([np.zeros((3, 0), np.int64), *self._pending], axis=1),
            "in_flight": self._in_flight.copy(),
            **{name: getattr(self, f"_{name}") for name in _COUNTERS},
            "last_round": dict(self._last_round),
            "leaves": leaves,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over the state of a selector built with the same method, number of prompts and options.

        The prior is part of the state, whether it came by an option or by `set_prior`.

        Raises:
          ValueError: if the state is of another kind; the selector is as it was before.
        """
        missing = [name for name in _STATE_FIELDS if name not in state]
        if missing:
            raise ValueError(f"state: expected a dict from state_dict(), got one without {', '.join(missing)}")
        for name, expected in (
            ("version", STATE_VERSION),
            ("method", self.method),
            ("num_prompts", self.num_prompts),
        ):
            if state[name] != expected:
                raise ValueError(f"state[{name!r}]: expected {expected!r}, got {state[name]!r}")
        current, treedef = jax.tree.flatten(self._state)
        expected = [(leaf.shape, str(leaf.dtype)) for leaf in current]
        found = [(np.shape(leaf), str(np.asarray(leaf).dtype)) for leaf in state["leaves"]]
        if found != expected:
            raise ValueError(
                f"state['leaves']: expected arrays of {expected}, got {found}; build the selector with the same options"
            )
        # Copied, because the state is donated later; all of it is read before any of it is taken over.
        pairs = zip(state["leaves"], current, strict=True)
        leaves = [jax.device_put(jnp.array(saved), leaf.sharding) for saved, leaf in pairs]
        key = jax.random.wrap_key_data(jnp.array(state["key"]))
        pending, in_flight = np.array(state["pending"], np.int64), np.array(state["in_flight"], np.int64)
        numbers = {name: int(state[name]) for name in _COUNTERS}
        last_round = {name: float(state["last_round"][name]) for name in self._last_round}
        self._state, self._key = jax.tree.unflatten(treedef, leaves), key
        self._pending, self._in_flight = [pending] if pending.size else [], in_flight
        self._last_round = last_round
        for name, number in numbers.items():
            setattr(self, f"_{name}", number)
