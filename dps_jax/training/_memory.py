"""An estimate, by arithmetic, of the memory that a run needs on each device."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

from dps_jax._documented import documented
from dps_jax.models import DecoderConfig, _weights

_FLOAT32 = 4
# Four float32 arrays of at most 2**25 numbers are in memory at once: logits or scores, what the forward pass computes
# from them, and the gradients of both.
_PIECE_BYTES, _NUM_PIECES = _FLOAT32 * 2**25, 4


@dataclasses.dataclass(frozen=True)
class Workload:
    """The sizes of a round, and the devices that it runs on.

    Attributes:
      prompt_length: P, tokens per prompt.
      completion_length: T, tokens per completion.
      group_size: G, completions per prompt.
      batch_size: B, prompts per round.
      rows_per_step: completions that go through the model together in the update; None is all B G.
      chunk_size: prompts whose completions are sampled together; None is all B.
      data: number of copies of the policy; see `MeshConfig`.
      fsdp: number of devices that a copy of the policy is split over; see `MeshConfig`.
      compute_bytes: bytes per number that the model computes with; 2 for bfloat16.
      has_reference: whether there is a KL penalty, which needs the weights of the reference policy.

    Example:
      >>> from dps_jax import models, training
      >>> config = models.DecoderConfig(vocab_size=151_936, **models.SIZES["qwen2.5-0.5b"])
      >>> eight_devices = training.Workload(completion_length=4096, rows_per_step=32, fsdp=8)
      >>> training.memory_plan(config, eight_devices).peak < 40e9
      True
    """

    prompt_length: int = 256
    completion_length: int = 1024
    group_size: int = 8
    batch_size: int = 32
    rows_per_step: int | None = None
    chunk_size: int | None = None
    data: int = 1
    fsdp: int = 1
    compute_bytes: int = 2
    has_reference: bool = False


@documented
class MemoryPlan(NamedTuple):
    """Estimated memory on each device, in bytes.

    Attributes:
      weights: float32 master weights, those of the reference policy included.
      moments: the two moments of Adam.
      gradients: float32 gradients of a step of the update, and their sum if there are several steps.
      computing: the copy of the weights that the update computes with, its gradient, and the parts that are gathered
        from other devices at a time.
      activations: activations of the rows of a step: the input of every layer, and all activations of one layer with
        their gradients.
      pieces: logits or attention scores that are in memory at once in the update.
      sampling_weights: the copy of all weights that sampling computes with.
      cache: keys and values of the prompts and completions that are sampled together, those of completions 1.5 times,
        since a cache that grows is copied; those of a prompt are shared by its completions.
      sampling_logits: logits of the next tokens of these completions.

    Example:
      >>> from dps_jax import models, training
      >>> config = models.DecoderConfig(vocab_size=151_936, **models.SIZES["qwen2.5-0.5b"])
      >>> plan = training.memory_plan(config, training.Workload())
      >>> f"{plan.state / 1e9:.1f} GB of weights and moments", plan.peak == plan.update
      ('5.9 GB of weights and moments', True)
    """

    weights: int
    moments: int
    gradients: int
    computing: int
    activations: int
    pieces: int
    sampling_weights: int
    cache: int
    sampling_logits: int

    @property
    def state(self) -> int:
        """Bytes that are in use at any time: weights and moments."""
        return self.weights + self.moments

    @property
    def update(self) -> int:
        """Bytes that are in use during the update."""
        return self.state + self.gradients + self.computing + self.activations + self.pieces

    @property
    def sampling(self) -> int:
        """Bytes that are in use while completions are sampled."""
        return self.state + self.sampling_weights + self.cache + self.sampling_logits

    @property
    def peak(self) -> int:
        """The larger of `update` and `sampling`."""
        return max(self.update, self.sampling)


def num_parameters(config: DecoderConfig) -> int:
    """Returns the number of weights of a decoder."""
    return sum(math.prod(shape) for shape in _weights.shapes_of(config).values())


def cache_bytes_per_token(config: DecoderConfig, compute_bytes: int = 2) -> int:
    """Returns the bytes of a token's keys and values: 2 * num_layers * num_kv_heads * head_dim * compute_bytes."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * compute_bytes


def _activation_numbers(config: DecoderConfig) -> int:
    """Returns the approximate number of activations per token that the gradient of a layer needs; see `Decoder`."""
    heads = (2 * config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    return 6 * config.hidden_size + heads + 4 * config.mlp_size


def memory_plan(config: DecoderConfig, workload: Workload) -> MemoryPlan:
    """Returns an estimate of the memory that a run needs on each device.

    The estimate is the sum of the arrays that are known to exist, for an update that computes the activations of
    layers again in the backward pass. Buffers that the compiler adds and fragmentation are not counted: leave a tenth
    of the memory free.

    Args:
      config: shape of the policy.
      workload: sizes of a round.

    Example:
      >>> from dps_jax import models, training
      >>> config = models.DecoderConfig(vocab_size=151_936, **models.SIZES["qwen2.5-0.5b"])
      >>> all_at_once = training.memory_plan(config, training.Workload())
      >>> in_steps = training.memory_plan(config, training.Workload(rows_per_step=16))
      >>> in_steps.update < all_at_once.update, in_steps.sampling == all_at_once.sampling
      (True, True)
    """
    num_devices = workload.data * workload.fsdp
    total, number = num_parameters(config), workload.compute_bytes
    # Caches are enlarged by doubling. While one is copied to a larger one, half of its final size is in memory twice.
    room = 1.5 * workload.completion_length
    rows = workload.rows_per_step or workload.batch_size * workload.group_size
    # A prompt goes through the model once for all of its completions in a step.
    prompts = -(-rows // workload.group_size)
    tokens = -(-(rows * workload.completion_length + prompts * workload.prompt_length) // num_devices)
    sampled = (workload.chunk_size or workload.batch_size) / num_devices
    shapes = _weights.shapes_of(config).values()
    # The largest part that is gathered at a time: the embedding, or a layer.
    gathered = max(
        max(math.prod(shape) for shape in shapes),
        (total - config.vocab_size * config.hidden_size) // config.num_layers,
    )
    is_one_step = rows >= workload.batch_size * workload.group_size
    has_copy = number != _FLOAT32 or workload.fsdp > 1
    return MemoryPlan(
        weights=_FLOAT32 * total * (2 if workload.has_reference else 1) // workload.fsdp,
        moments=2 * _FLOAT32 * total // workload.fsdp,
        gradients=_FLOAT32 * total // workload.fsdp * (1 if is_one_step else 2),
        computing=number * (2 * total // workload.fsdp * (number != _FLOAT32) + 2 * gathered * (workload.fsdp > 1)),
        activations=number * tokens * (config.num_layers * config.hidden_size + 2 * _activation_numbers(config)),
        pieces=_NUM_PIECES * _PIECE_BYTES,
        sampling_weights=number * total * has_copy,
        cache=math.ceil(
            cache_bytes_per_token(config, number) * sampled * (workload.prompt_length + workload.group_size * room)
        ),
        sampling_logits=math.ceil(3 * _FLOAT32 * config.vocab_size * sampled * workload.group_size),
    )


def fit_workload(config: DecoderConfig, workload: Workload, memory_bytes: float) -> Workload | None:
    """Returns the workload with the largest `rows_per_step` and `chunk_size` that fit; None if nothing fits.

    The values tried are B G and B, their halves, quarters and so on, if the number of devices divides them.

    Args:
      config: shape of the policy.
      workload: sizes of a round; its `rows_per_step` and `chunk_size` are replaced.
      memory_bytes: memory of each device, of which a tenth is left free.

    Example:
      >>> from dps_jax import models, training
      >>> config = models.DecoderConfig(vocab_size=151_936, **models.SIZES["qwen2.5-0.5b"])
      >>> found = training.fit_workload(config, training.Workload(), 80e9)
      >>> training.memory_plan(config, found).peak < 0.9 * 80e9
      True
    """
    num_devices, room = workload.data * workload.fsdp, 0.9 * memory_bytes
    found = workload
    for field, most, size_of in (
        ("rows_per_step", workload.batch_size * workload.group_size, lambda plan: plan.update),
        ("chunk_size", workload.batch_size, lambda plan: plan.sampling),
    ):
        sizes = [most >> shift for shift in range(most.bit_length()) if not (most >> shift) % num_devices]
        tried = (dataclasses.replace(found, **{field: size}) for size in sizes)
        fitting = next((one for one in tried if size_of(memory_plan(config, one)) <= room), None)
        if fitting is None:
            return None
        found = fitting
    return found
