"""What prompt selection would save a run, read from the log of its outcomes.

    python -m dps_jax.advise runs/train/trace.npz
    python -m dps_jax.advise my/log.csv --signal 0.01
    python -m dps_jax.advise out/completions --columns.success accuracy_reward --threshold 0.5

The log is a trace: columns round, prompt_id, successes and count, as .npz, .csv or .parquet; or what TRL or verl write,
a row per completion, in a file or a folder of files (docs/traces.md). Every group is predicted before its outcome is
revealed to the predictor, and the share of informative groups (some completions correct, some not) among the best
predicted ones is what selection from a pool would have found. With Adam, the useful part of a step goes as
sqrt(n r / (1 + n r)) for n informative groups of signal-to-noise ratio r each, which turns shares into progress.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dps_jax import _checks, _json, traces
from dps_jax.predictors._binomial_hmm import binomial_hmm
from dps_jax.traces.replay import Visits, replay_own_counts, visits_of
from dps_jax.traces.scores import informative_probs

__all__ = [
    "SIGNALS",
    "Advice",
    "Config",
    "Share",
    "advise",
    "main",
    "progress",
    "to_json",
    "to_text",
]

# Signal-to-noise ratios of an informative group, for illustration: from a policy that supervised training has nearly
# exhausted to one that learns fast.
SIGNALS = (0.002, 0.01, 0.05)
_NUM_RESAMPLES = 1000


class Share(NamedTuple):
    """A share of groups with its 95 % interval, by resampling rounds."""

    mean: float
    low: float
    high: float


class Advice(NamedTuple):
    """What a log says about selection.

    Attributes:
      num_rounds: rounds with a visit.
      num_groups: groups of completions.
      num_prompts: distinct prompts.
      group_size: G, the most frequent number of completions; every group is rated at its own.
      is_one_size: whether all groups have so many.
      informative: share of the groups that are informative; under uniform selection, where the log has inclusion
        probabilities, and else as they were selected.
      is_uniform_share: whether `informative` is the share under uniform selection.
      selected: share among the best predicted ones of every round, weighted in the same way.
      gain: `selected` minus `informative`.
      predicted: mean predicted P(informative) of those.
      pool_factor: how many candidates there were for each of them.
      factors: by signal-to-noise ratio, the expected progress per round with selection over that without.
    """

    num_rounds: int
    num_groups: int
    num_prompts: int
    group_size: int
    is_one_size: bool
    informative: Share
    is_uniform_share: bool
    selected: Share
    gain: Share
    predicted: float
    pool_factor: int
    factors: dict[float, Share]


def progress(num_informative: Any, signal: float) -> np.ndarray:
    """Returns the useful part of an Adam step, in (0, 1).

    Args:
      num_informative: n, informative groups of a round, any shape.
      signal: r, squared signal over squared noise of one informative group's gradient, > 0.
    """
    ratio = np.asarray(num_informative, np.float64) * signal
    return np.sqrt(ratio / (1 + ratio))


def _share(hits: np.ndarray, weights: np.ndarray, resamples: np.ndarray) -> tuple[float, np.ndarray]:
    """Returns the weighted share of hits [T] of rounds with weights [T], and those of resampled rounds [S, T]."""
    of = lambda rounds: hits[rounds].sum(axis=-1) / np.maximum(weights[rounds].sum(axis=-1), 1e-12)
    return float(of(np.arange(hits.size))), of(resamples)


def _with_interval(mean: float, resampled: np.ndarray) -> Share:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Share(mean, float(low), float(high))


def _best(predicted: np.ndarray, weights: np.ndarray, visits: Visits, pool_factor: int) -> np.ndarray:
    """Returns the weights of the best predicted 1 / pool_factor of the prompts of each round, [R]; 0 for others.

    Args:
      predicted: P(0 < m < G) of each visit, [R].
      weights: how many prompts each visit stands for, [R], > 0.
      visits: of the trace.
      pool_factor: candidates for each prompt that is picked.
    """
    order = np.lexsort((-predicted, visits.rounds))
    ordered, total = weights[order], np.bincount(visits.rounds, weights)
    # `order` keeps the rounds in their order, so that those of the visits serve for the ordered ones.
    before = np.cumsum(ordered) - ordered - (np.cumsum(total) - total)[visits.rounds]
    room = (total / pool_factor)[visits.rounds]
    taken = np.zeros_like(weights)
    # The visit at the border counts in part.
    taken[order] = np.clip(room - before, 0.0, ordered)
    return taken


def advise(
    trace: traces.Trace, *, pool_factor: int = 8, batch_size: int | None = None, signals: tuple[float, ...] = SIGNALS
) -> Advice:
    """Returns what selection would save the run that a trace is of.

    Args:
      trace: of the run.
      pool_factor: candidates for each prompt that is picked, at least 2. The picks are judged among the visits of a
        round, so rounds of fewer visits than this have one pick.
      batch_size: B, prompts of a round; None is the mean of the trace.
      signals: signal-to-noise ratios of an informative group, > 0.

    Raises:
      ValueError: for an empty trace, groups of a single completion, or an option out of range.
    """
    _checks.check_int("pool_factor", pool_factor, at_least=2)
    if batch_size is not None:
        _checks.check_int("batch_size", batch_size, at_least=1)
    for signal in signals:
        if not 0 < signal < np.inf:
            raise ValueError(f"signals: expected finite numbers > 0, got {signal}")
    visits = visits_of(trace)
    sizes, frequency = np.unique(visits.counts, return_counts=True)
    group_size = int(sizes[frequency.argmax()])
    if sizes[-1] < 2:
        raise ValueError(
            "trace: expected groups of 2 completions or more, as one alone is never informative, got 1 in all; log all "
            "completions of a prompt in a round"
        )
    probs = replay_own_counts(lambda size: binomial_hmm(group_size=size), visits)
    predicted = informative_probs(probs, visits.counts)
    is_hit = (visits.successes > 0) & (visits.successes < visits.counts)
    weights = np.ones(is_hit.size) if visits.inclusion_prob is None else 1 / visits.inclusion_prob
    best = _best(predicted, weights, visits, pool_factor)

    resamples = np.random.default_rng(0).integers(0, visits.num_rounds, (_NUM_RESAMPLES, visits.num_rounds))
    of_rounds = lambda values: np.bincount(visits.rounds, values)
    before, before_all = _share(of_rounds(weights * is_hit), of_rounds(weights), resamples)
    after, after_all = _share(of_rounds(best * is_hit), of_rounds(best), resamples)
    size = float(batch_size or visits.sizes.mean())
    factors = {}
    for signal in signals:
        ratio = lambda share, other, signal=signal: (
            progress(size * np.maximum(share, 1e-9), signal) / progress(size * np.maximum(other, 1e-9), signal)
        )
        factors[signal] = _with_interval(float(ratio(after, before)), ratio(after_all, before_all))
    return Advice(
        num_rounds=visits.num_rounds,
        num_groups=is_hit.size,
        num_prompts=visits.num_prompts,
        group_size=group_size,
        is_one_size=sizes.size == 1,
        informative=_with_interval(before, before_all),
        is_uniform_share=visits.inclusion_prob is not None,
        selected=_with_interval(after, after_all),
        gain=_with_interval(after - before, after_all - before_all),
        predicted=float((best * predicted).sum() / best.sum()),
        pool_factor=pool_factor,
        factors=factors,
    )


def to_json(advice: Advice) -> dict[str, Any]:
    """Returns an advice of JSON types."""
    value = lambda entry: entry._asdict() if isinstance(entry, Share) else entry
    factors = {f"{signal:g}": value(factor) for signal, factor in advice.factors.items()}
    return {name: value(entry) for name, entry in advice._asdict().items()} | {"factors": factors}


def to_text(advice: Advice) -> str:
    """Returns an advice in words."""
    percent = lambda share: f"{100 * share.mean:.0f} % ({100 * share.low:.0f} to {100 * share.high:.0f})"
    visits = advice.num_groups / advice.num_prompts
    basis = (
        "under uniform selection, by the log's inclusion probabilities" if advice.is_uniform_share else "as selected"
    )
    mostly = "" if advice.is_one_size else "mostly "
    lines = [
        f"{advice.num_groups:,} groups of {mostly}{advice.group_size} completions in {advice.num_rounds:,} rounds; "
        f"{advice.num_prompts:,} prompts, {visits:.1f} visits each",
        f"informative groups, {basis}: {percent(advice.informative)}",
        f"among the best predicted of every {advice.pool_factor}: {percent(advice.selected)}; predicted were "
        f"{100 * advice.predicted:.0f} %",
        "expected progress per round, selection over none, by the signal-to-noise ratio of one informative group:",
    ]
    for signal, factor in advice.factors.items():
        lines.append(f"  {signal:g}: {factor.mean:.2f} times ({factor.low:.2f} to {factor.high:.2f})")
    if advice.gain.low <= 0:
        lines.append("the shares do not differ by more than chance: on this log, selection promises nothing")
    if not advice.is_uniform_share:
        lines.append(
            "the log has no inclusion probabilities: all this holds if its prompts were picked uniformly at random"
        )
    lines.append("intervals are 95 %, by resampling rounds; levels and features of prompts, which help, were not used")
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Config:
    """What to read."""

    trace: Path
    """File or folder, in any format that docs/traces.md lists."""
    columns: traces.ColumnNames = dataclasses.field(default_factory=traces.ColumnNames)
    """Names of its columns, where they are not those that trainers use."""
    threshold: float | None = None
    """Completions with a reward of at least this are correct; by default rewards are 0 or 1."""
    pool_factor: int = 8
    """Candidates for each prompt that is picked."""
    batch_size: int | None = None
    """Prompts of a round, B; that of the log by default."""
    signal: tuple[float, ...] = SIGNALS
    """Signal-to-noise ratios of the gradient of one informative group."""
    json: bool = False
    """Print JSON instead of words."""


def main(config: Config) -> Advice:
    """Prints and returns the advice."""
    trace = traces.read_trace(config.trace, config.columns, threshold=config.threshold)
    found = advise(trace, pool_factor=config.pool_factor, batch_size=config.batch_size, signals=config.signal)
    print(_json.dumps(to_json(found), indent=2) if config.json else f"{config.trace}\n{to_text(found)}")
    return found


if __name__ == "__main__":
    import tyro

    try:
        main(tyro.cli(Config, description=__doc__, config=(tyro.conf.PositionalRequiredArgs,)))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
