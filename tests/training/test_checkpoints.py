import contextlib
import errno
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dps_jax import _files
from dps_jax.training import _manifest
from dps_jax.training._checkpoints import CheckpointError, Checkpoints

HERE = pathlib.Path(__file__).parent


class Usage(NamedTuple):
    total: int
    used: int
    free: int


class Selector(NamedTuple):
    odds: tuple[jax.Array, ...]
    counts: jax.Array
    is_seen: jax.Array
    nothing: jax.Array


class State(NamedTuple):
    params: Any
    opt_state: Any
    selector: Selector
    key: jax.Array
    seed_keys: jax.Array
    round_index: jax.Array
    epoch: Any


def make_state(size=8, seed=0, epoch=3):
    rng = np.random.default_rng(seed)
    params = {
        "layers": [{"kernel": jnp.asarray(rng.normal(size=(size, 3)), jnp.float32)} for _ in range(2)],
        "norm": jnp.asarray(rng.normal(size=size), jnp.bfloat16),
    }
    return State(
        params=params,
        opt_state=optax.adamw(1e-3).init(params),
        selector=Selector(
            odds=(jnp.asarray(rng.random(5), jnp.float32), jnp.asarray(rng.random(5), jnp.float32)),
            counts=jnp.arange(6, dtype=jnp.uint16),
            is_seen=jnp.array([True, False]),
            nothing=jnp.zeros((0, 3), jnp.float32),
        ),
        key=jax.random.key(seed),
        seed_keys=jax.random.split(jax.random.key(seed, impl="rbg"), 2),
        round_index=jnp.int32(7),
        epoch=epoch,
    )


def plain(tree):
    to_numpy = lambda x: np.array(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
    return jax.tree.map(lambda x: to_numpy(jnp.asarray(x)), tree)


def assert_same(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    kinds = lambda tree: [(jnp.asarray(leaf).dtype, jnp.shape(leaf)) for leaf in jax.tree.leaves(tree)]
    assert kinds(tree) == kinds(other)
    jax.tree.map(np.testing.assert_array_equal, plain(tree), plain(other))


def template(**options):
    return jax.eval_shape(lambda: make_state(**options))


def never(message):
    raise AssertionError(message)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two checkpoints, of rounds 5 and 9."""
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    with Checkpoints(directory, report=never) as store:
        store.save(5, make_state(seed=5), {"seed": 5}, score=0.5)
        store.save(9, make_state(seed=9), {"seed": 9}, score=0.25)
    return directory


@pytest.fixture
def directory(saved, tmp_path):
    return pathlib.Path(shutil.copytree(saved, tmp_path / "copy"))


def test_everything_comes_back(directory):
    with Checkpoints(directory, report=never) as store:
        restored = store.restore(template())
    assert restored.round_index == 9
    assert restored.facts == {"seed": 9}
    assert_same(restored.state, make_state(seed=9))
    assert restored.state.key.dtype == jax.random.key(0).dtype
    assert jax.random.uniform(restored.state.key) == jax.random.uniform(jax.random.key(9))
    assert str(jax.random.key_impl(restored.state.seed_keys)) == "rbg"


def test_the_best_comes_back(directory):
    with Checkpoints(directory, report=never) as store:
        restored = store.restore(template(), is_best=True)
    assert restored.round_index == 5
    assert_same(restored.state, make_state(seed=5))


def test_no_checkpoint_is_none_and_reading_writes_nothing(tmp_path):
    with Checkpoints(tmp_path / "none", report=never) as store:
        assert store.restore(template()) is None
        assert store.rounds() == ()
    assert not (tmp_path / "none").exists()


def test_donated_and_overwritten_buffers_do_not_reach_the_disk(tmp_path):
    state = {"params": jnp.arange(3_000_000, dtype=jnp.float32), "host": np.arange(50)}
    expected = plain(state)
    step = jax.jit(lambda x: x * 0.5 - 1, donate_argnums=0)
    step(jnp.zeros(3_000_000)).block_until_ready()
    with Checkpoints(tmp_path, report=never) as store:
        for index in range(3):
            store.save(index, state)
            state["host"] -= 1
            params = state["params"]
            for _ in range(4):
                params = step(params)
            state = {"params": params.block_until_ready(), "host": state["host"]}
            restored = store.restore(state).state
            np.testing.assert_array_equal(restored["params"], expected["params"])
            np.testing.assert_array_equal(restored["host"], expected["host"])
            expected = plain(state)


def test_a_restored_state_may_be_donated(directory):
    with Checkpoints(directory, report=never) as store:
        first, second = store.restore(template()).state, store.restore(template()).state
    double = jax.jit(lambda x: jax.tree.map(lambda leaf: leaf * 2, x), donate_argnums=0)
    doubled = double(first.params)
    assert_same(second, make_state(seed=9))
    assert_same(doubled, jax.tree.map(lambda leaf: leaf * 2, make_state(seed=9).params))


def test_save_does_not_wait_for_the_disk(tmp_path, monkeypatch):
    may_write, write = threading.Event(), _manifest.write

    def slow_write(*arguments):
        assert may_write.wait(30)
        write(*arguments)

    monkeypatch.setattr(_manifest, "write", slow_write)
    with Checkpoints(tmp_path) as store:
        store.save(1, make_state())
        assert store.rounds() == ()
        may_write.set()
        store.wait()
        assert store.rounds() == (1,)


@pytest.mark.parametrize(("keep_best", "kept"), [(True, (2, 5, 6)), (False, (5, 6))])
def test_the_last_and_the_best_are_kept(tmp_path, keep_best, kept):
    with Checkpoints(tmp_path, keep_best=keep_best, report=never) as store:
        for index, score in enumerate([0.1, 0.5, 0.7, 0.6, None, 0.3, 0.2]):
            store.save(index, {"x": jnp.int32(index)}, score=score)
        store.wait()
        assert store.rounds() == kept
        assert int(store.restore({"x": jnp.int32(0)}).state["x"]) == 6
        best = store.restore({"x": jnp.int32(0)}, is_best=True)
        assert best.round_index == (2 if keep_best else 5)
    assert {path.name for path in tmp_path.iterdir()} == {f"round_{index:010d}" for index in kept}


def largest_array_file(path):
    return max((path / "state").rglob("d/*"), key=lambda file: file.stat().st_size)


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def change_facts(path):
    file = path / "manifest.json"
    whole = json.loads(file.read_text())
    whole["content"]["entries"]["facts"]["seed"] = 8
    file.write_text(json.dumps(whole))


def leave_an_empty_directory(path):
    shutil.rmtree(path)
    path.mkdir()


DAMAGES = {
    "truncated array": (lambda path: os.truncate(largest_array_file(path), 40), r"d/\w+ has 40 bytes instead of \d+"),
    "deleted array": (lambda path: largest_array_file(path).unlink(), r"d/\w+ cannot be read \(No such file"),
    "one bit": (lambda path: flip(largest_array_file(path)), r"d/\w+ has changed since it was written \(checksum\)"),
    "zeros": (lambda path: (path / "state" / "_METADATA").write_bytes(b""), "_METADATA has 0 bytes instead of"),
    "no state": (lambda path: shutil.rmtree(path / "state"), "state/.* cannot be read"),
    "no manifest": (lambda path: (path / "manifest.json").unlink(), "manifest.json cannot be read"),
    "half a manifest": (lambda path: os.truncate(path / "manifest.json", 200), "manifest.json is damaged"),
    "binary manifest": (lambda path: (path / "manifest.json").write_bytes(b"\xff\0" * 99), "manifest.json is damaged"),
    "other JSON": (lambda path: (path / "manifest.json").write_text("[1, 2]"), "manifest.json is damaged"),
    "other facts": (change_facts, "manifest.json is damaged"),
    "empty": (leave_an_empty_directory, "manifest.json cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_and_said_so(directory, damage):
    spoil, reason = DAMAGES[damage]
    spoil(directory / "round_0000000009")
    reports = []
    with Checkpoints(directory, report=reports.append) as store:
        restored = store.restore(template())
    assert restored.round_index == 5
    assert_same(restored.state, make_state(seed=5))
    assert len(reports) == 1
    with pytest.raises(ValueError, match=reason):
        _manifest.read_checked(directory / "round_0000000009")
    assert f"{directory}/round_0000000009: this checkpoint is damaged and is skipped: " in reports[0]


def test_damage_warns_unless_somebody_listens(directory):
    flip(largest_array_file(directory / "round_0000000009"))
    with (
        Checkpoints(directory) as store,
        pytest.warns(UserWarning, match="round_0000000009: this checkpoint is damaged"),
    ):
        store.restore(template())


@pytest.mark.parametrize("is_best", [False, True])
def test_all_damaged_is_an_error(directory, is_best):
    for path in directory.iterdir():
        (path / "manifest.json").unlink()
    with Checkpoints(directory, report=lambda _: None) as store, pytest.raises(CheckpointError) as error:
        store.restore(template(), is_best=is_best)
    error.match(r"expected an intact checkpoint, got 2 damaged \(round_0000000009: manifest.json cannot be read")
    error.match("put one back from a copy, or remove this directory")


@pytest.mark.parametrize("next_round", [6, 9, 11])
def test_going_on_after_damage_replaces_it(directory, next_round):
    flip(largest_array_file(directory / "round_0000000009"))
    with Checkpoints(directory, report=lambda _: None) as store:
        assert store.restore(template()).round_index == 5
        store.save(next_round, make_state(seed=1))
        store.wait()
        assert store.rounds() == (5, next_round)
    with Checkpoints(directory, report=never) as store:
        restored = store.restore(template())
    assert restored.round_index == next_round
    assert_same(restored.state, make_state(seed=1))


def test_going_back_removes_what_the_run_will_do_again(directory):
    with Checkpoints(directory, report=never) as store:
        assert store.restore(template(), is_best=True).round_index == 5
        store.save(7, make_state(seed=1))
        store.wait()
        assert store.rounds() == (5, 7)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            make_state(size=16),
            r"template: expected params.layers.0.kernel float32\[16, 3\], got float32\[8, 3\] in .*/round_0000000009; "
            "that checkpoint is of another model",
        ),
        (
            make_state()._replace(selector=(jnp.zeros(2),)),
            r"template: expected selector.0 float32\[2\], got \(no such leaf\)",
        ),
        (make_state()._replace(seed_keys={}), r"expected seed_keys \(no such leaf\), got key<rbg>\[2\]"),
        (make_state()._replace(key=jax.random.key(0, impl="rbg")), r"expected key key<rbg>\[\], got key<fry>\[\]"),
        (make_state()._replace(round_index=jnp.float32(0)), r"expected round_index float32\[\], got int32\[\]"),
    ],
)
def test_another_structure_is_an_error(directory, other, message):
    with Checkpoints(directory, report=never) as store, pytest.raises(ValueError, match=message):
        store.restore(jax.eval_shape(lambda: other))


def test_bad_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="keep_last: expected an integer >= 1, got 0"):
        Checkpoints(tmp_path, keep_last=0)
    with Checkpoints(tmp_path) as store:
        with pytest.raises(ValueError, match="round_index: expected an integer >= 0"):
            store.save(-1, {"x": jnp.ones(2)})
        with pytest.raises(ValueError, match="score: expected a finite number or None, got nan"):
            store.save(1, {"x": jnp.ones(2)}, score=float("nan"))
        with pytest.raises(ValueError, match="facts: expected text, lists, dictionaries and finite numbers"):
            store.save(1, {"x": jnp.ones(2)}, {"loss": float("inf")})
        with pytest.raises(ValueError, match=r"facts: expected values that JSON does not change, got 'pair': \(1, 2\)"):
            store.save(1, {"x": jnp.ones(2)}, {"pair": (1, 2)})
        with pytest.raises(ValueError, match="state: expected numbers that float32 holds exactly, got x float64"):
            store.save(1, {"x": np.array([0.1])})
        with pytest.raises(ValueError, match=r"state: expected leaves of distinct names, got a\.b twice"):
            store.save(1, {"a": {"b": 1}, "a.b": 2})
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_will_not_fit_is_not_begun(directory, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(total=10**6, used=10**6 - 4000, free=4000))
    with Checkpoints(directory, report=never) as store:
        with pytest.raises(CheckpointError) as error:
            store.save(10, make_state(size=2000))
        error.match(r"round_0000000010: .*got: No space left on device: 4,000 bytes are free and 241,\d\d\d are needed")
        error.match(r"\(rounds: 5, 9\); free space there and run the same again")
    assert {path.name for path in directory.iterdir()} == {"round_0000000005", "round_0000000009"}


def test_a_full_disk_is_an_error_and_harms_nothing(tmp_path):
    message = run("full_disk_program.py", tmp_path / "checkpoints")
    assert "round_0000000010: expected to write a checkpoint, got: File too large. Earlier" in message
    assert "(rounds: 9); free space there and run the same again" in message


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
def test_an_error_of_the_manifest_is_told_at_the_next_save(directory, monkeypatch, number):
    def fail(path, content):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(_files, "write_atomically", fail)
    store = Checkpoints(directory, report=never)
    store.save(10, make_state())
    with pytest.raises(CheckpointError) as error:
        store.save(11, make_state())
    error.match(f"round_0000000010: .*{os.strerror(number)}")
    error.match("repair what is wrong there" if number == errno.EACCES else "free space there")
    store.close()
    assert store.rounds() == (5, 9)


def test_an_error_under_way_is_not_hidden_by_that_of_a_checkpoint(tmp_path, monkeypatch):
    def save_and_fail(report, error):
        with Checkpoints(tmp_path, report=report) as store:
            store.save(1, make_state())
            if error is not None:
                raise error

    monkeypatch.setattr(_manifest, "write", lambda *_: os.stat(tmp_path / "absent"))
    reports = []
    with pytest.raises(KeyError):
        save_and_fail(reports.append, KeyError())
    assert "round_0000000001: expected to write a checkpoint" in reports[0]
    with pytest.raises(CheckpointError):
        save_and_fail(never, None)


class Killed(BaseException):
    """Ends a thread as a kill would, at one step of many."""


@pytest.mark.parametrize("saved_round", [9, 10])
def test_a_kill_at_any_step_leaves_the_old_or_the_whole_one(tmp_path, monkeypatch, saved_round):
    state_of = lambda seed: {"x": jnp.full(3, seed)}
    with Checkpoints(tmp_path / "before", report=never) as store:
        store.save(5, state_of(5), score=1.0)
        store.save(9, state_of(9), {"is_old": True}, score=0.0)
    outcomes = []
    for last_step in range(100):
        directory = pathlib.Path(shutil.copytree(tmp_path / "before", tmp_path / f"{last_step}"))
        steps = 0

        def killable(function, last_step=last_step):
            def run(*arguments, **options):
                nonlocal steps
                steps += "/state" not in str(arguments[0])  # what orbax does inside is its own
                if steps > last_step:
                    raise Killed
                return function(*arguments, **options)

            return run

        store = Checkpoints(directory, keep_last=1, report=never)
        with monkeypatch.context() as patch:
            for module, name in [(os, "rename"), (os, "replace"), (_files, "sync_directory"), (shutil, "rmtree")]:
                patch.setattr(module, name, killable(getattr(module, name)))
            with contextlib.suppress(Killed):
                store.save(saved_round, state_of(1))
                store.wait()
            was_killed = steps > last_step
        store.close()
        with Checkpoints(directory, keep_last=1, report=never) as store:
            restored = store.restore(state_of(0))
            is_complete = restored.facts == {}
            assert restored.round_index == (saved_round if is_complete else 9)
            assert restored.state["x"].tolist() == [1 if is_complete else 9] * 3
            outcomes.append(is_complete)
            store.save(saved_round + 1, state_of(2))
        # The best and the one just written; nothing half-done is left.
        assert {path.name for path in directory.iterdir()} == {"round_0000000005", f"round_{saved_round + 1:010d}"}
        if not was_killed:
            break
    else:
        pytest.fail("never came to an end")
    assert len(outcomes) > 6
    assert outcomes == sorted(outcomes)
    assert {False, True} == set(outcomes)


def run(program, *arguments, **variables):
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1]), "JAX_PLATFORMS": "cpu"} | variables
    command = [sys.executable, str(HERE / program), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.mark.slow
def test_kill_nine(tmp_path):
    assert "SIGKILL 12 times" in run("killed_program.py", tmp_path / "checkpoints", 12)


@pytest.mark.slow
def test_sharded_states_go_to_their_devices(tmp_path):
    run("sharded_checkpoint_program.py", tmp_path, XLA_FLAGS="--xla_force_host_platform_device_count=8")
