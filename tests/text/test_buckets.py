import itertools

import numpy as np
import pytest

from dps_jax import text


def num_tokens(lengths, buckets):
    """Returns the tokens of all prompts with their padding."""
    return sum(min(size for size in buckets if size >= length) for length in lengths)


@pytest.mark.parametrize("seed", range(12))
def test_padding_is_the_least_of_all_choices(seed):
    rng = np.random.default_rng(seed)
    multiple, max_buckets = int(rng.integers(1, 9)), int(rng.integers(1, 5))
    lengths = np.minimum(rng.geometric(0.05, 60), 70)
    buckets = text.bucket_lengths(lengths, max_buckets, multiple)
    sizes = range(multiple, 70 + multiple, multiple)
    longest = -(-int(lengths.max()) // multiple) * multiple
    choices = (
        (*some, longest)
        for number in range(max_buckets)
        for some in itertools.combinations([size for size in sizes if size < longest], number)
    )
    # Counts by length make brute force quick.
    distinct, counts = np.unique(lengths, return_counts=True)
    cost = lambda choice: int(np.sum(np.array(choice)[np.searchsorted(choice, distinct)] * counts))
    assert num_tokens(lengths, buckets) == min(map(cost, choices))
    assert buckets == tuple(sorted(set(buckets)))
    assert all(isinstance(size, int) and size % multiple == 0 for size in buckets)
    assert len(buckets) <= max_buckets
    assert buckets[-1] == longest


def test_no_more_buckets_than_lengths():
    assert text.bucket_lengths([10, 12, 100]) == (16, 104)
    assert text.bucket_lengths([3]) == (8,)
    assert text.bucket_lengths([8, 8, 9], max_buckets=1) == (16,)
    assert text.bucket_lengths(np.array([5, 6, 7], np.int32), max_buckets=9, multiple=1) == (5, 6, 7)


def test_bucket_of_is_the_shortest_that_holds():
    found = text.bucket_of([1, 8, 9, 16, 17, 40], (8, 16, 40))
    assert found.dtype == np.int64
    assert found.tolist() == [0, 0, 1, 1, 2, 2]
    assert text.bucket_of([], (8,)).size == 0


def test_pad_left_puts_tokens_at_the_end():
    tokens, is_token = text.pad_left([[1, 2], np.array([3], np.int32), [], [4, 5, 6]], 3, 9)
    assert tokens.dtype == np.int32
    assert is_token.dtype == bool
    assert tokens.tolist() == [[9, 1, 2], [9, 9, 3], [9, 9, 9], [4, 5, 6]]
    assert is_token.tolist() == [[False, True, True], [False, False, True], [False] * 3, [True] * 3]
    assert text.pad_left([], 3, 9)[0].shape == (0, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: text.bucket_lengths([]), "lengths: expected the length of at least one prompt, got none; read"),
        (lambda: text.bucket_lengths([4, 0]), "lengths: expected lengths >= 1, got 0 at position 1; leave it out"),
        (lambda: text.bucket_lengths([4], 0), "max_buckets: expected an integer >= 1, got 0"),
        (lambda: text.bucket_lengths([4], 1, 0.5), "multiple: expected an integer >= 1, got 0.5"),
        (lambda: text.bucket_of([4, 17], (8, 16)), "lengths: expected at most 16, .* got 17 at position 1; drop"),
        (lambda: text.bucket_of([4], (8, 8)), "buckets: expected increasing lengths, got .*; take those of"),
        (lambda: text.bucket_of([4], ()), "buckets: expected increasing lengths"),
        (lambda: text.pad_left([[1], [1, 2]], 1, 0), r"rows\[1\]: expected at most 1 tokens, got 2; take a longer"),
        (lambda: text.pad_left([[0.5]], 1, 0), r"rows\[0\]: expected whole numbers"),
        (lambda: text.pad_left([[1]], 0, 0), "length: expected an integer >= 1, got 0"),
        (lambda: text.pad_left([[1]], 1, -1), "pad_id: expected an integer >= 0"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
