import jax.numpy as jnp
import numpy as np
import pytest

from dps_jax.traces import TraceLog, read_trace


def fill(log, rounds):
    for index in rounds:
        rng = np.random.default_rng(index)
        counts = np.array([8, 0, 4, 8, 0])
        ids = np.where(counts > 0, rng.integers(0, 100, 5), -1)
        log.append(index, jnp.asarray(ids), jnp.asarray(rng.integers(0, counts + 1)), jnp.asarray(counts))


def test_the_trace_has_one_row_per_group(tmp_path):
    log = TraceLog(tmp_path / "trace.npz")
    log.append(0, jnp.array([7, -1, 3]), jnp.array([2, 0, 8]), jnp.array([8, 0, 8]))
    log.append(2, np.array([3, 3]), np.array([0, 4]), np.array([4, 4]))
    log.save()
    with np.load(tmp_path / "trace.npz") as columns:
        assert {name: columns[name].tolist() for name in columns} == {
            "round": [0, 0, 2, 2],
            "prompt_id": [7, 3, 3, 3],
            "successes": [2, 8, 0, 4],
            "count": [8, 8, 4, 4],
        }
        assert {columns[name].dtype.name for name in columns if name != "prompt_id"} == {"int32"}
        assert columns["prompt_id"].dtype == np.int64
    assert list(tmp_path.iterdir()) == [tmp_path / "trace.npz"]


def test_a_resumed_trace_is_that_of_an_uninterrupted_run(tmp_path):
    whole, path = tmp_path / "whole.npz", tmp_path / "trace.npz"
    log = TraceLog(whole)
    fill(log, range(9))
    log.save()
    log = TraceLog(path)
    fill(log, range(6))
    log.save()
    fill(log, range(6, 8))  # never saved
    log = TraceLog(path, start_round=4)
    fill(log, range(4, 6))
    log.save()
    fill(log, range(6, 9))
    log.save()
    assert path.read_bytes() == whole.read_bytes()
    assert read_trace(path).rounds.tolist() == np.repeat(np.arange(9), 3).tolist()


def test_inclusion_probabilities_are_kept_where_every_round_has_them(tmp_path):
    path = tmp_path / "trace.npz"
    log = TraceLog(path)
    log.append(0, jnp.array([7, -1, 3]), jnp.array([2, 0, 8]), jnp.array([8, 0, 8]), jnp.array([0.25, jnp.nan, 1.0]))
    log.save()
    log = TraceLog(path, start_round=1)
    log.append(1, np.array([5]), np.array([0]), np.array([4]), np.array([0.5]))
    log.save()
    trace = read_trace(path)
    assert trace.inclusion_prob.tolist() == [0.25, 1.0, 0.5]
    assert trace.prompt_ids.tolist() == [7, 3, 5]
    log.append(2, np.array([5]), np.array([0]), np.array([4]))
    log.save()
    assert read_trace(path).inclusion_prob is None
    assert read_trace(path).rounds.tolist() == [0, 0, 1, 2]


def test_a_trace_that_falls_short_is_an_error(tmp_path):
    path = tmp_path / "trace.npz"
    with pytest.raises(ValueError, match=r"expected the trace of rounds 0 to 3, got no file; put the file back"):
        TraceLog(path, start_round=4)
    log = TraceLog(path)
    fill(log, range(3))
    log.save()
    with pytest.raises(ValueError, match="expected the trace of rounds 0 to 3, got 2 as the last round"):
        TraceLog(path, start_round=4)
    assert TraceLog(path, start_round=3).trace().rounds.size == 9


def test_a_trace_with_other_outcomes_is_an_error(tmp_path):
    path = tmp_path / "trace.npz"
    log = TraceLog(path)
    fill(log, range(3))
    checksum = log.checksum()
    fill(log, range(3, 5))
    log.save()
    assert TraceLog(path, start_round=3, checksum=checksum).checksum() == checksum
    with np.load(path) as file:
        columns = dict(file)
    for name in ("successes", "prompt_id"):
        np.savez(path, **columns | {name: np.where(np.arange(15) == 4, 0, columns[name])})
        with pytest.raises(
            ValueError, match=r"trace\.npz: expected rounds 0 to 2 as they were .*, got others; put the"
        ):
            TraceLog(path, start_round=3, checksum=checksum)


def test_last_rounds_without_a_score_are_no_lack(tmp_path):
    path = tmp_path / "trace.npz"
    for num_rounds in (0, 3):
        log = TraceLog(path)
        fill(log, range(num_rounds))
        log.append(num_rounds, np.array([-1, -1]), np.zeros(2, int), np.zeros(2, int))
        log.save()
        again = TraceLog(path, start_round=num_rounds + 1, checksum=log.checksum())
        assert again.trace().rounds.size == 3 * num_rounds


def test_objects_are_no_trace_and_no_message_advises_to_load_them(tmp_path):
    path = tmp_path / "trace.npz"
    np.savez(path, round=np.array([None]), prompt_id=[0], successes=[0], count=[1])
    with pytest.raises(ValueError, match=r"trace\.npz: .*Python objects in 'round'.*restore it"):
        read_trace(path)


def test_a_damaged_trace_is_an_error(tmp_path):
    path = tmp_path / "trace.npz"
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"trace.npz: expected a trace with columns round, prompt_id, successes"):
        TraceLog(path, start_round=1)


def test_bad_rows_are_refused(tmp_path):
    log = TraceLog(tmp_path / "trace.npz")
    with pytest.raises(ValueError, match=r"prompt_ids, successes, counts: expected three arrays \[P\], got shapes"):
        log.append(0, np.arange(2), np.arange(3), np.arange(2))
    with pytest.raises(ValueError, match=r"successes: expected values in \[0, count\], got 9 of 8"):
        log.append(0, np.arange(2), np.array([1, 9]), np.array([8, 8]))
    with pytest.raises(
        ValueError, match=r"prompt_ids: expected ids in \[0, 9223372036854775807\), got -1 at position 1"
    ):
        log.append(0, np.array([3, -1]), np.array([1, 2]), np.array([8, 8]))
    with pytest.raises(ValueError, match=r"inclusion_probs: expected an array \[2\] or None, got shape \[3\]"):
        log.append(0, np.arange(2), np.array([1, 2]), np.array([8, 8]), np.ones(3))
    with pytest.raises(ValueError, match=r"inclusion_prob: expected probabilities in \(0, 1\], got 0.0 at position 1"):
        log.append(0, np.arange(2), np.array([1, 2]), np.array([8, 8]), np.array([1.0, 0.0]))
    with pytest.raises(ValueError, match="round_index: expected an integer >= 0, got -1"):
        log.append(-1, np.arange(2), np.array([1, 2]), np.array([8, 8]))
    assert log.trace().rounds.size == 0
