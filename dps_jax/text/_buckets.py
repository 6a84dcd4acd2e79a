"""Length buckets: a few padded lengths for all prompts, because JAX compiles one program per length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dps_jax import _checks


def bucket_lengths(lengths: Any, max_buckets: int = 4, multiple: int = 8) -> tuple[int, ...]:
    """Returns the padded lengths with the fewest padding tokens over all prompts.

    The optimum is exact: it is found by dynamic programming over the distinct lengths, rounded up to multiples of
    `multiple`. Among equally good choices, the one with the fewest buckets is taken.

    Args:
      lengths: length of each prompt in tokens, [N], at least 1.
      max_buckets: largest number of buckets.
      multiple: number that divides every padded length.

    Returns:
      Padded lengths in increasing order; the last one holds the longest prompt.

    Raises:
      ValueError: for an empty list of lengths, or a length, number of buckets or multiple below 1.

    Example:
      >>> from dps_jax import text
      >>> text.bucket_lengths([10, 12, 100])
      (16, 104)
    """
    max_buckets = _checks.check_int("max_buckets", max_buckets, at_least=1)
    multiple = _checks.check_int("multiple", multiple, at_least=1)
    found = _checked_lengths("lengths", lengths)
    if found.size == 0:
        raise ValueError("lengths: expected the length of at least one prompt, got none; read some questions first")
    sizes, counts = np.unique(-(-found // multiple) * multiple, return_counts=True)
    shorter = np.concatenate([[0], np.cumsum(counts)])
    cost = np.concatenate([[0.0], np.full(sizes.size, np.inf)])
    totals, starts = [], []
    for _ in range(min(max_buckets, sizes.size)):
        start, cost = _with_another_bucket(cost, sizes, shorter)
        starts.append(start)
        totals.append(cost[-1])
    chosen, last = [], sizes.size - 1
    for start in reversed(starts[: int(np.argmin(totals)) + 1]):
        chosen.append(int(sizes[last]))
        last = int(start[last]) - 1
    return tuple(reversed(chosen))


def _with_another_bucket(cost: np.ndarray, sizes: np.ndarray, shorter: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the best buckets if one more is allowed.

    Args:
      cost: least number of tokens, padding included, of the i shortest lengths in the buckets so far, for i = 0, 1, ...
        float64 [lengths + 1]; infinite if they do not fit.
      sizes: distinct lengths, increasing, [lengths].
      shorter: number of prompts that have one of the i shortest lengths, [lengths + 1].

    Returns:
      For each length, the first length of the bucket that ends with it, [lengths], and the cost with this bucket.
    """
    start = np.zeros(sizes.size, np.int64)
    with_it = np.full(sizes.size + 1, np.inf)
    for last, size in enumerate(sizes):
        tokens = cost[: last + 1] + (shorter[last + 1] - shorter[: last + 1]) * size
        start[last] = np.argmin(tokens)
        with_it[last + 1] = tokens[start[last]]
    return start, with_it


def bucket_of(lengths: Any, buckets: Sequence[int]) -> np.ndarray:
    """Returns the index of the shortest bucket that holds each prompt, int64 [N].

    Args:
      lengths: length of each prompt in tokens, [N].
      buckets: increasing padded lengths, as returned by `bucket_lengths`.

    Raises:
      ValueError: for buckets that do not increase, a prompt longer than the last bucket, or a length below 1.

    Example:
      >>> from dps_jax import text
      >>> text.bucket_of([10, 100, 12], buckets=(16, 104)).tolist()
      [0, 1, 0]
    """
    sizes = _checked_lengths("buckets", buckets)
    if sizes.size == 0 or np.any(np.diff(sizes) <= 0):
        raise ValueError(f"buckets: expected increasing lengths, got {buckets!r}; take those of bucket_lengths")
    found = _checked_lengths("lengths", lengths)
    if found.size and found.max() > sizes[-1]:
        position = int(np.argmax(found))
        raise ValueError(
            f"lengths: expected at most {sizes[-1]}, the last of the buckets, got {found[position]} at position "
            f"{position}; drop the prompt or add a bucket"
        )
    return np.searchsorted(sizes, found).astype(np.int64)


def pad_left(rows: Sequence[Any], length: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns prompts padded on the left to one length, and the mask of their tokens.

    Args:
      rows: tokens of the prompts, B sequences of integers.
      length: padded length, P, at least that of the longest prompt.
      pad_id: token of padding.

    Returns:
      Tokens, int32 [B, P], and whether each of them belongs to the prompt, bool [B, P].

    Raises:
      ValueError: for a row that is longer than `length` or not integers, or a `length` or `pad_id` out of range.

    Example:
      >>> from dps_jax import text
      >>> tokens, is_token = text.pad_left([[5, 6, 7], [8]], length=4, pad_id=0)
      >>> tokens.tolist(), is_token.sum(axis=1).tolist()
      ([[0, 5, 6, 7], [0, 0, 0, 8]], [3, 1])
    """
    length = _checks.check_int("length", length, at_least=1)
    pad_id = _checks.check_int("pad_id", pad_id, at_least=0, at_most=2**31 - 1)
    tokens = np.full((len(rows), length), pad_id, np.int32)
    is_token = np.zeros((len(rows), length), bool)
    for position, row in enumerate(rows):
        found = _checks.check_integer_array(f"rows[{position}]", row)
        if found.size > length:
            raise ValueError(
                f"rows[{position}]: expected at most {length} tokens, got {found.size}; take a longer bucket"
            )
        if found.size:
            tokens[position, -found.size :] = found
            is_token[position, -found.size :] = True
    return tokens, is_token


def _checked_lengths(name: str, value: Any) -> np.ndarray:
    """Returns lengths as int64 [N], all at least 1."""
    found = _checks.check_integer_array(name, value)
    if np.any(found < 1):
        position = int(np.argmax(found < 1))
        raise ValueError(f"{name}: expected lengths >= 1, got {found[position]} at position {position}; leave it out")
    return found
