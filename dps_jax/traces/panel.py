"""Panels: runs in which every prompt was sampled every few rounds, whether or not it was chosen for training.

The trace of a run shows what its selector chose, and a predictor that is scored on it is scored on that. A panel has
outcomes of every prompt that were not trained on: predictions made from the training visits are scored on all prompts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dps_jax import _npz
from dps_jax.traces._format import Trace
from dps_jax.traces.replay import visits_of
from dps_jax.types import Predictor

__all__ = ["Panel", "PanelReplay", "read_panel", "replay_panel", "write_panel"]

_ABSENT = -1


class Panel(NamedTuple):
    """One run.

    Attributes:
      swept: successes of the prompts that were sampled before a round's update and not trained on, int8 [T, N]; -1 for
        prompts that were not sampled.
      trained: successes of the groups that the round trained on, int8 [T, N]; -1 for prompts that were not chosen.
      group_size: completions of every group, G.
      groups: of the prompts, int [N].
      features: of the prompts, [N, D].
      method: of the selector that chose what to train on.
    """

    swept: np.ndarray
    trained: np.ndarray
    group_size: int
    groups: np.ndarray
    features: np.ndarray
    method: str

    @property
    def num_prompts(self) -> int:
        """N."""
        return self.swept.shape[1]

    def training_trace(self) -> Trace:
        """Returns what the run trained on."""
        return self._trace(self.trained)

    def sweep_trace(self) -> Trace:
        """Returns what was sampled and not trained on."""
        return self._trace(self.swept)

    def _trace(self, table: np.ndarray) -> Trace:
        rounds, ids = np.nonzero(table != _ABSENT)
        columns = (rounds, ids, table[rounds, ids], np.full(rounds.size, self.group_size))
        return Trace(*(column.astype(np.int32) for column in columns))


class PanelReplay(NamedTuple):
    """What a predictor said of the prompts of each sweep, [T, P, ...]; P is the most prompts of a sweep.

    Attributes:
      probs: distribution of m of G, float32 [T, P, G + 1].
      ids: int32 [T, P], -1 is padding.
      successes: that were seen, int32 [T, P].
    """

    probs: np.ndarray
    ids: np.ndarray
    successes: np.ndarray


def write_panel(file: Any, panel: Panel) -> None:
    """Writes a panel to a path or a binary file."""
    columns: dict[str, Any] = {name: np.asarray(value) for name, value in panel._asdict().items()}
    np.savez_compressed(file, **columns)


def read_panel(path: Path | str) -> Panel:
    """Returns the panel in a file.

    Raises:
      ValueError: if it holds no panel, is damaged, or has numbers that make no sense; the message names the file.
      OSError: if it cannot be read.
    """
    remedy = "experiments/make_panel.py makes one"
    path = Path(path)

    def choose(names: list[str]) -> tuple[str, ...]:
        missing = [name for name in Panel._fields if name not in names]
        if missing:
            raise ValueError(f"{path}: expected a panel, got a file without {', '.join(missing)}; {remedy}")
        return Panel._fields

    with open(path, "rb") as file:
        columns: dict[str, Any] = _npz.read(path, file, "a panel", choose, remedy=f"restore it, or {remedy}")
    group_size = columns["group_size"]
    if group_size.shape != () or group_size.dtype.kind not in "iu" or group_size < 1:
        raise ValueError(f"{path}: group_size: expected an integer >= 1, got {group_size.tolist()!r}; {remedy}")
    panel = Panel(**columns)._replace(group_size=int(group_size), method=str(columns["method"]))
    for name, table in (("swept", panel.swept), ("trained", panel.trained)):
        if table.ndim != 2 or table.shape != panel.swept.shape or table.dtype != np.int8:
            raise ValueError(f"{path}: {name}: expected int8 [T, N], got {table.dtype} {list(table.shape)}; {remedy}")
        if table.size and not (table.min() >= _ABSENT and table.max() <= panel.group_size):
            bad = table[(table < _ABSENT) | (table > panel.group_size)][0]
            raise ValueError(
                f"{path}: {name}: expected -1 or successes in [0, {panel.group_size}], got {bad}; {remedy}"
            )
    for name, values, ndim in (("groups", panel.groups, 1), ("features", panel.features, 2)):
        if values.ndim != ndim or len(values) != panel.num_prompts:
            raise ValueError(
                f"{path}: {name}: expected {panel.num_prompts} rows, one per prompt, got shape {list(values.shape)}; "
                f"{remedy}"
            )
    return panel


def replay_panel(predictor: Predictor, panel: Panel) -> PanelReplay:
    """Returns what a predictor said of every swept prompt, having seen the training visits of the rounds before.

    Args:
      predictor: starts from nothing; its `outcome_probs` are of groups of `panel.group_size`.
      panel: a training visit in every round.

    Raises:
      ValueError: for a panel with a round without a training visit or without a sweep.
    """
    swept, trained = (visits_of(trace, panel.num_prompts) for trace in (panel.sweep_trace(), panel.training_trace()))
    for name, visits in (("swept", swept), ("trained", trained)):
        if visits.num_rounds != len(panel.swept):
            raise ValueError(
                f"panel.{name}: expected a prompt in each of {len(panel.swept)} rounds, got an empty round"
            )

    def step(state: Any, rows: Any) -> tuple[Any, jax.Array]:
        asked, seen = rows
        probs = predictor.outcome_probs(state, jnp.maximum(asked, 0))
        return predictor.observe(state, *seen), probs.T

    run = jax.jit(lambda rows: lax.scan(step, predictor.init(panel.num_prompts), rows)[1])
    asked = swept.by_round(swept.ids, _ABSENT)
    seen = (
        trained.by_round(trained.ids, _ABSENT),
        trained.by_round(trained.successes, 0),
        trained.by_round(trained.counts, 0),
    )
    rows = jnp.asarray(asked), tuple(jnp.asarray(column) for column in seen)
    return PanelReplay(np.asarray(run(rows)), asked, swept.by_round(swept.successes, 0))
