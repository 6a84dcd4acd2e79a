"""Estimates how much prompt selection would have gained in a training run, from the log of the run.

    python -m dps_jax.advise runs/train/trace.npz
    python -m dps_jax.advise my/log.csv --signal 0.01
    python -m dps_jax.advise out/completions --columns.success accuracy_reward --threshold 0.5

The log is a trace with columns round, prompt_id, successes and count, or a log of TRL or verl with one row per
completion; it is a file, or a folder of files, in any format that docs/traces.md lists. Every completion group is
predicted before its outcome is observed. The share of informative groups (some completions correct, some not) among
the groups with the best predictions is an estimate of the share that selection from a pool would have found. With Adam,
the useful part of a step is proportional to sqrt(n r / (1 + n r)) for n informative groups with a signal-to-noise ratio
of r each; this formula converts shares into progress per round.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dps_jax import _checks, _cli, _json, traces
from dps_jax._documented import documented
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

# Signal-to-noise ratios of an informative group, for illustration: from a policy that has little left to learn after
# supervised training to a policy that learns fast.
SIGNALS = (0.002, 0.01, 0.05)
_NUM_RESAMPLES = 1000
# Rollouts that `instructive` needed to reach the final accuracy of uniform selection, as a fraction of those of uniform
# selection: smallest and largest of the runs in docs/results/arena.json with this share of informative groups.
_MEASURED = {0.11: (0.23, 0.42), 0.36: (0.79, 0.93), 0.47: (0.97, 1.02)}


@documented
class Share(NamedTuple):
    """An estimate in `Advice`: a share, a difference of shares or a ratio of progress, with its 95 % interval.

    Attributes:
      mean: estimate from all rounds.
      low: lower end of the interval.
      high: upper end of the interval.

    Example:
      >>> from dps_jax import advise
      >>> share = advise.Share(mean=0.31, low=0.27, high=0.35)
      >>> share.low > 0.25  # the whole interval is above a quarter
      True
    """

    mean: float
    low: float
    high: float


@documented
class Advice(NamedTuple):
    """Estimates from a log of how much selection would have gained; the result of `advise`.

    Attributes:
      num_rounds: number of rounds with a visit.
      num_groups: number of completion groups.
      num_prompts: number of distinct prompts.
      group_size: most frequent number of completions of a group, G; each group is predicted and scored with its own
        number of completions.
      is_one_size: whether all groups have G completions.
      informative: share of the groups that are informative (some completions correct, some not). If the log has
        inclusion probabilities, this is the share under uniform selection, and otherwise the share among the groups as
        they were selected.
      is_uniform_share: whether `informative` is the share under uniform selection.
      selected: share of informative groups among the groups with the best predictions of every round, weighted like
        `informative`.
      gain: `selected` minus `informative`.
      predicted: mean predicted probability that a group with the best predictions is informative, over the same groups
        as `selected`.
      pool_factor: number of candidates per pick.
      factors: expected progress per round with selection, divided by the progress without, for each signal-to-noise
        ratio.

    Example:
      >>> from dps_jax import advise
      >>> share = advise.Share(0.3, 0.2, 0.4)  # made-up numbers; the fields of `Advice` follow in their order
      >>> advice = advise.Advice(9, 90, 30, 8, True, share, False, share, share, 0.3, 8, {0.01: share})
      >>> advice.informative.mean, advice.factors[0.01].low
      (0.3, 0.2)
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
    r"""Returns the part of an Adam step along the expected gradient, $\sqrt{n r / (1 + n r)}$, in [0, 1).

    Args:
      num_informative: number of informative groups of a round, n, any shape.
      signal: signal-to-noise ratio r > 0: the squared norm of the expectation of the gradient of one informative
        group, divided by the variance of the gradient of one such group.

    Example:
      >>> from dps_jax import advise
      >>> advise.progress([4, 16], signal=0.01).round(2)
      array([0.2 , 0.37])
    """
    ratio = np.asarray(num_informative, np.float64) * signal
    return np.sqrt(ratio / (1 + ratio))


def _share(hits: np.ndarray, weights: np.ndarray, resamples: np.ndarray) -> tuple[float, np.ndarray]:
    """Returns the weighted share of hits [T] in rounds with weights [T], and the shares in resampled rounds [S, T]."""
    of = lambda rounds: hits[rounds].sum(axis=-1) / np.maximum(weights[rounds].sum(axis=-1), 1e-12)
    return float(of(np.arange(hits.size))), of(resamples)


def _with_interval(mean: float, resampled: np.ndarray) -> Share:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Share(mean, float(low), float(high))


def _best(predicted: np.ndarray, weights: np.ndarray, visits: Visits, pool_factor: int) -> np.ndarray:
    """Returns the weights of the best predicted 1 / pool_factor of the visits of each round, [R]; 0 for other visits.

    Args:
      predicted: predicted P(0 < m < G) of each visit, [R].
      weights: number of prompts that each visit represents, [R], > 0.
      visits: visits of the trace.
      pool_factor: number of candidates per pick.
    """
    order = np.lexsort((-predicted, visits.rounds))
    ordered, total = weights[order], np.bincount(visits.rounds, weights)
    # Visits are sorted by round, so `visits.rounds` are also the rounds of the ordered visits.
    before = np.cumsum(ordered) - ordered - (np.cumsum(total) - total)[visits.rounds]
    room = (total / pool_factor)[visits.rounds]
    taken = np.zeros_like(weights)
    # The last visit that is taken may count only in part.
    taken[order] = np.clip(room - before, 0.0, ordered)
    return taken


def advise(
    trace: traces.Trace, *, pool_factor: int = 8, batch_size: int | None = None, signals: tuple[float, ...] = SIGNALS
) -> Advice:
    """Returns estimates of how much prompt selection would have gained in the run of a trace.

    Args:
      trace: outcomes of the run.
      pool_factor: number of candidates per pick, at least 2. The candidates are the visits of a round; if their number
        is not a multiple of `pool_factor`, the last pick counts only in part.
      batch_size: number of prompts of a round, B, for the progress per round; None stands for the mean number of visits
        per round of the trace.
      signals: signal-to-noise ratios (> 0) of an informative group; see `progress`.

    Raises:
      ValueError: for an empty trace, a trace in which every group is a single completion, or an option out of range.

    Example:
      >>> import numpy as np
      >>> from dps_jax import advise, traces
      >>> ids = np.tile(np.arange(8, dtype=np.int32), 3)  # two of eight prompts are partially solved in three rounds
      >>> rounds, successes = np.repeat(np.arange(3, dtype=np.int32), 8), np.where(ids < 2, 2, 0).astype(np.int32)
      >>> trace = traces.Trace(rounds, ids, successes, np.full(24, 4, np.int32))
      >>> advice = advise.advise(trace, pool_factor=4)
      >>> advice.num_prompts, advice.selected.mean > advice.informative.mean
      (8, True)
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
            "trace: expected groups of 2 completions or more, as a single completion is never informative, got only "
            "groups of 1; log all completions of a prompt in a round"
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
    """Returns the estimates as JSON-compatible Python values.

    Args:
      advice: result of `advise`.

    Example:
      >>> from dps_jax import advise
      >>> share = advise.Share(0.3, 0.2, 0.4)  # made-up numbers; the fields of `Advice` follow in their order
      >>> advice = advise.Advice(9, 90, 30, 8, True, share, False, share, share, 0.3, 8, {0.01: share})
      >>> advise.to_json(advice)["factors"]
      {'0.01': {'mean': 0.3, 'low': 0.2, 'high': 0.4}}
    """
    value = lambda entry: entry._asdict() if isinstance(entry, Share) else entry
    factors = {f"{signal:g}": value(factor) for signal, factor in advice.factors.items()}
    return {name: value(entry) for name, entry in advice._asdict().items()} | {"factors": factors}


def _verdict(advice: Advice) -> str:
    """Returns a recommendation by the measured runs whose share of informative groups is closest to the log's."""
    if advice.gain.low <= 0:
        return "the two shares do not differ significantly: this log shows no gain from selection"
    share = min(_MEASURED, key=lambda measured: abs(measured - advice.informative.mean))
    low, high = _MEASURED[share]
    if high < 0.5:
        recommendation = "selection is likely to pay"
    elif high < 1:
        recommendation = "expect a small gain from selection"
    else:
        recommendation = "prefer uniform selection, which is simpler"
    return (
        f"{recommendation}: in small runs with {100 * share:.0f} % informative groups, the closest measured share, "
        f"selection needed {low:.2f} to {high:.2f} times the rollouts of uniform selection "
        "(docs/when-selection-pays.md)"
    )


def to_text(advice: Advice, *, selected_by: str | None = None) -> str:
    """Returns the estimates as multi-line text, with a recommendation in the last but one line if the log allows one.

    Args:
      advice: result of `advise`.
      selected_by: method that selected the prompts of the run, if it is known. If it is not "uniform" and the log has
        no inclusion probabilities, the first line is a warning and there is no recommendation.

    Example:
      >>> from dps_jax import advise
      >>> share = advise.Share(0.3, 0.2, 0.4)  # made-up numbers; the fields of `Advice` follow in their order
      >>> advice = advise.Advice(9, 90, 30, 8, True, share, False, share, share, 0.3, 8, {0.01: share})
      >>> advise.to_text(advice).splitlines()[0]
      '90 groups of 8 completions in 9 rounds; 30 prompts, 3.0 visits each'
    """
    percent = lambda share: f"{100 * share.mean:.0f} % ({100 * share.low:.0f} to {100 * share.high:.0f})"
    visits = advice.num_groups / advice.num_prompts
    basis = "under uniform selection, by inclusion probabilities" if advice.is_uniform_share else "as selected"
    mostly = "" if advice.is_one_size else "mostly "
    is_biased = not advice.is_uniform_share and selected_by not in (None, "uniform")
    lines = []
    if is_biased:
        lines.append(
            f"warning: {selected_by} selected the prompts of this run, without inclusion probabilities; the numbers "
            "below hold for its picks and do not show what it gained; use the log of a run with uniform selection"
        )
    lines += [
        f"{advice.num_groups:,} groups of {mostly}{advice.group_size} completions in {advice.num_rounds:,} rounds; "
        f"{advice.num_prompts:,} prompts, {visits:.1f} visits each",
        f"informative groups, {basis}: {percent(advice.informative)}",
        f"among the best predicted of every {advice.pool_factor}: {percent(advice.selected)}; predicted: "
        f"{100 * advice.predicted:.0f} %",
        "progress per round with selection, relative to no selection, if all informative groups are worth the same, "
        "by the signal-to-noise ratio of one of them:",
    ]
    for signal, factor in advice.factors.items():
        lines.append(f"  {signal:g}: {factor.mean:.2f} times ({factor.low:.2f} to {factor.high:.2f})")
    if not advice.is_uniform_share and selected_by is None:
        lines.append(
            "the log has no inclusion probabilities: the estimates assume that prompts were picked uniformly at random"
        )
    if not is_biased:
        lines.append(_verdict(advice))
    lines.append("intervals are 95 %, by resampling rounds; the predictions used no levels or features of prompts")
    return "\n".join(lines)


def _method_of(log: Path) -> str | None:
    """Returns the selection method of the run that a log belongs to, or None if no config.json is beside it."""
    try:
        config = json.loads(((log if log.is_dir() else log.parent) / "config.json").read_bytes())
        return str(config["selector"]["method"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


@dataclasses.dataclass(frozen=True)
class Config:
    """The options of the command `python -m dps_jax.advise`: the log to read, and the arguments of `advise`.

    Example:
      >>> import pathlib
      >>> from dps_jax import advise
      >>> advise.Config(trace=pathlib.Path("trace.npz"), pool_factor=4).pool_factor
      4
    """

    trace: Path
    """Log of a training run: a file or folder in any format that docs/traces.md lists."""
    columns: traces.ColumnNames = dataclasses.field(default_factory=traces.ColumnNames)
    """Names of the columns of the log, if they differ from the names that trainers use."""
    threshold: float | None = None
    """Smallest reward that counts as correct; by default rewards must be 0 or 1."""
    pool_factor: int = 8
    """Number of candidates per pick."""
    batch_size: int | None = None
    """Number of prompts per round, B; by default the mean number of visits per round of the log."""
    signal: tuple[float, ...] = SIGNALS
    """Signal-to-noise ratios of the gradient of one informative group, for which progress is estimated."""
    json: bool = False
    """Print JSON instead of text."""


def main(config: Config) -> Advice:
    r"""Prints and returns the estimates; the command `python -m dps_jax.advise`.

    Args:
      config: log to read, and options.

    Raises:
      ValueError: for a log that cannot be read, or an option out of range.
      OSError: for a file that cannot be opened.

    Example:
      >>> import pathlib
      >>> from dps_jax import advise
      >>> rows = [f"{t},{n},{2 * (n < 2)},4" for t in range(3) for n in range(8)]  # prompts 0 and 1: 2 of 4 correct
      >>> written = pathlib.Path("log.csv").write_text("\n".join(["round,prompt_id,successes,count", *rows]))
      >>> advice = advise.main(advise.Config(trace=pathlib.Path("log.csv"), json=True))
      {...}
      >>> advice.num_rounds
      3
    """
    trace = traces.read_trace(config.trace, config.columns, threshold=config.threshold)
    found = advise(trace, pool_factor=config.pool_factor, batch_size=config.batch_size, signals=config.signal)
    text = to_text(found, selected_by=_method_of(config.trace))
    print(_json.dumps(to_json(found), indent=2) if config.json else f"{config.trace}\n{text}")
    return found


if __name__ == "__main__":
    import tyro

    try:
        options: dict[str, Any] = {"prog": "python -m dps_jax.advise", "config": (tyro.conf.PositionalRequiredArgs,)}
        main(_cli.cli(Config, description=__doc__, **options))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
