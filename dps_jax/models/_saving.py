"""Writing a decoder to a folder that `transformers` and `load_pretrained` read, without ever leaving a mixed model."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dps_jax import _checks, _files, _json
from dps_jax.models import _layout, _tensor_files
from dps_jax.models._decoder import Decoder
from dps_jax.models._hub_config import to_hugging_face_config
from dps_jax.models._layout import Parameter, Part
from dps_jax.models._pretrained import CONFIG, INDEX, SINGLE, checked_cast, dtype_of

_WRITER = {"written_by": "dps_jax"}
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_MAX_SHARD_BYTES = 5_000_000_000


class _Tensor(NamedTuple):
    """A tensor to be written.

    Attributes:
      parameter: the parameter that the tensor is a part of.
      part: which part of the parameter.
      dtype: dtype in the file.
    """

    parameter: Parameter
    part: Part
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.parameter.shape_of(self.part)

    @property
    def size(self) -> int:
        """The size of the tensor in the file, in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def save_pretrained(
    model: Decoder,
    folder: os.PathLike[str] | str,
    dtype: Any = None,
    max_shard_bytes: int = _MAX_SHARD_BYTES,
    fields: Mapping[str, Any] | None = None,
) -> None:
    """Writes a decoder to a folder in the format of `transformers`: config.json and .safetensors files.

    Files that `save_pretrained` wrote to the folder before are replaced or removed; all other files are left alone. An
    old model in the folder is not changed until all files of the new model are complete on disk under temporary names.
    If the process is killed before that, the old model can still be loaded. If the process is killed later, while the
    files are being renamed, the folder has no config.json: `load_pretrained` then raises a ValueError, and another call
    of `save_pretrained` writes all files again.

    Args:
      model: the decoder.
      folder: folder to write to; it is created if it does not exist.
      dtype: dtype of the stored tensors: "bfloat16", "float16" or "float32"; None keeps the dtype of the weights.
      max_shard_bytes: maximum total size of the tensors in one file, in bytes; a tensor larger than this gets a file of
        its own. If there are several files, model.safetensors.index.json lists them.
      fields: further entries of config.json, of JSON types, such as the tokens that end a completion (`eos_token_id`)
        or the longest context (`max_position_embeddings`).

    Raises:
      ValueError: for a configuration that no supported architecture (Llama, Qwen2, Qwen3) has, weights that are not
        finite or too large for the dtype, an unknown dtype, entries of `fields` that the configuration of the model
        already determines, or a folder with a model that another program wrote.
      OSError: if a file cannot be written; the message names the file, and an old model is not changed.

    Example:
      >>> from flax import nnx
      >>> from dps_jax import models
      >>> config = models.DecoderConfig(vocab_size=16, hidden_size=8, num_layers=1, num_heads=1, num_kv_heads=1,
      ...                               head_dim=8, mlp_size=16)
      >>> model = models.Decoder(config, rngs=nnx.Rngs(0))
      >>> models.save_pretrained(model, "policy", dtype="bfloat16", fields={"eos_token_id": 1})
      >>> models.load_pretrained("policy").config == config
      True
    """
    target = None if dtype is None else dtype_of(dtype)
    _checks.check_int("max_shard_bytes", max_shard_bytes, at_least=1, at_most=2**63 - 1)
    described = to_hugging_face_config(model.config)
    tensors = _tensors(model, target)
    # The smallest dtype that holds the numbers of all tensors exactly.
    name = np.dtype(jnp.result_type(*{tensor.dtype for tensor in tensors})).name
    described |= {"dtype": name, "torch_dtype": name, **_WRITER}
    taken = sorted((fields or {}).keys() & described.keys() - {"max_position_embeddings"})
    if taken:
        raise ValueError(f"fields: expected none that the model determines, got {', '.join(taken)}")
    config_text = _json.dumps(described | dict(fields or {}), indent=2) + "\n"
    shards = _split(tensors, max_shard_bytes)
    folder = Path(folder)
    old = _written_before(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _write(folder, config_text, shards, _values(model, tensors), old)
    except OSError as error:
        raise _first(error) from None


def _write(
    folder: Path, config_text: str, shards: Mapping[str, list[_Tensor]], values: Iterator[np.ndarray], old: list[Path]
) -> None:
    """Writes all files of a model, and removes files of an old model that are not replaced."""
    texts = {CONFIG: config_text}
    if len(shards) > 1:
        texts[INDEX] = _index_text(shards)
    # The stack closes the files in the opposite order, and each gets its name when it is closed: config.json last.
    with ExitStack() as stack:
        for name, text in texts.items():
            file = stack.enter_context(_files.atomic(folder / name))
            file.write(text.encode())
            _flush(file)
        for name, members in shards.items():
            file = stack.enter_context(_files.atomic(folder / name))
            kinds = {tensor.part.name: (tensor.dtype, tensor.shape) for tensor in members}
            file.write(_tensor_files.header(kinds, {"format": "pt", **_WRITER}))
            for tensor in members:
                _write_rows(file, tensor, next(values))
            _flush(file)
        for path in old:
            # While config.json is missing, a mixture of old and new files cannot be loaded.
            if path.name == CONFIG or path.name not in {*texts, *shards}:
                path.unlink()


def _first(error: OSError) -> OSError:
    """Returns the first error in a chain of errors: that of the file that could not be written."""
    while isinstance(error.__cause__, OSError) and error.__cause__.filename is not None:
        error = error.__cause__
    return error


def _tensors(model: Decoder, dtype: np.dtype | None) -> list[_Tensor]:
    """Returns the tensors of a model in the order in which they are written."""
    found = []
    for parameter in _layout.parameters(model.config):
        own = dtype_of(_layout.get(model, parameter.path)[...].dtype) if dtype is None else dtype
        found.extend(_Tensor(parameter, part, own) for part in parameter.parts)
    return found


def _split(tensors: list[_Tensor], max_bytes: int) -> dict[str, list[_Tensor]]:
    """Returns the tensors of every file, by the name of the file."""
    shards: list[list[_Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.size > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.size
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    return {
        f"model-{number:05d}-of-{len(shards):05d}.safetensors": shard for number, shard in enumerate(shards, start=1)
    }


def _index_text(shards: Mapping[str, list[_Tensor]]) -> str:
    """Returns the text of model.safetensors.index.json."""
    places = {tensor.part.name: name for name, members in shards.items() for tensor in members}
    size = sum(tensor.size for members in shards.values() for tensor in members)
    return _json.dumps({"metadata": {"total_size": size, **_WRITER}, "weight_map": places}, indent=2) + "\n"


def _written_before(folder: Path) -> list[Path]:
    """Returns the files of an old model that are in a folder.

    Raises:
      ValueError: if another program wrote one of them; the message names the file.
    """
    if not folder.is_dir():
        return []
    found = [
        path for path in sorted(folder.iterdir()) if path.name in (CONFIG, INDEX, SINGLE) or _SHARD.fullmatch(path.name)
    ]
    for path in found:
        if not _is_own(path):
            raise ValueError(
                f"{path}: expected no file of this name, or one that save_pretrained wrote, got a file of another "
                "program; choose another folder, or move the file away"
            )
    return found


def _is_own(path: Path) -> bool:
    """Returns whether `save_pretrained` wrote a file."""
    try:
        if path.name == CONFIG:
            facts = _json.read_object(path, "an object", "")
        elif path.name == INDEX:
            facts = _json.read_object(path, "an object", "").get("metadata")
        else:
            facts = _tensor_files.read_header(path)[1]
    except ValueError:
        return False
    return isinstance(facts, Mapping) and facts.items() >= _WRITER.items()


def _values(model: Decoder, tensors: list[_Tensor]) -> Iterator[np.ndarray]:
    """Yields the values of the tensors one by one; the host holds one parameter at a time."""
    held, value = None, np.zeros(0)
    for tensor in tensors:
        if tensor.parameter is not held:
            held, value = tensor.parameter, np.asarray(_layout.get(model, tensor.parameter.path)[...])
        yield tensor.parameter.view(value, tensor.part)


def _write_rows(file: Any, tensor: _Tensor, value: np.ndarray) -> None:
    """Writes a tensor, a few rows at a time."""
    step = _tensor_files.rows_per_block(value.shape, value.dtype)
    for row in range(0, len(value), step):
        block = checked_cast(tensor.part.name, value[row : row + step], tensor.dtype, row)
        file.write(np.ascontiguousarray(block).tobytes())


def _flush(file: Any) -> None:
    """Forces a file to the disk, so that a full disk raises an error before any old file is changed."""
    file.flush()
    os.fsync(file.fileno())
