"""A language model and its data small enough for tests: a random Qwen3 with a byte-level tokenizer, and sums."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import tokenizers
from flax import nnx

from dps_jax import models
from dps_jax.training import _config as configs
from dps_jax.training import _text_config

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
# Rows of the embedding that no token has, as Qwen's models have them.
NUM_UNUSED = 11


def make_tokenizer() -> tokenizers.Tokenizer:
    """Returns a tokenizer of bytes: no merges, and the special tokens behind them."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    found = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    found.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    found.decoder = tokenizers.decoders.ByteLevel()
    found.add_special_tokens(SPECIAL)
    return found


def make_model(folder: Path, *, seed: int = 0, scale: float = 0.02) -> Path:
    """Writes a folder with a random Qwen3 and its tokenizer."""
    tokenizer = make_tokenizer()
    num_tokens = tokenizer.get_vocab_size()
    config = models.DecoderConfig(
        vocab_size=num_tokens + NUM_UNUSED, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16,
        mlp_size=48,
    )  # fmt: skip
    graphdef, params = nnx.split(models.Decoder(config, rngs=nnx.Rngs(seed)))
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [leaf + scale * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    model = nnx.merge(graphdef, jax.tree.unflatten(structure, moved))
    # One direction that all hidden states share makes the answers and the end likely, so that some are right.
    favoured = jnp.array([tokenizer.token_to_id(token) for token in ("2", "3", "4", "<|end|>")])
    embedding = model.embedding.embedding
    embedding[...] = embedding[...].at[:, 0].set(0.5).at[favoured, 0].set(2.0)
    models.save_pretrained(model, folder, fields={"eos_token_id": tokenizer.token_to_id("<|end|>")})
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {"eos_token": "<|end|>", "pad_token": "<|pad|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    return folder


def write_rows(path: Path, rows: list[dict]) -> Path:
    """Writes a data file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_sums(path: Path, count: int = 60) -> Path:
    """Writes questions with the answers 2, 3 and 4, in two groups; prompts differ in length."""
    rows = [
        {
            "prompt": f"{index % 3}+2" + "?" * (index % 7) + f" #{index}",
            "answer": str(index % 3 + 2),
            "group": "small" if index % 3 < 2 else "large",
        }
        for index in range(count)
    ]
    return write_rows(path, rows)


def tiny(model: Path, data: Path, out_dir: Path, **changes) -> _text_config.TextConfig:
    """Returns the config of a text run of seconds."""
    fields = {
        "name": "run",
        "out_dir": out_dir,
        "model": model,
        "data": data,
        "num_rounds": 4,
        "eval_every": 2,
        "eval_samples": 4,
        "checkpoint_every": 1,
        "prompts": _text_config.PromptsConfig(num_test=8, max_length=64),
        "grader": _text_config.GraderConfig(name="exact", num_processes=1),
        "selector": configs.SelectorConfig(method="dps", pool_factor=2),
        "rollout": _text_config.TextRolloutConfig(batch_size=4, group_size=4, completion_length=3),
        "learner": configs.LearnerConfig(learning_rate=1e-3),
    }
    return _text_config.TextConfig(**(fields | changes))


def changed(config: _text_config.TextConfig, part: str, **fields) -> _text_config.TextConfig:
    """Returns the config with other fields of one of its parts."""
    return dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **fields)})
