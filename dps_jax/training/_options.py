"""The options of a run in config.json and in its checkpoints, which a resumed run must match."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dps_jax import _files, _json
from dps_jax.training import _folder as folders
from dps_jax.training._run_config import RunConfig

# Options that may differ when a run is resumed, since they do not change the rounds that were already done. The folder
# of the run and its weights may be moved; weights are compared by their checksum.
_PLACES = (
    "name",
    "out_dir",
    "model.weights",
    "model",
    "data",
    "prompts.test_data",
    "prompts.feature_file",
    "resume",
    "num_rounds",
    "mesh.coordinator",
    "mesh.num_processes",
    "mesh.process_index",
)
# Options that may differ, too; their changes are recorded.
_RECORDED = (
    "checkpoint_every",
    "eval_every",
    "keep_last",
    "learner.learning_rate",
    "learner.max_skipped",
    # These change rounds only by rounding.
    "attention",
    "mesh.data",
    "mesh.fsdp",
)
# Entries of config.json besides the options.
_CHECKSUM, _CHANGES = "weights_checksum", "changes"


def to_json(config: RunConfig) -> dict[str, Any]:
    """Returns a config as JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def _defaults(config: RunConfig) -> dict[str, Any]:
    """Returns the defaults of the fields of a config that have one, as JSON values."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        if field.default_factory is not dataclasses.MISSING:
            found[field.name] = field.default_factory()
        elif field.default is not dataclasses.MISSING:
            found[field.name] = field.default
    found = {
        name: dataclasses.asdict(value) if hasattr(value, "__dataclass_fields__") else value
        for name, value in found.items()
    }
    return json.loads(json.dumps(found, default=str))


def weights_checksum(config: RunConfig) -> int | None:
    """Returns the CRC-32 of the files of weights that a run starts from, or None without any."""
    checksums = [_files.checksum(path) for path in config.files()]
    if len(checksums) > 1:
        return zlib.crc32(repr(checksums).encode())
    return checksums[0] if checksums else None


def write(config: RunConfig, changes: Sequence[Mapping[str, Any]], checksum: int | None) -> None:
    """Writes config.json: the options, the changes of options by round, and the checksum of the weights."""
    content = to_json(config) | {_CHECKSUM: checksum, _CHANGES: list(changes)}
    _json.write(config.folder / "config.json", content, indent=2)


def read(folder: Path) -> dict[str, Any]:
    """Returns the contents of config.json that `write` wrote.

    Raises:
      ValueError: if the file is missing or damaged, or does not hold the options of a run.
    """
    path, expected, remedy = folder / "config.json", "the options of a run", "put it back from a copy"
    saved = _json.read_object(path, expected, remedy)
    if not folders.is_config(saved):
        raise ValueError(f"{path}: expected {expected}, got other JSON; {remedy}")
    return saved


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _differences(config: RunConfig, saved: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Returns name, value and saved value of the options that differ."""
    saved = {name: value for name, value in saved.items() if name not in (_CHECKSUM, _CHANGES)}
    # A field that did not exist when the run was saved had its default value.
    found, expected = _flat(to_json(config)), _flat(_defaults(config)) | _flat(saved)
    return [
        (name, found.get(name), expected.get(name))
        for name in sorted(found.keys() | expected.keys())
        if name not in _PLACES and found.get(name) != expected.get(name)
    ]


def refusal(config: RunConfig, saved: Mapping[str, Any]) -> str | None:
    """Returns why a saved run cannot continue with a config, with the fields that differ; None if it can."""
    differing = [
        f"{name} = {value!r} (was {old!r})" for name, value, old in _differences(config, saved) if name not in _RECORDED
    ]
    if not differing:
        return None
    return (
        f"resume: expected the options that {config.folder} was started with (config.json), got "
        f"{', '.join(differing)}; choose another --name, or start anew with --no-resume, which moves the old run aside"
    )


def check_same(config: RunConfig, saved: Mapping[str, Any]) -> None:
    """Raises ValueError, with the fields that differ, if a saved run cannot continue with a config."""
    message = refusal(config, saved)
    if message is not None:
        raise ValueError(message)


def has_other_weights(config: RunConfig, saved: Mapping[str, Any]) -> bool:
    """Returns whether a run was started from other weights than those that the config names."""
    return _CHECKSUM in saved and saved[_CHECKSUM] != weights_checksum(config)


def check_weights(config: RunConfig, saved: Mapping[str, Any]) -> None:
    """Raises ValueError if a run that needs its initial weights again was started from other weights."""
    if has_other_weights(config, saved):
        raise ValueError(
            f"model: expected the weights that {config.folder} was started from, got "
            f"{', '.join(map(str, config.files())) or 'none'} with another content; name those, or start anew with "
            "--no-resume, which moves the old run aside"
        )


def changes(config: RunConfig, saved: Mapping[str, Any], round_index: int) -> list[dict[str, Any]]:
    """Returns a record of each option that may change and has another value from round `round_index` on."""
    return [
        {"round": round_index, "option": name, "was": old, "is": value}
        for name, value, old in _differences(config, saved)
        if name in _RECORDED
    ]
