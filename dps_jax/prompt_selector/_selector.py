"""A stateful selector for an existing trainer: an object with NumPy arrays in and out, around the pure functions."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Hashable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dps_jax import _checks, selectors
from dps_jax.hmm._transitions import PRIOR_NAMES, resolve_prior
from dps_jax.prompt_selector import _arguments, _files, _states
from dps_jax.prompt_selector._in_flight import InFlight, no_prompts
from dps_jax.prompt_selector._interrupts import uninterrupted
from dps_jax.prompt_selector._pools import pools
from dps_jax.prompt_selector._programs import Programs
from dps_jax.selectors._option_text import default

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Options that modify the option `prior`: they also apply to another prior in `set_prior`.
_PRIOR_OPTIONS = ("initial", "decay", "num_states")
# Options that are part of a saved state, or that set its placement, and may differ from those of the selector.
_FREE_OPTIONS = ("prior", "initial", "mesh", "groups", "features")


class _Record(NamedTuple):
    """Counters on the host; they are replaced together, so that an interrupted call never changes only some of them.

    Attributes:
      num_selects: number of calls to `select`.
      num_batches: number of selected batches; calls with `commit=False` belong to one batch until the next commit.
      is_batch_open: whether the next call with `commit=False` belongs to the last batch.
      num_rounds: number of committed rounds.
      num_observed: number of prompts observed in these rounds.
      in_flight: selected prompts without an outcome.
      last_round: metrics of the last round, in the order of `_states.LAST_ROUND`, [3], possibly still on the device.
    """

    num_selects: int
    num_batches: int
    is_batch_open: bool
    num_rounds: int
    num_observed: int
    in_flight: InFlight
    last_round: Any


def _figures(record: _Record) -> dict[str, float]:
    """Returns the metrics of the last round by name."""
    return dict(zip(_states.LAST_ROUND, np.asarray(record.last_round).tolist(), strict=True))


class PromptSelector:
    """Selects the prompts of every round of training and learns from their outcomes.

    A round consists of a call to `select`, the rollouts of the trainer, and any number of calls to `observe`. Observed
    outcomes may come in any order and with repeated prompts. They are summed, and become one round of the model at the
    next `select` (or `commit`). A call with a bad argument raises ValueError and changes nothing. Methods can be called
    from any thread. The object can be copied and, without the option `mesh`, pickled.

    Attributes:
      num_prompts: number of prompts, N.
      method: name of the selection method.

    Example:
      >>> import dps_jax
      >>> selector = dps_jax.PromptSelector(num_prompts=100, method="dps", seed=0)
      >>> ids = selector.select(batch_size=4)
      >>> correct = [0, 3, 8, 5]  # of 8 completions of each prompt, from the rollouts of the trainer
      >>> selector.observe(ids, correct, counts=8)
      >>> selector.commit()
      >>> selector.metrics()["effective_sample_ratio"]
      0.5
    """

    def __init__(
        self,
        num_prompts: int,
        method: str = "dps",
        seed: int = 0,
        groups: Any = None,
        features: Any = None,
        keys: Iterable[Hashable] | None = None,
        device: Any = None,
        pool_factor: int = 8,
        **options: Any,
    ):
        """Builds a selector without observations.

        Args:
          num_prompts: number of prompts, N, whose ids are 0, ..., N - 1.
          method: name of a selection method, a key of `dps_jax.selectors.SELECTORS`. The default is the published
            method; we recommend "instructive".
          seed: seed of random pools, random picks and ties.
          groups: group of each prompt (level, source, topic), int [N], for methods that use groups; -1 for prompts
            whose group is not known.
          features: features of each prompt, float [N, D], for methods that use features.
          keys: N distinct names of the prompts: strings, numbers, UUIDs or other hashable objects. A state that was
            saved with keys can be loaded by a selector of another set of prompts; the prompts that are in both sets
            keep their learned state.
          device: device of the state and the computations, a `jax.Device` or the name of a platform such as "cpu"; None
            uses the default device of JAX. Even with "cpu", JAX initialises any GPU that it finds, and allocates about
            10 MiB of GPU memory in a process that already uses CUDA, and 540 MiB in other processes; the environment
            variable `JAX_PLATFORMS=cpu` prevents this.
          pool_factor: number of candidates per pick: `select` without candidates chooses from a random pool of
            `pool_factor` times B prompts (for "instructive", at least a quarter of all prompts). With 0, or with the
            option `max_wait`, it chooses from all prompts.
          **options: options of the method; see the factory of the same name in `dps_jax.selectors`.

        Raises:
          ValueError: for an unknown method or option, with a list of the known ones, or if a value is out of range.
        """
        self.num_prompts = _checks.check_int("num_prompts", num_prompts, at_least=1)
        seed = _checks.check_int("seed", seed, at_least=0, at_most=2**63 - 1)
        pool_factor = _checks.check_int("pool_factor", pool_factor, at_least=0, at_most=2**30)
        self._built_with = {"num_prompts": self.num_prompts, "method": method, "seed": seed, "pool_factor": pool_factor}
        if isinstance(options.get("prior"), (str, os.PathLike)) and options["prior"] not in PRIOR_NAMES:
            # Read once: a saved selector, or a copy, must not depend on another file.
            options["prior"] = resolve_prior(options["prior"])
        self._built_with |= options
        known = selectors.option_names(method)
        if groups is not None:
            groups = _checks.check_groups(groups, self.num_prompts)
            self._built_with["groups"] = groups
            options |= {"groups": groups} if "groups" in known else {}
        if features is not None:
            features = _checks.check_features(features, self.num_prompts)
            self._built_with["features"] = features
            options |= {"features": features} if "features" in known else {}
        self._prompts = _states.Prompts(
            keys=_arguments.checked_keys(keys, self.num_prompts),
            groups=options.get("groups"),
            features=None if "features" not in options else _states.checksums(options["features"]),
        )
        self._device = _arguments.checked_device(device, options.get("mesh"))
        self.method = method
        self._options = options
        self._prior_options = {name: options[name] for name in _PRIOR_OPTIONS if name in options}
        self._has_turns = options.get("max_wait") is not None
        self._pools = pools(self.num_prompts, pool_factor, method, has_turns=self._has_turns)
        self._lock = threading.RLock()
        with self._placed():
            self._selector = selectors.build(method, self.num_prompts, **options)
            self._key = jax.random.key(seed)
            self._words = np.asarray(jax.random.key_data(self._key)).tolist()
            self._state = self._on_device(self._selector.init(jax.random.fold_in(self._key, 0)))
        self._programs = Programs(self._selector)
        self._pending: list[np.ndarray] = []  # float64 [3, P] each: ids, successes, counts
        self._num_pending_completions = 0
        self._record = _Record(0, 0, False, 0, 0, no_prompts(), np.zeros(len(_states.LAST_ROUND)))

    def __repr__(self) -> str:
        return (
            f"PromptSelector(method={self.method!r}, num_prompts={self.num_prompts:,}, "
            f"num_rounds={self._record.num_rounds:,})"
        )

    def select(self, batch_size: int, candidates: Any = None, commit: bool = True) -> np.ndarray:
        """Returns the prompts of the next round, best first, after committing pending observations.

        Prompts that were selected and not observed yet are in flight: they are not selected again in the next 16
        batches, as long as there are enough others; otherwise, those that were selected earliest become available
        first. A prompt in flight that is due by `max_wait` is nevertheless selected once more.

        Args:
          batch_size: number of prompts to select, B.
          candidates: ids of the prompts to choose from, int [M], M >= B, distinct; None draws a random pool, whose size
            the option `pool_factor` of the constructor determines.
          commit: whether to commit pending observations first. False is for trainers that request one prompt at a time:
            a round then consists of the observations between two calls to `commit`.

        Returns:
          Distinct ids, int64 [B].

        Raises:
          ValueError: for a batch larger than N or M, or (without candidates) too small for `max_wait`, a bad id, or a
            repeated candidate.

        Example:
          >>> import dps_jax
          >>> selector = dps_jax.PromptSelector(100, "mopps")
          >>> ids = selector.select(4, candidates=[10, 11, 12, 13, 14, 15])
          >>> set(ids.tolist()) <= {10, 11, 12, 13, 14, 15}
          True
        """
        if candidates is not None:
            candidates = _checks.check_ids("candidates", candidates, self.num_prompts, is_distinct=True)
            if candidates.size == 0:
                raise ValueError(
                    "candidates: expected at least batch_size ids, got none; pass None to choose from all prompts"
                )
        pool_size = self.num_prompts if candidates is None else candidates.size
        if isinstance(batch_size, (int, np.integer)) and batch_size > pool_size:
            pool = "num_prompts" if candidates is None else "the number of candidates"
            raise ValueError(f"batch_size: expected at most {pool_size} ({pool}), got {batch_size}")
        batch_size = _checks.check_int("batch_size", batch_size, at_least=1)
        commit = _checks.check_bool("commit", commit)
        with self._lock, self._placed():
            if candidates is None:
                candidates = self._drawn_pool(batch_size)
            padded = None if candidates is None else _arguments.padded(candidates, -1)
            # Before anything is committed.
            self._programs.check_sizes(self._state, self._key, batch_size, padded)
            if commit:
                self._commit()
            return self._pick(batch_size, candidates, padded, is_committed=commit)

    def _drawn_pool(self, batch_size: int) -> np.ndarray | None:
        """Returns a random pool, a function of the seed and the number of calls; None for all prompts."""
        return self._pools.drawn(batch_size, [*self._words, self._record.num_selects])

    def _pick(
        self, batch_size: int, candidates: np.ndarray | None, padded: np.ndarray | None, *, is_committed: bool
    ) -> np.ndarray:
        """Returns the picks given the committed observations, and records that they are in flight."""
        record = self._record
        batch = record.num_batches + (0 if record.is_batch_open and not is_committed else 1)
        waiting = record.in_flight.at(batch)
        num_candidates = self.num_prompts if candidates is None else candidates.size
        exclude = waiting.kept_back(candidates, num_candidates, batch_size)
        # A prompt in flight that `max_wait` selected is not selected again.
        exclusion = (_arguments.padded(exclude.ids, -1), _arguments.padded(exclude.is_turn, 0).astype(bool))
        ids, is_turn = self._programs.select(
            self._state,
            self._key,
            np.uint32(record.num_selects + 1),
            batch_size,
            padded,
            exclusion if exclude.ids.size else None,
        )
        ids = np.asarray(ids).astype(np.int64)
        self._record = record._replace(
            num_selects=record.num_selects + 1,
            num_batches=batch,
            is_batch_open=not is_committed,
            in_flight=waiting.handed_out(
                ids, np.asarray(is_turn) if self._has_turns else np.zeros(ids.size, bool), batch
            ),
        )
        return ids

    def warm_up(self, batch_size: int, pool_size: int | None = None) -> None:
        """Compiles the programs for rounds of `batch_size` prompts; the state does not change.

        Args:
          batch_size: number of prompts of a round, B.
          pool_size: number of candidates M in later calls to `select`; None for calls without candidates.

        Raises:
          ValueError: if `select` would raise it for these sizes.

        Example:
          >>> import dps_jax
          >>> selector = dps_jax.PromptSelector(100, "mopps")
          >>> selector.warm_up(batch_size=4)
          >>> selector.metrics()["num_in_flight"]
          0.0
        """
        batch_size = _checks.check_int("batch_size", batch_size, at_least=1, at_most=self.num_prompts)
        if pool_size is not None:
            pool_size = _checks.check_int("pool_size", pool_size, at_least=batch_size, at_most=self.num_prompts)
        with self._lock, self._placed():
            candidates = np.arange(pool_size) if pool_size else self._drawn_pool(batch_size)
            padded = None if candidates is None else _arguments.padded(candidates, -1)
            self._programs.check_sizes(self._state, self._key, batch_size, padded)
            self._programs.compile(self._state, self._key, batch_size, padded)

    def release(self, prompt_ids: Any) -> None:
        """Releases selected prompts that will not be observed: they are no longer in flight, and may be selected again.

        Args:
          prompt_ids: ids of the prompts, int [P]; ids of prompts that are not in flight have no effect.

        Raises:
          ValueError: for a bad id.

        Example:
          >>> import dps_jax
          >>> selector = dps_jax.PromptSelector(100, "mopps")
          >>> ids = selector.select(4)
          >>> selector.release(ids[:1])  # for example after a failed rollout
          >>> selector.metrics()["num_in_flight"]
          3.0
        """
        ids = _checks.check_ids("prompt_ids", prompt_ids, self.num_prompts)
        with self._lock:
            self._record = self._record._replace(in_flight=self._record.in_flight.without(ids))

    def observe(self, prompt_ids: Any, successes: Any, counts: Any) -> None:
        """Adds outcomes to the pending observations, from which the model learns at the next `select` or `commit`.

        Args:
          prompt_ids: ids of the observed prompts, int [P]; outcomes of repeated ids are summed.
          successes: number of correct completions of each prompt, int [P].
          counts: number of completions of each prompt, int [P], or one int for all prompts; at least 1.

        Raises:
          ValueError: for a bad id, a count below 1, a number of correct completions above its count, a NaN, lengths
            that differ, or counts of a prompt that sum to 2**31 or more.

        Example:
          >>> import dps_jax
          >>> selector = dps_jax.PromptSelector(100, "mopps")
          >>> selector.observe([3, 5], successes=[8, 2], counts=8)
          >>> selector.commit()
          >>> print(selector.predict()["success_rate"][[3, 4, 5]])
          [0.9 0.5 0.3]
        """
        ids = _checks.check_ids("prompt_ids", prompt_ids, self.num_prompts)
        successes, counts = _checks.check_outcomes(successes, counts, ids.size)
        self._take_in(ids, successes, counts)

    def observe_rewards(self, prompt_ids: Any, rewards: Any, counts: Any = 1) -> None:
        """Adds outcomes as rewards between 0 and 1, from graders with partial credit, to the pending observations.

        The models count correct completions. The sum of the rewards of a prompt in a round, rounded to an integer, is
        used as the number of correct completions. If the sum is strictly between 0 and the number of completions, and
        there are two completions or more, the group counts as partially solved, with at least one correct and one wrong
        completion. If you know which completions are correct, use `observe`, which loses no information.

        Args:
          prompt_ids: ids of the observed prompts, int [P]; outcomes of repeated ids are summed.
          rewards: mean reward of the completions of each prompt, in [0, 1], [P].
          counts: number of completions of each prompt, int [P], or one int for all prompts; at least 1.

        Raises:
          ValueError: for a reward outside [0, 1] or NaN, and wherever `observe` raises it.

        Example:
          >>> import dps_jax
          >>> selector = dps_jax.PromptSelector(100, "mopps")
          >>> selector.observe_rewards([3, 4], rewards=[0.5, 0.01], counts=8)  # counts as 4 and as 1 correct of 8
          >>> selector.commit()
          >>> print(selector.predict()["success_rate"][[3, 4]])
          [0.5 0.2]
        """
        ids = _checks.check_ids("prompt_ids", prompt_ids, self.num_prompts)
        rewards, counts = _checks.check_rewards(rewards, counts, ids.size)
        self._take_in(ids, rewards * counts, counts)

    def _take_in(self, ids: np.ndarray, successes: np.ndarray, counts: np.ndarray) -> None:
        if not ids.size:
            return
        rows = np.stack([ids, successes, counts]).astype(np.float64)
        with self._lock:
            # The counts of one prompt can be too large only if the sum over all prompts is.
            num_completions = self._num_pending_completions + int(counts.sum())
            if num_completions >= _checks.MAX_COUNT:
                _arguments.check_sums(np.concatenate([*self._pending, rows], axis=1))
            self._pending.append(rows)
            self._num_pending_completions = num_completions

    def observe_rows(self, row_ids: Any, row_is_correct: Any) -> None:
        """Adds outcomes with one row per completion, in any order, to the pending observations.

        Args:
          row_ids: id of the prompt of each completion, int [R].
          row_is_correct: whether each completion is correct, bool or 0/1, [R].

        Raises:
          ValueError: for a bad id, a value other than 0 and 1, or lengths that differ.

        Example:
          >>> import dps_jax
          >>> selector = dps_jax.PromptSelector(100, "mopps")
          >>> selector.observe_rows([3, 5, 3, 5], [True, False, True, True])
          >>> selector.commit()
          >>> print(selector.predict()["success_rate"][[3, 5]])
          [0.75 0.5 ]
        """
        ids = _checks.check_ids("row_ids", row_ids, self.num_prompts)
        is_correct = _checks.as_array("row_is_correct", row_is_correct)
        if is_correct.shape != ids.shape:
            raise ValueError(f"row_is_correct: expected {ids.size} values, one per row, got {is_correct.size}")
        is_bad = ~np.isin(is_correct, (0, 1))
        if np.any(is_bad):
            position = int(np.argmax(is_bad))
            raise ValueError(
                f"row_is_correct: expected 0 or 1, whether the completion is correct, got {is_correct[position]} at "
                f"position {position}; use observe_rewards for partial credit"
            )
        self._take_in(ids, is_correct.astype(np.int64), np.ones_like(ids))

    def commit(self) -> None:
        """Ends the round: the model learns from the pending observations. Without any, no round is counted.

        Example:
          >>> import dps_jax
          >>> selector = dps_jax.PromptSelector(100, "mopps")
          >>> selector.observe([3], [4], counts=8)
          >>> selector.commit()
          >>> selector.metrics()["num_rounds"], selector.metrics()["num_pending"]
          (1.0, 0.0)
        """
        with self._lock, self._placed():
            self._commit()
            self._record = self._record._replace(is_batch_open=False)

    def _commit(self) -> None:
        if not self._pending:
            return
        ids, successes, counts = _arguments.summed(np.concatenate(self._pending, axis=1))
        padded = (_arguments.padded(ids, -1), _arguments.padded(successes, 0), _arguments.padded(counts, 0))
        record = self._record
        figures = self._programs.judge(self._state, *padded)
        # The step donates the old state, which cannot be used once the step has begun.
        with uninterrupted():
            self._state = self._programs.observe(self._state, *padded)
            self._pending, self._num_pending_completions = [], 0
            # These updates run while the device computes.
            self._record = record._replace(
                num_rounds=record.num_rounds + 1,
                num_observed=record.num_observed + ids.size,
                in_flight=record.in_flight.without(ids),
                last_round=figures,
            )

    def predicted_probs(self) -> np.ndarray:
        """Returns the belief about every prompt's state in the next round, float32 [N, K].

        Pending observations are not included. K is the number of states of the method.

        Raises:
          ValueError: for a method without states.

        Example:
          >>> import dps_jax
          >>> selector = dps_jax.PromptSelector(100, "dps", initial=[0.5, 0.25, 0.25])
          >>> print(selector.predicted_probs()[7])  # unsolved, partially solved, solved
          [0.5  0.25 0.25]
        """
        if self._selector.predicted_probs is None:
            raise ValueError(
                f"method: expected a method with solve states, such as 'dps', got {self.method!r}; use predict()"
            )
        with self._lock, self._placed():
            return np.ascontiguousarray(np.asarray(self._selector.predicted_probs(self._state)).T)

    def predict(self) -> dict[str, np.ndarray]:
        """Returns the predictions for the next round, {"p_informative": [N], "success_rate": [N]}, float32.

        Pending observations are not included. `types.Prediction` describes both arrays.

        Example:
          >>> import dps_jax
          >>> selector = dps_jax.PromptSelector(100, "mopps")
          >>> prediction = selector.predict()
          >>> prediction["p_informative"].shape, float(prediction["success_rate"][0])
          ((100,), 0.5)
        """
        with self._lock, self._placed():
            prediction = self._programs.predict(self._state)
            return {name: np.asarray(getattr(prediction, name)) for name in ("p_informative", "success_rate")}

    def plot(self, batch_size: int | None = None) -> Figure:
        """Returns a figure of the predictions for all prompts, made by `viz.predictions`; the selector does not change.

        Pending observations are not included.

        Args:
          batch_size: number of prompts of the next round, B. The figure then also shows the candidates of the next call
            `select(B)`: its pool, without the prompts in flight that it must not select. None shows no candidates.

        Raises:
          ValueError: for a batch size below 1 or above the number of prompts.

        Example:
          >>> import dps_jax
          >>> selector = dps_jax.PromptSelector(num_prompts=100, groups=[0, 1] * 50)
          >>> len(selector.plot(batch_size=4).axes)
          3
        """
        from dps_jax import viz

        if batch_size is not None:
            batch_size = _checks.check_int("batch_size", batch_size, at_least=1, at_most=self.num_prompts)
        with self._lock:
            candidates = None if batch_size is None else self._next_candidates(batch_size)
            predicted, title = self.predict(), repr(self)
        return viz.predictions(predicted, groups=self._built_with.get("groups"), candidates=candidates, title=title)

    def _next_candidates(self, batch_size: int) -> np.ndarray:
        """Returns the ids from which the next `select` without candidates picks, after it has committed."""
        pool = self._drawn_pool(batch_size)
        candidates = np.arange(self.num_prompts) if pool is None else pool
        pending = np.concatenate([np.zeros((3, 0)), *self._pending], axis=1)[0].astype(np.int64)
        waiting = self._record.in_flight.without(pending).at(self._record.num_batches + 1)
        return np.setdiff1d(candidates, waiting.kept_back(pool, candidates.size, batch_size).ids)

    def set_prior(self, prior: Any) -> None:
        """Replaces the prior over transitions and keeps what was learned from observations.

        Prompts without observations get the belief that they would have if the selector had been built with this prior.
        Pending observations stay pending. The options `initial`, `decay` and `num_states`, if they were given, also
        apply to this prior.

        Args:
          prior: any value of the option `prior` of `dps_jax.selectors.dps`, with the structure of the current prior:
            the same number of states, emission and number of groups, and `trained_concentration` set if and only if it
            is set in the current prior.

        Raises:
          ValueError: for a method without a prior, or a prior that is unknown, invalid or of a different structure.

        Example:
          >>> import dps_jax
          >>> selector = dps_jax.PromptSelector(100, "dps")
          >>> fitted = dps_jax.TransitionPrior([0.5, 0.25, 0.25], [[5, 1, 1], [1, 3, 1], [1, 1, 5]])
          >>> selector.set_prior(fitted)
          >>> print(selector.predicted_probs()[7])
          [0.5  0.25 0.25]
        """
        if self._programs.with_prior is None:
            raise ValueError(f"method: expected a method with a prior, such as 'dps', got {self.method!r}")
        with self._lock, self._placed():
            resolved = resolve_prior(prior, **self._prior_options)
            with uninterrupted():
                self._state = self._programs.with_prior(self._state, resolved)

    def metrics(self) -> dict[str, float]:
        """Returns metrics to log, none of them NaN.

        `num_rounds`, `num_observed` and `num_impossible` count committed rounds, their observed prompts, and the
        outcomes among them that had probability 0 under the model. `num_in_flight` and `num_pending` are the current
        numbers of prompts in flight and of pending observations, one per entry of the observed ids. The metrics of the
        last committed round, which are 0 before the first, are `effective_sample_ratio` (the share of completion groups
        that are informative: some but not all completions are correct), `predicted_informative` (the predicted value of
        this share) and `brier` (the Brier score of the predictions).

        Example:
          >>> import dps_jax
          >>> selector = dps_jax.PromptSelector(100, "mopps")
          >>> selector.observe([1, 2, 3, 4], [0, 3, 8, 8], counts=8)
          >>> selector.commit()
          >>> selector.metrics()["num_observed"], selector.metrics()["effective_sample_ratio"]
          (4.0, 0.25)
        """
        with self._lock, self._placed():
            record, num_impossible = self._record, 0
            if self._selector.num_impossible is not None:
                num_impossible = int(self._selector.num_impossible(self._state))
            return {
                "num_rounds": float(record.num_rounds),
                "num_observed": float(record.num_observed),
                "num_in_flight": float(record.in_flight.ids.size),
                "num_pending": float(sum(rows.shape[1] for rows in self._pending)),
                "num_impossible": float(num_impossible),
                **_figures(record),
            }

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the selector as NumPy arrays and Python values, for a checkpoint of the trainer.

        Example:
          >>> import dps_jax
          >>> selector = dps_jax.PromptSelector(100, "mopps")
          >>> state = selector.state_dict()
          >>> state["method"], state["num_prompts"], state["num_rounds"]
          ('mopps', 100, 0)
        """
        with self._lock, self._placed():
            record = self._record
            return {
                "version": _states.VERSION,
                "method": self.method,
                "num_prompts": self.num_prompts,
                "options": self._option_texts(),
                **self._prompts._asdict(),
                "key": np.array(jax.random.key_data(self._key)),
                "pending": np.concatenate([np.zeros((3, 0)), *self._pending], axis=1),
                "in_flight": np.stack(record.in_flight).astype(np.int64),
                "is_batch_open": int(record.is_batch_open),
                **{name: getattr(record, name) for name in _states.COUNTERS},
                "last_round": _figures(record),
                "leaves": jax.tree.leaves(self._selector.to_portable(self._state)),
            }

    def _option_texts(self) -> dict[str, str]:
        """Returns the options, defaults included, that a selector needs to have to load this state."""
        known = [name for name in selectors.option_names(self.method) if name not in _FREE_OPTIONS]
        options = {name: self._options.get(name, default(self.method, name)) for name in known}
        # The saved arrays have the groups in the order of these ids in the prior.
        group_ids = getattr(self._options.get("prior"), "group_ids", ())
        return _states.option_texts(options | ({"prior.group_ids": group_ids} if group_ids else {}))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores a saved state; the two selectors must have been built with the same method, options and prompts.

        The prior is part of the state, whether it was an option or was set by `set_prior`. If both selectors have
        `keys`, the prompts may differ: the state of a prompt is found by its key, and prompts with new keys start as in
        a selector without observations.

        Args:
          state: result of `state_dict`.

        Raises:
          ValueError: if the state is damaged, or was saved by a selector with a different method, options, groups,
            features or number of prompts; the selector is not changed.

        Example:
          >>> import dps_jax
          >>> old = dps_jax.PromptSelector(2, "mopps", keys=["question-1", "question-2"])
          >>> old.observe([1], [8], counts=8)
          >>> old.commit()
          >>> selector = dps_jax.PromptSelector(2, "mopps", keys=["question-2", "question-3"])
          >>> selector.load_state_dict(old.state_dict())
          >>> print(selector.predict()["success_rate"])
          [0.9 0.5]
        """
        with self._lock, self._placed():
            layout = jax.tree.leaves(self._selector.layout())
            found = _states.check(state, self.method, self._option_texts(), self._prompts, layout, self.num_prompts)
            leaves = found.leaves
            if found.places is not None:
                cold = jax.tree.leaves(self._selector.to_portable(self._selector.init(jax.random.key(0))))
                leaves = _states.carried_over(leaves, cold, found.places, layout)
            arrays = jax.tree.unflatten(jax.tree.structure(self._state), leaves)
            placed = self._on_device(self._selector.from_portable(arrays))
            key = jax.random.wrap_key_data(jnp.array(found.key))
            record = _Record(
                **found.counters,
                is_batch_open=found.is_batch_open,
                in_flight=found.in_flight,
                last_round=np.array([found.last_round[name] for name in _states.LAST_ROUND]),
            )
            with uninterrupted():
                self._state, self._key, self._words = placed, key, found.key.tolist()
                self._pending = [found.pending] if found.pending.size else []
                self._num_pending_completions = int(found.pending[2].sum())
                self._record = record

    def save(self, path: os.PathLike[str] | str) -> None:
        """Writes the selector to one .npz file, atomically and without pickled objects; `load` and `restore` read it.

        Args:
          path: path of the file.

        Raises:
          ValueError: for a key or an option that cannot be stored in a file.
          OSError: if the file cannot be written; an existing file is not changed.

        Example:
          >>> import dps_jax
          >>> selector = dps_jax.PromptSelector(100, "mopps")
          >>> selector.save("selector.npz")
          >>> dps_jax.PromptSelector.load("selector.npz")
          PromptSelector(method='mopps', num_prompts=100, num_rounds=0)
        """
        built_with = {name: value for name, value in self._built_with.items() if name != "mesh"}
        _files.write(path, self.state_dict(), built_with)

    @classmethod
    def load(cls, path: os.PathLike[str] | str, *, device: Any = None, **options: Any) -> PromptSelector:
        """Returns the selector that `save` wrote, with its method, options and state.

        Args:
          path: path of the file.
          device: device of the new selector, as in the constructor; it may differ from the device of the saved
            selector.
          **options: the option `mesh`, which is not stored in the file.

        Raises:
          ValueError: if the file is damaged or was not written by `save` (the message names the file), or for another
            option than `mesh`.
          OSError: if the file cannot be read.

        Example:
          >>> import dps_jax
          >>> dps_jax.PromptSelector(100, "mopps", decay=0.7).save("selector.npz")
          >>> selector = dps_jax.PromptSelector.load("selector.npz")
          >>> selector.method, selector.num_prompts
          ('mopps', 100)
        """
        if others := options.keys() - {"mesh"}:
            raise ValueError(
                "options: expected only mesh, since the file contains all other options, got "
                f"{', '.join(sorted(others))}; to change an option, build another selector"
            )
        state, built_with = _files.read(path)
        selector = cls(**built_with, keys=state["keys"], device=device, **options)
        selector._load_from(path, state)
        return selector

    def restore(self, path: os.PathLike[str] | str) -> None:
        """Restores the state from a file that `save` wrote; the rules of `load_state_dict` apply.

        Args:
          path: path of the file.

        Raises:
          ValueError: if the file is damaged, was not written by `save`, or contains the state of a different kind of
            selector; the message names the file, and the selector is not changed.
          OSError: if the file cannot be read.

        Example:
          >>> import dps_jax
          >>> selector = dps_jax.PromptSelector(100, "mopps")
          >>> selector.save("selector.npz")
          >>> selector.observe([3], [4], counts=8)
          >>> selector.restore("selector.npz")  # without the pending observation
          >>> selector.metrics()["num_pending"]
          0.0
        """
        self._load_from(path, _files.read(path)[0])

    def _load_from(self, path: os.PathLike[str] | str, state: Mapping[str, Any]) -> None:
        try:
            self.load_state_dict(state)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        place = None if self._device is None else (self._device.platform, self._device.id)
        return {"built_with": dict(self._built_with), "device": place, "state": self.state_dict()}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        place = saved["device"]
        device = None if place is None else next(d for d in jax.local_devices(backend=place[0]) if d.id == place[1])
        self.__init__(**saved["built_with"], keys=saved["state"]["keys"], device=device)
        self.load_state_dict(saved["state"])

    def _placed(self) -> contextlib.AbstractContextManager[Any]:
        """Returns a context manager in which arrays are created on the device; it applies to the current thread."""
        return contextlib.nullcontext() if self._device is None else jax.default_device(self._device)

    def _on_device(self, tree: Any) -> Any:
        return tree if self._device is None else jax.device_put(tree, self._device)
