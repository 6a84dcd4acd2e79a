"""Studies of the arena: each has one option, its values, and the methods to run with every value."""

from __future__ import annotations

from typing import NamedTuple


class Study(NamedTuple):
    """An option and its values.

    Attributes:
      option: description of the option, for the axis of a figure.
      series: method -> label of a value -> name of the method with this value, as arena.py accepts it.
    """

    option: str
    series: dict[str, dict[str, str]]


def _values(method: str, option: str, *values: object, default: object = None) -> dict[str, str]:
    """Returns the names of a method with each value of an option, by value; the default value needs no option."""
    return {str(value): method if value == default else f"{method}:{option}={value}" for value in values}


_SELECTED = ("uniform", "dps", "instructive")
# By group size G: the batch size B for 256 rollouts, and the factor of the pool that keeps the number of candidates.
_BATCHES = {4: (64, 0.5), 8: (32, 1), 16: (16, 2)}
_POOLS = {"dps": 8, "instructive": 32}


def _of_group_size(method: str) -> dict[str, str]:
    """Returns the names of a method with each group size, by group size."""
    found = {}
    for group_size, (batch_size, factor) in _BATCHES.items():
        pool = f",pool_factor={int(_POOLS[method] * factor)}" if method in _POOLS else ""
        options = f"batch_size={batch_size},group_size={group_size}{pool}"
        found[str(group_size)] = method if group_size == 8 else f"{method}:{options}"
    return found


_DRAWN = "hardness=1.0,temperature=0.3"


def _extras(method: str, **others: str) -> dict[str, str]:
    """Returns the names of a method by default and with one option changed; underscores in labels become blanks."""
    # The learning rate is multiplied by the square root of the informative share.
    options = {"rate": "rate_by_share=0.5", "2_epochs": "num_epochs=2", **others}
    return {"none": method} | {name.replace("_", " "): f"{method}:{changed}" for name, changed in options.items()}


# All prompts are candidates, and each is visited at least every 120 rounds.
_TURNS = "pool_factor=0,pool_share=0.0,max_wait=120"


STUDIES: dict[str, Study] = {
    "decay": Study(
        "share of the transition counts kept per round",
        {"dps": _values("dps", "decay", 0.3, 0.5, 0.7, 0.9, 1.0, default=0.7)},
    ),
    "states": Study("hidden states K", {"dps": _values("dps", "num_states", 2, 3, 5, 7, default=3)}),
    "prior": Study(
        "prior of the transitions",
        {
            "dps": _values("dps", "prior", "uniform", "progress", "stability", "local", default="uniform")
            | {"fitted": "dps-fitted"}
        },
    ),
    "group-size": Study(
        "completions per prompt G, at 256 rollouts a round", {method: _of_group_size(method) for method in _SELECTED}
    ),
    "pool": Study(
        "candidates of a round, in batches (0: all prompts)",
        {
            "dps": _values("dps", "pool_factor", 2, 8, 32, 0, default=8),
            "binomial_hmm": _values("binomial_hmm", "pool_factor", 2, 8, 32, 0, default=8),
            "instructive": _values("instructive", "pool_share=0.0,pool_factor", 2, 8, 32, 0),
        },
    ),
    "advantage": Study(
        "advantage",
        {
            method: {
                "grpo": method,
                "dr-grpo": f"{method}:advantage=dr-grpo,loss=fixed-length",
                "rloo": f"{method}:advantage=rloo",
                "reinforce++": f"{method}:advantage=reinforce++",
            }
            for method in _SELECTED
        },
    ),
    # Separates the effect of the picking from that of the prediction. All pools are 8 B.
    "draws": Study(
        "the best by P(informative), or drawn as instructive draws",
        {
            "dps": {"best": "dps", "drawn": f"dps:{_DRAWN}"},
            "dps, decay 1": {"best": "dps:decay=1.0", "drawn": f"dps:decay=1.0,{_DRAWN}"},
            "binomial_hmm": {"best": "binomial_hmm", "drawn": f"binomial_hmm:{_DRAWN}"},
        },
    ),
    "extras": Study(
        "one option changed",
        {
            "uniform": _extras("uniform"),
            "dps": _extras("dps", turns=_TURNS, Thompson="thompson=True"),
            "instructive": _extras(
                "instructive",
                turns=_TURNS,
                inclusion_weights="inclusion_weights=self-normalised",
                no_optimism="optimism=0.0",
            ),
        },
    ),
    "hardness": Study("hardness", {"instructive": _values("instructive", "hardness", 0.0, 0.5, 1.0, 2.0, default=1.0)}),
    "temperature": Study(
        "temperature at 32 candidates per pick",
        {"instructive": _values("instructive", "temperature", 0.1, 0.2, 0.3, 1.0, default=0.3)},
    ),
    "side-information": Study(
        "known of prompts before any visit",
        {
            method: _values(method, "side_information", "none", "groups", "all", default="all")
            for method in ("binomial_hmm", "instructive")
        },
    ),
}


def methods(study: str) -> tuple[str, ...]:
    """Returns the methods of a study, and uniform selection and default DPS for comparison."""
    named = [method for values in STUDIES[study].series.values() for method in values.values()]
    return tuple(dict.fromkeys(["uniform", "dps", *named]))
