"""The measurements of `gpu_check.py` on models: sampling and the gradient, each compared with its bound."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping
from typing import Any

import _bench
import _gpu_check
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dps_jax import models, rl
from dps_jax.models import _layout

_PAD_ID = 0


def shape_of(name: str, sizes: _gpu_check.Sizes) -> models.DecoderConfig:
    """Returns the shape of a model, with the vocabulary size of the measurements."""
    return models.DecoderConfig(vocab_size=sizes.vocab_size, **models.SIZES[name])


def _draw(dtype: str, parameter: _layout.Parameter) -> jax.Array:
    if parameter.path[-1] == "scale":
        return jnp.ones(parameter.shape, dtype)
    key = jax.random.key(zlib.crc32(repr(parameter.path).encode()))
    return jax.random.normal(key, parameter.shape, dtype) * 0.02


def draw_weights(config: models.DecoderConfig, dtype: str) -> tuple[Any, Any]:
    """Returns a decoder with random weights, split into its graph definition and its parameters."""
    return nnx.split(_layout.assemble(config, functools.partial(_draw, dtype)))


def count_parameters(config: models.DecoderConfig) -> int:
    """Returns the number of parameters of a decoder."""
    return sum(parameter.size for parameter in _layout.parameters(config))


def _sample(
    graphdef: Any, sizes: _gpu_check.Sizes, params: Any, prompts: jax.Array, key: jax.Array
) -> models.Completions:
    return models.sample(
        nnx.merge(graphdef, params),
        prompts,
        key,
        group_size=sizes.group_size,
        completion_length=sizes.completion_length,
        end_ids=[],
        pad_id=_PAD_ID,
    )


def _read_prompts(graphdef: Any, params: Any, prompts: jax.Array) -> Any:
    model = nnx.merge(graphdef, params)
    hidden, caches = model.extend(prompts[:, None], jnp.ones(prompts.shape, bool)[:, None])
    return model.logits(hidden[:, :, -1]), caches


def decode_bytes(config: models.DecoderConfig, rows: int, sizes: _gpu_check.Sizes) -> dict[str, float]:
    """Returns the bytes that a step of sampling has to read in bfloat16, and the size of the caches at the end.

    A step reads all weights, the keys and values of each prompt once for its G completions, and the keys and values of
    the tokens sampled so far, on average T / 2 per completion.
    """
    per_token = 2 * 2 * config.num_layers * config.num_kv_heads * config.head_dim
    weights = 2 * count_parameters(config)
    prompts, own = rows // sizes.group_size * sizes.prompt_length, rows * sizes.completion_length / 2
    whole = rows * (sizes.prompt_length + sizes.completion_length)
    return {
        "weights": weights,
        "key_values": per_token * (prompts + own),
        "step": weights + per_token * (prompts + own),
        "caches": per_token * whole,
    }


def measure_decode(name: str, rows: int, sizes: _gpu_check.Sizes, rates: Mapping[str, float]) -> dict[str, Any]:
    """Returns the tokens per second of sampling, without the time for prompts, and the bound by `decode_bytes`.

    Args:
      name: name of a model in `models.SIZES`.
      rows: number of completions, B times G.
      sizes: sizes of the measurements.
      rates: rates of the device, of which "copy" is used.

    Raises:
      DoesNotFit: if weights and caches need more memory than the device has.
      RuntimeError: if completions ended early.
    """
    config = shape_of(name, sizes)
    moved = decode_bytes(config, rows, sizes)
    _gpu_check.check_fits(moved["weights"] + moved["caches"], f"{name} with caches of {rows} rows")
    graphdef, params = draw_weights(config, "bfloat16")
    num_groups = rows // sizes.group_size
    prompts = jax.random.randint(jax.random.key(1), (num_groups, sizes.prompt_length), 1, sizes.vocab_size)
    reading = _bench.compile_for(functools.partial(_read_prompts, graphdef), params, prompts)
    prompt_s = _gpu_check.timing(
        _gpu_check.time_calls(reading.call, (params, prompts), sizes._replace(max_seconds=1.0))[0], reading
    )
    args = (params, prompts, jax.random.key(2))
    program = _bench.compile_for(functools.partial(_sample, graphdef, sizes), *args)
    times, found = _gpu_check.time_calls(program.call, args, sizes)
    num_tokens = rows * sizes.completion_length
    if int(found.mask.sum()) != num_tokens:
        raise RuntimeError(f"expected {num_tokens} tokens, got {int(found.mask.sum())}")
    timing = _gpu_check.timing(times, program)
    tokens_per_s = num_tokens / (timing["seconds"] - prompt_s["seconds"])
    bound = rows * rates["copy"] / moved["step"]
    sized = {"num_parameters": count_parameters(config), "rows": rows, "num_tokens": num_tokens}
    rated = {"tokens_per_s": tokens_per_s, "bound_tokens_per_s": bound, "share": tokens_per_s / bound}
    return sized | timing | {"prompt_s": prompt_s["seconds"], "bytes": moved} | rated


def _log_probs(
    graphdef: Any, attention: str, params: Any, prompts: jax.Array, completions: jax.Array
) -> tuple[jax.Array, jax.Array]:
    model = nnx.merge(graphdef, models.for_computing(params, "bfloat16"))
    return models.completion_log_probs(model, prompts, completions, pad_id=_PAD_ID, attention=attention)


def _make_batch(sizes: _gpu_check.Sizes) -> rl.Batch:
    """Returns random completions; half of each group are correct, so that no group is left out of the gradient."""
    num_groups = sizes.update_rows // sizes.group_size
    rows = (num_groups, sizes.group_size)
    tokens = (*rows, sizes.completion_length)
    key_prompts, key_completions = jax.random.split(jax.random.key(3))
    is_correct = jnp.broadcast_to(jnp.arange(sizes.group_size) % 2 == 1, rows)
    return rl.Batch(
        ids=jnp.arange(num_groups, dtype=jnp.int32),
        prompts=jax.random.randint(key_prompts, (num_groups, sizes.prompt_length), 1, sizes.vocab_size),
        completions=jax.random.randint(key_completions, tokens, 1, sizes.vocab_size),
        mask=jnp.ones(tokens, bool),
        old_log_probs=jnp.full(tokens, -np.log(sizes.vocab_size), jnp.float32),
        rewards=is_correct.astype(jnp.float32),
        is_correct=is_correct,
        is_used=jnp.ones(num_groups, bool),
    )


def update_flop(config: models.DecoderConfig, sizes: _gpu_check.Sizes) -> float:
    """Returns the FLOP of a gradient: 6 per parameter and position, plus attention over attended positions.

    The output matrix counts only for the tokens of completions, and an input embedding does not count.
    Computations that are repeated to save memory do not count either.
    """
    num_groups, length = sizes.update_rows // sizes.group_size, sizes.completion_length
    positions = num_groups * sizes.prompt_length + sizes.update_rows * (length - 1)
    table = config.vocab_size * config.hidden_size
    of_layers = count_parameters(config) - table * (1 if config.is_tied else 2)
    products = 6.0 * (of_layers * positions + table * sizes.update_rows * length)
    pairs = num_groups * sizes.prompt_length * (sizes.prompt_length + 1) / 2
    pairs += sizes.update_rows * (length - 1) * (sizes.prompt_length + length / 2)
    return products + 12.0 * config.num_layers * config.num_heads * config.head_dim * pairs


def measure_update(
    name: str, sizes: _gpu_check.Sizes, rates: Mapping[str, float], *, attention: str = "blockwise"
) -> dict[str, Any]:
    """Returns the FLOP per second of the policy gradient, and the rate of matrix products, which bounds it.

    The weights are float32, and are converted to bfloat16 for the computation.

    Args:
      name: name of a model in `models.SIZES`.
      sizes: sizes of the measurements.
      rates: rates of the device, of which "matmul bfloat16" is used.
      attention: see `models.completion_log_probs`.

    Raises:
      DoesNotFit: if weights and gradient need more memory than the device has.
      RuntimeError: if the gradient is not finite, or rows were left out.
    """
    config = shape_of(name, sizes)
    # 4 bytes each for the float32 weights and gradient, and 2 for the bfloat16 weights.
    _gpu_check.check_fits(10 * count_parameters(config), f"{name}, weights and gradient,")
    graphdef, params = draw_weights(config, "float32")
    log_probs = functools.partial(_log_probs, graphdef, attention)
    learner = rl.learner(log_probs, learning_rate=1e-6, rows_per_step=sizes.rows_per_step)
    args = (params, _make_batch(sizes))
    program = _bench.compile_for(learner.gradient, *args)
    times, found = _gpu_check.time_calls(program.call, args, sizes)
    if not bool(found[1].is_finite) or int(found[1].num_rows) != sizes.update_rows:
        raise RuntimeError(f"expected a finite gradient of {sizes.update_rows} rows, got {found[1]}")
    timing, flop = _gpu_check.timing(times, program), update_flop(config, sizes)
    rate = flop / timing["seconds"]
    sized = {"num_parameters": count_parameters(config), "rows": sizes.update_rows, "flop": flop}
    rated = {"flop_per_s": rate, "bound_flop_per_s": rates["matmul bfloat16"], "share": rate / rates["matmul bfloat16"]}
    tokens_per_s = sizes.update_rows * sizes.completion_length / timing["seconds"]
    how = {"attention": attention, "rows_per_step": sizes.rows_per_step}
    return sized | timing | how | {"tokens_per_s": tokens_per_s} | rated
