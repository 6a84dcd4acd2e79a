"""Checks of the prompts for sampling and scoring, which are padded on the left, and of end tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dps_jax import _checks


def leading_padding(prompts: jax.Array, pad_id: int) -> jax.Array:
    """Returns which entries of prompts [B, P] come before the first token that is not `pad_id`, bool [B, P]."""
    return jnp.cumsum(prompts != pad_id, axis=1) == 0


def check_prompts(num_ids: int, prompts: Any, is_prompt_token: Any, pad_id: int) -> None:
    """Raises ValueError for invalid prompts; of tracers, only shapes are checked.

    Args:
      num_ids: exclusive upper bound of the token ids.
      prompts: prompt tokens, int [B, P].
      is_prompt_token: False for padding, bool [B, P], or None.
      pad_id: the padding token.
    """
    if jnp.ndim(prompts) != 2 or 0 in jnp.shape(prompts):
        raise ValueError(f"prompts: expected tokens of shape [B, P], got shape {list(jnp.shape(prompts))}")
    if is_prompt_token is not None and jnp.shape(is_prompt_token) != jnp.shape(prompts):
        raise ValueError(
            f"is_prompt_token: expected the shape of prompts, {list(jnp.shape(prompts))}, got "
            f"{list(jnp.shape(is_prompt_token))}"
        )
    if _checks.is_traced(prompts) or _checks.is_traced(is_prompt_token):
        return
    # NumPy, since prompts that a jitted function closes over are concrete, but results of jnp functions are tracers.
    tokens = np.asarray(prompts)
    if np.any((tokens < 0) | (tokens >= num_ids)):
        bad = int(tokens[(tokens < 0) | (tokens >= num_ids)][0])
        raise ValueError(
            f"prompts: expected tokens in [0, {num_ids}), got {bad}; the model has another vocabulary, or patches of "
            "another size"
        )
    if is_prompt_token is None:
        is_wrong, hint = tokens[:, -1] == pad_id, "; pass is_prompt_token if that token is not padding"
    else:
        is_token = np.asarray(is_prompt_token, bool)
        is_wrong, hint = ~is_token[:, -1] | np.any(is_token[:, :-1] & ~is_token[:, 1:], axis=1), ""
    if np.any(is_wrong):
        row = int(np.argmax(is_wrong))
        raise ValueError(
            f"prompts: expected padding on the left only, got a prompt that ends in padding in row {row}{hint}"
        )


def check_ends(end_id: int | None, end_ids: Sequence[int] | None, vocab_size: int) -> np.ndarray:
    """Returns the tokens that end a completion, int32 [number of them], from `end_id` or `end_ids`."""
    if (end_id is None) == (end_ids is None):
        raise ValueError(f"end_id: expected either end_id or end_ids, got end_id = {end_id} and end_ids = {end_ids}")
    name, found = ("end_id", [end_id]) if end_ids is None else ("end_ids", list(end_ids))
    bounds = {"at_least": 0, "at_most": vocab_size - 1}
    return np.array([_checks.check_int(name, token, **bounds) for token in found], np.int32)
