"""Weights in .safetensors files, under the names and in the layout of Hugging Face's Qwen2 and Qwen3."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
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


def from_hugging_face(config: DecoderConfig, tensors: Mapping[str, np.ndarray]) -> Decoder:
    """Returns a decoder with given weights.

    Raises:
      ValueError: for a tensor that is missing, too many, or of another shape.
    """
    model = Decoder(config, rngs=nnx.Rngs(0))
    expected = to_hugging_face(model)
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or extra:
        raise ValueError(f"tensors: expected those of {config}, got none of {missing[:3]} and also {extra[:3]}")
    for name, tensor in expected.items():
        if tensors[name].shape != tensor.shape:
            raise ValueError(f"tensors[{name!r}]: expected shape {list(tensor.shape)}, got {list(tensors[name].shape)}")
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

    Raises:
      ValueError: if the file is damaged or of another kind.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"path: expected a .safetensors file, got {str(path)!r}: {error}") from error
    if _CONFIG not in metadata:
        raise ValueError(f"path: expected a file written by dps_jax, got {str(path)!r} without the model's shape")
    config = DecoderConfig(**json.loads(metadata[_CONFIG]))
    facts = {name: json.loads(value) for name, value in metadata.items() if name not in ("format", _CONFIG)}
    return from_hugging_face(config, tensors), facts
