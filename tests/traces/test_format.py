import csv
import errno
import os
import sys

import numpy as np
import pytest

from dps_jax.traces import Trace, concatenate, read_trace, write_trace

GOOD = {"round": [0, 0, 2], "prompt_id": [5, 0, 5], "successes": [0, 4, 3], "count": [8, 4, 8]}
DTYPES = (np.int32, np.int64, np.int32, np.int32)
NAMES = ["round", "prompt_id", "successes", "count"]
SUFFIXES = [".npz", ".parquet", ".csv"]


def random_trace(num_rows, *, has_probs=False):
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 9, num_rows)
    columns = (np.arange(num_rows) // 3, rng.integers(0, 100, num_rows), rng.integers(0, counts + 1), counts)
    return Trace(
        *(column.astype(dtype) for column, dtype in zip(columns, DTYPES, strict=True)),
        inclusion_prob=1 - rng.random(num_rows) if has_probs else None,
    )


def save(path, columns):
    """Writes columns as others would, unchecked."""
    if path.suffix == ".npz":
        np.savez(path, **columns)
    elif path.suffix == ".parquet":
        pyarrow, parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
        parquet.write_table(pyarrow.table({name: pyarrow.array(column) for name, column in columns.items()}), path)
    else:
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows([columns, *zip(*columns.values(), strict=True)])


def names_in(path):
    if path.suffix == ".npz":
        with np.load(path) as columns:
            return list(columns)
    if path.suffix == ".parquet":
        return pytest.importorskip("pyarrow.parquet").read_schema(path).names
    return path.read_text().splitlines()[0].split(",")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "trace.npz"


@pytest.fixture(params=SUFFIXES)
def any_path(tmp_path, request):
    if request.param == ".parquet":
        pytest.importorskip("pyarrow")
    return tmp_path / f"trace{request.param}"


def assert_equal(read, written):
    for name in Trace._fields[:4]:
        assert getattr(read, name).dtype == (np.int64 if name == "prompt_ids" else np.int32)
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
    assert (read.inclusion_prob is None) == (written.inclusion_prob is None)
    if written.inclusion_prob is not None:
        assert read.inclusion_prob.dtype == np.float64
        np.testing.assert_array_equal(read.inclusion_prob, written.inclusion_prob)


@pytest.mark.parametrize("has_probs", [False, True])
@pytest.mark.parametrize("num_rows", [0, 1, 50])
def test_a_trace_comes_back_as_it_was_written(any_path, num_rows, has_probs):
    trace = random_trace(num_rows, has_probs=has_probs)
    write_trace(any_path, trace)
    assert_equal(read_trace(str(any_path)), trace)
    assert list(any_path.parent.iterdir()) == [any_path]
    assert names_in(any_path) == NAMES + ["inclusion_prob"] * has_probs


def test_other_dtypes_and_columns_are_read(any_path):
    columns = {"level": ["a", "b", "c"]} | GOOD
    columns |= {"round": np.array([0.0, 0.0, 2.0]), "count": np.array([8, 4, 8], np.uint8)}
    save(any_path, columns | {"inclusion_prob": np.array([0.5, 1, 0.25], np.float32)})
    read = read_trace(any_path)
    assert_equal(read, Trace(*map(np.array, GOOD.values()), inclusion_prob=np.array([0.5, 1, 0.25])))


def test_suffixes_are_read_in_any_case(tmp_path):
    write_trace(tmp_path / "trace.CSV", random_trace(5))
    assert (tmp_path / "trace.CSV").read_text().startswith("round,prompt_id,successes,count\n0,")
    assert_equal(read_trace(tmp_path / "trace.CSV"), random_trace(5))


def test_csv_as_a_spreadsheet_writes_it(tmp_path):
    path = tmp_path / "trace.csv"
    text = '\ufeff"count", round,note,prompt_id,successes\r\n8,0,"a, b",5,0\r\n\r\n4,0,"two\nlines",0,4\r\n8.0,2,,5,3'
    path.write_bytes(text.encode())
    assert_equal(read_trace(path), Trace(*map(np.array, GOOD.values())))


def test_ids_that_are_hashes_come_back_to_the_last_bit(any_path):
    ids = np.array([2**63 - 1, 2**63 - 2, 2**53 + 1, 0])
    trace = Trace(*(np.arange(4, dtype=np.int32), ids, np.zeros(4, np.int32), np.ones(4, np.int32)))
    write_trace(any_path, trace)
    assert_equal(read_trace(any_path), trace)


def test_rows_are_taken_and_parts_put_together():
    trace = random_trace(10, has_probs=True)
    assert_equal(concatenate([trace.take(slice(0, 4)), trace.take(np.arange(10) >= 4)]), concatenate([trace]))
    assert trace.take([3, 1]).inclusion_prob.tolist() == trace.inclusion_prob[[3, 1]].tolist()
    without = random_trace(3)
    assert without.take([0]).inclusion_prob is None
    assert concatenate([trace, without]).inclusion_prob is None
    assert concatenate([random_trace(0), trace]).inclusion_prob.size == 10
    assert concatenate([]).rounds.size == 0


@pytest.mark.parametrize("content", [b"nonsense", b"PK\x03\x04 and then nothing", b"PAR1 and then nothing PAR1"])
def test_a_damaged_trace_is_an_error(any_path, content):
    any_path.write_bytes(content)
    message = rf"{any_path.name}: expected a trace with columns round, prompt_id, successes, count.*, got .*; "
    with pytest.raises(ValueError, match=message):
        read_trace(any_path)


@pytest.mark.parametrize("content", [b"", b" \n\n"])
def test_an_empty_file_is_an_error(any_path, content):
    any_path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{any_path.name}: .* got an empty file; write it again or restore it"):
        read_trace(any_path)


@pytest.mark.parametrize("name", ["trace.json", "trace", "trace.gz"])
def test_another_suffix_is_an_error(tmp_path, name):
    (tmp_path / name).write_text("round,prompt_id,successes,count\n")
    suffix = (tmp_path / name).suffix
    message = rf"{name}: expected a file that ends in one of .npz, .parquet, .csv%s, got '{suffix}'; rename or convert"
    with pytest.raises(ValueError, match=message % ".*, .jsonl.gz"):
        read_trace(tmp_path / name)
    with pytest.raises(ValueError, match=message % ""):
        write_trace(tmp_path / name, random_trace(3))


def test_a_missing_file_is_no_damaged_one(any_path):
    with pytest.raises(FileNotFoundError, match=any_path.name):
        read_trace(any_path)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_column_is_named(any_path, name):
    save(any_path, {key: column for key, column in (GOOD | {"level": [1, 2, 3]}).items() if key != name})
    message = rf"{any_path.name}: expected a trace with columns .* got no '{name}' among '.*, 'level'; add the column"
    with pytest.raises(ValueError, match=message):
        read_trace(any_path)


def test_other_separators_are_named(tmp_path):
    (tmp_path / "trace.csv").write_text("round;prompt_id;successes;count\n0;5;0;8\n")
    message = r"got no 'round' among 'round;prompt_id;successes;count'; .*cells have to be separated by commas"
    with pytest.raises(ValueError, match=message):
        read_trace(tmp_path / "trace.csv")


def test_a_column_named_twice_is_an_error(tmp_path):
    (tmp_path / "trace.csv").write_text("round,prompt_id,successes,count,round\n0,5,0,8,1\n")
    with pytest.raises(ValueError, match=r"trace.csv: expected one column 'round', got several; rename or remove"):
        read_trace(tmp_path / "trace.csv")
    pyarrow, parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    arrays = [pyarrow.array(column) for column in (*GOOD.values(), GOOD["count"])]
    parquet.write_table(pyarrow.table(arrays, names=[*GOOD, "count"]), tmp_path / "trace.parquet")
    with pytest.raises(ValueError, match=r"trace.parquet: expected one column 'count', got several; rename or remove"):
        read_trace(tmp_path / "trace.parquet")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "trace.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    message = r"expected pyarrow to be installed, .* pip install 'pyarrow>=16' .*, or use .npz or .csv"
    with pytest.raises(ValueError, match=rf"trace.parquet: {message}"):
        read_trace(tmp_path / "trace.parquet")
    with pytest.raises(ValueError, match=rf"other.parquet: {message}"):
        write_trace(tmp_path / "other.parquet", random_trace(3))
    assert [path.name for path in tmp_path.iterdir()] == ["trace.parquet"]
    write_trace(tmp_path / "trace.npz", random_trace(3))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["0,5,0,8", "", "0,0,x,4"], "successes: expected integers, got 'x' in line 4; correct it"),
        (
            ["0,5,0,8", "0,,4,4"],
            r"prompt_id: expected integers \(or only texts, none of them a number\), got '' in line 3; correct it",
        ),
        (
            ["0,5,0,8", "0,1_0,0,8"],
            r"prompt_id: expected integers \(or only texts, none of them a number\), got '1_0' in line 3; correct it",
        ),
        (["0,5,0,8", "0.5,0,4,4"], "round: expected whole numbers, got 0.5 in line 3; correct it"),
        (["nan,5,0,8"], "round: expected whole numbers, got nan in line 2; correct it"),
        (
            ["0,5,0,8", "0,-1,4,4"],
            r"prompt_id: expected values in \[0, 9223372036854775807\], got -1 in line 3; correct it",
        ),
        (["0,5,0,1e30"], r"count: expected values in \[1, 2147483647\], got 1e\+30 in line 2; correct it"),
        (["0,5,0,8", "0,0,5,4"], r"successes: expected values in \[0, count\], got 5 of 4 in line 3; correct it"),
        (["0,5,0,8", "0,0,4"], "expected 4 cells in a line, as in the first, got 3 in line 3; correct the line"),
        (["0,5,0,8", "0,0,4,4,4"], "expected 4 cells in a line, as in the first, got 5 in line 3; correct the line"),
        (['0,5,0,"8'], r"got a file that is damaged or not .csv \(unexpected end of data\); write it again"),
        (["0,5,0,\udcff"], r"got a file that is damaged or not .csv \('utf-8' codec .*; write it again"),
    ],
)
def test_a_bad_line_of_a_csv_file_is_named(tmp_path, lines, message):
    path = tmp_path / "trace.csv"
    path.write_bytes("\n".join(["round,prompt_id,successes,count", *lines]).encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=rf"trace.csv: .*{message}"):
        read_trace(path)


@pytest.mark.parametrize(
    ("values", "got"),
    [
        ([0.5, 0.0, 1.0], "0.0 at position 1"),
        ([0.5, 1.0, 1.5], "1.5 at position 2"),
        ([-0.5, 1.0, 1.0], "-0.5 at position 0"),
        ([0.5, np.nan, 1.0], "nan at position 1"),
    ],
)
def test_a_bad_inclusion_prob_is_named(any_path, values, got):
    save(any_path, GOOD | {"inclusion_prob": values})
    message = r"inclusion_prob: expected probabilities in \(0, 1\], got "
    remedy = "; correct it or leave the column inclusion_prob out"
    value, position = got.split(" at position ")
    place = f" in line {int(position) + 2}" if any_path.suffix == ".csv" else f" at position {position}"
    with pytest.raises(ValueError, match=f"{any_path.name}: {message}{value}{place}{remedy}"):
        read_trace(any_path)
    with pytest.raises(ValueError, match=f"^trace: {message}{got}{remedy}"):
        write_trace(any_path, Trace(*GOOD.values(), inclusion_prob=np.array(values)))
    save(any_path, GOOD | {"inclusion_prob": ["a", "b", "c"]})
    with pytest.raises(ValueError, match=f"{any_path.name}: inclusion_prob: expected numbers, got .*'a'"):
        read_trace(any_path)


def test_a_null_is_named(tmp_path):
    path = tmp_path / "trace.parquet"
    save(path, GOOD | {"successes": [0, None, 3]})
    with pytest.raises(ValueError, match=r"trace.parquet: successes: expected whole numbers, got nan at position 1;"):
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


def test_a_changed_byte_anywhere_is_no_other_error(any_path):
    write_trace(any_path, random_trace(15))
    content, errors = any_path.read_bytes(), 0
    for position in range(len(content)):
        any_path.write_bytes(content[:position] + bytes([content[position] ^ 0x55]) + content[position + 1 :])
        try:
            read_trace(any_path)
        except ValueError:
            errors += 1
    # In text most other digits are as good as those that were there, and in Parquet much is described twice.
    assert errors > len(content) / (2 if any_path.suffix == ".npz" else 10)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("round", [0, -1, 2], r"round: expected values in \[0, 2147483647\], got -1 at position 1"),
        ("round", [0, 0, np.nan], "round: expected whole numbers, got nan at position 2"),
        ("round", [0, 0, 2**31], r"round: expected values in \[0, 2147483647\], got 2147483648 at position 2"),
        ("prompt_id", [-5, 0, 5], r"prompt_id: expected values in \[0, 9223372036854775807\], got -5 at position 0"),
        ("prompt_id", [5, 0.5, 5], r"prompt_id: expected whole numbers, got 0.5 at position 1"),
        ("prompt_id", [5, 0, 1e30], r"prompt_id: expected values in \[0, 9007199254740992\], got 1e\+30 at position 2"),
        ("prompt_id", ["a", "7", "c"], "prompt_id: expected integers"),
        ("count", [8, 0, 8], r"count: expected values in \[1, 2147483647\], got 0 at position 1"),
        ("count", [8, np.inf, 8], "count: expected whole numbers, got inf at position 1"),
        ("successes", [0, 4, -1], r"successes: expected values in \[0, 2147483647\], got -1 at position 2"),
        ("successes", [0, 5, 3], r"successes: expected values in \[0, count\], got 5 of 4 at position 1"),
        ("successes", [0, np.nan, 3], "successes: expected whole numbers, got nan at position 1"),
    ],
)
@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_a_bad_entry_is_named(tmp_path, suffix, name, values, message):
    path, columns = tmp_path / f"trace{suffix}", GOOD | {name: values}
    save(path, columns)
    in_file = message + ".*; (correct it or leave the row out|write the column as integers)$"
    with pytest.raises(ValueError, match=rf"trace{suffix}: {in_file}"):
        read_trace(path)
    path.unlink()
    with pytest.raises(ValueError, match=rf"^trace: {message}"):
        write_trace(path, Trace(*columns.values()))
    assert not path.exists()


def test_a_full_disk_keeps_the_old_trace(any_path, monkeypatch):
    path = any_path
    write_trace(path, random_trace(3))
    content = path.read_bytes()

    def fail(descriptor):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=rf"free space there .*{path.name}"):
        write_trace(path, random_trace(9))
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]
