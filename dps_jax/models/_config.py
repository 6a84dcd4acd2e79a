"""Shapes of decoders, from 0.1 million parameters to those of published models."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from dps_jax import _checks
from dps_jax.models._rope import RopeScaling

# The ids of patches, V + bits, must fit into int32.
_MAX_PATCH_BITS = 30


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder with the architecture of Qwen2 (biases), Qwen3 (query and key norms) or Llama (neither).

    Attributes:
      vocab_size: V, the number of tokens in the vocabulary.
      hidden_size: width of the residual stream.
      num_layers: number of transformer layers.
      num_heads: number of query heads.
      num_kv_heads: number of key and value heads, a divisor of `num_heads`.
      head_dim: width of a head, an even number.
      mlp_size: width of the gated MLP.
      rope_theta: base of the rotary frequencies.
      norm_epsilon: epsilon of RMSNorm.
      has_qk_norm: whether queries and keys are normalised per head (Qwen3).
      has_qkv_bias: whether queries, keys and values have biases (Qwen2).
      is_tied: whether the output matrix is the transposed embedding matrix.
      rope: how the rotary frequencies are rescaled for longer contexts; None if they are not. A mapping with the fields
        of a `RopeScaling`, such as an object in a JSON file, is converted.
      patch_bits: number of bits that encode an image patch in a prompt (its pixels and its position); 0 for a text-only
        model. A patch is one token, whose id is V plus the integer that its bits form; a linear layer embeds the bits.
        Completions contain no patches.

    Example:
      >>> from dps_jax import models
      >>> config = models.DecoderConfig(vocab_size=32, **models.SIZES["0.1m"])
      >>> config.num_layers, config.num_heads * config.head_dim
      (2, 48)
    """

    vocab_size: int
    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 4
    head_dim: int = 32
    mlp_size: int = 352
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-6
    has_qk_norm: bool = True
    has_qkv_bias: bool = False
    is_tied: bool = True
    rope: RopeScaling | None = None
    patch_bits: int = 0

    def __post_init__(self):
        for name in ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "mlp_size"):
            _checks.check_int(name, getattr(self, name), at_least=1)
        _checks.check_int("vocab_size", self.vocab_size, at_least=2)
        _checks.check_int("head_dim", self.head_dim, at_least=2)
        _checks.check_int("patch_bits", self.patch_bits, at_least=0, at_most=_MAX_PATCH_BITS)
        if self.head_dim % 2:
            raise ValueError(f"head_dim: expected an even number, as rotations pair dimensions, got {self.head_dim}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads: expected a divisor of num_heads = {self.num_heads}, got {self.num_kv_heads}"
            )
        for name in ("rope_theta", "norm_epsilon"):
            _checks.check_number(name, getattr(self, name), above=0)
        for name in ("has_qk_norm", "has_qkv_bias", "is_tied"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}: expected True or False, got {getattr(self, name)!r}")
        if isinstance(self.rope, Mapping):
            object.__setattr__(self, "rope", RopeScaling(**self.rope))
        elif self.rope is not None and not isinstance(self.rope, RopeScaling):
            raise ValueError(f"rope: expected a RopeScaling or None, got {self.rope!r}")
        if self.rope is not None and not self.rope_theta > 1:
            raise ValueError(f"rope_theta: expected a number > 1 where frequencies are rescaled, got {self.rope_theta}")

    @property
    def num_prompt_ids(self) -> int:
        """Exclusive upper bound of the token ids in prompts: V, plus 2 ** patch_bits where prompts may hold patches."""
        return self.vocab_size + (2**self.patch_bits if self.patch_bits else 0)


# Fields of a `DecoderConfig` without the vocabulary. Sizes with the name of a published model are from its config.json.
SIZES: dict[str, dict[str, Any]] = {
    "0.1m": {"hidden_size": 48, "num_layers": 2, "num_heads": 3, "num_kv_heads": 3, "head_dim": 16, "mlp_size": 128},
    "0.12m": {"hidden_size": 64, "num_layers": 3, "num_heads": 4, "num_kv_heads": 4, "head_dim": 16, "mlp_size": 128},
    "0.8m": {},
    "3m": {"hidden_size": 256, "num_heads": 8, "num_kv_heads": 4, "mlp_size": 688},
    "13m": {"hidden_size": 384, "num_layers": 8, "num_heads": 6, "num_kv_heads": 2, "head_dim": 64, "mlp_size": 1024},
    "qwen2.5-0.5b": {
        "hidden_size": 896,
        "num_layers": 24,
        "num_heads": 14,
        "num_kv_heads": 2,
        "head_dim": 64,
        "mlp_size": 4864,
        "rope_theta": 1_000_000.0,
        "has_qk_norm": False,
        "has_qkv_bias": True,
    },
    "qwen2.5-1.5b": {
        "hidden_size": 1536,
        "num_layers": 28,
        "num_heads": 12,
        "num_kv_heads": 2,
        "head_dim": 128,
        "mlp_size": 8960,
        "rope_theta": 1_000_000.0,
        "has_qk_norm": False,
        "has_qkv_bias": True,
    },
    "qwen3-0.6b": {
        "hidden_size": 1024,
        "num_layers": 28,
        "num_heads": 16,
        "num_kv_heads": 8,
        "head_dim": 128,
        "mlp_size": 3072,
        "rope_theta": 1_000_000.0,
    },
}
