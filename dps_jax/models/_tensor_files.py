"""Reading and writing .safetensors files a few rows at a time, so that no whole tensor needs to be in memory.

The library safetensors is not used for this: it maps files into memory, so that every page that was read counts as
used, and only its recent releases return bfloat16 as NumPy arrays.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_BLOCK_BYTES = 1 << 20


class Entry(NamedTuple):
    """A tensor in a file.

    Attributes:
      path: path of the file.
      name: name of the tensor.
      dtype: dtype of the tensor.
      shape: shape of the tensor.
      start: position of its first number, in bytes from the start of the file.
    """

    path: Path
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int


def read_header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """Returns the place of each tensor of a file by name, and the metadata of the file; numbers are not read.

    Raises:
      ValueError: if the file is missing, truncated or damaged, or has tensors that are not floating-point numbers; the
        message names the file.
    """
    try:
        # The library checks that the header is valid and that its tensors fill the file.
        with safe_open(path, framework="numpy"):
            pass
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
    except (SafetensorError, OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ValueError(f"{path}: expected a whole .safetensors file, got an error: {reason}") from error
    metadata = header.pop("__metadata__", None) or {}
    entries = {}
    for name, fields in header.items():
        if fields["dtype"] not in DTYPES:
            raise ValueError(
                f"{path}: tensors[{name!r}]: expected one of {', '.join(DTYPES)}, got {fields['dtype']}; quantised "
                "weights are not supported"
            )
        start = 8 + size + fields["data_offsets"][0]
        entries[name] = Entry(path, name, DTYPES[fields["dtype"]], tuple(fields["shape"]), start)
    return entries, metadata


def rows_per_block(shape: Sequence[int], dtype: np.dtype) -> int:
    """Returns the number of rows of an array that take at most a mebibyte; at least one."""
    return max(1, _BLOCK_BYTES // max(1, math.prod(shape[1:]) * dtype.itemsize))


def read_blocks(entry: Entry) -> Iterator[tuple[int, np.ndarray]]:
    """Yields each block of rows of a tensor, after the index of its first row.

    Raises:
      ValueError: if the file ends before the tensor, as when another program is writing it; the message names the file.
    """
    step = rows_per_block(entry.shape, entry.dtype)
    num_rows = entry.shape[0] if entry.shape else 1
    with open(entry.path, "rb") as file:
        file.seek(entry.start)
        for row in range(0, num_rows, step):
            shape = (min(step, num_rows - row), *entry.shape[1:]) if entry.shape else ()
            size = math.prod(shape) * entry.dtype.itemsize
            content = file.read(size)
            if len(content) != size:
                raise ValueError(f"{entry.path}: expected {size} bytes of {entry.name!r}, got {len(content)}")
            yield row, np.frombuffer(content, entry.dtype).reshape(shape)


def header(shapes: Mapping[str, tuple[np.dtype, Sequence[int]]], metadata: Mapping[str, str]) -> bytes:
    """Returns the header of a file whose tensors follow in the order of `shapes`, without gaps.

    Args:
      shapes: dtype and shape of every tensor, by name.
      metadata: metadata of the file.
    """
    fields: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, (dtype, shape) in shapes.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        fields[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(fields, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    return len(text).to_bytes(8, "little") + text
