"""Measures what each feature of a prompt adds to the predictions of `binomial_hmm`, on the logs of language models.

The logs are those of the runs of compare_llm.py with uniform selection, in which no visit depends on a prediction. Each
log is replayed with different features, and every visit is predicted before its outcome is observed. The results are
the gains in log loss over predictions without groups and features, with 95 % intervals over prompts. Writes
features.json and features.md to the folder of the comparison.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import _command
import compare_llm
import get_smollm2
import numpy as np

from dps_jax import _checks, _files, _json, traces
from dps_jax.predictors import binomial_hmm
from dps_jax.traces import replay, scores
from dps_jax.training import _text_setup


@dataclasses.dataclass(frozen=True)
class Config:
    """The runs whose logs are replayed."""

    seeds: tuple[int, ...] = compare_llm.Config().seeds
    """Seeds of the runs of compare_llm.py to use."""
    out_dir: Path = compare_llm.Config().out_dir
    """Folder of the results of compare_llm.py."""
    model: Path = get_smollm2.Config().out
    """Folder of the model before training."""

    def __post_init__(self):
        for seed in self.seeds:
            _checks.check_int("seeds", seed, at_least=0)


def known_prompts(config: Config) -> Any:
    """Returns the prompt groups and all features of the training prompts of the runs."""
    base = compare_llm.sums_config(config.model, config.out_dir / "questions")
    prompts = dataclasses.replace(base.prompts, features=("length", "log-prob"))
    parts = _text_setup.build(dataclasses.replace(base, prompts=prompts))
    parts.close()
    return parts.groups, parts.features


def losses(config: Config, groups: np.ndarray | None, features: np.ndarray | None, size: int) -> tuple[Any, Any]:
    """Returns the log loss of every visit of all logs, [R], and the prompt of each visit, [R]."""
    found, owners = [], []
    for seed in config.seeds:
        trace = traces.read_trace(config.out_dir / f"uniform-{seed}" / "trace.npz")
        visits = replay.visits_of(trace, size)
        build = binomial_hmm(group_ids=groups, features=features)
        found.append(scores.log_losses(replay.replay(build, visits), visits.successes))
        owners.append(visits.ids)
    return np.concatenate(found), np.concatenate(owners)


def main(config: Config) -> list[dict[str, Any]]:
    """Replays the logs, writes the results, and returns them."""
    groups, features = known_prompts(config)
    length, log_prob = features[:, :1], features[:, 1:]
    variants: dict[str, tuple[np.ndarray | None, np.ndarray | None]] = {
        "nothing": (None, None),
        "length": (None, length),
        "log-prob": (None, log_prob),
        "length and log-prob": (None, features),
        "groups (digits of the numbers)": (groups, None),
        "groups, length and log-prob": (groups, features),
    }
    rng, rows = np.random.default_rng(0), []
    base, owners = losses(config, None, None, groups.size)
    for name, (of_groups, of_features) in variants.items():
        found, _ = losses(config, of_groups, of_features, groups.size)
        gain, low, high = scores.bootstrap_by_prompt(base - found, owners, rng)
        rows.append({"known": name, "log_loss": float(found.mean()), "gain": gain, "low": low, "high": high})
    lines = [
        f"{base.size:,} visits of {np.unique(owners).size:,} prompts in {len(config.seeds)} runs. Log loss of m of G, "
        "in nats per visit; the gain over predictions without side information, with its 95 % interval:",
        "",
        "| side information | log loss | gain |",
        "|---|---:|---:|",
        *(f"| {row['known']} | {row['log_loss']:.3f} | {row['gain']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f}) |"
          for row in rows),
        "",
        "All sums are from one source, so `source` is not used.",
    ]  # fmt: skip
    _json.write(config.out_dir / "features.json", rows, indent=1)
    _files.write_atomically(config.out_dir / "features.md", "\n".join(lines) + "\n")
    return rows


if __name__ == "__main__":
    _command.run(main, Config, __doc__)
