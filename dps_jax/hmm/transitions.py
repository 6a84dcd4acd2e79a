"""What is believed about transitions before anything was seen: named priors and `TransitionPrior`."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

import numpy as np

from dps_jax import _checks
from dps_jax.hmm import emissions

PRIOR_NAMES = ("uniform", "progress", "stability", "local")


def named_concentration(name: str, num_states: int = 3) -> np.ndarray:
    """Returns one of the published Dirichlet priors as C_0[from, to], float64 [K, K].

    `uniform` is all 1; `progress` halves the moves to a lower state; `stability` halves every move; `local` forbids
    moves of more than one state.

    Raises:
      ValueError: for an unknown name.

    Source: METHOD section 1, after the code of DPS (arXiv 2603.10887), which holds the transpose. Its K is 3; for
    other K the same rules are applied.
    """
    _checks.check_choice("prior", name, PRIOR_NAMES)
    step = np.arange(num_states)[None, :] - np.arange(num_states)[:, None]
    if name == "progress":
        return np.where(step < 0, 0.5, 1.0)
    if name == "stability":
        return np.where(step == 0, 1.0, 0.5)
    if name == "local":
        return np.where(np.abs(step) <= 1, 1.0, 0.0)
    return np.ones((num_states, num_states))


@dataclasses.dataclass(frozen=True, eq=False)
class TransitionPrior:
    """Everything the filter assumes about a prompt before it has seen it.

    Attributes:
      initial_probs: belief about the state of the first round, [K].
      concentration: Dirichlet parameters, row i for transitions out of state i, [K, K], >= 0.
      decay: share of the learned counts that survives a round, lambda in [0, 1]; may be a traced scalar.
      emission: what an outcome says about the state; the exact emission of K states by default.

    Raises:
      ValueError: for probabilities, a concentration or a decay out of range, or sizes that differ.
    """

    initial_probs: Any
    concentration: Any
    decay: Any = 0.7
    emission: Any = None

    def __post_init__(self):
        initial_probs = _checks.check_probs("initial_probs", self.initial_probs)
        num_states = initial_probs.size
        emission = emissions.exact(num_states) if self.emission is None else self.emission
        if emission.num_states != num_states:
            raise ValueError(f"initial_probs: expected {emission.num_states} states as in emission, got {num_states}")
        object.__setattr__(self, "initial_probs", initial_probs)
        concentration = _checks.check_concentration("concentration", self.concentration, num_states)
        object.__setattr__(self, "concentration", concentration)
        object.__setattr__(self, "emission", emission)
        _checks.check_in_interval("decay", self.decay, 0.0, 1.0)

    @property
    def num_states(self) -> int:
        """K."""
        return self.initial_probs.size

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the prior as JSON; a reader never sees half a file."""
        fields = {
            "format": "dps_jax.TransitionPrior",
            "initial_probs": self.initial_probs.tolist(),
            "concentration": self.concentration.tolist(),
            "decay": float(self.decay),
            "emission": self.emission.to_dict(),
        }
        partial_path = f"{os.fspath(path)}.partial"
        with open(partial_path, "w", encoding="utf-8") as file:
            json.dump(fields, file, indent=2)
        os.replace(partial_path, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TransitionPrior:
        """Returns the prior that `save` wrote.

        Raises:
          ValueError: if the file is missing, is not JSON, or does not hold a prior.
        """
        try:
            with open(path, encoding="utf-8") as file:
                fields = json.load(file)
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"prior: expected a readable JSON file, got {os.fspath(path)!r} ({error})") from error
        names = ("initial_probs", "concentration", "decay", "emission")
        missing = [name for name in names if name not in fields] if isinstance(fields, dict) else list(names)
        if missing:
            raise ValueError(
                f"prior: expected the fields {', '.join(names)}, got {os.fspath(path)!r} without {', '.join(missing)}"
            )
        emission = emissions.Emission.from_dict(fields["emission"])
        return cls(fields["initial_probs"], fields["concentration"], fields["decay"], emission)


def initial_probs(initial: Any, num_states: int) -> np.ndarray:
    """Returns a belief from its short form, float64 [K].

    Args:
      initial: "uniform", the index of the state that is certain, or [K] probabilities.
      num_states: K.

    Raises:
      ValueError: for anything else.
    """
    if isinstance(initial, str):
        _checks.check_choice("initial", initial, ("uniform",))
        return np.full(num_states, 1 / num_states)
    if np.ndim(initial) == 0:
        state = _checks.check_int("initial", initial, at_least=0, at_most=num_states - 1)
        return np.eye(num_states)[state]
    probs = _checks.check_probs("initial", initial)
    if probs.size != num_states:
        raise ValueError(f"initial: expected {num_states} probabilities, got {probs.size}")
    return probs


def resolve_prior(
    prior: Any = "uniform",
    *,
    initial: Any = None,
    decay: Any = None,
    num_states: int | None = None,
) -> TransitionPrior:
    """Returns a `TransitionPrior` from whichever form a user has at hand.

    Args:
      prior: a name, a [K, K] array from-to, a `TransitionPrior`, or the path of a saved one.
      initial: see `initial_probs`; None keeps the prior's own, or uniform where it has none.
      decay: lambda in [0, 1]; None keeps the prior's own, or 0.7 where it has none.
      num_states: K; None is that of the prior, or 3 for a name.

    Raises:
      ValueError: for an unknown name, an unreadable path, or sizes that differ.
    """
    if isinstance(prior, (str, os.PathLike)) and prior not in PRIOR_NAMES:
        if isinstance(prior, str) and not os.path.exists(prior):
            raise ValueError(
                f"prior: expected one of {', '.join(PRIOR_NAMES)}, a [K, K] array, a TransitionPrior or the path of "
                f"a saved one, got {prior!r}"
            )
        prior = TransitionPrior.load(prior)
    if not isinstance(prior, TransitionPrior):
        concentration = named_concentration(prior, num_states or 3) if isinstance(prior, str) else np.asarray(prior)
        size = concentration.shape[0] if concentration.ndim else 0
        _checks.check_choice("num_states", num_states or size, emissions.EXACT_NUM_STATES)
        size = num_states or size
        _checks.check_concentration("prior", concentration, size)
        prior = TransitionPrior(np.full(size, 1 / size), concentration)
    elif num_states is not None and num_states != prior.num_states:
        raise ValueError(f"num_states: expected {prior.num_states} as in prior, got {num_states}")
    changes: dict[str, Any] = {}
    if initial is not None:
        changes["initial_probs"] = initial_probs(initial, prior.num_states)
    if decay is not None:
        changes["decay"] = decay
    return dataclasses.replace(prior, **changes)
