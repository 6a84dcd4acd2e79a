"""LoRA: matrices of a decoder with trained low-rank additions, W + scale A B, while W stays as it is.

Adapters are a tree of their own, `{"model.layers.0.self_attn.q_proj": Adapter(a, b), ...}`, beside the parameters of
the base. There are two ways to compute with them. `merged` adds the products to the matrices: ordinary parameters, for
sampling and for files. `adapted` leaves the matrices alone and adds (x A) B to what they compute from x, so that a
gradient with respect to A and B never computes one with respect to a matrix: for training.

Source: Hu et al., LoRA (2106.09685). As in the library PEFT, whose files `save_adapters` writes, A begins random, B at
zero, and scale is alpha / rank.
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

# All linear layers of a block, and what Hugging Face calls them.
TARGETS = {
    "q": "q_proj",
    "k": "k_proj",
    "v": "v_proj",
    "o": "o_proj",
    "gate": "gate_proj",
    "up": "up_proj",
    "down": "down_proj",
}
# Not in proportion to the rank: Adam's first step moves all entries of B as far, and to first order the loss falls by
# alpha / rank times a sum over the columns of A, as many as the rank. At a constant alpha ranks share a learning rate.
DEFAULT_ALPHA = 16.0
_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_SUFFIX = ".weight"


class Adapter(NamedTuple):
    """The addition to a matrix W [in, out], which becomes W + scale A B.

    Attributes:
      a: [in, rank].
      b: [rank, out].
    """

    a: jax.Array
    b: jax.Array


class Lora(NamedTuple):
    """Which matrices have additions, and of what rank.

    Attributes:
      rank: of each.
      alpha: rank times the factor of the additions.
      targets: names of `TARGETS`.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]

    @property
    def scale(self) -> float:
        """The factor of the additions."""
        return self.alpha / self.rank


def lora(rank: int, *, alpha: float = DEFAULT_ALPHA, targets: Sequence[str] = tuple(TARGETS)) -> Lora:
    """Returns a `Lora` whose fields were checked.

    Raises:
      ValueError: for a rank below 1, alpha that is not above 0, or targets that are unknown, doubled or missing.
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
        raise ValueError(f"targets: expected each name once, got {' '.join(targets)}; remove what is there twice")
    return Lora(rank, float(alpha), tuple(target for target in TARGETS if target in targets))


def _name_of(part: Part) -> str:
    """Returns the name of the layer that a tensor is the matrix of, or "" for other tensors."""
    return part.name.removesuffix(_SUFFIX) if part.name.endswith(_SUFFIX) else ""


def _parts(config: DecoderConfig, names: Sequence[str]) -> Iterator[tuple[Parameter, Part]]:
    """Yields the matrices of a decoder that end in one of some names, with the parameter that each is columns of."""
    for parameter in _layout.parameters(config):
        for part in parameter.parts:
            if parameter.is_transposed and _name_of(part).endswith(tuple(f".{name}" for name in names)):
                yield parameter, part


def init(config: DecoderConfig, key: jax.Array, shape: Lora) -> dict[str, Adapter]:
    """Returns adapters that change nothing yet, float32, by the names of their layers in Hugging Face's files.

    A is uniform within 1 / sqrt(in), B is zero.

    Args:
      config: of the decoder.
      key: for A.
      shape: of the adapters.

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
                f"[{size_in}, {size_out}], got {shape.rank}; take a smaller rank, or leave its name out of the targets"
            )
        limit = size_in**-0.5
        a = jax.random.uniform(key_of_part, (size_in, shape.rank), jnp.float32, -limit, limit)
        found[_name_of(part)] = Adapter(a, jnp.zeros((shape.rank, size_out), jnp.float32))
    return found


def _adapted_parts(
    config: DecoderConfig, adapters: Mapping[str, Adapter]
) -> Iterator[tuple[Parameter, dict[tuple[int, int], Adapter]]]:
    """Yields the parameters that have adapters, with the adapters by first and last column of each part."""
    for parameter in _layout.parameters(config):
        found = {
            (part.start, part.stop): adapters[_name_of(part)]
            for part in parameter.parts
            if parameter.is_transposed and _name_of(part) in adapters
        }
        if found:
            yield parameter, found


def merged(config: DecoderConfig, params: Any, adapters: Mapping[str, Adapter], scale: float) -> Any:
    """Returns ordinary parameters of a decoder, float32: those of a base with the additions in them.

    Args:
      config: of the decoder.
      params: of the base, a state of `nnx.split`.
      adapters: of `init`.
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
    """A linear layer with additions to some of its columns, which are computed beside it."""

    def __init__(self, linear: nnx.Linear, parts: Mapping[tuple[int, int], Adapter], scale: float):
        """Puts adapters beside a layer, by the first and last column that each adds to."""
        self.linear, self.scale, self.places = linear, scale, tuple(sorted(parts))
        self.a = nnx.List([nnx.Param(parts[place].a) for place in self.places])
        self.b = nnx.List([nnx.Param(parts[place].b) for place in self.places])

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Returns what the layer with its additions computes."""
        outputs = self.linear(inputs)
        pieces, done = [], 0
        for (start, stop), a, b in zip(self.places, self.a, self.b, strict=True):
            pieces.append(outputs[..., done:start])
            pieces.append(outputs[..., start:stop] + self.scale * ((inputs @ a[...]) @ b[...]))
            done = stop
        return jnp.concatenate([*pieces, outputs[..., done:]], axis=-1)


def adapted(graphdef: Any, params: Any, adapters: Mapping[str, Adapter], scale: float) -> Decoder:
    """Returns a decoder that computes with adapters beside the matrices of the base.

    Args:
      graphdef: of the base, as `nnx.split` returns it.
      params: of the base, in the type to compute in.
      adapters: of `init`, in the same type.
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

    Each file is written whole or not at all, the description last.

    Args:
      adapters: of `init`.
      folder: made if it is not there. It must not be that of a model, for which `transformers` would take them.
      shape: of the adapters.
      base: the folder of the model that they belong to, or its name; PEFT looks for the model there.

    Raises:
      OSError: naming the file, if it cannot be written.
    """
    tensors = {}
    for name, adapter in adapters.items():
        for kind, value in (("lora_A", adapter.a), ("lora_B", adapter.b)):
            tensors[f"base_model.model.{name}.{kind}{_SUFFIX}"] = np.ascontiguousarray(np.asarray(value).T)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _CONFIG).unlink(missing_ok=True)  # no reader takes a mixture of old and other files for adapters
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
