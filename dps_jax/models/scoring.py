"""Log-probs of completions that are known, for the update: what sampling reported, but differentiable."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dps_jax.models.decoder import Decoder
from dps_jax.models.prompts import leading_padding


def completion_log_probs(
    model: Decoder,
    prompts: jax.Array,
    completions: jax.Array,
    *,
    pad_id: int,
    is_prompt_token: jax.Array | None = None,
    num_tokens: int | None = None,
    temperature: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Returns log-probs and entropies (nats) of every token of some completions, each float32 [B, G, T].

    A prompt goes through the model once, whatever G: B P + B G (T - 1) positions. Entries behind the end of a
    completion mean nothing; mask them.

    Args:
      model: the policy.
      prompts: int [B, P], padded on the left.
      completions: int [B, G, T], padded on the right.
      pad_id: the token of padding.
      is_prompt_token: see `sample`, as for `num_tokens`.
      num_tokens: size of the distributions; None is the whole vocabulary.
      temperature: logits are divided by it, > 0.
    """
    if is_prompt_token is None:
        is_prompt_token = ~leading_padding(prompts, pad_id)
    hidden, prompt = model.extend(prompts[:, None], is_prompt_token[:, None])
    first = jnp.broadcast_to(hidden[:, :, -1:], (*completions.shape[:2], 1, hidden.shape[-1]))
    inputs = completions[..., :-1]
    # Padding follows the end: nothing that counts can see it, so it needs no mask.
    rest, _ = model.extend(inputs, jnp.ones(inputs.shape, bool), prompt, is_prompt_token)
    logits = model.logits(jnp.concatenate([first, rest], axis=2))[..., :num_tokens] / temperature
    all_log_probs = jax.nn.log_softmax(logits, axis=-1)
    log_probs = jnp.take_along_axis(all_log_probs, completions[..., None], axis=-1)[..., 0]
    entropies = -jnp.sum(jnp.exp(all_log_probs) * all_log_probs, axis=-1)
    return log_probs, entropies
