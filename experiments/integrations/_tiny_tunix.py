"""A tiny model, its tokenizer and the sums of two digits, made on the spot for the example of tunix and its tests."""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

import jax
from flax import nnx
from tunix.models.qwen2.model import ModelConfig, Qwen2
from tunix.rl.rl_cluster import ClusterConfig, RLCluster, RLTrainingConfig, Role
from tunix.rl.rollout.base_rollout import RolloutConfig


class Tokenizer:
    """A tokenizer of the numbers up to the largest, "+" and "=", one token each, with the methods that tunix calls."""

    def __init__(self, largest: int = 18):
        self.words = ["<pad>", "<bos>", "<eos>", "+", "=", *map(str, range(largest + 1))]

    def encode(self, text: str, **kwargs: Any) -> list[int]:
        """Returns the tokens of words."""
        return [self.words.index(word) for word in text.split()]

    def decode(self, ids: list[int], **kwargs: Any) -> str:
        """Returns the words of tokens."""
        return " ".join(self.words[index] for index in ids)

    def pad_id(self) -> int:
        """Returns the token of padding."""
        return 0

    def bos_id(self) -> int:
        """Returns the token at the beginning of a prompt."""
        return 1

    def eos_id(self) -> int:
        """Returns the token that ends a completion."""
        return 2


def make_model(num_words: int, width: int = 32, seed: int = 0) -> Qwen2:
    """Returns a Qwen2 model of one layer with random weights."""
    config = ModelConfig(
        num_layers=1,
        vocab_size=num_words,
        embed_dim=width,
        hidden_dim=2 * width,
        num_heads=2,
        head_dim=width // 2,
        num_kv_heads=1,
        rope_theta=10_000,
        norm_eps=1e-6,
        use_tied_embedding=True,
    )
    model = Qwen2(config, rngs=nnx.Rngs(seed))
    # tunix draws weights with a standard deviation of 1, as it expects to load others; samples would hardly differ.
    nnx.update(model, jax.tree.map(lambda leaf: 0.1 * leaf if leaf.ndim > 1 else leaf, nnx.state(model)))
    return model


def make_cluster(
    optimizer: Any, width: int = 32, eval_every_n_steps: int = 1_000, is_apart: bool = False, **options: Any
) -> RLCluster:
    """Returns a cluster of policy, reference policy, sampler and optimiser on one device.

    Args:
      optimizer: optimiser of the policy, from optax.
      width: width of the model.
      eval_every_n_steps: number of steps between evaluations.
      is_apart: whether the sampler has a mesh and weights of its own, and works while the policy is trained.
      **options: options of `RLTrainingConfig`, such as `max_steps`.
    """
    meshes = [jax.sharding.Mesh([[jax.devices()[0]]], axes) for axes in (("fsdp", "tp"), ("tp", "fsdp"))]
    tokenizer = Tokenizer()
    config = ClusterConfig(
        role_to_mesh={
            Role.ACTOR: meshes[0],
            Role.REFERENCE: meshes[0],
            Role.ROLLOUT: meshes[int(is_apart)],
        },
        training_config=RLTrainingConfig(actor_optimizer=optimizer, eval_every_n_steps=eval_every_n_steps, **options),
        rollout_config=RolloutConfig(max_tokens_to_generate=2, max_prompt_length=8, kv_cache_size=16, temperature=1.0),
    )
    models = {name: make_model(len(tokenizer.words), width) for name in ("actor", "reference")}
    return RLCluster(**models, tokenizer=tokenizer, cluster_config=config)


def make_rows() -> list[dict[str, str]]:
    """Returns the hundred sums of two digits in order: row 34 is "3 + 4 =" with the answer "7"."""
    sums = [(first, second) for first in range(10) for second in range(10)]
    return [{"prompts": f"{first} + {second} =", "answer": str(first + second)} for first, second in sums]


def accuracy(prompts: list[str], completions: list[str], answer: list[str], **kwargs: Any) -> list[float]:
    """Returns 1 for completions that begin with the answer, 0 for others: a reward function of tunix."""
    return [float(text.split()[:1] == [right]) for text, right in zip(completions, answer, strict=True)]
