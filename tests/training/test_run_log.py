import errno
import json
import os
import sys
import types
import zlib

import jax.numpy as jnp
import numpy as np
import pytest

from dps_jax import _files
from dps_jax.training._run_log import MetricsLog, Position, read_metrics


def lines_of(path):
    return path.read_text().splitlines()


def resuming(path, start_round):
    """Returns the arguments with which a log goes on after its first rounds."""
    content = b"".join(path.read_bytes().splitlines(keepends=True)[:start_round])
    return {"start_round": start_round, "position": Position(len(content), zlib.crc32(content))}


def write_rounds(path, rounds, **options):
    with MetricsLog(path, **options) as log:
        for index in rounds:
            log.append({"round": index, "reward": index / 8})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "metrics.jsonl"


def test_records_come_back_as_json_numbers(path):
    record = {
        "round": jnp.int32(0),
        "loss": jnp.float32(0.1),
        "half": jnp.bfloat16(0.5),
        "reward": np.float64(0.1) + 0.2,
        "rollouts": np.int64(2**40),
        "is_finite": jnp.array(True),
        "scores": jnp.array([[0.1, jnp.nan], [jnp.inf, 3.0]]),
        "text": "a\nb",
        "nothing": None,
        "groups": {"3 x 20": np.float32(0.3), "empty": float("nan")},
    }
    with MetricsLog(path) as log:
        log.append(record)
    assert read_metrics(path) == [
        {
            "round": 0,
            "loss": 0.1,
            "half": 0.5,
            "reward": 0.1 + 0.2,
            "rollouts": 2**40,
            "is_finite": True,
            "scores": [[0.1, None], [None, 3.0]],
            "text": "a\nb",
            "nothing": None,
            "groups": {"3 x 20": 0.3, "empty": None},
        }
    ]
    (line,) = lines_of(path)
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_record_can_be_read_as_soon_as_it_was_appended(path):
    log = MetricsLog(path)
    for index in range(3):
        log.append({"round": index})
        assert len(read_metrics(path)) == index + 1
    log.close()
    log.close()


def test_a_resumed_log_is_that_of_an_uninterrupted_run(path, tmp_path):
    write_rounds(path, range(7))
    write_rounds(path, range(4, 9), **resuming(path, 4))
    write_rounds(tmp_path / "whole.jsonl", range(9))
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    write_rounds(path, range(2))
    assert [record["round"] for record in read_metrics(path)] == [0, 1]


@pytest.mark.parametrize("torn", ['{"round": 3, "rew', '{"round": 3, "reward": 0.375}', "\0\0\0\0", "\0\0\n", "{}\n"])
def test_an_unfinished_last_line_is_left_out(path, torn):
    write_rounds(path, range(3))
    with open(path, "a") as file:
        file.write(torn)
    assert [record["round"] for record in read_metrics(path)] == [0, 1, 2]
    write_rounds(path, range(3, 5), **resuming(path, 3))
    assert [record["round"] for record in read_metrics(path)] == [0, 1, 2, 3, 4]
    assert len(lines_of(path)) == 5


def test_a_log_goes_on_from_a_position(path):
    with MetricsLog(path) as log:
        for index in range(3):
            log.append({"round": index})
        position = log.position
        log.append({"round": 3})
    whole = path.read_bytes()
    with MetricsLog(path, start_round=3, position=position) as log:
        assert log.position == position
        log.append({"round": 3})
    assert path.read_bytes() == whole
    for content, found in ((whole[:10], "fewer bytes"), (whole.replace(b"1", b"7"), "other content")):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=rf"metrics\.jsonl: expected the 3 rounds as they were .* got {found}; put"
        ):
            MetricsLog(path, start_round=3, position=position)
        assert path.read_bytes() == content


@pytest.mark.parametrize("bad", ["[" * 100_000, "nonsense", "[1]", '{"loss": 1}', '{"round": "one"}'])
def test_any_other_bad_line_is_named(path, bad):
    write_rounds(path, range(3))
    lines = lines_of(path)
    path.write_text("\n".join([lines[0], bad, *lines[1:]]) + "\n")
    message = r"metrics.jsonl: expected a JSON object with an integer `round` in line 2, got .*; remove that line"
    with pytest.raises(ValueError, match=message):
        read_metrics(path)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"loss": 1.0}, "round: expected an integer >= 0, got None"),
        ({"round": 1.0}, "round: expected an integer >= 0, got 1.0"),
        ({"round": 1, "model": {"a": object()}}, "record.model.a: expected numbers, text, lists or dictionaries"),
    ],
)
def test_bad_records_are_refused(path, record, message):
    with MetricsLog(path) as log, pytest.raises(ValueError, match=message):
        log.append(record)
    assert path.read_bytes() == b""


def test_no_file_has_no_records(tmp_path):
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_a_full_disk_leaves_whole_lines_and_names_the_file(path):
    class FullDisk:
        """Takes half a line, then fails."""

        def __init__(self, file):
            self.file, self.is_full = file, False

        def write(self, content):
            if self.is_full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.is_full = True
            return self.file.write(content[: len(content) // 2])

        def fileno(self):
            return self.file.fileno()

    log = MetricsLog(path)
    log.append({"round": 0})
    file, log._file = log._file, FullDisk(log._file)
    message = r"No space left on device; free space there and try again: '.*metrics.jsonl'"
    with pytest.raises(OSError, match=message) as caught:
        log.append({"round": 1})
    assert caught.value.errno == errno.ENOSPC
    assert lines_of(path) == ['{"round": 0}']
    log._file = file
    log.append({"round": 1})
    log.close()
    assert lines_of(path) == ['{"round": 0}', '{"round": 1}']


def test_a_failed_atomic_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    _files.write_atomically(path, "old")

    def fail(descriptor):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"free space there .*summary.json"):
        _files.write_atomically(path, b"other")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_tensorboard_gets_the_numbers(path, tmp_path, monkeypatch):
    calls = []

    class SummaryWriter:
        def __init__(self, directory, purge_step):
            calls.append((directory, purge_step))

        def add_scalar(self, name, value, step):
            calls.append((name, value, step))

        def flush(self):
            calls.append("flush")

        def close(self):
            calls.append("close")

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    write_rounds(path, range(4))
    with MetricsLog(path, **resuming(path, 4), tensorboard_directory=tmp_path / "board") as log:
        log.append({"round": 4, "loss": 0.5, "nan": np.nan, "text": "a", "is_ok": True, "groups": {"easy": 1}})
    assert calls == [(str(tmp_path / "board"), 4), ("loss", 0.5, 4), ("groups/easy", 1, 4), "flush", "close"]


def test_without_tensorboard_the_log_is_written_all_the_same(path, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    write_rounds(path, range(2), tensorboard_directory=tmp_path / "board")
    assert len(read_metrics(path)) == 2
    assert not (tmp_path / "board").exists()


def test_tensorboard_files_are_written(path, tmp_path):
    pytest.importorskip("tensorboardX")
    write_rounds(path, range(2), tensorboard_directory=tmp_path / "board")
    write_rounds(path, range(1, 3), start_round=1, tensorboard_directory=tmp_path / "board")
    assert len(list((tmp_path / "board").glob("events.*"))) >= 1
