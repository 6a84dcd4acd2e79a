"""Predictions of a run's method for every visit and for the next visit of every prompt, by a replay of the trace."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dps_jax import predictors, selectors
from dps_jax.report import _configs
from dps_jax.report._runs import Run
from dps_jax.traces import scores
from dps_jax.traces.replay import Visits, replay
from dps_jax.training import RunConfig, _selection
from dps_jax.types import Predictor

# These methods make no predictions for single prompts; "history" only leaves some prompts out.
_ALIKE = ("uniform", "history")
_INSTEAD = "binomial_hmm"
# Visits are replayed for this many numbers of completions, the most frequent ones: each needs a separate replay.
_MAX_SIZES = 4
NUM_BINS = 10


class Predictions(NamedTuple):
    """Predictions for the R replayed visits, made before their outcomes were observed.

    Attributes:
      predictor: name of the predictor.
      notes: sentences about the limits of these predictions.
      probs: predicted distribution of the number of correct completions m, [R, C + 1]; C is the largest number of
        completions of a visit.
      successes: number of correct completions of each visit, [R].
      counts: number of completions of each visit, [R].
      next_informative: predicted P(0 < m < G) of the next visit of every prompt, [N], where G is the most frequent
        number of completions.
    """

    predictor: str
    notes: list[str]
    probs: np.ndarray
    successes: np.ndarray
    counts: np.ndarray
    next_informative: np.ndarray

    def scores(self) -> dict[str, float]:
        """Returns the scores of the predictions by name."""
        table = self.reliability()
        of = (self.probs, self.successes, self.counts)
        return {
            "log loss of m, nats": float(scores.log_losses(self.probs, self.successes).mean()),
            "Brier score": float(scores.brier_scores(*of).mean()),
            "AUC": scores.auc(*of),
            "distance from the diagonal": scores.distance_in_bins(table),
            "distance by chance": scores.chance_in_bins(table),
        }

    def reliability(self) -> dict[str, np.ndarray]:
        """Returns the reliability diagram, as a table of `scores.reliability`."""
        return scores.reliability(self.probs, self.successes, NUM_BINS, self.counts)

    def confusion(self) -> np.ndarray:
        """Returns the number of visits by predicted (row) and observed (column) solve state, int [3, 3]."""
        return scores.confusion(self.probs, self.successes, self.counts).T


def predict(run: Run) -> Predictions:
    """Returns the predictions of a run's method in a replay of the trace.

    Raises:
      ValueError: if the predictor of the method cannot be built, for example because the file of its prior is missing.
    """
    assert run.visits is not None
    visits = run.visits
    sizes, frequency = np.unique(visits.counts, return_counts=True)
    kept = sizes[np.argsort(-frequency, kind="stable")][:_MAX_SIZES]
    name, build, notes = _method_of(run)
    extended = _with_next(visits, int(kept[0]))
    num_visits = visits.ids.size
    is_replayed = np.isin(visits.counts, kept)
    probs = np.zeros((num_visits, int(kept.max()) + 1))
    next_informative = np.zeros(visits.num_prompts)
    for place, size in enumerate(kept.tolist()):
        rows = np.flatnonzero(visits.counts == size)
        found = replay(build(size), extended if place == 0 else visits)
        probs[rows, : size + 1] = found[rows]
        if place == 0:
            next_informative[extended.ids[num_visits:]] = scores.informative_probs(found[num_visits:])
    if not is_replayed.all():
        words = ", ".join(map(str, sorted(kept.tolist())))
        notes.append(f"Only visits of {words} completions are included: {is_replayed.sum():,} of {num_visits:,}.")
    return Predictions(
        predictor=name,
        notes=notes,
        probs=probs[is_replayed],
        successes=visits.successes[is_replayed],
        counts=visits.counts[is_replayed],
        next_informative=next_informative,
    )


def _with_next(visits: Visits, size: int) -> Visits:
    """Returns the visits and one more round that visits all prompts, for predictions of their next visits."""
    everyone = np.arange(visits.num_prompts, dtype=np.int32)
    return Visits(
        rounds=np.append(visits.rounds, np.full_like(everyone, visits.num_rounds)),
        ids=np.append(visits.ids, everyone),
        successes=np.append(visits.successes, np.zeros_like(everyone)),
        counts=np.append(visits.counts, np.full_like(everyone, size)),
        prompt_ids=visits.prompt_ids,
    )


def _method_of(run: Run) -> tuple[str, Callable[[int], Predictor], list[str]]:
    """Returns the name of a run's predictor, the function from a group size to the predictor, and notes about it."""
    notes: list[str] = []
    plain = lambda size: predictors.binomial_hmm(group_size=size)
    if run.config is None:
        return _INSTEAD, plain, [f"A trace does not name a method; the predictions are those of {_INSTEAD!r}."]
    method = run.config.get("selector", {}).get("method")
    if run.groups is None or run.features is None:
        return (
            _INSTEAD,
            plain,
            [f"Without prompts.npz, inputs of {method!r} are not known; the predictions are those of {_INSTEAD!r}."],
        )
    if method in _ALIKE or _predictor_name(method) not in predictors.PREDICTORS:
        if method in _ALIKE:
            why = "does not predict single prompts"
        else:
            why = "has no registered predictor (--import MODULE imports a module that registers it)"
        notes.append(f"{method!r} {why}; the predictions are those of {_INSTEAD!r}.")
        inputs: dict[str, Any] = {"groups": run.groups, "features": run.features}
        return _INSTEAD, _builder(_INSTEAD, inputs), notes
    saved = run.config
    config = _configs.rebuilt(RunConfig, {part: saved[part] for part in ("selector", "rollout", "learner")})
    known = _selection.Prompts(run.groups, run.features, _range_names(run.groups))
    _, options = _selection.selector_options(config, known)
    if config.selector.refit_every:
        notes.append("The run refitted its prior, but the replay keeps the initial prior.")
    return method, _builder(method, options), notes


def _predictor_name(method: str) -> str:
    """Returns the name of the predictor of a method; most have the name of their method."""
    return "binomial_hmm" if method == "instructive" else method


def _range_names(groups: np.ndarray) -> list[str]:
    """Returns a name for each prompt group."""
    return [f"group {index}" for index in range(1 + max(0, int(groups.max(initial=0))))]


def _builder(method: str, options: Mapping[str, Any]) -> Callable[[int], Predictor]:
    """Returns the function from a group size to the predictor of a method; options that it lacks are ignored."""
    of_selector = _predictor_name(method)
    factory = predictors.PREDICTORS[of_selector]
    known = inspect.signature(factory).parameters
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(selectors.SELECTORS[of_selector]).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    given = {**defaults, **options}
    given = {"group_ids" if name == "groups" else name: value for name, value in given.items()}
    given = {name: value for name, value in given.items() if name in known and name != "group_size"}
    return lambda size: factory(**given, group_size=size)
