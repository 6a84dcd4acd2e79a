"""A logged trace as priors are fitted to it: every prompt in every round, with what is known about prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dps_jax import _checks
from dps_jax.traces import Trace
from dps_jax.traces.replay import visits_of

# A cell is 4 bytes of codes, and some 50 of work in a fit.
_MAX_CELLS = 2**29


class Outcomes(NamedTuple):
    """What was seen of N prompts in T rounds; arrays only, so that jitted functions take it as it is.

    Attributes:
      codes: which kind of outcome each prompt had in each round, int32 [T, N]; 0 where it was not rolled out.
      successes: of every kind, int32 [U]; kind 0 is "nothing seen", 0 of 0.
      counts: of every kind, int32 [U].
      prompt_ids: the prompts, as the trace names them, int64 [N], on the host; those never seen are left out.
      groups: group of every prompt, int32 [N], -1 where it is not known; or None.
      features: of every prompt, float32 [N, D], standardised by whoever made them, or None.
      group_ids: what the groups 0, ..., L - 1 are called, int64 [L], on the host; None where they have no other names.
    """

    codes: jax.Array
    successes: jax.Array
    counts: jax.Array
    prompt_ids: np.ndarray
    groups: jax.Array | None = None
    features: jax.Array | None = None
    group_ids: np.ndarray | None = None

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

    Rounds are those that occur: what was logged at steps 0, 10 and 20 happened in rounds 0, 1 and 2. Rows of one prompt
    in one round are added up.

    Args:
      trace: columns round, prompt_id, successes, count.
      groups: group id of every prompt of the run, by prompt id, int, at least as long as the largest id; or a
        dictionary from prompt id to group id, for prompts whose ids are large. -1 is unknown, and so are prompts that
        a dictionary leaves out. Ids of groups that are no smaller than the number of entries are renumbered, in order.
      features: float, [number of prompts of the run, D], or a dictionary from prompt id to a row.
      last_rounds: use only so many rounds at the end of the trace.

    Raises:
      ValueError: for an empty trace, bad columns, groups or features that are too short or not finite, or a trace that
        is too large to be laid out.
    """
    visits = visits_of(trace)
    if last_rounds is not None:
        _checks.check_int("last_rounds", last_rounds, at_least=1)
    first = 0 if last_rounds is None else max(visits.num_rounds - last_rounds, 0)
    is_kept = visits.rounds >= first
    kept, positions = np.unique(visits.ids[is_kept], return_inverse=True)
    prompt_ids = visits.prompt_ids[kept]
    shape = (visits.num_rounds - first, prompt_ids.size)
    if shape[0] * shape[1] > _MAX_CELLS:
        raise ValueError(
            f"trace: expected at most {_MAX_CELLS:,} cells of rounds x prompts, got {shape[0]:,} x {shape[1]:,}; "
            "set last_rounds, or fit to the rows of a random part of the prompts"
        )
    seen = np.stack([visits.successes[is_kept], visits.counts[is_kept]])
    kinds, kind_of = np.unique(seen, axis=1, return_inverse=True)
    codes = np.zeros(shape, np.int32)
    codes[visits.rounds[is_kept] - first, positions] = 1 + kind_of.reshape(-1)
    kinds = np.concatenate([np.zeros((2, 1), np.int32), kinds], axis=1)
    found, names = (None, None) if groups is None else _groups_of(groups, prompt_ids)
    return Outcomes(
        codes=jnp.asarray(codes),
        successes=jnp.asarray(kinds[0]),
        counts=jnp.asarray(kinds[1]),
        prompt_ids=prompt_ids,
        groups=None if found is None else jnp.asarray(found),
        features=None if features is None else jnp.asarray(_features_of(features, prompt_ids)),
        group_ids=names,
    )


def _groups_of(groups: Any, prompt_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the group of every prompt, int32 [N], and the names of the groups, or None where these are no others."""
    if isinstance(groups, Mapping):
        given = _checks.check_integer_array("groups", list(groups.values()))
        of_prompt = dict(zip(groups, given.tolist(), strict=True))
        found = np.array([of_prompt.get(prompt, -1) for prompt in prompt_ids.tolist()], np.int64)
    else:
        given = _checks.check_integer_array("groups", groups)
        if given.size <= prompt_ids.max():
            raise ValueError(
                f"groups: expected an id for every prompt up to {prompt_ids.max()}, got {given.size} values; where "
                "prompt ids are large, give a dictionary from prompt id to group id"
            )
        found = given[prompt_ids]
    if found.min() < -1:
        raise ValueError(f"groups: expected ids >= 0, or -1 for unknown, got {found.min()}")
    if given.max(initial=-1) < given.size:
        return found.astype(np.int32), None
    names = np.unique(given[given >= 0])
    return np.where(found < 0, -1, np.searchsorted(names, found)).astype(np.int32), names


def _features_of(features: Any, prompt_ids: np.ndarray) -> np.ndarray:
    """Returns the features of every prompt, float32 [N, D]."""
    if isinstance(features, Mapping):
        missing = [prompt for prompt in prompt_ids.tolist() if prompt not in features]
        if missing:
            raise ValueError(
                f"features: expected a row for every prompt of the trace, got none for prompt {missing[0]}; add it"
            )
        rows = np.asarray([features[prompt] for prompt in prompt_ids.tolist()], np.float64)
        if rows.ndim != 2 or rows.shape[1] == 0:
            raise ValueError(f"features: expected rows of one length D >= 1, got shape {list(rows.shape)}")
    else:
        features = np.asarray(features)
        if features.ndim != 2 or features.shape[1] == 0 or features.shape[0] <= prompt_ids.max():
            raise ValueError(
                f"features: expected shape [{prompt_ids.max() + 1} or more, D], a row per prompt id, "
                f"got {list(features.shape)}; where prompt ids are large, give a dictionary from prompt id to row"
            )
        rows = features[prompt_ids]
    with np.errstate(over="ignore"):
        found = rows.astype(np.float32)
    if not np.all(np.isfinite(found)):
        row = int(np.argmax(~np.isfinite(found).all(axis=1)))
        raise ValueError(f"features: expected finite numbers, got {found[row]} for prompt {prompt_ids[row]}")
    return found
