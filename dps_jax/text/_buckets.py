"""Length buckets: a few padded lengths for many prompts, as every length is compiled once.

Example: `bucket_lengths([10, 12, 100])` is `(16, 104)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dps_jax import _checks


def bucket_lengths(lengths: Any, max_buckets: int = 4, multiple: int = 8) -> tuple[int, ...]:
    """Returns increasing padded lengths that all prompts together waste the fewest tokens with.

    The choice is exact: a dynamic programme over the distinct lengths, rounded up. Of equally good ones it takes the
    fewest buckets.

    Args:
      lengths: of the prompts in tokens, [N], at least 1.
      max_buckets: at most so many lengths are returned.
      multiple: what every padded length is a multiple of.

    Returns:
      Padded lengths; the last holds the longest prompt.

    Raises:
      ValueError: for no prompts, a length below 1, or another number of buckets or multiple.
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
    """Returns the best choice of one more bucket.

    Args:
      cost: tokens, padding included, of the i shortest lengths in the buckets so far, from i = 0 on,
        float64 [lengths + 1]; infinite where they do not fit.
      sizes: the distinct lengths, increasing, [lengths].
      shorter: number of prompts of the i shortest lengths, [lengths + 1].

    Returns:
      For each length the first length of the bucket that ends in it, [lengths], and the cost with this bucket.
    """
    start = np.zeros(sizes.size, np.int64)
    with_it = np.full(sizes.size + 1, np.inf)
    for last, size in enumerate(sizes):
        tokens = cost[: last + 1] + (shorter[last + 1] - shorter[: last + 1]) * size
        start[last] = np.argmin(tokens)
        with_it[last + 1] = tokens[start[last]]
    return start, with_it


def bucket_of(lengths: Any, buckets: Sequence[int]) -> np.ndarray:
    """Returns the position of the shortest bucket that holds each prompt, int64 [N].

    Args:
      lengths: of the prompts in tokens, [N].
      buckets: padded lengths, increasing.

    Raises:
      ValueError: for buckets that do not increase, and a prompt that is longer than the last or shorter than 1.
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
    """Returns prompts of one padded length, whose last token is at the end.

    Args:
      rows: tokens of the prompts, B sequences of integers.
      length: P, at least that of the longest.
      pad_id: what is put before the tokens.

    Returns:
      Tokens, int32 [B, P], and which of them are no padding, bool [B, P].

    Raises:
      ValueError: for a row that is longer, or another length or token.
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
