"""Reads the fields of a saved `TransitionPrior`, with errors that name the file and the field."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from dps_jax.hmm import emissions

FORMAT = "dps_jax.TransitionPrior"
REMEDY = "correct it, or save the prior again"
_CONCENTRATIONS = {"initial_probs": 1, "concentration": 2, "trained_concentration": 2}
_FIELDS = ("format", *_CONCENTRATIONS, "decay", "emission", "groups", "group_ids")
_REQUIRED = ("initial_probs", "concentration")
_EMISSION_FIELDS = ("kind", "num_states", "success_rates", "precision")


class _Reader:
    """Reads fields; its error messages name the source of the fields."""

    def __init__(self, source: str):
        """Sets the name of the source for error messages."""
        self._source = source

    def error(self, field: str, expected: str, found: Any) -> ValueError:
        """Returns the error to raise for a field."""
        text = repr(found)
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        return ValueError(f"{self._source}: prior: {field}: expected {expected}, got {shown}; {REMEDY}")

    def check_keys(self, where: str, fields: Any, required: tuple[str, ...], known: tuple[str, ...]) -> None:
        """Raises ValueError unless `fields` is an object with all required fields and no unknown ones."""
        if not isinstance(fields, dict):
            raise self.error(where or "content", f"an object with {', '.join(required)}", fields)
        prefix = f"{where}." if where else ""
        for name in required:
            if name not in fields:
                raise self.error(f"{prefix}{name}", "the field to be present", list(fields))
        for name in fields:
            if name not in known:
                raise self.error(f"{prefix}{name}", f"only fields among {', '.join(known)}", name)

    def numbers(self, field: str, value: Any, ndim: int) -> np.ndarray:
        """Returns a number, or lists of numbers nested `ndim` deep, as a float64 array."""
        expected = "a number" if ndim == 0 else f"{'rows of ' * (ndim - 1)}numbers"
        try:
            array = np.asarray(value)
        except (ValueError, OverflowError) as error:
            raise self.error(field, expected, value) from error
        if array.ndim != ndim or array.dtype.kind not in "iuf" or not np.all(np.isfinite(array)):
            raise self.error(field, expected, value)
        return array.astype(np.float64)

    def emission(self, fields: Any) -> emissions.Emission:
        """Returns the emission."""
        self.check_keys("emission", fields, ("kind",), _EMISSION_FIELDS)
        if fields["kind"] not in ("exact", "binomial"):
            raise self.error("emission.kind", "'exact' or 'binomial'", fields["kind"])
        needed = "num_states" if fields["kind"] == "exact" else "success_rates"
        if fields.get(needed) is None:
            raise self.error(f"emission.{needed}", "the field to be present", list(fields))
        if needed == "num_states":
            number = fields[needed]
            if isinstance(number, bool) or not isinstance(number, int) or number not in emissions.EXACT_NUM_STATES:
                raise self.error("emission.num_states", f"one of {emissions.EXACT_NUM_STATES}", number)
            return emissions.exact(number)
        rates = self.numbers("emission.success_rates", fields["success_rates"], 1)
        if fields.get("num_states", rates.size) != rates.size:
            raise self.error("emission.num_states", f"{rates.size}, the number of success_rates", fields["num_states"])
        precision = fields.get("precision")
        if precision is not None:
            precision = float(self.numbers("emission.precision", precision, 0))
        try:
            return emissions.binomial(rates.tolist(), precision)
        except ValueError as error:
            raise self.error("emission", f"valid parameters ({error})", fields) from error

    def concentrations(self, where: str, fields: dict[str, Any]) -> dict[str, np.ndarray]:
        """Returns the fields that may differ between groups."""
        # None stands for a matrix that the prior does not have.
        is_there = lambda name: name in _REQUIRED or fields.get(name) is not None
        found = {name: fields[name] for name in _CONCENTRATIONS if is_there(name)}
        return {name: self.numbers(where + name, value, _CONCENTRATIONS[name]) for name, value in found.items()}


def parse(fields: Any, source: str | os.PathLike[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns the constructor arguments of a prior, and those of the prior of each of its groups.

    Args:
      fields: result of `TransitionPrior.to_dict`.
      source: where the fields come from, for error messages.

    Raises:
      ValueError: if a field is missing, unknown or bad; the message names the source and the field.
    """
    read = _Reader(os.fspath(source))
    read.check_keys("", fields, (*_REQUIRED, "decay", "emission"), _FIELDS)
    if fields.get("format", FORMAT) != FORMAT:
        raise read.error("format", repr(FORMAT), fields["format"])
    shared = {"decay": float(read.numbers("decay", fields["decay"], 0)), "emission": read.emission(fields["emission"])}
    groups, names = fields.get("groups", []), fields.get("group_ids", [])
    if not isinstance(groups, list):
        raise read.error("groups", "a list", groups)
    if not isinstance(names, list) or not all(type(name) is int and 0 <= name < 2**63 for name in names):
        raise read.error("group_ids", "a list of integers in [0, 2**63)", names)
    of_groups = []
    for index, group in enumerate(groups):
        where = f"groups[{index}]"
        read.check_keys(where, group, _REQUIRED, tuple(_CONCENTRATIONS))
        of_groups.append(read.concentrations(f"{where}.", group) | shared)
    return read.concentrations("", fields) | shared | {"group_ids": tuple(names)}, of_groups
