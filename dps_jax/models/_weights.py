"""A decoder in one .safetensors file: its weights with Hugging Face's names and layout, its shape in the metadata."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from dps_jax import _files
from dps_jax.models import _layout
from dps_jax.models._config import DecoderConfig
from dps_jax.models._decoder import Decoder
from dps_jax.models._hub_config import to_hugging_face_config
from dps_jax.models._layout import EMBEDDING, OUTPUT

__all__ = [
    "check_finite",
    "check_output",
    "check_shapes",
    "from_hugging_face",
    "load",
    "save",
    "shapes_of",
    "to_hugging_face",
    "to_hugging_face_config",
]

_CONFIG = "dps_jax_config"
_FLOATS = ("F64", "F32", "F16", "BF16")
_REMEDY = "write it again or restore it"


def to_hugging_face(model: Decoder) -> dict[str, np.ndarray]:
    """Returns the weights by Hugging Face's names, float32, with matrices as [out, in]."""
    tensors = {}
    for parameter in _layout.parameters(model.config):
        value = np.asarray(_layout.get(model, parameter.path)[...], np.float32)
        for part in parameter.parts:
            tensors[part.name] = np.ascontiguousarray(parameter.view(value, part))
    return tensors


def shapes_of(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor by Hugging Face's names, without building the decoder."""
    parameters = _layout.parameters(config)
    return {part.name: parameter.shape_of(part) for parameter in parameters for part in parameter.parts}


def check_shapes(config: DecoderConfig, found: Mapping[str, Sequence[int]]) -> None:
    """Raises ValueError for a tensor that is missing, unexpected or of another shape, without building the decoder.

    Args:
      config: shape of the decoder.
      found: shape of every tensor, by Hugging Face's names. A tied model may contain its embedding matrix a second
        time, as the output matrix.
    """
    if config.num_layers > len(found):
        raise ValueError(f"tensors: expected {config.num_layers} layers, got {len(found)} tensors in all")
    expected = shapes_of(config)
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys() - {OUTPUT})
    if missing or extra:
        raise ValueError(
            f"tensors: expected the tensors of {config}, got others: missing {missing[:3]}, unexpected {extra[:3]}"
        )
    for name, shape in found.items():
        wanted = expected[EMBEDDING] if name == OUTPUT else expected[name]
        if tuple(shape) != wanted:
            raise ValueError(f"tensors[{name!r}]: expected shape {list(wanted)}, got {list(shape)}")


def check_finite(name: str, tensor: np.ndarray, row: int = 0) -> None:
    """Raises a ValueError that names the first number that is not finite in float32, the widest dtype of a decoder.

    Args:
      name: name of the tensor, for messages.
      tensor: the tensor, or some of its rows.
      row: index of the first row, for messages.
    """
    # The largest numbers of float64 are infinite in float32.
    with np.errstate(over="ignore"):
        is_bad = ~np.isfinite(tensor.astype(np.float32) if tensor.dtype == np.float64 else tensor)
    if np.any(is_bad):
        place = tuple(int(axis) for axis in np.argwhere(is_bad)[0])
        shown = [axis + row * (position == 0) for position, axis in enumerate(place)]
        raise ValueError(
            f"tensors[{name!r}]: expected finite numbers, got {tensor[place]} at {shown} and "
            f"{int(is_bad.sum()) - 1} more; use the weights of an earlier step"
        )


def check_output(output: np.ndarray, embedding: np.ndarray) -> None:
    """Raises ValueError if rows of the output matrix differ from those of the embedding, in a tied model."""
    if not np.array_equal(output, embedding):
        raise ValueError(
            f"tensors[{OUTPUT!r}]: expected the embedding in a model with is_tied, got other numbers; the model is not "
            "tied"
        )


def from_hugging_face(config: DecoderConfig, tensors: Mapping[str, np.ndarray]) -> Decoder:
    """Returns a decoder with the given weights, float32; the inverse of `to_hugging_face`.

    Raises:
      ValueError: for a tensor that is missing, unexpected, of another shape or not finite, or an output matrix that
        differs from the embedding in a tied model.
    """
    check_shapes(config, {name: np.shape(tensor) for name, tensor in tensors.items()})
    for name, tensor in tensors.items():
        check_finite(name, np.asarray(tensor))
    if config.is_tied and OUTPUT in tensors:
        check_output(tensors[OUTPUT], tensors[EMBEDDING])

    def value_of(parameter: _layout.Parameter) -> jax.Array:
        value = np.empty(parameter.shape, np.float32)
        for part in parameter.parts:
            parameter.view(value, part)[...] = tensors[part.name]
        return jnp.asarray(value)

    return _layout.assemble(config, value_of)


def _in_order(content: bytes) -> bytes:
    """Returns the content of a .safetensors file with its metadata sorted; the library writes them in random order."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def save(model: Decoder, path: Path | str, facts: Mapping[str, Any] | None = None) -> None:
    """Writes the weights and the shape of a decoder to a .safetensors file, atomically.

    The same model and facts give the same bytes.

    Args:
      model: the decoder.
      path: file to write to; its folder is created if it does not exist.
      facts: further metadata, of JSON types.

    Raises:
      OSError: if the file cannot be written; the message names the file.
    """
    shape = dataclasses.asdict(model.config)
    # These fields were added later. They are left out where they are not used, so that such files do not change.
    if model.config.rope is None:
        del shape["rope"]
    if not model.config.patch_bits:
        del shape["patch_bits"]
    metadata = {"format": "pt", _CONFIG: json.dumps(shape)}
    metadata |= {name: json.dumps(value) for name, value in (facts or {}).items()}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    _files.write_atomically(path, _in_order(to_bytes(to_hugging_face(model), metadata=metadata)))


def load(path: Path | str) -> tuple[Decoder, dict[str, Any]]:
    """Returns the decoder in a file that `save` wrote, and the facts.

    Names and shapes of the tensors are compared with the configuration in the metadata before the decoder is built.

    Raises:
      ValueError: if the file is missing, damaged or of another kind, or holds a number that is not finite; the message
        names the file.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            config, facts = _described(path, dict(file.metadata() or {}))
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            check_shapes(config, {name: part.get_shape() for name, part in slices.items()})
            kinds = {name: str(part.get_dtype()) for name, part in slices.items()}
            other = next((name for name, kind in kinds.items() if kind not in _FLOATS), None)
            if other is not None:
                raise ValueError(f"tensors[{other!r}]: expected one of {', '.join(_FLOATS)}, got {kinds[other]}")
            tensors = {name: file.get_tensor(name) for name in slices}
        return from_hugging_face(config, tensors), facts
    except (SafetensorError, OSError, TypeError) as error:
        raise ValueError(f"path: expected a .safetensors file, got {str(path)!r}: {error}; {_REMEDY}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {_REMEDY}") from error


def _described(path: Path | str, metadata: Mapping[str, str]) -> tuple[DecoderConfig, dict[str, Any]]:
    """Returns the shape of the model and the facts, from the metadata of a file."""
    if _CONFIG not in metadata:
        raise ValueError(f"path: expected a file written by dps_jax, got {str(path)!r} without the model's shape")
    try:
        fields = {name: json.loads(value) for name, value in metadata.items() if name != "format"}
        return DecoderConfig(**fields.pop(_CONFIG)), fields
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"metadata: expected the shape of a model and facts as JSON, got {error}") from error
