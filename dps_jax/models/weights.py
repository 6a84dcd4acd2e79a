"""Weights in .safetensors files, under the names and in the layout of Hugging Face's Qwen2 and Qwen3."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from dps_jax import _files
from dps_jax.models.config import DecoderConfig
from dps_jax.models.decoder import Decoder

_CONFIG = "dps_jax_config"
_EMBEDDING, _OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
_FLOATS = ("F64", "F32", "F16", "BF16")
_REMEDY = "write it again or restore it"


def _get(param: Any) -> jax.Array:
    return param[...]


def _put(param: Any, value: jax.Array) -> None:
    param[...] = value


def to_hugging_face_config(config: DecoderConfig) -> dict[str, Any]:
    """Returns what config.json of a `transformers` model of this shape holds.

    Raises:
      ValueError: if neither Qwen2 (biases, no norms) nor Qwen3 (norms) is of this shape.
    """
    if not config.has_qk_norm and not config.has_qkv_bias:
        raise ValueError("config: expected has_qk_norm (Qwen3) or has_qkv_bias (Qwen2), got neither")
    if config.has_qk_norm and config.has_qkv_bias:
        raise ValueError("config: expected has_qk_norm (Qwen3) or has_qkv_bias (Qwen2), got both")
    if not config.has_qk_norm and config.head_dim * config.num_heads != config.hidden_size:
        raise ValueError(
            f"config: expected head_dim * num_heads = hidden_size for Qwen2, got {config.head_dim} * {config.num_heads}"
        )
    family = "qwen3" if config.has_qk_norm else "qwen2"
    return {
        "model_type": family,
        "architectures": [f"{family.capitalize()}ForCausalLM"],
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp_size,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.is_tied,
        "attention_bias": False,
        "hidden_act": "silu",
    }


def to_hugging_face(model: Decoder) -> dict[str, np.ndarray]:
    """Returns the weights under Hugging Face's names, float32, matrices as [out, in]."""
    config = model.config
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    cuts = [heads, heads + kv_heads]
    tensors = {"model.norm.weight": _get(model.norm.scale)}
    tensors["model.embed_tokens.weight"] = _get(model.embedding.embedding)
    if not config.is_tied:
        tensors["lm_head.weight"] = _get(model.output.kernel).T
    for index, block in enumerate(model.blocks):
        own = {
            "input_layernorm.weight": _get(block.attention_norm.scale),
            "post_attention_layernorm.weight": _get(block.mlp_norm.scale),
            "self_attn.o_proj.weight": _get(block.attention_out.kernel).T,
            "mlp.down_proj.weight": _get(block.mlp_out.kernel).T,
        }
        for name, kernel in zip("qkv", jnp.split(_get(block.qkv.kernel), cuts, axis=1), strict=True):
            own[f"self_attn.{name}_proj.weight"] = kernel.T
        if config.has_qkv_bias:
            for name, bias in zip("qkv", jnp.split(_get(block.qkv.bias), cuts), strict=True):
                own[f"self_attn.{name}_proj.bias"] = bias
        if config.has_qk_norm:
            own |= {"self_attn.q_norm.weight": _get(block.query_norm.scale)}
            own |= {"self_attn.k_norm.weight": _get(block.key_norm.scale)}
        for name, kernel in zip(("gate", "up"), jnp.split(_get(block.gate_up.kernel), 2, axis=1), strict=True):
            own[f"mlp.{name}_proj.weight"] = kernel.T
        tensors |= {f"model.layers.{index}.{name}": tensor for name, tensor in own.items()}
    return {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}


def shapes_of(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor under Hugging Face's names, without building one."""
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    width, mlp = config.hidden_size, config.mlp_size
    found: dict[str, tuple[int, ...]] = {
        "model.norm.weight": (width,),
        "model.embed_tokens.weight": (config.vocab_size, width),
    }
    if not config.is_tied:
        found[_OUTPUT] = (config.vocab_size, width)
    block: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
        "self_attn.o_proj.weight": (width, heads),
        "mlp.down_proj.weight": (width, mlp),
        "mlp.gate_proj.weight": (mlp, width),
        "mlp.up_proj.weight": (mlp, width),
    }
    for name, size in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
        block[f"self_attn.{name}_proj.weight"] = (size, width)
        if config.has_qkv_bias:
            block[f"self_attn.{name}_proj.bias"] = (size,)
    if config.has_qk_norm:
        block |= {"self_attn.q_norm.weight": (config.head_dim,), "self_attn.k_norm.weight": (config.head_dim,)}
    for index in range(config.num_layers):
        found |= {f"model.layers.{index}.{name}": shape for name, shape in block.items()}
    return found


def check_shapes(config: DecoderConfig, found: Mapping[str, Sequence[int]]) -> None:
    """Raises ValueError for a tensor that is missing, too many, or of another shape; nothing is built.

    Args:
      config: of the model.
      found: the shape of every tensor. A tied model may have its embedding a second time, as the output.
    """
    if config.num_layers > len(found):
        raise ValueError(f"tensors: expected {config.num_layers} layers, got {len(found)} tensors in all")
    expected = shapes_of(config)
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys() - {_OUTPUT})
    if missing or extra:
        raise ValueError(f"tensors: expected those of {config}, got none of {missing[:3]} and also {extra[:3]}")
    for name, shape in found.items():
        wanted = expected[_EMBEDDING] if name == _OUTPUT else expected[name]
        if tuple(shape) != wanted:
            raise ValueError(f"tensors[{name!r}]: expected shape {list(wanted)}, got {list(shape)}")


def _check_values(config: DecoderConfig, tensors: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError for numbers that are not finite, and an output that is not the embedding it is tied to."""
    for name, tensor in tensors.items():
        # In float32, as the model will have it, where the largest numbers of float64 are infinite.
        with np.errstate(over="ignore"):
            is_bad = ~np.isfinite(np.asarray(tensor, np.float32))
        if np.any(is_bad):
            place = tuple(int(axis) for axis in np.argwhere(is_bad)[0])
            raise ValueError(
                f"tensors[{name!r}]: expected finite numbers, got {tensor[place]} at {list(place)} and "
                f"{int(is_bad.sum()) - 1} more; take the weights of an earlier step"
            )
    if config.is_tied and _OUTPUT in tensors and not np.array_equal(tensors[_OUTPUT], tensors[_EMBEDDING]):
        raise ValueError(
            f"tensors[{_OUTPUT!r}]: expected the embedding in a model of is_tied, got other numbers; the model is not "
            "tied"
        )


def from_hugging_face(config: DecoderConfig, tensors: Mapping[str, np.ndarray]) -> Decoder:
    """Returns a decoder with given weights.

    Raises:
      ValueError: for a tensor that is missing, too many, of another shape or not finite, or an output that differs
        from the embedding it is tied to.
    """
    check_shapes(config, {name: np.shape(tensor) for name, tensor in tensors.items()})
    _check_values(config, tensors)
    model = Decoder(config, rngs=nnx.Rngs(0))
    get = lambda name: jnp.asarray(tensors[name], jnp.float32)
    _put(model.embedding.embedding, get("model.embed_tokens.weight"))
    _put(model.norm.scale, get("model.norm.weight"))
    if not config.is_tied:
        _put(model.output.kernel, get("lm_head.weight").T)
    for index, block in enumerate(model.blocks):
        own = lambda name, index=index: get(f"model.layers.{index}.{name}")
        _put(block.attention_norm.scale, own("input_layernorm.weight"))
        _put(block.mlp_norm.scale, own("post_attention_layernorm.weight"))
        _put(block.attention_out.kernel, own("self_attn.o_proj.weight").T)
        _put(block.mlp_out.kernel, own("mlp.down_proj.weight").T)
        _put(block.qkv.kernel, jnp.concatenate([own(f"self_attn.{name}_proj.weight").T for name in "qkv"], axis=1))
        if config.has_qkv_bias:
            _put(block.qkv.bias, jnp.concatenate([own(f"self_attn.{name}_proj.bias") for name in "qkv"]))
        if config.has_qk_norm:
            _put(block.query_norm.scale, own("self_attn.q_norm.weight"))
            _put(block.key_norm.scale, own("self_attn.k_norm.weight"))
        gate_up = [own(f"mlp.{name}_proj.weight").T for name in ("gate", "up")]
        _put(block.gate_up.kernel, jnp.concatenate(gate_up, axis=1))
    return model


def _in_order(content: bytes) -> bytes:
    """Returns a .safetensors file with its header sorted; the library has the metadata in another order every time."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def save(model: Decoder, path: Path | str, facts: Mapping[str, Any] | None = None) -> None:
    """Writes weights, shape and what else is to be known of them (JSON types) to a .safetensors file, atomically.

    The same model and facts give the same bytes.

    Raises:
      OSError: naming the file, if it cannot be written.
    """
    metadata = {"format": "pt", _CONFIG: json.dumps(dataclasses.asdict(model.config))}
    metadata |= {name: json.dumps(value) for name, value in (facts or {}).items()}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    _files.write_atomically(path, _in_order(to_bytes(to_hugging_face(model), metadata=metadata)))


def load(path: Path | str) -> tuple[Decoder, dict[str, Any]]:
    """Returns the decoder in a file that `save` wrote, and the facts.

    Names and shapes are compared with what the file says of itself before anything of that size is built.

    Raises:
      ValueError: naming the file, if it is damaged or of another kind, or holds a NaN.
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
    """Returns the shape of the model and the facts, from a file's metadata."""
    if _CONFIG not in metadata:
        raise ValueError(f"path: expected a file written by dps_jax, got {str(path)!r} without the model's shape")
    try:
        fields = {name: json.loads(value) for name, value in metadata.items() if name != "format"}
        return DecoderConfig(**fields.pop(_CONFIG)), fields
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"metadata: expected the shape of a model and facts as JSON, got {error}") from error
