"""Reading a decoder from a folder in Hugging Face's format (Qwen2, Qwen3 or Llama), parameter by parameter."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

from dps_jax import _json
from dps_jax.models import _layout, _tensor_files, _weights
from dps_jax.models._config import DecoderConfig
from dps_jax.models._decoder import Decoder
from dps_jax.models._hub_config import from_hugging_face_config
from dps_jax.models._layout import EMBEDDING, OUTPUT, Parameter
from dps_jax.models._placing import spec_of
from dps_jax.models._tensor_files import Entry

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
DTYPES = {name: np.dtype(getattr(jnp, name)) for name in ("bfloat16", "float16", "float32")}
_REMEDY = "download the model again, or save it again"
# Files of 2023 also hold this tensor, which config.json determines.
_DERIVED = "rotary_emb.inv_freq"


def load_pretrained(folder: os.PathLike[str] | str, dtype: Any = "float32", mesh: Mesh | None = None) -> Decoder:
    """Returns the decoder in a folder in the format of the Hugging Face Hub: config.json and .safetensors files.

    `transformers` and `save_pretrained` write such folders. Each parameter is read a few rows at a time and put on its
    devices, the largest parameter first. The host holds one parameter at a time.

    Args:
      folder: folder with config.json, and with model.safetensors, or model.safetensors.index.json and the files that it
        lists.
      dtype: dtype of the weights: "float32", "bfloat16" or "float16", or the corresponding NumPy or JAX dtype; None
        keeps the dtype of the stored tensors. If the stored tensors have several dtypes, None uses the one that
        config.json names, or else float32; float64 becomes float32.
      mesh: devices to put the weights on. Every parameter is split over all axes of the mesh, along its longest axis
        that the number of devices divides; a parameter without such an axis is replicated. None uses the default
        device.

    Returns:
      A decoder with the configuration in config.json; all its parameters have the same dtype.

    Raises:
      ValueError: for a file that is missing, damaged or truncated, an unsupported model, a tensor that is missing, of
        the wrong shape or not finite, an output matrix that differs from the embedding matrix in a model in which both
        are tied, an unknown dtype, or a `mesh` that is not a `jax.sharding.Mesh`. For a file, the message names the
        file, the field or tensor, and what is supported.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from dps_jax import models
      >>> config = models.DecoderConfig(vocab_size=16, hidden_size=8, num_layers=1, num_heads=1, num_kv_heads=1,
      ...                               head_dim=8, mlp_size=16)
      >>> models.save_pretrained(models.Decoder(config, rngs=nnx.Rngs(0)), "tiny")  # or a folder from the Hub
      >>> model = models.load_pretrained("tiny", dtype="bfloat16")
      >>> model(jnp.array([[3, 1, 4]])).shape
      (1, 3, 16)
    """
    target = None if dtype is None else dtype_of(dtype)
    if mesh is not None and not isinstance(mesh, Mesh):
        raise ValueError(f"mesh: expected a jax.sharding.Mesh or None, got {type(mesh).__name__}")
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"folder: expected a folder with {CONFIG} and .safetensors files, got {str(folder)!r}; download "
            "the model first (hf download NAME --local-dir FOLDER)"
        )
    path = folder / CONFIG
    fields = _json.read_object(path, "the description of a model", _REMEDY)
    try:
        config = from_hugging_face_config(fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    source, entries = _entries(folder)
    entries = {name: entry for name, entry in entries.items() if not name.endswith(_DERIVED)}
    try:
        _weights.check_shapes(config, {name: entry.shape for name, entry in entries.items()})
    except ValueError as error:
        raise ValueError(f"{source}: {error}; is it of the same model as {CONFIG}? {_REMEDY}") from error
    target = _stored_dtype(fields, entries) if target is None else target
    if config.is_tied and OUTPUT in entries:
        _check_output(entries[OUTPUT], entries[EMBEDDING])
    return _build(config, entries, target, mesh)


def dtype_of(dtype: Any) -> np.dtype:
    """Returns the NumPy dtype of a weight dtype that is given by its name, or as a NumPy or JAX dtype."""
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = dtype
    if name not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(map(repr, DTYPES))}, got {dtype!r}")
    return DTYPES[name]


def _stored_dtype(fields: Mapping[str, Any], entries: Mapping[str, Entry]) -> np.dtype:
    """Returns the dtype of the stored weights.

    If they have several dtypes, this is the one that config.json names, or else float32. It is float32 for float64
    weights, too.
    """
    found = {entry.dtype for entry in entries.values()}
    named = fields.get("dtype") or fields.get("torch_dtype")
    if len(found) > 1 and isinstance(named, str) and named in DTYPES:
        return DTYPES[named]
    widest = found.pop() if len(found) == 1 else np.dtype(np.float32)
    return widest if widest in DTYPES.values() else np.dtype(np.float32)


def _entries(folder: Path) -> tuple[Path, dict[str, Entry]]:
    """Returns the file that lists the tensors of a folder, and the place of each tensor."""
    single, index = folder / SINGLE, folder / INDEX
    if single.exists() or not index.exists():
        if not single.exists():
            raise ValueError(
                f"{single}: expected this file or {INDEX}, got neither; only .safetensors are read; {_REMEDY}"
            )
        return single, _header(single)
    content = _json.read_object(index, "an object with a weight_map", _REMEDY)
    places = content.get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{index}: weight_map: expected the name of a file per tensor, got {places!r:.80}; {_REMEDY}")
    shards = {}
    for name in sorted(set(places.values())):
        if name != Path(name).name or name in ("", "..") or "\\" in name or "\0" in name:
            raise ValueError(f"{index}: weight_map: expected names of files in the folder, got {name!r:.80}; {_REMEDY}")
        if not (folder / name).exists():
            raise ValueError(f"{folder / name}: expected a file that {INDEX} lists, got none; {_REMEDY}")
        shards[name] = _header(folder / name)
    for tensor, name in places.items():
        if tensor not in shards[name]:
            raise ValueError(f"{folder / name}: tensors: expected {tensor!r} as in {INDEX}, got none; {_REMEDY}")
    return index, {tensor: shards[name][tensor] for tensor, name in places.items()}


def _header(path: Path) -> dict[str, Entry]:
    """Returns the location of every tensor in a file, by the name of the tensor."""
    try:
        return _tensor_files.read_header(path)[0]
    except ValueError as error:
        raise ValueError(f"{error}; {_REMEDY}") from error


def _check_output(output: Entry, embedding: Entry) -> None:
    """Raises a ValueError that names the file if the output matrix differs from the embedding."""
    try:
        if output.dtype != embedding.dtype:
            raise ValueError(f"tensors[{OUTPUT!r}]: expected {embedding.dtype} as the embedding, got {output.dtype}")
        for (_, block), (_, other) in zip(
            _tensor_files.read_blocks(output), _tensor_files.read_blocks(embedding), strict=True
        ):
            _weights.check_output(block, other)
    except ValueError as error:
        raise ValueError(
            f"{output.path}: {error}; set tie_word_embeddings to false in {CONFIG}, or remove the tensor"
        ) from error


def _build(config: DecoderConfig, entries: Mapping[str, Entry], dtype: np.dtype, mesh: Mesh | None) -> Decoder:
    """Returns a decoder with the weights that are stored in `entries`."""
    place = _placing(mesh)
    return _layout.assemble(config, lambda parameter: place(_read(parameter, entries, dtype)))


def _read(parameter: Parameter, entries: Mapping[str, Entry], dtype: np.dtype) -> np.ndarray:
    """Returns the value of a parameter, assembled from the tensors that it consists of."""
    value = np.empty(parameter.shape, dtype)
    for part in parameter.parts:
        entry, view = entries[part.name], parameter.view(value, part)
        try:
            for row, block in _tensor_files.read_blocks(entry):
                view[row : row + len(block)] = checked_cast(part.name, block, dtype, row)
        except ValueError as error:
            raise ValueError(f"{entry.path}: {error}; {_REMEDY}") from error
    return value


def checked_cast(name: str, block: np.ndarray, dtype: np.dtype, row: int = 0) -> np.ndarray:
    """Returns rows of a tensor, cast to another dtype.

    Args:
      name: name of the tensor, for messages.
      block: the rows.
      dtype: dtype to cast to.
      row: index of the first row, for messages.

    Raises:
      ValueError: for a number that is not finite, or too large for the dtype.
    """
    _weights.check_finite(name, block, row)
    if block.dtype == dtype:
        return block
    with np.errstate(over="ignore"):
        found = block.astype(dtype)
    if not np.all(np.isfinite(found)):
        largest = np.max(np.abs(block.astype(np.float64)))
        raise ValueError(f"tensors[{name!r}]: expected numbers that fit {dtype}, got {largest:g}; use another dtype")
    return found


def _placing(mesh: Mesh | None) -> Callable[[np.ndarray], jax.Array]:
    """Returns a function that copies an array to its devices and waits, so that the host's copy can be freed."""
    # Automatic axes: the compiler decides how intermediate results are split.
    automatic = (AxisType.Auto,) * (0 if mesh is None else len(mesh.axis_names))
    devices = None if mesh is None else Mesh(mesh.devices, mesh.axis_names, axis_types=automatic)

    def place(value: np.ndarray) -> jax.Array:
        if devices is None:
            return jax.block_until_ready(jax.device_put(value))
        sharding = NamedSharding(devices, spec_of(value.shape, devices))
        return jax.block_until_ready(jax.make_array_from_callback(value.shape, sharding, lambda place: value[place]))

    return place
