"""What a run needs of the memory of each device, by arithmetic: before a machine is rented."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

from dps_jax.models import DecoderConfig, _weights

_FLOAT32 = 4
# Float32 arrays of at most 2**25 numbers that exist at the same time: logits or scores, what follows from them in the
# forward pass, and their gradients.
_PIECE_BYTES, _NUM_PIECES = _FLOAT32 * 2**25, 4


@dataclasses.dataclass(frozen=True)
class Workload:
    """What a round is made of, and the devices it is done on.

    Attributes:
      prompt_length: P, tokens.
      completion_length: T, tokens.
      group_size: G.
      batch_size: B.
      rows_per_step: completions of a step of the update; None is all B G.
      chunk_size: prompts that are sampled together; None is all B.
      data: see `mesh.MeshConfig`, as for `fsdp`.
      compute_bytes: of a number that the model computes with; 2 for bfloat16.
      has_reference: there is a KL penalty.
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


class MemoryPlan(NamedTuple):
    """Bytes on each device.

    Attributes:
      weights: float32 master weights, those of the reference policy included.
      moments: of Adam, two.
      gradients: in the update, float32; those of a step, and their sum where there are several.
      computing: the copy of the weights that the update computes with and its gradient, and the parts that are gathered
        at a time.
      activations: what the update keeps of the rows of a step: what goes into every layer, and all of one layer.
      pieces: logits or scores of attention that exist at the same time in the update.
      sampling_weights: the copy of all weights that sampling computes with.
      cache: keys and values of the prompts and completions that are sampled together; those of a prompt once.
      sampling_logits: of their next tokens.
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
        """What is there at any time."""
        return self.weights + self.moments

    @property
    def update(self) -> int:
        """What is there in the update."""
        return self.state + self.gradients + self.computing + self.activations + self.pieces

    @property
    def sampling(self) -> int:
        """What is there while completions are sampled."""
        return self.state + self.sampling_weights + self.cache + self.sampling_logits

    @property
    def peak(self) -> int:
        """The larger of the two."""
        return max(self.update, self.sampling)


def num_parameters(config: DecoderConfig) -> int:
    """Returns the number of weights of a decoder."""
    return sum(math.prod(shape) for shape in _weights.shapes_of(config).values())


def cache_bytes_per_token(config: DecoderConfig, compute_bytes: int = 2) -> int:
    """Returns the bytes of the keys and values of a token: 2 layers kv_heads head_dim times those of a number."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * compute_bytes


def _activation_numbers(config: DecoderConfig) -> int:
    """Returns about how many numbers a layer computes for a token that its gradient needs; see `Decoder`."""
    heads = (2 * config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    return 6 * config.hidden_size + heads + 4 * config.mlp_size


def memory_plan(config: DecoderConfig, workload: Workload) -> MemoryPlan:
    """Returns about what a run needs of each device.

    It is a sum of what is known to be there, with layers computed again in the update. What a compiler adds, buffers of
    collectives and fragments, is not in it: leave a tenth of the memory.

    Args:
      config: of the policy.
      workload: a round.
    """
    num_devices = workload.data * workload.fsdp
    total, number = num_parameters(config), workload.compute_bytes
    # Room that is doubled again and again: half of it is there twice for a moment.
    room = 1.5 * workload.completion_length
    rows = workload.rows_per_step or workload.batch_size * workload.group_size
    # A prompt is read once for all of its completions in the step, but these may be one.
    prompts = -(-rows // workload.group_size)
    tokens = -(-(rows * workload.completion_length + prompts * workload.prompt_length) // num_devices)
    sampled = (workload.chunk_size or workload.batch_size) / num_devices
    shapes = _weights.shapes_of(config).values()
    # The largest part that is gathered, a table of V rows or a layer, and its gradient before it is split.
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


def fitted(config: DecoderConfig, workload: Workload, memory_bytes: float) -> Workload | None:
    """Returns a workload with the most rows per step and the largest chunks that fit; None if nothing does.

    Args:
      config: of the policy.
      workload: a round.
      memory_bytes: of each device, of which a tenth is left free.
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
