"""Decoder-only transformers of the Qwen and Llama families: sampling, log-probs, and weights in files."""

from __future__ import annotations

from dps_jax.models._computing import for_computing
from dps_jax.models._config import SIZES, DecoderConfig
from dps_jax.models._decoder import Decoder
from dps_jax.models._decoding import Completions
from dps_jax.models._pretrained import load_pretrained
from dps_jax.models._rope import RopeScaling
from dps_jax.models._sampling import sample
from dps_jax.models._saving import save_pretrained
from dps_jax.models._scoring import completion_log_probs
from dps_jax.models._staged import staged_sampler

__all__ = [
    "SIZES",
    "Completions",
    "Decoder",
    "DecoderConfig",
    "RopeScaling",
    "completion_log_probs",
    "for_computing",
    "load_pretrained",
    "sample",
    "save_pretrained",
    "staged_sampler",
]
