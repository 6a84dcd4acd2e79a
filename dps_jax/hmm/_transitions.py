"""What is believed about transitions before anything was seen: named priors and `TransitionPrior`."""

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


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False)
class TransitionPrior:
    """Everything the filter assumes about a prompt before it has seen it.

    A pytree whose emission is static: it can be an argument of a compiled function, which then serves all priors of
    the same structure. What is traced is not checked.

    Attributes:
      initial_probs: belief about the state of the first round, [K].
      concentration: Dirichlet parameters, row i for transitions out of state i, [K, K], >= 0.
      decay: share of the learned counts that survives a round, lambda in [0, 1]; may be a traced scalar.
      emission: what an outcome says about the state; the exact emission of K states by default.
      trained_concentration: Dirichlet parameters of the move out of a round in which the prompt was rolled out, [K, K];
        `concentration` then is for the moves out of rounds in which it was left alone. None: one matrix for both.
      groups: a prior for each group id 0, ..., L - 1 (difficulty level, source, topic), with the emission and the decay
        of the whole. The fields above are the population's: what prompts without a known group (id -1) get.
      group_ids: the ids of the groups, in their order, where these are not 0, ..., L - 1 but hashes, say.

    Raises:
      ValueError: for probabilities, a concentration or a decay out of range, sizes that differ, a group that is not
        built like the whole, or ids of groups that are not L different ones.
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
        """Raises ValueError if a group is not built like the whole."""
        if not isinstance(group, TransitionPrior):
            raise ValueError(f"groups: expected a TransitionPrior each, got {type(group).__name__} as group {index}")
        if group.groups:
            raise ValueError(f"groups: expected groups without groups of their own, got {len(group.groups)} in {index}")
        if (group.trained_concentration is None) != (self.trained_concentration is None):
            got = "without" if group.trained_concentration is None else "with"
            raise ValueError(f"groups: expected trained_concentration as in the whole, got group {index} {got} it")
        for name in ("num_states", "emission", "decay"):
            expected, found = getattr(self, name), getattr(group, name)
            if not _checks.is_traced(expected) and not _checks.is_traced(found) and expected != found:
                raise ValueError(f"groups: expected {name} {expected} as in the whole, got {found} in group {index}")

    @property
    def num_states(self) -> int:
        """K."""
        return self.initial_probs.size

    @property
    def names_of_groups(self) -> tuple[int, ...]:
        """What the groups are called, in their order: `group_ids`, or else 0, ..., L - 1."""
        return self.group_ids or tuple(range(len(self.groups)))

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[emissions.Emission, tuple[int, ...]]]:
        """Returns the arrays; and the emission and the ids of the groups."""
        arrays = (self.initial_probs, self.concentration, self.decay, self.trained_concentration, self.groups)
        return arrays, (self.emission, self.group_ids)

    @classmethod
    def tree_unflatten(
        cls, static: tuple[emissions.Emission, tuple[int, ...]], arrays: Sequence[Any]
    ) -> TransitionPrior:
        """Returns a prior of whatever JAX puts in the place of the arrays, unchecked."""
        prior = object.__new__(cls)
        names = ("initial_probs", "concentration", "decay", "trained_concentration", "groups")
        for name, value in zip((*names, "emission", "group_ids"), (*arrays, *static), strict=True):
            object.__setattr__(prior, name, value)
        return prior

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the prior as JSON; a reader never sees half a file."""
        _json.write(path, self.to_dict(), indent=2)

    def to_dict(self) -> dict[str, Any]:
        """Returns the prior as plain Python values."""
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
        """Returns what may differ between groups, as plain Python values."""
        names = ("initial_probs", "concentration", "trained_concentration")
        return {name: np.asarray(getattr(self, name)).tolist() for name in names if getattr(self, name) is not None}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TransitionPrior:
        """Returns the prior that `save` wrote.

        Raises:
          ValueError: if the file is missing, is not JSON, or does not hold a prior; the message names it.
        """
        return cls.from_dict(_json.read_object(path, "the JSON file of a prior", _prior_json.REMEDY), path)

    @classmethod
    def from_dict(cls, fields: Any, path: str | os.PathLike[str] = "a dictionary") -> TransitionPrior:
        """Returns the prior that `to_dict` gave.

        Args:
          fields: of the prior.
          path: where they come from, for messages.

        Raises:
          ValueError: if they are not those of a prior.
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
    """What the filter needs of a `TransitionPrior`: arrays of one dtype, the groups on the last axis.

    Attributes:
      initial_probs: [K, L + 1]; column L is that of the population, L = 0 without groups.
      concentration: [K, K, 1, L + 1], or [K, K, 2, L + 1] where moves of trained prompts (index 1) have their own.
      decay: scalar.
    """

    initial_probs: jax.Array
    concentration: jax.Array
    decay: jax.Array


def prior_table(prior: TransitionPrior, dtype: Any = jnp.float32) -> PriorTable:
    """Returns the prior as arrays of their own, which may be donated."""
    priors = (*prior.groups, prior)
    names = ("concentration",) if prior.trained_concentration is None else ("concentration", "trained_concentration")
    stack = lambda name: jnp.stack([jnp.asarray(getattr(prior, name), dtype) for prior in priors], axis=-1)
    return PriorTable(
        initial_probs=stack("initial_probs"),
        concentration=jnp.stack([stack(name) for name in names], axis=2),
        decay=jnp.array(prior.decay, dtype),
    )


def check_group_ids(name: str, value: Any, prior: TransitionPrior, num_prompts: int | None = None) -> np.ndarray:
    """Returns the group of every prompt, int64 [N], in [0, L) where the prior has groups; -1 where it is not known.

    Args:
      name: of the argument.
      value: ids of groups, [N], as the prior calls its groups.
      prior: with or without groups.
      num_prompts: N, if it is to be checked.

    Raises:
      ValueError: for another length, or an id that is neither -1 nor that of a group, where the prior has groups.
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
    """Returns where ids are among those of groups, -1 for -1."""
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
      initial: "uniform", the index of the state that is certain, or [K] probabilities.
      num_states: K.

    Raises:
      ValueError: for anything else.
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
    """Returns a `TransitionPrior` from whichever form a user has at hand.

    Args:
      prior: a name, a [K, K] array from-to, a `TransitionPrior`, or the path of a saved one.
      initial: see `initial_probs`, for all groups; None keeps the prior's own, or uniform where it has none.
      decay: lambda in [0, 1], for all groups; None keeps the prior's own, or 0.7 where it has none.
      num_states: K; None is that of the prior, or 3 for a name.

    Raises:
      ValueError: for an unknown name, an unreadable path, or sizes that differ.
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
