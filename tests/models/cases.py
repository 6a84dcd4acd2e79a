"""Small decoders of every kind, with weights that make all parts matter."""

import jax
import jax.numpy as jnp
from flax import nnx

from dps_jax import models

SMALL = {"vocab_size": 13, "hidden_size": 24, "num_layers": 2, "head_dim": 8, "mlp_size": 40}
KINDS = {
    "qwen2": {"num_heads": 3, "num_kv_heads": 1, "has_qk_norm": False, "has_qkv_bias": True, "rope_theta": 1e3},
    "qwen3": {"num_heads": 4, "num_kv_heads": 2, "norm_epsilon": 1e-5},
    "untied": {"num_heads": 2, "num_kv_heads": 2, "is_tied": False},
    "bare": {"num_heads": 2, "num_kv_heads": 1, "has_qk_norm": False},
}


def config(kind="qwen3", **fields):
    return models.DecoderConfig(**{**SMALL, **KINDS[kind], **fields})


def decoder(kind="qwen3", seed=0, scale=0.3, **fields):
    """Returns a decoder whose next-token distributions are far from uniform, norms and biases at random too."""
    graphdef, params = nnx.split(models.Decoder(config(kind, **fields), rngs=nnx.Rngs(seed)))
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [leaf + scale * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return nnx.merge(graphdef, jax.tree.unflatten(structure, moved))


PAD, END = 0, 1


def prompts(lengths, width, vocab_size=SMALL["vocab_size"], seed=0):
    """Returns prompts of given lengths, padded on the left, int32 [B, width]."""
    tokens = jax.random.randint(jax.random.key(seed), (len(lengths), width), 2, vocab_size)
    return jnp.where(jnp.arange(width) >= width - jnp.asarray(lengths)[:, None], tokens, PAD).astype(jnp.int32)


PROMPTS = prompts([7, 3, 5], width=7)
COMPLETIONS = jax.random.randint(jax.random.key(3), (3, 4, 11), 1, 13)


def scores_and_gradient(model, **options):
    """Returns log-probs and entropies of COMPLETIONS, and the gradient of a sum of both with weights of their own."""
    graphdef, params = nnx.split(model)
    weights = jax.random.normal(jax.random.key(4), (2, *COMPLETIONS.shape))

    def loss(params):
        found = jnp.stack(
            models.completion_log_probs(nnx.merge(graphdef, params), PROMPTS, COMPLETIONS, pad_id=PAD, **options)
        )
        return jnp.sum(weights * found), found

    (_, found), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return found, grads
