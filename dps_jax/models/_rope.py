"""Frequencies of rotary position embeddings, and how published models rescale them for longer contexts."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

from dps_jax import _checks

KINDS = ("linear", "yarn", "llama3")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are rescaled for contexts longer than those the model was first trained on.

    Attributes:
      kind: "linear" divides every frequency by `factor`; "yarn" and "llama3" divide the low frequencies, keep the high
        ones and interpolate between them.
      factor: ratio (> 0) of the length of the longer context to the length of the original context.
      original_length: number of tokens of the original context; needed by "yarn" and "llama3".
      attention_factor: factor (> 0) by which "yarn" multiplies cosines and sines; None is 0.1 ln(factor) + 1, or 1 for
        `factor` below 1.
      beta_fast: "yarn" keeps frequencies that make more turns than this within the original context.
      beta_slow: "yarn" divides frequencies that make fewer turns than this by `factor`.
      is_truncated: whether "yarn" widens the band between `beta_slow` and `beta_fast` to whole dimensions.
      low_factor: "llama3" divides frequencies that make fewer turns than this within the original context by `factor`.
      high_factor: "llama3" keeps frequencies that make more turns than this within the original context.

    Example:
      >>> from dps_jax import models
      >>> rope = models.RopeScaling("yarn", factor=4.0, original_length=32_768)
      >>> config = models.DecoderConfig(vocab_size=151_936, rope=rope)
      >>> config.rope.kind
      'yarn'
    """

    kind: str
    factor: float
    original_length: int | None = None
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    is_truncated: bool = True
    low_factor: float = 1.0
    high_factor: float = 4.0

    def __post_init__(self):
        _checks.check_choice("kind", self.kind, KINDS)
        for name in ("factor", "beta_fast", "beta_slow", "low_factor", "high_factor"):
            _checks.check_number(name, getattr(self, name), above=0)
        if self.attention_factor is not None:
            _checks.check_number("attention_factor", self.attention_factor, above=0)
        if self.kind != "linear" or self.original_length is not None:
            _checks.check_int("original_length", self.original_length, at_least=1)
        if not self.high_factor > self.low_factor:
            raise ValueError(f"high_factor: expected more than low_factor = {self.low_factor}, got {self.high_factor}")
        if not isinstance(self.is_truncated, bool):
            raise ValueError(f"is_truncated: expected True or False, got {self.is_truncated!r}")


def attention_scale(factor: float, multiplier: float = 1.0) -> float:
    """Returns the factor that YaRN multiplies queries and keys by: sqrt(1 / t) for its temperature t of attention.

    Args:
      factor: ratio of the length of the longer context to the length of the original context.
      multiplier: factor of the logarithm; 1 in the paper.

    Source: YaRN (arXiv 2309.00071), eq. 22.
    """
    return 0.1 * multiplier * math.log(factor) + 1.0 if factor > 1 else 1.0


@functools.lru_cache(maxsize=64)
def frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> tuple[np.ndarray, float]:
    """Returns the rotary frequencies and the factor of cosines and sines.

    Example: `frequencies(64, 1e6)[0]` are the frequencies of Qwen2.5-0.5B.

    Args:
      head_dim: width of a head, an even number.
      theta: base of the frequencies.
      scaling: how the frequencies are rescaled; None if they are not.

    Returns:
      Frequencies in radians per token, one for each pair of dimensions, float32 [head_dim / 2]; and the factor.

    Source: RoFormer (arXiv 2104.09864), eq. 15; linear: arXiv 2306.15595, eq. 3.
    """
    half, length = head_dim // 2, scaling.original_length if scaling else None
    found, scale = float(theta) ** (-np.arange(half, dtype=np.float64) / half), 1.0
    if scaling is not None:
        if scaling.kind == "linear" or length is None:
            kept = np.zeros(half)
        elif scaling.kind == "yarn":
            kept = _kept_by_yarn(head_dim, theta, length, scaling)
            scale = attention_scale(scaling.factor) if scaling.attention_factor is None else scaling.attention_factor
        else:
            kept = _kept_by_llama3(found, length, scaling)
        found = found * (kept + (1 - kept) / scaling.factor)
    found = found.astype(np.float32)
    found.flags.writeable = False
    return found, float(scale)


def _kept_by_yarn(head_dim: int, theta: float, length: int, scaling: RopeScaling) -> np.ndarray:
    """Returns the interpolation weight of every unscaled frequency in YaRN, in [0, 1], [head_dim / 2].

    The weight is linear in the index of the dimension, as in the authors' code and in published checkpoints.

    Source: YaRN (arXiv 2309.00071), section 3.2, eq. 17 to 21.
    """

    def index_of(turns: float) -> float:
        """Returns the (fractional) index of the pair that makes this number of turns within the original context."""
        return head_dim * math.log(length / (2 * math.pi * turns)) / (2 * math.log(theta))

    low, high = index_of(scaling.beta_fast), index_of(scaling.beta_slow)
    if scaling.is_truncated:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    # If the band has no width, this is a step between two pairs.
    width = high - low if high != low else 1e-3
    return 1 - np.clip((np.arange(head_dim // 2) - low) / width, 0, 1)


def _kept_by_llama3(found: np.ndarray, length: int, scaling: RopeScaling) -> np.ndarray:
    """Returns the interpolation weight of every unscaled frequency in Llama 3.1, in [0, 1], [head_dim / 2].

    Source: Llama 3 (arXiv 2407.21783), section 3.4.2, for the idea; the numbers are in the config.json of Llama 3.1.
    """
    turns = length * found / (2 * math.pi)
    return np.clip((turns - scaling.low_factor) / (scaling.high_factor - scaling.low_factor), 0, 1)
