"""Panels: runs in which every prompt was sampled every few rounds, whether or not it was selected for training.

The trace of a run contains only the visits that its selector chose, so a predictor that is evaluated on a trace is
evaluated on a biased sample. A panel also contains sweeps: outcomes of prompts that were sampled but not trained on.
Predictions from the training visits are evaluated on the sweeps, which cover all prompts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dps_jax import _npz
from dps_jax._documented import documented
from dps_jax.traces._format import Trace
from dps_jax.traces.replay import visits_of
from dps_jax.types import Predictor

__all__ = ["Panel", "PanelReplay", "read_panel", "replay_panel", "write_panel"]

_ABSENT = -1


@documented
class Panel(NamedTuple):
    """The outcomes of the training visits and of the sweeps of one run.

    Attributes:
      swept: number of correct completions of each prompt in the sweep before the update of each round, int8 [T, N]; -1
        for prompts that were not in the sweep. The run did not train on these completions.
      trained: number of correct completions of each prompt that the round trained on, int8 [T, N]; -1 for the other
        prompts.
      group_size: number of completions in each completion group, G.
      groups: prompt group of each prompt, int [N].
      features: features of each prompt, [N, D].
      method: name of the method that selected the training prompts.

    Example:
      >>> import numpy as np
      >>> from dps_jax.traces.panel import Panel
      >>> swept = np.array([[-1, 3, -1], [8, -1, 0]], np.int8)
      >>> trained = np.array([[8, -1, -1], [-1, 4, -1]], np.int8)
      >>> panel = Panel(swept, trained, 8, groups=np.zeros(3, int), features=np.zeros((3, 2)), method="uniform")
      >>> panel.training_trace().prompt_ids.tolist(), panel.sweep_trace().prompt_ids.tolist()
      ([0, 1], [1, 0, 2])
    """

    swept: np.ndarray
    trained: np.ndarray
    group_size: int
    groups: np.ndarray
    features: np.ndarray
    method: str

    @property
    def num_prompts(self) -> int:
        """Number of prompts, N."""
        return self.swept.shape[1]

    def training_trace(self) -> Trace:
        """Returns the trace of the visits that the run trained on."""
        return self._trace(self.trained)

    def sweep_trace(self) -> Trace:
        """Returns the trace of the visits of the sweeps, which the run did not train on."""
        return self._trace(self.swept)

    def _trace(self, table: np.ndarray) -> Trace:
        rounds, ids = np.nonzero(table != _ABSENT)
        columns = (rounds, ids, table[rounds, ids], np.full(rounds.size, self.group_size))
        return Trace(*(column.astype(np.int32) for column in columns))


@documented
class PanelReplay(NamedTuple):
    """Predictions for the prompts of each sweep, and the outcomes of these prompts; P is the size of the largest sweep.

    Attributes:
      probs: predicted distribution of m, the number of correct completions out of G, float32 [T, P, G + 1].
      ids: ids of the prompts of each sweep, int32 [T, P]; -1 is padding.
      successes: number of correct completions of each of these prompts, int32 [T, P].

    Example:
      >>> import numpy as np
      >>> from dps_jax.traces import scores
      >>> from dps_jax.traces.panel import PanelReplay
      >>> probs = np.array([[[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]], [[0.3, 0.6, 0.1], [0, 0, 0]]])
      >>> found = PanelReplay(probs, ids=np.array([[0, 2], [1, -1]]), successes=np.array([[0, 1], [2, 0]]))
      >>> is_prompt = found.ids >= 0  # without padding
      >>> scores.log_losses(found.probs[is_prompt], found.successes[is_prompt]).round(2).tolist()
      [0.36, 0.22, 2.3]
    """

    probs: np.ndarray
    ids: np.ndarray
    successes: np.ndarray


def write_panel(file: Any, panel: Panel) -> None:
    """Writes a panel to a file in the format `.npz`.

    Args:
      file: path that ends in `.npz`, or an open binary file.
      panel: panel to write.

    Example:
      >>> import numpy as np
      >>> from dps_jax.traces.panel import Panel, read_panel, write_panel
      >>> tables = np.zeros((4, 2), np.int8), np.full((4, 2), -1, np.int8)  # swept, trained: 4 rounds, 2 prompts
      >>> panel = Panel(*tables, 8, groups=np.zeros(2, int), features=np.zeros((2, 1)), method="uniform")
      >>> write_panel("panel.npz", panel)
      >>> read_panel("panel.npz").swept.shape
      (4, 2)
    """
    columns: dict[str, Any] = {name: np.asarray(value) for name, value in panel._asdict().items()}
    np.savez_compressed(file, **columns)


def read_panel(path: Path | str) -> Panel:
    """Returns the panel in a file.

    Args:
      path: path of the file, which `write_panel` or experiments/make_panel.py wrote.

    Raises:
      ValueError: if the file does not contain a panel, is damaged, or has entries out of range; the message names the
        file.
      OSError: if the file cannot be read.

    Example:
      >>> import numpy as np
      >>> from dps_jax.traces.panel import Panel, read_panel, write_panel
      >>> tables = np.zeros((4, 2), np.int8), np.full((4, 2), -1, np.int8)  # swept, trained: 4 rounds, 2 prompts
      >>> panel = Panel(*tables, 8, groups=np.zeros(2, int), features=np.zeros((2, 1)), method="uniform")
      >>> write_panel("panel.npz", panel)
      >>> read_panel("panel.npz").method
      'uniform'
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
    """Returns predictions for every swept prompt, from the training visits of the rounds before the sweep.

    Args:
      predictor: predictor for completion groups of `panel.group_size` completions; the replay starts from its `init`.
      panel: panel with at least one training visit and one swept prompt in every round.

    Raises:
      ValueError: for a panel in which a round has no training visit or no sweep.

    Example:
      >>> import numpy as np
      >>> from dps_jax import predictors
      >>> from dps_jax.traces.panel import Panel, replay_panel
      >>> swept = np.array([[-1, 3, -1], [8, -1, 0]], np.int8)
      >>> trained = np.array([[8, -1, -1], [-1, 4, -1]], np.int8)
      >>> panel = Panel(swept, trained, 8, groups=np.zeros(3, int), features=np.zeros((3, 2)), method="uniform")
      >>> found = replay_panel(predictors.last_state(group_size=8), panel)
      >>> found.ids.tolist(), found.probs.shape
      ([[1, -1], [0, 2]], (2, 2, 9))
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
