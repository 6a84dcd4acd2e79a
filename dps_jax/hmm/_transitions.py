"""Priors over transition matrices: named priors and `TransitionPrior`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dps_jax import _checks, _json
from dps_jax.hmm import _prior_json, emissions

PRIOR_NAMES = ("uniform", "progress", "stability", "local")
_PRIOR_FORMS = f"one of {', '.join(PRIOR_NAMES)}, a [K, K] array, a TransitionPrior or the path of a saved one"


def named_concentration(name: str, num_states: int = 3) -> np.ndarray:
    """Returns the Dirichlet parameters of a named prior as C_0[from, to], float64 [K, K].

    The prior `uniform` is 1 everywhere. `progress` has 0.5 for transitions to a lower state, `stability` has 0.5 for
    all transitions to another state, and `local` has 0 for transitions that skip a state; all other entries are 1.

    Args:
      name: "uniform", "progress", "stability" or "local".
      num_states: number of states, K.

    Raises:
      ValueError: for an unknown name.

    Example:
      >>> from dps_jax import hmm
      >>> hmm.named_concentration("progress")
      array([[1. , 1. , 1. ],
             [0.5, 1. , 1. ],
             [0.5, 0.5, 1. ]])

    Source: the code of DPS (arXiv 2603.10887), which stores the transpose and has K = 3; here the same rules are
    applied for any K.
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


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False)
class TransitionPrior:
    """The assumptions of the filter about a prompt before its first visit.

    The class is a pytree whose emission and group ids are static: a prior can be an argument of a compiled function,
    which is then compiled once for all priors of the same structure. Traced values are not checked.

    Attributes:
      initial_probs: belief about the state in the first round, [K].
      concentration: Dirichlet parameters of the transition matrix, row i for transitions out of state i, [K, K], >= 0.
      decay: share of the learned transition counts that survives a round, lambda in [0, 1]; may be a traced scalar.
      emission: observation model, an `Emission`; `exact(K)` by default.
      trained_concentration: Dirichlet parameters of transitions out of rounds in which the prompt was rolled out,
        [K, K]; `concentration` then applies only to transitions out of the other rounds. None uses `concentration` for
        both.
      groups: one prior for each prompt group 0, ..., L - 1 (difficulty level, source, topic), with the same emission
        and decay as this prior. The fields above are then the prior of the population, which applies to prompts without
        a known group (id -1).
      group_ids: ids of the prompt groups (for example hashes), in the order of `groups`; empty if the ids are
        0, ..., L - 1.

    Raises:
      ValueError: if probabilities, a concentration or the decay are out of range, if sizes differ, if a group differs
        from this prior in its structure, or if `group_ids` are not L distinct integers.

    Example:
      >>> import dps_jax
      >>> counts = [[8, 2, 0], [1, 8, 1], [0, 1, 9]]  # from unsolved, partially solved, solved
      >>> prior = dps_jax.TransitionPrior([0.5, 0.4, 0.1], counts, decay=0.9)
      >>> prior.save("prior.json")
      >>> dps_jax.TransitionPrior.load("prior.json").decay
      0.9
      >>> selector = dps_jax.PromptSelector(num_prompts=2, method="dps", prior=prior)
      >>> print(selector.predicted_probs().round(2))  # before the first round, a row for each prompt
      [[0.5 0.4 0.1]
       [0.5 0.4 0.1]]
    """

    initial_probs: Any
    concentration: Any
    decay: Any = 0.7
    emission: Any = None
    trained_concentration: Any = None
    groups: tuple[TransitionPrior, ...] = ()
    group_ids: tuple[int, ...] = ()

    def __post_init__(self):
        initial_probs = _unless_traced(_checks.check_probs, "initial_probs", self.initial_probs)
        num_states = initial_probs.size
        emission = emissions.exact(num_states) if self.emission is None else self.emission
        if emission.num_states != num_states:
            raise ValueError(f"initial_probs: expected {emission.num_states} states as in emission, got {num_states}")
        object.__setattr__(self, "initial_probs", initial_probs)
        for name in ("concentration", "trained_concentration"):
            value = getattr(self, name)
            if value is not None or name == "concentration":
                value = _unless_traced(_checks.check_concentration, name, value, num_states)
            object.__setattr__(self, name, value)
        object.__setattr__(self, "emission", emission)
        _checks.check_in_interval("decay", self.decay, 0.0, 1.0)
        object.__setattr__(self, "groups", tuple(self.groups))
        for index, group in enumerate(self.groups):
            self._check_group(index, group)
        ids = _checks.check_integer_array("group_ids", list(self.group_ids)).tolist()
        if ids and (len(ids) != len(self.groups) or len(set(ids)) != len(ids) or min(ids) < 0):
            raise ValueError(
                f"group_ids: expected {len(self.groups)} different ids >= 0, one per group, got {list(self.group_ids)}"
            )
        object.__setattr__(self, "group_ids", tuple(ids))

    def _check_group(self, index: int, group: Any) -> None:
        """Raises ValueError if the structure of a group differs from that of this prior."""
        if not isinstance(group, TransitionPrior):
            raise ValueError(
                f"groups: expected only instances of TransitionPrior, got {type(group).__name__} as group {index}"
            )
        if group.groups:
            raise ValueError(
                f"groups: expected groups without groups of their own, got {len(group.groups)} in group {index}"
            )
        if (group.trained_concentration is None) != (self.trained_concentration is None):
            got = "without" if group.trained_concentration is None else "with"
            raise ValueError(f"groups: expected trained_concentration as in this prior, got group {index} {got} it")
        for name in ("num_states", "emission", "decay"):
            expected, found = getattr(self, name), getattr(group, name)
            if not _checks.is_traced(expected) and not _checks.is_traced(found) and expected != found:
                raise ValueError(f"groups: expected {name} {expected} as in this prior, got {found} in group {index}")

    @property
    def num_states(self) -> int:
        """Number of states, K."""
        return self.initial_probs.size

    @property
    def names_of_groups(self) -> tuple[int, ...]:
        """Ids of the groups in their order: `group_ids`, or 0, ..., L - 1 if these were not given."""
        return self.group_ids or tuple(range(len(self.groups)))

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[emissions.Emission, tuple[int, ...]]]:
        """Returns the arrays, and the static fields: the emission and the ids of the groups."""
        arrays = (self.initial_probs, self.concentration, self.decay, self.trained_concentration, self.groups)
        return arrays, (self.emission, self.group_ids)

    @classmethod
    def tree_unflatten(
        cls, static: tuple[emissions.Emission, tuple[int, ...]], arrays: Sequence[Any]
    ) -> TransitionPrior:
        """Returns a prior with the given leaves, without checks, because JAX may replace arrays by other objects."""
        prior = object.__new__(cls)
        names = ("initial_probs", "concentration", "decay", "trained_concentration", "groups")
        for name, value in zip((*names, "emission", "group_ids"), (*arrays, *static), strict=True):
            object.__setattr__(prior, name, value)
        return prior

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the prior to a JSON file, atomically.

        Args:
          path: path of the file.

        Example:
          >>> from dps_jax import hmm
          >>> hmm.resolve_prior("progress").save("prior.json")
        """
        _json.write(path, self.to_dict(), indent=2)

    def to_dict(self) -> dict[str, Any]:
        """Returns the prior as values that JSON gives back unchanged."""
        fields = {
            "format": _prior_json.FORMAT,
            **self._concentrations(),
            "decay": float(self.decay),
            "emission": self.emission.to_dict(),
        }
        if self.groups:
            fields["groups"] = [group._concentrations() for group in self.groups]
        if self.group_ids:
            fields["group_ids"] = list(self.group_ids)
        return fields

    def _concentrations(self) -> dict[str, Any]:
        """Returns the fields that may differ between groups, as plain Python values."""
        names = ("initial_probs", "concentration", "trained_concentration")
        return {name: np.asarray(getattr(self, name)).tolist() for name in names if getattr(self, name) is not None}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TransitionPrior:
        """Returns the prior that `save` wrote.

        Args:
          path: path of the file.

        Raises:
          ValueError: if the file is missing, is not JSON, or does not hold a prior; the message names the file.

        Example:
          >>> from dps_jax import hmm
          >>> hmm.resolve_prior("progress").save("prior.json")
          >>> hmm.TransitionPrior.load("prior.json").num_states
          3
        """
        return cls.from_dict(_json.read_object(path, "the JSON file of a prior", _prior_json.REMEDY), path)

    @classmethod
    def from_dict(cls, fields: Any, path: str | os.PathLike[str] = "a dictionary") -> TransitionPrior:
        """Returns the prior with the given fields, as returned by `to_dict`.

        Args:
          fields: fields of the prior.
          path: where the fields come from, for error messages.

        Raises:
          ValueError: if `fields` are not the fields of a prior.
        """
        arguments, groups = _prior_json.parse(fields, path)
        where = ""
        try:
            built = []
            for index, group in enumerate(groups):
                where = f"groups[{index}]: "
                built.append(cls(**group))
            where = ""
            return cls(**arguments, groups=tuple(built))
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: prior: {where}{error}; {_prior_json.REMEDY}") from error


def _unless_traced(check: Callable[..., Any], name: str, value: Any, *args: Any) -> Any:
    return value if _checks.is_traced(value) else check(name, value, *args)


class PriorTable(NamedTuple):
    """The parts of a `TransitionPrior` that the filter needs: arrays of one dtype, with the groups on the last axis.

    Attributes:
      initial_probs: initial beliefs, [K, L + 1]; column L is for the population. L = 0 if the prior has no groups.
      concentration: Dirichlet parameters, [K, K, 1, L + 1], or [K, K, 2, L + 1] with separate parameters for the
        transitions of trained prompts (index 1).
      decay: decay of the learned counts, scalar.
    """

    initial_probs: jax.Array
    concentration: jax.Array
    decay: jax.Array


def prior_table(prior: TransitionPrior, dtype: Any = jnp.float32) -> PriorTable:
    """Returns the prior as newly allocated arrays, which may be donated."""
    priors = (*prior.groups, prior)
    names = ("concentration",) if prior.trained_concentration is None else ("concentration", "trained_concentration")
    stack = lambda name: jnp.stack([jnp.asarray(getattr(prior, name), dtype) for prior in priors], axis=-1)
    return PriorTable(
        initial_probs=stack("initial_probs"),
        concentration=jnp.stack([stack(name) for name in names], axis=2),
        decay=jnp.array(prior.decay, dtype),
    )


def check_group_ids(name: str, value: Any, prior: TransitionPrior, num_prompts: int | None = None) -> np.ndarray:
    """Returns the index of each prompt's group, int64 [N], in [0, L) if the prior has groups; -1 if it is unknown.

    Args:
      name: name of the argument, for error messages.
      value: group id of each prompt, [N]; these are the ids of `TransitionPrior.names_of_groups`.
      prior: prior, with or without groups.
      num_prompts: number of prompts, N; None leaves the number of ids unchecked.

    Raises:
      ValueError: for a wrong number of ids, or, if the prior has groups, an id that is neither -1 nor the id of a
        group.
    """
    ids = _checks.check_integer_array(name, value)
    if num_prompts is not None and ids.size != num_prompts:
        raise ValueError(f"{name}: expected {num_prompts} ids, one per prompt, got {ids.size}")
    num_groups = len(prior.groups)
    if prior.group_ids:
        return _positions_of(name, ids, prior.group_ids)
    is_bad = (ids < -1) | (ids >= num_groups)
    if num_groups and np.any(is_bad):
        position = int(np.argmax(is_bad))
        raise ValueError(
            f"{name}: expected ids in [-1, {num_groups}), the groups of the prior, got {ids[position]} at position "
            f"{position}"
        )
    return ids


def _positions_of(name: str, ids: np.ndarray, group_ids: tuple[int, ...]) -> np.ndarray:
    """Returns the index of each id in `group_ids`, and -1 for -1."""
    order = np.argsort(group_ids)
    ordered = np.asarray(group_ids, np.int64)[order]
    places = np.minimum(np.searchsorted(ordered, ids), ordered.size - 1)
    is_bad = (ids != -1) & (ordered[places] != ids)
    if np.any(is_bad):
        position = int(np.argmax(is_bad))
        raise ValueError(
            f"{name}: expected -1 or the id of one of the {ordered.size} groups of the prior, got {ids[position]} at "
            f"position {position}; give prompts of other groups -1"
        )
    return np.where(ids == -1, -1, order[places])


def initial_probs(initial: Any, num_states: int) -> np.ndarray:
    """Returns a belief from its short form, float64 [K].

    Args:
      initial: "uniform", the index of a state that has probability 1, or [K] probabilities.
      num_states: number of states, K.

    Raises:
      ValueError: if `initial` has none of these forms.
    """
    if isinstance(initial, str):
        _checks.check_choice("initial", initial, ("uniform",))
        return np.full(num_states, 1 / num_states)
    if _checks.as_array("initial", initial).ndim == 0:
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
    """Returns a `TransitionPrior` from any of the forms that the option `prior` of a method accepts.

    Args:
      prior: "uniform", "progress", "stability", "local" (see `named_concentration`), a [K, K] array of Dirichlet
        parameters with row i for transitions out of state i, a `TransitionPrior`, or the path of a saved prior.
      initial: belief about the state in the first round, for all groups: "uniform", the index of a state that has
        probability 1, or [K] probabilities. None keeps the belief of the prior, which is uniform for a name or an
        array.
      decay: share of the learned transition counts that survives a round, lambda in [0, 1], for all groups; None keeps
        the decay of the prior, which is 0.7 for a name or an array.
      num_states: number of states, K; None keeps the number of states of the prior, which is 3 for a name.

    Raises:
      ValueError: for an unknown name, an unreadable file, or sizes that differ.

    Example:
      >>> from dps_jax import hmm
      >>> prior = hmm.resolve_prior("local", initial=0, decay=0.9)
      >>> prior.initial_probs, prior.decay
      (array([1., 0., 0.]), 0.9)
    """
    if isinstance(prior, (str, os.PathLike)) and prior not in PRIOR_NAMES:
        if isinstance(prior, str) and not os.path.exists(prior):
            raise ValueError(f"prior: expected {_PRIOR_FORMS}, got {prior!r}")
        prior = TransitionPrior.load(prior)
    if num_states is not None:
        num_states = _checks.check_int("num_states", num_states, at_least=2)
    if not isinstance(prior, TransitionPrior):
        if num_states is not None:
            _checks.check_choice("num_states", num_states, emissions.EXACT_NUM_STATES)
        if isinstance(prior, str):
            concentration = named_concentration(prior, num_states or 3)
        else:
            concentration = _checks.as_numbers("prior", prior)
        size = num_states or (concentration.shape[0] if concentration.ndim else 0)
        if size not in emissions.EXACT_NUM_STATES:
            sizes = ", ".join(str(number) for number in emissions.EXACT_NUM_STATES)
            raise ValueError(f"prior: expected {_PRIOR_FORMS}, with K one of {sizes}, got {prior!r}")
        _checks.check_concentration("prior", concentration, size)
        prior = TransitionPrior(np.full(size, 1 / size), concentration)
    elif num_states is not None and num_states != prior.num_states:
        raise ValueError(f"num_states: expected {prior.num_states} as in prior, got {num_states}")
    changes: dict[str, Any] = {}
    if initial is not None:
        changes["initial_probs"] = initial_probs(initial, prior.num_states)
    if decay is not None:
        changes["decay"] = decay
    if changes and prior.groups:
        changes["groups"] = tuple(dataclasses.replace(group, **changes) for group in prior.groups)
    return dataclasses.replace(prior, **changes)
