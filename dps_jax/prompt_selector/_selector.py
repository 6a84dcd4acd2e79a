"""Door 1: a selector for a trainer that already runs. NumPy in and out, a host object around the pure functions."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, NamedTuple

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

# Options that belong to the one named `prior`: another prior is read with them, too.
_PRIOR_OPTIONS = ("initial", "decay", "num_states")
# Options that a saved state brings along, or that say where it lies, and may differ from those of the selector.
_FREE_OPTIONS = ("prior", "initial", "mesh", "groups", "features")


class _Record(NamedTuple):
    """What is counted on the host; replaced as a whole, so that it is never half changed.

    Attributes:
      num_selects: calls of `select`.
      num_batches: batches handed out; calls without a commit are of one batch until the next commit.
      is_batch_open: whether the next call without a commit is of the last batch.
      num_rounds: rounds of the model.
      num_observed: prompts observed in them.
      in_flight: prompts handed out without an outcome.
      last_round: figures of the last round, in the order of `states.LAST_ROUND`, [3], perhaps still on the device.
    """

    num_selects: int
    num_batches: int
    is_batch_open: bool
    num_rounds: int
    num_observed: int
    in_flight: InFlight
    last_round: Any


def _figures(record: _Record) -> dict[str, float]:
    """Returns the figures of the last round by name."""
    return dict(zip(_states.LAST_ROUND, np.asarray(record.last_round).tolist(), strict=True))


class PromptSelector:
    """Chooses the prompts of every round, and learns from their outcomes.

    A round is `select`, rollouts, then any number of `observe` calls, in any order and with repeats; they are summed
    and become one round of the model at the next `select` (or `commit`). A refused call raises ValueError and changes
    nothing. Any thread may call any method. The object can be pickled and copied.

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
        keys: Iterable[Hashable] | None = None,
        device: Any = None,
        pool_factor: int = 8,
        **options: Any,
    ):
        """Builds the selector; nothing was observed yet.

        Args:
          num_prompts: N; prompts are known by ids 0, ..., N - 1.
          method: a name of `dps_jax.selectors.SELECTORS`.
          seed: of the random stream that draws pools and breaks ties.
          groups: int [N], a group id (level, source, topic) per prompt, for methods that use it; -1 is unknown.
          features: float [N, D], for methods that use them.
          keys: N distinct names of the prompts (texts, numbers, UUIDs, any hashables). A state that was saved with keys
            can be loaded by a selector with others: what is known of prompts that are still there is taken over.
          device: where state and work are, a `jax.Device` or the name of a platform such as "cpu"; None leaves it to
            JAX. JAX itself still starts on a GPU that it finds, and keeps some 10 MiB there in a process that uses CUDA
            already, 540 MiB in one that does not; with `JAX_PLATFORMS=cpu` in the environment it does not start there.
          pool_factor: `select` without candidates chooses from a random pool of this many times B prompts (of
            "instructive", of a quarter of all prompts if that is more); 0, or `max_wait`, from all of them.
          **options: of the method; see `dps_jax.selectors`.

        Raises:
          ValueError: for an unknown method or option, with the known ones, or a value out of range.
        """
        self.num_prompts = _checks.check_int("num_prompts", num_prompts, at_least=1)
        seed = _checks.check_int("seed", seed, at_least=0, at_most=2**63 - 1)
        pool_factor = _checks.check_int("pool_factor", pool_factor, at_least=0, at_most=2**30)
        self._built_with = {"num_prompts": self.num_prompts, "method": method, "seed": seed, "pool_factor": pool_factor}
        if isinstance(options.get("prior"), (str, os.PathLike)) and options["prior"] not in PRIOR_NAMES:
            # Read once: a file of the selector, or a copy, is not to depend on another file.
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
        """Returns the prompts of the next round, best first; commits pending observations first.

        Prompts that were handed out and not observed yet are kept back for the next 16 batches while others are left;
        where too few are left, those handed out first come first. A prompt in flight whose turn comes by `max_wait` is
        handed out once more all the same.

        Args:
          batch_size: B.
          candidates: int [M], M >= B, distinct; None is a random pool of `pool_factor` times B prompts.
          commit: False leaves pending observations pending, for trainers that ask for one prompt at a time: a round is
            what is observed between two calls of `commit`.

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
        """Returns the candidates of a call without any, which follow from seed and number of calls; None for all."""
        return self._pools.drawn(batch_size, [*self._words, self._record.num_selects])

    def _pick(
        self, batch_size: int, candidates: np.ndarray | None, padded: np.ndarray | None, *, is_committed: bool
    ) -> np.ndarray:
        """Returns the picks from what was committed, and notes that they are in flight."""
        record = self._record
        batch = record.num_batches + (0 if record.is_batch_open and not is_committed else 1)
        waiting = record.in_flight.at(batch)
        num_candidates = self.num_prompts if candidates is None else candidates.size
        exclude = waiting.kept_back(candidates, num_candidates, batch_size)
        # A turn is handed out once.
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
        """Compiles what rounds of `batch_size` prompts need; nothing is handed out, and nothing is learned.

        Args:
          batch_size: B.
          pool_size: M, of the candidates that will be given to `select`; None is for calls without any.

        Raises:
          ValueError: for sizes that `select` would refuse.
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
        """Gives prompts back that were handed out and will not be observed; `select` may pick them at once.

        Args:
          prompt_ids: int [P]; those that are not in flight are left as they are.

        Raises:
          ValueError: for a bad id.
        """
        ids = _checks.check_ids("prompt_ids", prompt_ids, self.num_prompts)
        with self._lock:
            self._record = self._record._replace(in_flight=self._record.in_flight.without(ids))

    def observe(self, prompt_ids: Any, successes: Any, counts: Any) -> None:
        """Takes in outcomes; they become part of the model at the next `select` or `commit`.

        Args:
          prompt_ids: int [P]; repeats add up.
          successes: completions that were correct, int [P].
          counts: completions, int [P], or one int for all; at least 1.

        Raises:
          ValueError: for a bad id, a count below 1, a success above its count, a NaN, lengths that differ, or counts
            of a prompt that add up to 2**31 or more.
        """
        ids = _checks.check_ids("prompt_ids", prompt_ids, self.num_prompts)
        successes, counts = _checks.check_outcomes(successes, counts, ids.size)
        self._take_in(ids, successes, counts)

    def observe_rewards(self, prompt_ids: Any, rewards: Any, counts: Any = 1) -> None:
        """Takes in rewards between 0 and 1, of graders that give partial credit.

        The models count correct completions. So the rewards of a prompt in a round are added up, and their sum, rounded
        to a whole number, stands for the number of correct completions. A sum strictly between 0 and the number of
        completions counts as at least one correct and one wrong completion, where there are two or more: such a group
        is taken as partially solved. It is the same for all methods. Where correctness is known, `observe` says more.

        Args:
          prompt_ids: int [P]; repeats add up.
          rewards: mean reward of the completions, in [0, 1], [P].
          counts: completions, int [P], or one int for all; at least 1.

        Raises:
          ValueError: for a bad id, a reward outside [0, 1] or NaN, and as `observe` does.
        """
        ids = _checks.check_ids("prompt_ids", prompt_ids, self.num_prompts)
        rewards, counts = _checks.check_rewards(rewards, counts, ids.size)
        self._take_in(ids, rewards * counts, counts)

    def _take_in(self, ids: np.ndarray, successes: np.ndarray, counts: np.ndarray) -> None:
        if not ids.size:
            return
        rows = np.stack([ids, successes, counts]).astype(np.float64)
        with self._lock:
            # Only where all of them together are too many can those of one prompt be.
            num_completions = self._num_pending_completions + int(counts.sum())
            if num_completions >= _checks.MAX_COUNT:
                _arguments.check_sums(np.concatenate([*self._pending, rows], axis=1))
            self._pending.append(rows)
            self._num_pending_completions = num_completions

    def observe_rows(self, row_ids: Any, row_is_correct: Any) -> None:
        """Takes in one row per completion, in any order.

        Args:
          row_ids: prompt of each completion, int [R].
          row_is_correct: whether it was correct, bool or 0/1, [R].

        Raises:
          ValueError: for a bad id, a value other than 0 and 1, or lengths that differ.
        """
        ids = _checks.check_ids("row_ids", row_ids, self.num_prompts)
        is_correct = _checks.as_array("row_is_correct", row_is_correct)
        if is_correct.shape != ids.shape:
            raise ValueError(f"row_is_correct: expected {ids.size} values, one per row, got {is_correct.size}")
        is_bad = ~np.isin(is_correct, (0, 1))
        if np.any(is_bad):
            position = int(np.argmax(is_bad))
            raise ValueError(
                f"row_is_correct: expected 0 or 1 (whether the answer is correct; observe_rewards takes partial "
                f"credit), got {is_correct[position]} at position {position}"
            )
        self._take_in(ids, is_correct.astype(np.int64), np.ones_like(ids))

    def commit(self) -> None:
        """Makes one round of the model out of the pending observations; does nothing if there are none."""
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
        # The old state is gone once the step has begun.
        with uninterrupted():
            self._state = self._programs.observe(self._state, *padded)
            self._pending, self._num_pending_completions = [], 0
            # While the device works.
            self._record = record._replace(
                num_rounds=record.num_rounds + 1,
                num_observed=record.num_observed + ids.size,
                in_flight=record.in_flight.without(ids),
                last_round=figures,
            )

    def predicted_probs(self) -> np.ndarray:
        """Returns the belief about every prompt's state in the next round, float32 [N, K].

        Pending observations are not included.

        Raises:
          ValueError: for a method that keeps no such belief.
        """
        if self._selector.predicted_probs is None:
            raise ValueError(f"method: expected one with solve states, as 'dps', got {self.method!r}; use predict()")
        with self._lock, self._placed():
            return np.ascontiguousarray(np.asarray(self._selector.predicted_probs(self._state)).T)

    def predict(self) -> dict[str, np.ndarray]:
        """Returns {"p_informative": [N], "success_rate": [N]}, float32, for the next round.

        Pending observations are not included.
        """
        with self._lock, self._placed():
            prediction = self._programs.predict(self._state)
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
        if self._programs.with_prior is None:
            raise ValueError(f"method: expected one with a prior, as 'dps', got {self.method!r}")
        with self._lock, self._placed():
            resolved = resolve_prior(prior, **self._prior_options)
            with uninterrupted():
                self._state = self._programs.with_prior(self._state, resolved)

    def metrics(self) -> dict[str, float]:
        """Returns figures to log, none of them NaN.

        Counts over the run, and for the last committed round its effective sample ratio (share of groups with
        0 < m < G), the ratio that was predicted for it, and the Brier score of those predictions; zeros before the
        first one.
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
        """Returns everything the selector knows, as NumPy arrays and Python values; safe to keep and to pickle."""
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
        """Returns what has to be the same in a selector that loads this state, with the defaults of the method."""
        known = [name for name in selectors.option_names(self.method) if name not in _FREE_OPTIONS]
        options = {name: self._options.get(name, default(self.method, name)) for name in known}
        # What is saved of groups is in the order that these ids have in the prior.
        group_ids = getattr(self._options.get("prior"), "group_ids", ())
        return _states.option_texts(options | ({"prior.group_ids": group_ids} if group_ids else {}))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over the state of a selector built with the same method, options and prompts.

        The prior is part of the state, whether it came by an option or by `set_prior`. Between selectors with `keys`
        the prompts may differ: what is known of a key goes with it, and prompts with other keys start as in a selector
        without any observation.

        Raises:
          ValueError: if the state is damaged or of another kind, other options, groups, features or number of prompts
            included; the selector is as it was before.
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
        """Writes everything to one .npz file, atomically and without pickle; `load` and `restore` read it.

        Raises:
          ValueError: for a key or an option that a file cannot hold.
          OSError: if the disk is full; an old file is as it was.
        """
        built_with = {name: value for name, value in self._built_with.items() if name != "mesh"}
        _files.write(path, self.state_dict(), built_with)

    @classmethod
    def load(cls, path: os.PathLike[str] | str, *, device: Any = None, **options: Any) -> PromptSelector:
        """Returns the selector that `save` wrote.

        Args:
          path: of the file.
          device: as of the constructor; where it was saved does not matter.
          **options: that a file cannot hold, as `mesh`.

        Raises:
          ValueError: naming the file, if it is another or damaged.
          OSError: if it cannot be read.
        """
        state, built_with = _files.read(path)
        selector = cls(**built_with, keys=state["keys"], device=device, **options)
        selector._load_from(path, state)
        return selector

    def restore(self, path: os.PathLike[str] | str) -> None:
        """Takes over the state that `save` wrote, as `load_state_dict` does.

        Raises:
          ValueError: naming the file, if it is another, damaged, or of another kind of selector; nothing is changed.
          OSError: if it cannot be read.
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
        """Returns a context in which arrays are made on the device; it holds for one thread."""
        return contextlib.nullcontext() if self._device is None else jax.default_device(self._device)

    def _on_device(self, tree: Any) -> Any:
        return tree if self._device is None else jax.device_put(tree, self._device)
