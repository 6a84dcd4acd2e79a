"""Where the tensors [out, in] of Hugging Face's files are in the fused matrices [in, out] of a decoder."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx

from dps_jax.models._config import DecoderConfig
from dps_jax.models._decoder import Decoder

EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
# A name of this library: no family of Hugging Face has such a layer.
_PATCHES = "model.embed_patches"


class Part(NamedTuple):
    """A tensor of a file, and the columns of a parameter that it fills.

    Attributes:
      name: name of the tensor in the file.
      start: first column.
      stop: last column plus one.
    """

    name: str
    start: int
    stop: int


class Parameter(NamedTuple):
    """A parameter of a decoder.

    Attributes:
      path: attributes and indices that lead from the decoder to the parameter.
      shape: shape of the parameter in the decoder.
      parts: the tensors of the file that it consists of, side by side along the last axis.
      is_transposed: whether the tensors of the file are transposed, [columns, rows].
    """

    path: tuple[str | int, ...]
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    is_transposed: bool

    @property
    def size(self) -> int:
        """The number of entries of the parameter."""
        return math.prod(self.shape)

    def shape_of(self, part: Part) -> tuple[int, ...]:
        """Returns the shape that a part has in the file."""
        shape = (*self.shape[:-1], part.stop - part.start)
        return shape[::-1] if self.is_transposed else shape

    def view(self, value: Any, part: Part) -> Any:
        """Returns a view of a part of the parameter's value, in the shape that the part has in the file."""
        found = value[..., part.start : part.stop]
        return found.T if self.is_transposed else found


def get(model: Any, path: tuple[str | int, ...]) -> Any:
    """Returns the `nnx.Param` at a path."""
    for step in path:
        model = model[step] if isinstance(step, int) else getattr(model, step)
    return model


def assemble(config: DecoderConfig, value_of: Callable[[Parameter], jax.Array]) -> Decoder:
    """Returns a decoder with given values of its parameters; no random weights are drawn.

    Args:
      config: shape of the decoder.
      value_of: function from a parameter to its value. It is called for the largest parameter first, so that the memory
        needed while a parameter is made is smallest at the end, when nearly all parameters are in memory.
    """
    graph, state = nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    leaves = dict(nnx.to_flat_state(state))
    for parameter in sorted(parameters(config), key=lambda parameter: -parameter.size):
        leaves[parameter.path] = leaves[parameter.path].replace(value_of(parameter))
    return nnx.merge(graph, nnx.from_flat_state(list(leaves.items())))


def parameters(config: DecoderConfig) -> list[Parameter]:
    """Returns a description of every parameter of a decoder, without building the decoder."""
    width, mlp = config.hidden_size, config.mlp_size
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    qkv = {"q_proj": heads, "k_proj": kv_heads, "v_proj": kv_heads}
    found = [
        Parameter(("norm", "scale"), (width,), _parts({"model.norm.weight": width}), False),
        Parameter(("embedding", "embedding"), (config.vocab_size, width), _parts({EMBEDDING: width}), False),
    ]
    if not config.is_tied:
        shape = (width, config.vocab_size)
        found.append(Parameter(("output", "kernel"), shape, _parts({OUTPUT: config.vocab_size}), True))
    if config.patch_bits:
        shape = (config.patch_bits, width)
        found.append(Parameter(("patches", "kernel"), shape, _parts({f"{_PATCHES}.weight": width}), True))
        found.append(Parameter(("patches", "bias"), (width,), _parts({f"{_PATCHES}.bias": width}), False))
    for index in range(config.num_layers):

        def add(name: str, kind: str, rows: int | None, columns: dict[str, int], index: int = index) -> None:
            """Adds a parameter of this block: a matrix, or a vector if `rows` is None."""
            parts = _parts({f"model.layers.{index}.{part}": size for part, size in columns.items()})
            shape = (parts[-1].stop,) if rows is None else (rows, parts[-1].stop)
            found.append(Parameter(("blocks", index, name, kind), shape, parts, rows is not None))

        add("attention_norm", "scale", None, {"input_layernorm.weight": width})
        add("mlp_norm", "scale", None, {"post_attention_layernorm.weight": width})
        add("attention_out", "kernel", heads, {"self_attn.o_proj.weight": width})
        add("mlp_out", "kernel", mlp, {"mlp.down_proj.weight": width})
        add("qkv", "kernel", width, {f"self_attn.{name}.weight": size for name, size in qkv.items()})
        if config.has_qkv_bias:
            add("qkv", "bias", None, {f"self_attn.{name}.bias": size for name, size in qkv.items()})
        if config.has_qk_norm:
            add("query_norm", "scale", None, {"self_attn.q_norm.weight": config.head_dim})
            add("key_norm", "scale", None, {"self_attn.k_norm.weight": config.head_dim})
        add("gate_up", "kernel", width, {"mlp.gate_proj.weight": mlp, "mlp.up_proj.weight": mlp})
    return found


def _parts(columns: dict[str, int]) -> tuple[Part, ...]:
    """Returns parts with the given numbers of columns, placed side by side."""
    found, start = [], 0
    for name, size in columns.items():
        found.append(Part(name, start, start + size))
        start += size
    return tuple(found)
