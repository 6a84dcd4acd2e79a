"""A logged trace as priors are fitted to it: every prompt in every round, with what is known about prompts."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dps_jax import _checks
from dps_jax.traces import Trace

# A cell is 4 bytes of codes, and some 50 of work in a fit.
_MAX_CELLS = 2**29


class Outcomes(NamedTuple):
    """What was seen of N prompts in T rounds; arrays only, so that jitted functions take it as it is.

    Attributes:
      codes: which kind of outcome each prompt had in each round, int32 [T, N]; 0 where it was not rolled out.
      successes: of every kind, int32 [U]; kind 0 is "nothing seen", 0 of 0.
      counts: of every kind, int32 [U].
      prompt_ids: the prompts, as the trace names them, int32 [N]; those never seen are left out.
      groups: group id of every prompt, int32 [N], or None.
      features: of every prompt, float32 [N, D], standardised by whoever made them, or None.
    """

    codes: jax.Array
    successes: jax.Array
    counts: jax.Array
    prompt_ids: jax.Array
    groups: jax.Array | None = None
    features: jax.Array | None = None

    @property
    def num_rounds(self) -> int:
        """T."""
        return self.codes.shape[0]

    @property
    def num_prompts(self) -> int:
        """N, prompts that were seen at least once."""
        return self.codes.shape[1]

    def take(self, positions: Any) -> Outcomes:
        """Returns the outcomes of some prompts, by their positions [P] or a mask [N]."""
        pick = lambda values: None if values is None else values[positions]
        return self._replace(
            codes=self.codes[:, positions],
            prompt_ids=self.prompt_ids[positions],
            groups=pick(self.groups),
            features=pick(self.features),
        )


def prepare(
    trace: Trace,
    *,
    groups: Any = None,
    features: Any = None,
    last_rounds: int | None = None,
) -> Outcomes:
    """Returns the outcomes of a trace.

    Round 0 of the result is the first round of the trace. Rows of one prompt in one round are added up.

    Args:
      trace: columns round, prompt_id, successes, count.
      groups: group id of every prompt of the run, by prompt id, int, at least as long as the largest id; -1 is unknown.
      features: float, [number of prompts of the run, D].
      last_rounds: use only so many rounds at the end of the trace.

    Raises:
      ValueError: for an empty trace, bad columns, groups or features that are too short or not finite, or a trace that
        is too large to be laid out.
    """
    rounds = _checks.check_integer_array("trace.rounds", trace.rounds)
    if rounds.size == 0:
        raise ValueError("trace: expected at least one row, got an empty trace; log some rounds first")
    ids = _checks.check_integer_array("trace.prompt_ids", trace.prompt_ids)
    for name, column in (("trace.prompt_ids", ids), ("trace.rounds", rounds)):
        if column.size != rounds.size or column.min() < 0 or column.max() > np.iinfo(np.int32).max:
            found = f"{column.size} from {column.min()} to {column.max()}" if column.size else "none"
            raise ValueError(f"{name}: expected {rounds.size} values >= 0 and below 2**31, got {found}")
    successes, counts = _checks.check_outcomes(trace.successes, trace.counts, rounds.size)
    if last_rounds is not None:
        _checks.check_int("last_rounds", last_rounds, at_least=1)
        is_kept = rounds > rounds.max() - last_rounds
        rounds, ids, successes, counts = (column[is_kept] for column in (rounds, ids, successes, counts))
    rounds = rounds - rounds.min()
    prompt_ids, positions = np.unique(ids, return_inverse=True)
    shape = (int(rounds.max()) + 1, prompt_ids.size)
    if shape[0] * shape[1] > _MAX_CELLS:
        raise ValueError(
            f"trace: expected at most {_MAX_CELLS:,} cells of rounds x prompts, got {shape[0]:,} x {shape[1]:,}; "
            "set last_rounds, or fit to the rows of a random part of the prompts"
        )
    cells, row_of = np.unique(rounds * shape[1] + positions, return_inverse=True)
    total = lambda column: np.bincount(row_of, weights=column, minlength=cells.size).astype(np.int64)
    kinds, kind_of = np.unique(np.stack([total(successes), total(counts)]), axis=1, return_inverse=True)
    codes = np.zeros(shape, np.int32)
    codes.reshape(-1)[cells] = 1 + kind_of.reshape(-1)
    kinds = np.concatenate([np.zeros((2, 1), np.int64), kinds], axis=1).astype(np.int32)
    return Outcomes(
        codes=jnp.asarray(codes),
        successes=jnp.asarray(kinds[0]),
        counts=jnp.asarray(kinds[1]),
        prompt_ids=jnp.asarray(prompt_ids.astype(np.int32)),
        groups=None if groups is None else jnp.asarray(_groups_of(groups, prompt_ids)),
        features=None if features is None else jnp.asarray(_features_of(features, prompt_ids)),
    )


def _groups_of(groups: Any, prompt_ids: np.ndarray) -> np.ndarray:
    groups = _checks.check_integer_array("groups", groups)
    if groups.size <= prompt_ids.max():
        raise ValueError(f"groups: expected an id for every prompt up to {prompt_ids.max()}, got {groups.size} values")
    found = groups[prompt_ids]
    if found.min() < -1:
        raise ValueError(f"groups: expected ids >= 0, or -1 for unknown, got {found.min()}")
    return found.astype(np.int32)


def _features_of(features: Any, prompt_ids: np.ndarray) -> np.ndarray:
    features = np.asarray(features)
    if features.ndim != 2 or features.shape[1] == 0 or features.shape[0] <= prompt_ids.max():
        raise ValueError(
            f"features: expected shape [{prompt_ids.max() + 1} or more, D], a row per prompt id, "
            f"got {list(features.shape)}"
        )
    with np.errstate(over="ignore"):
        found = features[prompt_ids].astype(np.float32)
    if not np.all(np.isfinite(found)):
        row = int(np.argmax(~np.isfinite(found).all(axis=1)))
        raise ValueError(f"features: expected finite numbers, got {found[row]} for prompt {prompt_ids[row]}")
    return found
