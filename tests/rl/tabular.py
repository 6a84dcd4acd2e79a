"""A softmax policy that is a table: the first token of a prompt says which row, and tokens are independent."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dps_jax import rl

# Little of these tests is running and most is compiling, which takes half as long without LLVM's optimisations.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Sampled(NamedTuple):
    tokens: jax.Array
    log_probs: jax.Array
    mask: jax.Array


class Score(NamedTuple):
    is_correct: jax.Array
    rewards: jax.Array


class Problems(NamedTuple):
    prompts: np.ndarray
    facts: np.ndarray


def log_probs_fn(params, prompts, completions):
    table = jax.nn.log_softmax(params["logits"][prompts[:, 0], : completions.shape[-1]])
    log_probs = jnp.take_along_axis(table[:, None], completions[..., None], axis=-1)[..., 0]
    entropies = -jnp.sum(jnp.exp(table) * table, axis=-1)
    return log_probs, jnp.broadcast_to(entropies[:, None], log_probs.shape)


def sampler(group_size):
    def sample_fn(params, prompts, key):
        logits = params["logits"][prompts[:, 0]]
        shape = (group_size, *logits.shape[:-1])
        tokens = jnp.moveaxis(jax.random.categorical(key, logits, shape=shape), 0, 1).astype(jnp.int32)
        log_probs, _ = log_probs_fn(params, prompts, tokens)
        return Sampled(tokens, log_probs, jnp.ones(tokens.shape, bool))

    return sample_fn


def random_case(seed, num_groups=6, group_size=4, length=3, num_tokens=5, num_prompts=8, noise=0.3):
    """Returns params, a batch, and reference log-probs; one group is padding, one all right, one all wrong."""
    rng = np.random.default_rng(seed)
    shape = (num_groups, group_size, length)
    params = {"logits": jnp.asarray(rng.normal(size=(num_prompts, length, num_tokens)), jnp.float32)}
    ids = rng.permutation(num_prompts)[:num_groups].astype(np.int32)
    completions = rng.integers(0, num_tokens, shape).astype(np.int32)
    lengths = rng.integers(1, length + 1, shape[:2])
    mask = np.arange(length) < lengths[..., None]
    log_probs, _ = log_probs_fn(params, jnp.asarray(ids[:, None]), jnp.asarray(completions))
    rewards = rng.choice([0.0, 0.1, 1.0], shape[:2]).astype(np.float32)
    rewards[:, 0], rewards[:, 1] = 0.1, 1.0
    rewards[1], rewards[4] = 1.0, 0.1
    is_used = np.ones(num_groups, bool)
    is_used[2] = False
    batch = rl.Batch(
        ids=np.where(is_used, ids, -1).astype(np.int32),
        prompts=ids[:, None],
        completions=completions,
        mask=mask,
        old_log_probs=np.where(mask, log_probs + noise * rng.normal(size=shape), 0).astype(np.float32),
        rewards=rewards,
        is_correct=rewards == 1,
        is_used=is_used,
    )
    ref = np.where(mask, log_probs + 0.4 * rng.normal(size=shape), 0).astype(np.float32)
    return params, jax.tree.map(jnp.asarray, batch), jnp.asarray(ref)
