"""LoRA: matrices of a decoder with trained low-rank additions, W + scale A B, where W is fixed.

Adapters are a separate tree beside the parameters of the base,
`{"model.layers.0.self_attn.q_proj": Adapter(a, b), ...}`. There are two ways to compute with them. `merged` adds the
products A B to the matrices and returns ordinary parameters, for sampling and for files. `adapted` is for training: it
adds scale (x A) B to x W, so that no gradient with respect to W is computed.

Source: Hu et al., LoRA (arXiv 2106.09685). As in the library PEFT, whose file format `save_adapters` writes, A is
initialised at random and B to zero, and scale is alpha / rank.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from safetensors.numpy import save as to_bytes

from dps_jax import _checks, _files, _json
from dps_jax.models import _layout
from dps_jax.models._config import DecoderConfig
from dps_jax.models._decoder import Decoder
from dps_jax.models._layout import Parameter, Part

# All linear layers of a block, with their names in Hugging Face's files.
TARGETS = {
    "q": "q_proj",
    "k": "k_proj",
    "v": "v_proj",
    "o": "o_proj",
    "gate": "gate_proj",
    "up": "up_proj",
    "down": "down_proj",
}
# The same for all ranks. Adam's first step moves every entry of B by the same amount, and to first order the loss falls
# by alpha / rank times a sum over the columns of A, whose number is the rank. With a constant alpha, different ranks
# can therefore share a learning rate.
DEFAULT_ALPHA = 16.0
_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_SUFFIX = ".weight"


class Adapter(NamedTuple):
    """The factors of the addition to a matrix W [in, out], which becomes W + scale A B.

    Attributes:
      a: A, [in, rank].
      b: B, [rank, out].
    """

    a: jax.Array
    b: jax.Array


class Lora(NamedTuple):
    """Which matrices have additions, and the rank and scale of the additions.

    Attributes:
      rank: rank of each addition.
      alpha: `rank` times `scale`.
      targets: names of `TARGETS`.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]

    @property
    def scale(self) -> float:
        """The factor that the products A B are multiplied by."""
        return self.alpha / self.rank


def lora(rank: int, *, alpha: float = DEFAULT_ALPHA, targets: Sequence[str] = tuple(TARGETS)) -> Lora:
    """Returns a `Lora` after checking its fields.

    Raises:
      ValueError: for a rank below 1, an alpha that is not above 0, or targets that are unknown, repeated or missing.
    """
    rank = _checks.check_int("rank", rank, at_least=1)
    _checks.check_number("alpha", alpha, above=0, hint=f"{DEFAULT_ALPHA:g} is the default")
    if not isinstance(targets, (tuple, list)) or not targets:
        raise ValueError(
            f"targets: expected a tuple of some of {', '.join(TARGETS)}, got {targets!r}; leave it out for all"
        )
    for target in targets:
        _checks.check_choice("targets", target, TARGETS)
    if len(set(targets)) < len(targets):
        raise ValueError(f"targets: expected each name once, got {' '.join(targets)}; remove the repeated names")
    return Lora(rank, float(alpha), tuple(target for target in TARGETS if target in targets))


def _name_of(part: Part) -> str:
    """Returns the name of the layer whose weight a tensor is, or "" for tensors of other kinds."""
    return part.name.removesuffix(_SUFFIX) if part.name.endswith(_SUFFIX) else ""


def _parts(config: DecoderConfig, names: Sequence[str]) -> Iterator[tuple[Parameter, Part]]:
    """Yields each matrix whose layer name ends in one of `names`, after the parameter that contains it."""
    for parameter in _layout.parameters(config):
        for part in parameter.parts:
            if parameter.is_transposed and _name_of(part).endswith(tuple(f".{name}" for name in names)):
                yield parameter, part


def init(config: DecoderConfig, key: jax.Array, shape: Lora) -> dict[str, Adapter]:
    """Returns new float32 adapters, by the names of their layers in Hugging Face's files.

    The entries of A are uniform in [-1 / sqrt(in), 1 / sqrt(in)], and B is zero, so the model computes the same as
    without adapters.

    Args:
      config: shape of the decoder.
      key: random key for A.
      shape: which matrices have adapters, and their rank.

    Raises:
      ValueError: for a rank that is larger than the smaller side of a matrix.
    """
    places = list(_parts(config, [TARGETS[target] for target in shape.targets]))
    found = {}
    for key_of_part, (parameter, part) in zip(jax.random.split(key, len(places)), places, strict=True):
        size_in, size_out = parameter.shape[0], part.stop - part.start
        if shape.rank > min(size_in, size_out):
            raise ValueError(
                f"rank: expected at most {min(size_in, size_out)}, the smaller side of {_name_of(part)} "
                f"[{size_in}, {size_out}], got {shape.rank}; use a smaller rank, or leave its name out of the targets"
            )
        limit = size_in**-0.5
        a = jax.random.uniform(key_of_part, (size_in, shape.rank), jnp.float32, -limit, limit)
        found[_name_of(part)] = Adapter(a, jnp.zeros((shape.rank, size_out), jnp.float32))
    return found


def _adapted_parts(
    config: DecoderConfig, adapters: Mapping[str, Adapter]
) -> Iterator[tuple[Parameter, dict[tuple[int, int], Adapter]]]:
    """Yields each parameter that has adapters, with its adapters by the column range (start, stop) of their part."""
    for parameter in _layout.parameters(config):
        found = {
            (part.start, part.stop): adapters[_name_of(part)]
            for part in parameter.parts
            if parameter.is_transposed and _name_of(part) in adapters
        }
        if found:
            yield parameter, found


def merged(config: DecoderConfig, params: Any, adapters: Mapping[str, Adapter], scale: float) -> Any:
    """Returns the parameters of the base with the additions merged into them, float32.

    Args:
      config: shape of the decoder.
      params: parameters of the base, a state of `nnx.split`.
      adapters: adapters, with the keys that `init` returns.
      scale: factor of the additions.
    """
    leaves = dict(nnx.to_flat_state(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)))
    for parameter, parts in _adapted_parts(config, adapters):
        value = leaves[parameter.path][...]
        for (start, stop), adapter in parts.items():
            value = value.at[:, start:stop].add(scale * jnp.matmul(*adapter, precision=lax.Precision.HIGHEST))
        leaves[parameter.path] = leaves[parameter.path].replace(value)
    return nnx.from_flat_state(list(leaves.items()))


class _AdaptedLinear(nnx.Module):
    """A linear layer with low-rank additions to ranges of its output columns."""

    def __init__(self, linear: nnx.Linear, parts: Mapping[tuple[int, int], Adapter], scale: float):
        """Stores a layer and its adapters, given by the column range (start, stop) that each adds to."""
        self.linear, self.scale, self.places = linear, scale, tuple(sorted(parts))
        self.a = nnx.List([nnx.Param(parts[place].a) for place in self.places])
        self.b = nnx.List([nnx.Param(parts[place].b) for place in self.places])

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Returns the output of the layer plus the additions."""
        outputs = self.linear(inputs)
        pieces, done = [], 0
        for (start, stop), a, b in zip(self.places, self.a, self.b, strict=True):
            pieces.append(outputs[..., done:start])
            pieces.append(outputs[..., start:stop] + self.scale * ((inputs @ a[...]) @ b[...]))
            done = stop
        return jnp.concatenate([*pieces, outputs[..., done:]], axis=-1)


def adapted(graphdef: Any, params: Any, adapters: Mapping[str, Adapter], scale: float) -> Decoder:
    """Returns a decoder that adds scale (x A) B to the product x W of every matrix W with an adapter.

    Args:
      graphdef: graph definition of the base, from `nnx.split`.
      params: parameters of the base, in the dtype to compute in.
      adapters: adapters of the same dtype, with the keys that `init` returns.
      scale: factor of the additions.
    """
    model = nnx.merge(graphdef, params)
    for parameter, parts in _adapted_parts(model.config, adapters):
        block, name = _layout.get(model, parameter.path[:-2]), str(parameter.path[-2])
        setattr(block, name, _AdaptedLinear(getattr(block, name), parts, scale))
    return model


def save_adapters(
    adapters: Mapping[str, Adapter], folder: os.PathLike[str] | str, shape: Lora, base: os.PathLike[str] | str
) -> None:
    """Writes adapters to a folder in PEFT's format: adapter_model.safetensors and adapter_config.json.

    Each file is written atomically, adapter_config.json last.

    Args:
      adapters: adapters, with the keys that `init` returns.
      folder: folder to write to; it is created if it does not exist. It must not contain a model: `transformers` would
        apply the adapters to that model.
      shape: which matrices have adapters, and their rank and alpha.
      base: folder or name of the model that the adapters belong to; PEFT loads the model from there.

    Raises:
      OSError: if a file cannot be written; the message names the file.
    """
    tensors = {}
    for name, adapter in adapters.items():
        for kind, value in (("lora_A", adapter.a), ("lora_B", adapter.b)):
            tensors[f"base_model.model.{name}.{kind}{_SUFFIX}"] = np.ascontiguousarray(np.asarray(value).T)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _CONFIG).unlink(missing_ok=True)  # so that a mixture of old and new files cannot be loaded
    _files.write_atomically(folder / _WEIGHTS, to_bytes(tensors, metadata={"format": "pt"}))
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": os.fspath(base),
        "r": shape.rank,
        "lora_alpha": shape.alpha,
        "target_modules": [TARGETS[target] for target in shape.targets],
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    _json.write(folder / _CONFIG, described, indent=2)
