"""What a fit returns: posterior draws, the prior they make, and what there is to say about their quality."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpyro import diagnostics

from dps_jax import _files
from dps_jax.hmm.transitions import TransitionPrior
from dps_jax.priors.parts import StateSpace

_LARGEST_R_HAT = 1.01
_SMALLEST_NUM_EFFECTIVE = 200.0


@dataclasses.dataclass(frozen=True)
class Judgement:
    """How far a fit can be trusted.

    Attributes:
      num_divergent: transitions of NUTS that diverged; 0 for other methods.
      r_hat: the largest over parameters of split R-hat; None for other methods.
      num_effective: the smallest effective number of draws; None for other methods.
      losses: of every step of SVI and MAP, nats; None for NUTS.
      warnings: in words; empty if nothing is wrong.
    """

    num_divergent: int = 0
    r_hat: float | None = None
    num_effective: float | None = None
    losses: np.ndarray | None = None
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class FitResult:
    """A fitted model.

    Attributes:
      model: its name.
      method: "nuts", "svi" or "map".
      space: its states.
      draws: of every parameter, [chains, draws, ...]; all alike where MAP has a point.
      prior: what the filter is to assume.
      judgement: of the fit.
    """

    model: str
    method: str
    space: StateSpace
    draws: dict[str, np.ndarray]
    prior: TransitionPrior
    judgement: Judgement

    def summary(self) -> dict[str, dict[str, np.ndarray]]:
        """Returns mean, sd, 5 % and 95 % quantile of every parameter."""
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
        np.savez_compressed(folder / "posterior.npz", **self.draws)  # pyright: ignore[reportArgumentType]
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
        _files.write_atomically(folder / "fit.json", json.dumps(facts, indent=2) + "\n")

    def to_arviz(self) -> Any:
        """Returns the draws as arviz data.

        Raises:
          ValueError: if arviz is not installed.
        """
        try:
            arviz = importlib.import_module("arviz")
        except ModuleNotFoundError as error:
            raise ValueError("to_arviz: expected arviz to be installed; pip install dps-jax[notebooks]") from error
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


def judge_losses(losses: np.ndarray) -> Judgement:
    """Returns whether the loss of SVI or MAP has stopped to fall: its last tenth against the tenth before."""
    part = max(len(losses) // 10, 1)
    last, before = losses[-part:].astype(np.float64), losses[-2 * part : -part].astype(np.float64)
    found = []
    if before.size:
        fall = before.mean() - last.mean()
        noise = np.sqrt((before.var() + last.var()) / part)
        if fall > max(4 * noise, 0.5):
            found.append(f"the loss was still falling ({fall:.1f} nats over the last {part} steps): take more steps")
    return Judgement(losses=losses, warnings=tuple(found))
