import dataclasses
import os
import signal
import threading
import time

import pytest

from dps_jax.training import _checkpoints, _interrupts, _run_log, _setup, _trainer
from tests.training import runs


@pytest.fixture(autouse=True)
def _shared(monkeypatch):
    runs.share_programs(monkeypatch)
    # What a shell starts in the background ignores SIGINT.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    config = runs.tiny(tmp_path_factory.mktemp("whole"))
    with pytest.MonkeyPatch.context() as patch:
        runs.share_programs(patch)
        runs.run(config)
    return config


def run_until_stopped(config):
    """Returns the error that ended a run, and what it printed."""
    console = runs.quiet()
    with pytest.raises(_interrupts.Terminated) as stop:
        _trainer.train(config, console)
    return stop.value, console.file.getvalue()


def saved_rounds(config):
    with _checkpoints.Checkpoints(config.folder / "checkpoints") as store:
        return store.rounds()


def send_at(monkeypatch, signum, num_rounds):
    """Sends a signal to this process when so many rounds were logged."""
    append = _run_log.MetricsLog.append

    def append_and_send(log, record):
        append(log, record)
        if record["round"] == num_rounds - 1:
            os.kill(os.getpid(), signum)

    monkeypatch.setattr(_run_log.MetricsLog, "append", append_and_send)


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_saves_says_so_in_a_line_and_the_run_goes_on_to_the_same_end(whole, tmp_path, monkeypatch, name, code):
    config = dataclasses.replace(whole, out_dir=tmp_path)
    with monkeypatch.context() as patch:
        send_at(patch, getattr(signal, name), 5)
        stop, text = run_until_stopped(config)
    assert (stop.code, stop.is_work_left) == (code, False)
    assert text.splitlines()[-1] == f"{name}: saved after 5 rounds; the same command goes on from there"
    assert text.count(name) == 1
    assert saved_rounds(config)[-1] == 5
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    _, text = runs.run(config)
    assert "after 5 rounds: test accuracy" not in text
    runs.assert_same_end(config, whole)


class Blocked:
    """A function that does not come back at one of its calls, and a signal that comes meanwhile."""

    def __init__(self, function, at_call):
        self.function, self.at_call, self.num_calls = function, at_call, 0
        self.release, self.time = threading.Event(), 0.0

    def __call__(self, *arguments):
        self.num_calls += 1
        if self.num_calls == self.at_call:
            self.time = time.monotonic()
            os.kill(os.getpid(), signal.SIGINT)
            assert self.release.wait(60)
        return self.function(*arguments)


def phases_of_its_own(config):
    """Returns phases that may be stopped, with the compiled programs of all others."""
    parts = _setup.build(config)
    shared = _trainer.Phases(parts.round, parts.collect)
    phases = object.__new__(type(shared))
    phases.__dict__.update(shared.__dict__)
    return phases


def run_blocked(config, blocked):
    """Returns what `run_until_stopped` does, and checks that it took the time of grace and little more."""
    stop, text = run_until_stopped(config)
    assert time.monotonic() - blocked.time < _interrupts.GRACE_S + 10
    assert stop.is_work_left
    blocked.release.set()
    return stop, text


def test_a_signal_in_an_evaluation_leaves_it_and_loses_no_round(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(_interrupts, "GRACE_S", 0.3)
    config = dataclasses.replace(whole, out_dir=tmp_path)
    phases, parts = phases_of_its_own(config), _setup.build(config)
    with monkeypatch.context() as patch:
        blocked = Blocked(parts.evaluate, 2)
        patch.setattr(_trainer, "Phases", lambda *_: phases)
        patch.setattr(_setup, "build", lambda _: dataclasses.replace(parts, evaluate=blocked))
        stop, text = run_blocked(config, blocked)
    assert stop.code == 130
    assert "SIGINT: saved after 3 rounds" in text
    # The record of the third round waits for its evaluation.
    assert len(_run_log.read_metrics(config.folder / "metrics.jsonl")) == 2
    runs.run(config)
    runs.assert_same_end(config, whole)


@pytest.mark.parametrize(("phase", "saved"), [("_collect", 3), ("_update", 2)])
def test_a_signal_in_a_round_that_takes_long_goes_back_to_the_round_before(whole, tmp_path, monkeypatch, phase, saved):
    monkeypatch.setattr(_interrupts, "GRACE_S", 0.3)
    config = dataclasses.replace(whole, out_dir=tmp_path, eval_every=6)
    slow = phases_of_its_own(config)
    blocked = Blocked(getattr(slow, phase), 4)
    setattr(slow, phase, blocked)
    with monkeypatch.context() as patch:
        patch.setattr(_trainer, "Phases", lambda *_: slow)
        _, text = run_blocked(config, blocked)
    # What the update was given may be overwritten already; then the last checkpoint stands.
    assert f"SIGINT: saved after {saved} rounds" in text
    assert saved_rounds(config)[-1] == saved
    assert runs.run(config)[0]["rounds"] == 6


def test_a_second_signal_leaves_at_once(monkeypatch):
    left = []
    monkeypatch.setattr(_interrupts.os, "_exit", left.append)
    with _interrupts.watched() as signals:
        with pytest.raises(_interrupts.Terminated) as raised, signals.held():
            os.kill(os.getpid(), signal.SIGINT)
        assert raised.value.signum == signals.signum == signal.SIGINT
        with pytest.raises(_interrupts.Terminated):  # the stand-in for os._exit returns
            os.kill(os.getpid(), signal.SIGTERM)
    assert left == [143]


def test_a_signal_before_the_first_round_ends_the_run(tmp_path, monkeypatch):
    config = runs.tiny(tmp_path)
    monkeypatch.setattr(_setup, "build", lambda _: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(30))
    start = time.monotonic()
    stop, text = run_until_stopped(config)
    assert time.monotonic() - start < 20
    assert stop.code == 143
    assert text == "SIGTERM: stopped; the same command goes on from what was saved\n"
    assert not config.folder.exists()


def test_errors_and_results_of_work_come_back_and_ignored_signals_stay_ignored():
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with _interrupts.watched() as signals:
            os.kill(os.getpid(), signal.SIGINT)
            assert signals.signum is None
            assert signals.run(lambda: 3) == 3
            with pytest.raises(KeyError):
                signals.run(lambda: {}["absent"])
    finally:
        signal.signal(signal.SIGINT, previous)


def test_other_threads_leave_signals_alone():
    found = []

    def work():
        with _interrupts.watched() as signals:
            found.append((signals.run(lambda: 4), signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(4, before)]


def test_a_signal_at_the_very_end_is_not_lost():
    with _interrupts.watched() as signals:
        with pytest.raises(_interrupts.Terminated) as stop, signals.held():
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.value.code == 143
