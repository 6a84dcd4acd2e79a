import errno
import os

import numpy as np
import pytest

from dps_jax.traces import Trace, read_trace, write_trace

GOOD = {"round": [0, 0, 2], "prompt_id": [5, 0, 5], "successes": [0, 4, 3], "count": [8, 4, 8]}


def random_trace(num_rows):
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 9, num_rows)
    return Trace(np.arange(num_rows) // 3, rng.integers(0, 100, num_rows), rng.integers(0, counts + 1), counts)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "trace.npz"


@pytest.mark.parametrize("num_rows", [0, 1, 50])
def test_a_trace_comes_back_as_it_was_written(path, num_rows):
    trace = random_trace(num_rows)
    write_trace(path, trace)
    for written, read in zip(trace, read_trace(str(path)), strict=True):
        assert read.dtype == np.int32
        np.testing.assert_array_equal(read, written)
    assert list(path.parent.iterdir()) == [path]
    with np.load(path) as columns:
        assert list(columns) == ["round", "prompt_id", "successes", "count"]


def test_other_dtypes_and_columns_are_read(path):
    columns = GOOD | {"round": np.array([0.0, 0.0, 2.0]), "count": np.array([8, 4, 8], np.uint8)}
    np.savez(path, **columns, inclusion_prob=np.full(3, 0.5))
    for name, column in zip(GOOD, read_trace(path), strict=True):
        assert column.dtype == np.int32
        assert column.tolist() == GOOD[name]


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04 and then nothing"])
def test_a_damaged_trace_is_an_error(path, content):
    path.write_bytes(content)
    message = r"trace.npz: expected a trace with columns round, prompt_id, successes, count, got"
    with pytest.raises(ValueError, match=message):
        read_trace(path)


def test_a_single_array_is_an_error(path):
    with open(path, "wb") as file:
        np.save(file, np.arange(3))
    with pytest.raises(ValueError, match="expected a trace with columns round, prompt_id, successes, count"):
        read_trace(path)


def test_a_trace_cut_short_is_an_error(path):
    write_trace(path, random_trace(150))
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match="expected a trace with columns"):
        read_trace(path)
    np.savez(path, round=np.arange(3), prompt_id=np.arange(3), successes=np.arange(3), count=np.arange(2))
    with pytest.raises(ValueError, match="expected columns of one length"):
        read_trace(path)
    np.savez(path, round=np.arange(3), prompt_id=np.arange(3))
    with pytest.raises(ValueError, match="expected a trace with columns round, prompt_id, successes, count"):
        read_trace(path)


def test_a_changed_byte_anywhere_is_no_other_error(path):
    write_trace(path, random_trace(15))
    content, errors = path.read_bytes(), 0
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x55]) + content[position + 1 :])
        try:
            read_trace(path)
        except ValueError:
            errors += 1
    assert errors > len(content) / 2


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("round", [0, -1, 2], r"round: expected values in \[0, 2147483647\], got -1 at position 1"),
        ("round", [0, 0, np.nan], "round: expected whole numbers, got nan at position 2"),
        ("round", [0, 0, 2**31], r"round: expected values in \[0, 2147483647\], got 2147483648 at position 2"),
        ("prompt_id", [-5, 0, 5], r"prompt_id: expected values in \[0, 2147483647\], got -5 at position 0"),
        ("prompt_id", [5, 0.5, 5], r"prompt_id: expected whole numbers, got 0.5 at position 1"),
        ("prompt_id", [5, 0, 1e30], r"prompt_id: expected values in \[0, 2147483647\], got 1e\+30 at position 2"),
        ("prompt_id", ["a", "b", "c"], "prompt_id: expected integers, got dtype <U1"),
        ("count", [8, 0, 8], r"count: expected values in \[1, 2147483647\], got 0 at position 1"),
        ("count", [8, np.inf, 8], "count: expected whole numbers, got inf at position 1"),
        ("successes", [0, 4, -1], r"successes: expected values in \[0, 2147483647\], got -1 at position 2"),
        ("successes", [0, 5, 3], r"successes: expected values in \[0, count\], got 5 of 4 at position 1"),
        ("successes", [0, np.nan, 3], "successes: expected whole numbers, got nan at position 1"),
    ],
)
def test_a_bad_entry_is_named(path, name, values, message):
    columns = GOOD | {name: values}
    np.savez(path, **columns)
    with pytest.raises(ValueError, match=rf"trace.npz: {message}"):
        read_trace(path)
    path.unlink()
    with pytest.raises(ValueError, match=rf"^trace: {message}"):
        write_trace(path, Trace(*columns.values()))
    assert not path.exists()


def test_a_full_disk_keeps_the_old_trace(path, monkeypatch):
    write_trace(path, random_trace(3))
    content = path.read_bytes()

    def fail(descriptor):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"free space there .*trace.npz"):
        write_trace(path, random_trace(9))
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]
