"""The policy of a run on a data file: sampling from it, its log-probs, and writing it to a folder."""

from __future__ import annotations

import functools
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dps_jax import _files, _json, models
from dps_jax.models import _lora
from dps_jax.models._placing import Placing
from dps_jax.training._host_rollout import PADDING
from dps_jax.training._policy_files import Policies

# Files of the model's folder that are copied to the folder of the trained policy, if they exist.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "generation_config.json",
    "vocab.json",
    "merges.txt",
)

# Completions of at most this number of tokens are sampled in one program, and longer ones in stages.
_MAX_IN_ONE_PROGRAM = 64


class TextPolicy(NamedTuple):
    """The parts of a policy that do not depend on its parameters.

    Attributes:
      graphdef: graph definition of the model.
      end_ids: tokens that end a completion.
      pad_id: the padding token.
      num_tokens: number of tokens of the tokenizer; the embedding of the model may have more rows.
      completion_length: T, the largest length of a completion.
      dtype: dtype that the model computes in.
      lora: shape of the adapters; the parameters are then `rl.PartlyTrained`: adapters and frozen weights. None if all
        weights are trained.
      attention: how the update computes attention, a name of `ATTENTIONS`.
    """

    graphdef: Any
    end_ids: tuple[int, ...]
    pad_id: int
    num_tokens: int
    completion_length: int
    dtype: str
    lora: _lora.Lora | None = None
    attention: str = "blockwise"


def _merged(policy: TextPolicy, params: Any) -> Any:
    """Returns the parameters of the model, with its adapters merged into them (in float32) if it has any."""
    if policy.lora is None:
        return params
    config = nnx.merge(policy.graphdef, params.frozen).config
    return _lora.merged(config, params.frozen, params.trained, policy.lora.scale)


def _model(policy: TextPolicy, params: Any) -> models.Decoder:
    """Returns the model, for a gradient with respect to the trained parameters."""
    if policy.lora is None:
        return nnx.merge(policy.graphdef, models.for_computing(params, policy.dtype))
    adapters, base = (models.for_computing(part, policy.dtype) for part in params)
    return _lora.adapted(policy.graphdef, base, adapters, policy.lora.scale)


def _for_sampling(policy: TextPolicy, params: Any) -> Any:
    """Returns the parameters of the model in the form that sampling computes with."""
    return models.for_computing(_merged(policy, params), policy.dtype)


def _split(prompts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns prompts with a mask in place of `PADDING`."""
    return jnp.maximum(prompts, 0), prompts != PADDING


def sample(
    policy: TextPolicy,
    params: Any,
    prompts: jax.Array,
    key: jax.Array,
    *,
    group_size: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int | None = None,
) -> models.Completions:
    """Returns completions of prompts [B, P], whose padding is `PADDING`.

    The argument `key` is one key per prompt, [B], or a single key, which is split into B keys.
    """
    tokens, is_token = _split(prompts)
    return models.sample(
        nnx.merge(policy.graphdef, _for_sampling(policy, params)),
        tokens,
        jax.random.split(key, prompts.shape[0]) if key.ndim == 0 else key,
        group_size=group_size,
        completion_length=policy.completion_length,
        end_ids=policy.end_ids,
        pad_id=policy.pad_id,
        is_prompt_token=is_token,
        num_tokens=policy.num_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
    )


def sampler(
    policy: TextPolicy,
    *,
    group_size: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int | None = None,
    placing: Placing | None = None,
) -> Callable[[Any, np.ndarray, jax.Array], models.Completions]:
    """Returns `sample` with one key per prompt as a function (params, prompts, keys), which is called on the host.

    On one device, completions of more than 64 tokens are sampled in stages; see `models.staged_sampler`.
    """
    options: Any = {"group_size": group_size, "temperature": temperature, "top_p": top_p, "top_k": top_k}
    if placing is not None or policy.completion_length <= _MAX_IN_ONE_PROGRAM:
        return jax.jit(functools.partial(sample, policy, **options))
    staged = models.staged_sampler(
        functools.partial(nnx.merge, policy.graphdef),
        completion_length=policy.completion_length,
        end_ids=policy.end_ids,
        pad_id=policy.pad_id,
        num_tokens=policy.num_tokens,
        **options,
    )
    # Done once for all stages; without jit if nothing is converted, since jit would copy the parameters.
    prepare = functools.partial(_for_sampling, policy)
    prepare = prepare if policy.lora is None and policy.dtype == "float32" else jax.jit(prepare)
    return functools.partial(_sample_in_stages, staged, prepare)


def _sample_in_stages(
    staged: Callable[..., models.Completions],
    prepare: Callable[[Any], Any],
    params: Any,
    prompts: np.ndarray,
    keys: jax.Array,
) -> models.Completions:
    return staged(prepare(params), np.maximum(prompts, 0), prompts != PADDING, keys)


def log_probs(
    policy: TextPolicy, temperature: float, params: Any, prompts: jax.Array, completions: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns log-probs and entropies of completions, [B, G, T]; see `models.completion_log_probs`."""
    tokens, is_token = _split(prompts)
    return models.completion_log_probs(
        _model(policy, params),
        tokens,
        completions,
        pad_id=policy.pad_id,
        is_prompt_token=is_token,
        num_tokens=policy.num_tokens,
        temperature=temperature,
        attention=policy.attention,
    )


def prompt_log_probs(policy: TextPolicy, params: Any, prompts: jax.Array) -> jax.Array:
    """Returns the mean log-prob of each prompt's tokens after the first, in nats per token, float32 [B].

    The prompts are [B, P]. The result for a prompt of one token is 0.
    """
    tokens, is_token = _split(prompts)
    log_probs = jax.nn.log_softmax(_model(policy, params)(tokens, is_token)[:, :-1, : policy.num_tokens], axis=-1)
    of_next = jnp.take_along_axis(log_probs, tokens[:, 1:, None], axis=-1)[..., 0]
    is_counted = is_token[:, 1:] & is_token[:, :-1]
    count = jnp.sum(is_counted, axis=1)
    return jnp.sum(jnp.where(is_counted, of_next, 0.0), axis=1) / jnp.maximum(count, 1)


def policies(policy: TextPolicy, source: Path) -> Policies:
    """Returns the functions that write policies, as folders that `transformers` opens, with the tokenizer of `source`.

    With LoRA the folder has the merged weights, and the adapters in its folder `adapter`, in the format of PEFT.
    """
    return Policies("policy", "policy_best", functools.partial(_write, policy, source), _checksum)


def _write(policy: TextPolicy, source: Path, path: Path, params: Any, num_rounds: int, accuracy: float | None) -> int:
    """Writes a policy, and returns its checksum; see `Policies.write`."""
    fields = {"eos_token_id": list(policy.end_ids), "pad_token_id": policy.pad_id}
    longest = _json.read_object(source / "config.json", "the description of a model", "").get("max_position_embeddings")
    if longest is not None:
        fields["max_position_embeddings"] = longest
    models.save_pretrained(nnx.merge(policy.graphdef, _merged(policy, params)), path, fields=fields)
    if policy.lora is not None:
        # In a folder of their own, since transformers would add adapters beside the merged weights a second time.
        _lora.save_adapters(params.trained, path / "adapter", policy.lora, source)
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            with _files.atomic(path / name) as file, (source / name).open("rb") as original:
                shutil.copyfileobj(original, file)
    _json.write(path / "training.json", {"rounds": num_rounds, "test_accuracy": accuracy}, indent=2)
    return _checksum(path)


def weight_files(folder: Path) -> list[Path]:
    """Returns the files with the weights of a model in a folder."""
    return sorted(folder.glob("model*.safetensors"))


def _checksum(folder: Path) -> int:
    """Returns a checksum of the weights in a folder.

    Raises:
      OSError: if there are none.
    """
    found = weight_files(folder)
    if not found:
        raise FileNotFoundError(f"{folder}: expected model.safetensors, got none")
    return zlib.crc32(repr([_files.checksum(path) for path in found]).encode())
