"""The layout of a trace for fitting: an array of rounds by prompts, with groups and features of the prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dps_jax import _checks
from dps_jax._documented import documented
from dps_jax.traces import Trace
from dps_jax.traces.replay import visits_of

# A cell (one prompt in one round) takes 4 bytes in `codes`, and about 50 bytes of memory during a fit.
_MAX_CELLS = 2**29


@documented
class Outcomes(NamedTuple):
    """The outcomes of N prompts in T rounds, as a pytree of arrays that may be an argument of jitted functions.

    There are U distinct outcomes (m correct completions of n). Outcome 0 stands for "not rolled out" and has m = n = 0.

    Attributes:
      codes: index of the outcome of each prompt in each round, int32 [T, N]; 0 if the prompt was not rolled out.
      successes: number of correct completions of each distinct outcome, int32 [U].
      counts: number of completions of each distinct outcome, int32 [U].
      prompt_ids: ids of the prompts in the trace, int64 [N], on the host; prompts without a visit are left out.
      groups: prompt group of each prompt, int32 [N], -1 if it is unknown; None without groups.
      features: features of each prompt, float32 [N, D], which should be standardised; None without features.
      group_ids: original ids of the prompt groups that `groups` numbers 0, ..., L - 1, int64 [L], on the host; None if
        `groups` contains the original ids.

    Example:
      >>> import numpy as np
      >>> from dps_jax import priors, traces
      >>> columns = {"rounds": [0, 0, 1], "prompt_ids": [7, 3, 7], "successes": [2, 8, 8], "counts": [8, 8, 8]}
      >>> trace = traces.Trace(**{name: np.array(column) for name, column in columns.items()})
      >>> outcomes = priors.prepare(trace)
      >>> outcomes.prompt_ids.tolist(), outcomes.successes[outcomes.codes].tolist()  # prompt 3 is idle in round 1
      ([3, 7], [[8, 2], [0, 8]])
      >>> of_prompt_7 = outcomes.take(outcomes.prompt_ids == 7)
      >>> of_prompt_7.counts[of_prompt_7.codes].tolist()
      [[8], [8]]
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
        """Number of rounds, T."""
        return self.codes.shape[0]

    @property
    def num_prompts(self) -> int:
        """Number of prompts with at least one visit, N."""
        return self.codes.shape[1]

    def take(self, positions: Any) -> Outcomes:
        """Returns the outcomes of some prompts, given by their positions, int [P], or by a mask, bool [N]."""
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
    """Returns the outcomes of a trace as arrays of rounds by prompts, to which models are fitted.

    Only rounds that occur are counted: steps 0, 10 and 20 of a log become rounds 0, 1 and 2. The rows of one prompt in
    one round are summed. Only prompts with a visit in the rounds used are included.

    Args:
      trace: trace of a run.
      groups: prompt group of every prompt of the run, indexed by prompt id, int; or a dictionary from prompt id to
        group id, if prompt ids are large. -1 stands for an unknown group; prompts that are not in the dictionary have
        an unknown group, too. If a group id is not below the number of entries of this argument, groups are renumbered
        in order of their ids.
      features: features of every prompt of the run, indexed by prompt id, float [number of prompts, D]; or a dictionary
        from prompt id to a row.
      last_rounds: number of rounds at the end of the trace to use; None uses all rounds.

    Raises:
      ValueError: for an empty trace, bad columns, groups or features that are too short or not finite, or a trace that
        is too large for an array of rounds by prompts.

    Example:
      >>> import numpy as np
      >>> from dps_jax import priors, traces
      >>> rng = np.random.default_rng(0)
      >>> run = traces.simulate_learners(rng, num_prompts=30, num_rounds=8, batch_size=30)
      >>> outcomes = priors.prepare(run.trace, groups=run.groups, features=run.features, last_rounds=5)
      >>> outcomes.codes.shape, outcomes.groups.shape, outcomes.features.shape
      ((5, 30), (30,), (30, 4))
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
            "set last_rounds, or fit to the rows of a random subset of the prompts"
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
    """Returns the group of every prompt, int32 [N], and the given ids of the groups, or None if both are the same."""
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
