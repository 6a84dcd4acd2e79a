"""Reads Llama models from GGUF files: the shape for config.json, and the weights under Hugging Face's names.

Source: the specification of GGUF (ggml, docs/gguf.md) for names and types of metadata, and the conversion of Llama
models in llama.cpp for names of tensors and the row order of query and key matrices.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from dps_jax import _checks, _files
from dps_jax.models import _weights
from dps_jax.models._config import DecoderConfig
from dps_jax.models._layout import EMBEDDING, OUTPUT
from dps_jax.models._pretrained import checked_cast

REMEDY = "download it again, or take another file"
# Errors that the package gguf may raise for a damaged file.
_DAMAGED = (IndexError, KeyError, OverflowError, RecursionError, TypeError, ValueError)
_TOP = {"token_embd": EMBEDDING, "output_norm": "model.norm.weight", "output": OUTPUT}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_KINDS = {"text": str, "integer": int, "number": (int, float), "flag": bool, "list": list}


class File(NamedTuple):
    """An open GGUF file.

    Attributes:
      path: path of the file.
      metadata: values of the metadata by name.
      tensors: `gguf.ReaderTensor`s by name; their data are not loaded yet.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Any]

    def error(self, name: str, message: str) -> ValueError:
        """Returns an error whose message begins with the file and the name of the value or tensor."""
        return ValueError(f"{self.path}: {name}: {message}")

    def value(self, name: str, kind: str, default: Any = None) -> Any:
        """Returns a value of the metadata, or `default` if it is missing.

        Args:
          name: name of the value.
          kind: "text", "integer", "number", "flag" or "list".
          default: value to return if it is missing; with None, a missing value is an error.

        Raises:
          ValueError: if the value is missing and has no default, or is of another kind; the message names the file.
        """
        found = self.metadata.get(name, default)
        is_flag = isinstance(found, bool)
        if not isinstance(found, _KINDS[kind]) or (is_flag and kind != "flag"):
            shown = "none" if found is None else f"{found!r:.60}"
            raise self.error(name, f"expected {'an' if kind == 'integer' else 'a'} {kind}, got {shown}; {REMEDY}")
        return found


def import_gguf() -> ModuleType:
    """Returns the package gguf.

    Raises:
      ValueError: if it is not installed; the message has the command that installs it.
    """
    try:
        import gguf
    except ImportError as error:
        raise ValueError(
            "gguf: expected this package to be installed, which reads .gguf files, got none; install the extra `gguf`: "
            "pip install -e '.[gguf]'"
        ) from error
    return gguf


def _reader_class() -> Any:
    """Returns the reader of gguf with a check that no read goes beyond the end of the file.

    Without this check, a damaged length of a list could keep the reader in a loop for an unlimited time.
    """

    class Reader(import_gguf().GGUFReader):
        def _get(self, offset: int, dtype: Any, count: int = 1, *order: Any, **options: Any) -> Any:
            size = int(count) * np.dtype(dtype).itemsize
            if size < 0 or offset + size > self.data.size:
                raise ValueError(f"it ends within {size} bytes from {offset} on")
            return super()._get(offset, dtype, count, *order, **options)

    return Reader


def open_file(path: Path) -> File:
    """Returns the metadata and the tensors of a GGUF file; the data of the tensors are not read.

    Raises:
      ValueError: if the file is missing, truncated or not a GGUF file (the message names it), or if the package gguf is
        not installed.
    """
    try:
        reader = _reader_class()(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except (OSError, *_DAMAGED) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else _files.damage(error)
        raise ValueError(f"{path}: expected a whole GGUF file, got an error: {reason}; {REMEDY}") from error
    return File(path, metadata, {tensor.name: tensor for tensor in reader.tensors})


def decoder_config(file: File) -> DecoderConfig:
    """Returns the shape of the model in a file.

    Raises:
      ValueError: for an architecture other than Llama, scaled rotary frequencies, rotary embeddings of only a part of
        each head, or missing or inconsistent values; the message names the file and the value.
    """
    architecture = file.value("general.architecture", "text")
    if architecture != "llama":
        raise file.error(
            "general.architecture", f"expected 'llama', got {architecture!r}; other architectures are not supported"
        )
    scaling = file.value("llama.rope.scaling.type", "text", "none")
    if scaling != "none":
        raise file.error("llama.rope.scaling.type", f"expected 'none', got {scaling!r}; it is not supported")
    size = lambda name, default=None: _size(file, f"llama.{name}", default)
    hidden_size, num_heads = size("embedding_length"), size("attention.head_count")
    head_dim = size("attention.key_length", hidden_size // num_heads)
    for name in ("rope.dimension_count", "attention.value_length"):
        if size(name, head_dim) != head_dim:
            raise file.error(f"llama.{name}", f"expected {head_dim} as the size of a head, got {size(name)}; {REMEDY}")
    fields = {
        "vocab_size": len(file.value("tokenizer.ggml.tokens", "list")),
        "hidden_size": hidden_size,
        "num_layers": size("block_count"),
        "num_heads": num_heads,
        "num_kv_heads": size("attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "mlp_size": size("feed_forward_length"),
        "rope_theta": _decimal(file.value("llama.rope.freq_base", "number", 10_000.0)),
        "norm_epsilon": _decimal(file.value("llama.attention.layer_norm_rms_epsilon", "number")),
        "has_qk_norm": False,
        "is_tied": "output.weight" not in file.tensors,
    }
    try:
        return DecoderConfig(**fields)
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}; {REMEDY}") from error


def context_length(file: File) -> int:
    """Returns the maximum context length of the model, in tokens.

    Raises:
      ValueError: if it is missing or not a positive integer; the message names the file.
    """
    return _size(file, "llama.context_length", None)


def _size(file: File, name: str, default: int | None) -> int:
    """Returns a positive integer of the metadata."""
    return _checks.check_int(f"{file.path}: {name}", file.value(name, "integer", default), at_least=1)


def _decimal(value: float) -> float:
    """Returns the shortest decimal with the same float32 value, since files store float32: 1e-05 for 9.99999975e-06."""
    return float(str(np.float32(value)))


def hugging_face_name(name: str) -> str | None:
    """Returns Hugging Face's name of a tensor; None if a Llama model has no such tensor.

    Example: `hugging_face_name("blk.3.attn_q.weight")` is "model.layers.3.self_attn.q_proj.weight".
    """
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if block and block[2] in _BLOCK:
        return f"model.layers.{int(block[1])}.{_BLOCK[block[2]]}.weight"
    return _TOP.get(name.removesuffix(".weight")) if name.endswith(".weight") else None


def find_tensors(file: File, config: DecoderConfig) -> dict[str, Any]:
    """Returns the tensors of a model, by Hugging Face's names; their data are not read.

    Raises:
      ValueError: for a tensor that is missing, has another shape, or is not part of a Llama model; the message names
        the file and the tensor.
    """
    found = {}
    for name, tensor in file.tensors.items():
        target = hugging_face_name(name)
        if target is None:
            raise file.error(
                "tensors", f"expected the tensors of a Llama without biases, got {name!r}; it is not supported"
            )
        found[target] = tensor
    try:
        _weights.check_shapes(config, {name: shape_of(tensor) for name, tensor in found.items()})
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}; {REMEDY}") from error
    return found


def shape_of(tensor: Any) -> tuple[int, ...]:
    """Returns the shape of a tensor in NumPy's order of axes, which is the reverse of GGUF's."""
    return tuple(int(size) for size in reversed(tensor.shape))


def read_tensors(file: File, config: DecoderConfig, dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
    """Yields Hugging Face's name and the values of each tensor, in the order of `find_tensors`.

    Args:
      file: file with the tensors.
      config: shape of the model.
      dtype: dtype of the returned arrays.

    Raises:
      ValueError: for a quantisation that the package gguf does not support, or values that are not finite or too large
        for the dtype; the message names the file and the tensor.
    """
    gguf = import_gguf()
    heads = {"self_attn.q_proj.weight": config.num_heads, "self_attn.k_proj.weight": config.num_kv_heads}
    for name, tensor in find_tensors(file, config).items():
        try:
            # `checked_cast` below raises an error for values that are not finite.
            with np.errstate(all="ignore"):
                value = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape_of(tensor))
        except NotImplementedError as error:
            raise file.error(
                f"tensors[{tensor.name!r}]",
                f"expected a type that the package gguf dequantises, got {tensor.tensor_type.name}; take another file",
            ) from error
        num_heads = heads.get(name.partition("layers.")[2].partition(".")[2])
        try:
            yield name, checked_cast(name, value if num_heads is None else rows_by_halves(value, num_heads), dtype)
        except ValueError as error:
            raise ValueError(f"{file.path}: {error}; {REMEDY}") from error


def rows_by_halves(matrix: np.ndarray, num_heads: int) -> np.ndarray:
    """Returns a query or key matrix [H * D, W] with the D rows of every head in Hugging Face's order.

    Rotary embeddings rotate pairs of rows. In GGUF the pairs of a head are rows 2i and 2i + 1; in Hugging Face's order
    they are rows i and i + D / 2.

    Args:
      matrix: matrix in GGUF's order, [H * D, W].
      num_heads: number of heads, H.
    """
    pairs = matrix.reshape(num_heads, -1, 2, matrix.shape[-1])
    return np.swapaxes(pairs, 1, 2).reshape(matrix.shape)
