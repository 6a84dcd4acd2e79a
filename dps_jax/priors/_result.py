"""The result of a fit: posterior draws, the prior computed from their means, and diagnostics."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpyro import diagnostics

from dps_jax import _files, _json
from dps_jax.hmm._transitions import TransitionPrior
from dps_jax.priors._mode import Mode
from dps_jax.priors._parts import StateSpace

_LARGEST_R_HAT = 1.01
_SMALLEST_NUM_EFFECTIVE = 200.0
# Two searches whose losses differ by less have found the same mode, nats.
_SAME_MODE = 1.0
# A fit in which an initial state has more than this probability gets a warning.
_CERTAIN = 0.999


@dataclasses.dataclass(frozen=True)
class Judgement:
    """Diagnostics of a fit.

    Attributes:
      num_divergent: number of divergent transitions of NUTS; 0 for other methods.
      r_hat: largest split R-hat over parameters, for NUTS (NaN if there are too few draws); None for other methods.
      num_effective: smallest effective sample size over parameters, for NUTS (NaN if there are too few draws); None for
        other methods.
      losses: loss at every step or evaluation of SVI and MAP, nats, [steps]; None for NUTS.
      warnings: descriptions of all problems that were found; empty if there are none.
    """

    num_divergent: int = 0
    r_hat: float | None = None
    num_effective: float | None = None
    losses: np.ndarray | None = None
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class FitResult:
    """The result of `fit`.

    Attributes:
      model: name of the model in `MODELS`.
      method: "nuts", "svi" or "map".
      space: hidden states of the model.
      draws: posterior draws of each parameter by name, [chains, draws, ...]; for parameters over which MAP maximises,
        all draws are equal.
      prior: `hmm.TransitionPrior` computed from the posterior means, for a filter or a selector.
      judgement: diagnostics of the fit, with `warnings`.

    Example:
      >>> import os, jax, numpy as np
      >>> from dps_jax import priors, traces
      >>> run = traces.simulate_learners(np.random.default_rng(0), num_prompts=30, num_rounds=8, batch_size=10)
      >>> outcomes, options = priors.prepare(run.trace), {"method": "map", "is_tuned": False, "progress": False}
      >>> result = priors.fit(priors.shared(), outcomes, jax.random.key(0), num_samples=10, **options)
      >>> result.summary()["transition_matrix"]["mean"].shape, result.judgement.warnings
      ((3, 3), ())
      >>> result.save("fitted")
      >>> sorted(os.listdir("fitted"))
      ['fit.json', 'posterior.npz', 'prior.json']
    """

    model: str
    method: str
    space: StateSpace
    draws: dict[str, np.ndarray]
    prior: TransitionPrior
    judgement: Judgement

    def summary(self) -> dict[str, dict[str, np.ndarray]]:
        """Returns, for every parameter by name, the "mean", "sd" and quantiles "5%" and "95%" of its draws."""
        found = {}
        for name, values in self.draws.items():
            flat = values.reshape(-1, *values.shape[2:]).astype(np.float64)
            low, high = np.quantile(flat, [0.05, 0.95], axis=0)
            found[name] = {"mean": flat.mean(axis=0), "sd": flat.std(axis=0), "5%": low, "95%": high}
        return found

    def save(self, folder: Path | str) -> None:
        """Writes prior.json, posterior.npz (the draws) and fit.json (summary and diagnostics) to a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.prior.save(folder / "prior.json")
        with _files.atomic(folder / "posterior.npz") as file:
            np.savez_compressed(file, **self.draws)  # pyright: ignore[reportArgumentType]
        judgement = {field: value for field, value in dataclasses.asdict(self.judgement).items() if field != "losses"}
        facts = {
            "model": self.model,
            "method": self.method,
            **dataclasses.asdict(self.space),
            "judgement": judgement,
            "summary": {
                name: {column: np.round(values, 6).tolist() for column, values in columns.items()}
                for name, columns in self.summary().items()
            },
        }
        _json.write(folder / "fit.json", facts, indent=2)

    def to_arviz(self) -> Any:
        """Returns the draws as arviz inference data.

        Raises:
          ValueError: if arviz is not installed.
        """
        try:
            arviz = importlib.import_module("arviz")
        except ModuleNotFoundError as error:
            raise ValueError(
                "to_arviz: expected arviz to be installed, got none; pip install arviz (the extra `notebooks`)"
            ) from error
        # arviz 0 takes the draws by the name of their group, arviz 1 a dictionary of groups.
        if "posterior" in inspect.signature(arviz.from_dict).parameters:
            return arviz.from_dict(posterior=self.draws)
        return arviz.from_dict({"posterior": self.draws})


def judge_draws(draws: dict[str, np.ndarray], num_divergent: int) -> Judgement:
    """Returns the diagnostics of NUTS, over all parameters that vary."""
    r_hats, sizes = {}, {}
    for name, values in draws.items():
        flat = values.reshape(*values.shape[:2], -1)
        varying = flat[..., np.ptp(flat, axis=(0, 1)) > 0]
        if varying.shape[-1] and varying.shape[1] >= 4:
            r_hats[name] = float(np.max(diagnostics.split_gelman_rubin(varying)))
            sizes[name] = float(np.min(diagnostics.effective_sample_size(varying)))
    r_hat, num_effective = max(r_hats.values(), default=np.nan), min(sizes.values(), default=np.nan)
    num_draws = next(iter(draws.values())).shape[0] * next(iter(draws.values())).shape[1]
    found = []
    if num_divergent:
        found.append(
            f"{num_divergent} of {num_draws} transitions diverged: the draws may leave out part of the posterior; use "
            "more warm-up steps, a simpler model or a longer trace"
        )
    if not r_hats:
        found.append(f"{num_draws} draws are too few for diagnostics: draw more")
    elif r_hat > _LARGEST_R_HAT:
        worst = max(r_hats, key=lambda name: r_hats[name])
        found.append(f"the chains disagree (R-hat {r_hat:.3f} of {worst}, above {_LARGEST_R_HAT}): draw more")
    if num_effective < _SMALLEST_NUM_EFFECTIVE:
        worst = min(sizes, key=lambda name: sizes[name])
        found.append(
            f"only {num_effective:.0f} effective draws of {worst}, below {_SMALLEST_NUM_EFFECTIVE:.0f}: draw more"
        )
    return Judgement(num_divergent, r_hat, num_effective, warnings=tuple(found))


def judge_modes(modes: Sequence[Mode]) -> Judgement:
    """Returns diagnostics of MAP: whether the best search converged, and whether another search found the same mode.

    Args:
      modes: results of all searches, best first.
    """
    best, found = modes[0], []
    if not best.is_converged:
        found.append(f"the loss was still falling after {best.losses.size} steps: take more steps")
    num_same = sum(one.loss - best.loss < _SAME_MODE for one in modes)
    if len(modes) > 1 and num_same == 1:
        found.append(
            f"only one of {len(modes)} starts reached the best mode, and the second-best loss is "
            f"{modes[1].loss - best.loss:.1f} nats higher: there may be a better mode; use more starts, or fewer states"
        )
    return Judgement(losses=best.losses, warnings=tuple(found))


def certain_starts(prior: TransitionPrior) -> tuple[str, ...]:
    """Returns a warning for each part of a prior, such as a group, with an initial probability of almost 1."""
    named = {"all prompts" if not prior.groups else "prompts without a group": prior}
    named |= {f"group {name}": group for name, group in zip(prior.names_of_groups, prior.groups, strict=True)}
    found = []
    for name, one in named.items():
        state = int(np.argmax(one.initial_probs))
        if one.initial_probs[state] > _CERTAIN:
            found.append(
                f"the fit is certain that {name} start in state {state} (probability {one.initial_probs[state]:.5f}): "
                "first outcomes in other states get almost no probability; fit to a longer trace, or set "
                "initial_probs"
            )
    return tuple(found)


def judge_losses(losses: np.ndarray) -> Judgement:
    """Returns diagnostics of stochastic gradient steps: whether the loss stopped falling while steps were still large.

    The annealed learning rate flattens the end of any run, converged or not. Therefore the loss at 40 to 50 % of the
    steps is compared with that at 60 to 70 %.
    """
    num_steps = len(losses)
    part = lambda start, end: losses[int(start * num_steps) : int(end * num_steps)].astype(np.float64)
    early, late = part(0.4, 0.5), part(0.6, 0.7)
    if min(early.size, late.size) < 2:
        return Judgement(
            losses=losses,
            warnings=(f"{num_steps} steps are too few to tell whether the loss was still falling: take more steps",),
        )
    fall = early.mean() - late.mean()
    noise = np.sqrt(_variance_about_trend(early) / early.size + _variance_about_trend(late) / late.size)
    found = []
    if fall > max(4 * noise, 0.2):
        found.append(
            f"the loss was still falling ({fall:.1f} nats between 45 % and 65 % of the steps): take more steps, or "
            "larger ones"
        )
    return Judgement(losses=losses, warnings=tuple(found))


def _variance_about_trend(values: np.ndarray) -> float:
    """Returns the variance of the residuals of a linear fit."""
    places = np.arange(values.size)
    return float(np.var(values - np.polyval(np.polyfit(places, values, 1), places)))
