"""The phases of a round, compiled and timed one by one; they can be abandoned after a signal."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dps_jax import rl
from dps_jax.training._interrupts import LeftBehind
from dps_jax.training._round import Round, RoundInfo, TrainState, round_info

# (state, selection) -> the collection of a round, and further entries of the record of the round. If there is a
# selection, the selector's state is not needed, and `state.selector` is None.
CollectFn = Callable[[TrainState, rl.Selection | None], tuple[rl.Collection, dict[str, Any]]]


def collect_on_device(parts: Round, problems: Any) -> CollectFn:
    """Returns the function that collects a round, with completions that are graded on the device, in one program."""
    return functools.partial(_collect, jax.jit(parts.collect), problems)


def _collect(
    collect: Callable[..., rl.Collection], problems: Any, state: TrainState, selection: rl.Selection | None
) -> tuple[rl.Collection, dict[str, Any]]:
    return collect(state, problems, selection), {}


class Phases:
    """The phases of a round, compiled one by one and timed."""

    def __init__(self, parts: Round, collect: CollectFn):
        self._select = jax.jit(parts.select)
        self._collect = collect
        self._update = jax.jit(parts.update, donate_argnums=0)
        self._observe = jax.jit(parts.observe, donate_argnums=0)
        self._lock = threading.Lock()
        self._is_stopped = self._is_given_away = False

    def stop(self) -> bool:
        """Stops an abandoned round before its next phase; returns whether the state before the round still exists."""
        with self._lock:
            self._is_stopped = True
            return not self._is_given_away

    def take_over(self) -> None:
        """Records that the caller has replaced its state by the state that `run` returned."""
        self._is_given_away = False

    def _give_away(self) -> None:
        with self._lock:
            if self._is_stopped:
                raise LeftBehind
            self._is_given_away = True

    def run(self, state: TrainState) -> tuple[TrainState, rl.Collection, RoundInfo, dict[str, Any]]:
        """Returns the state of the next round, the collection, the `RoundInfo`, and further entries of the record.

        The further entries are the seconds of the phases, and the entries that the collection function returned.
        """
        clock = [time.perf_counter()]

        def timed(value):
            jax.block_until_ready(value)
            clock.append(time.perf_counter())
            return value

        selection = timed(self._select(state))
        # Without the selector's state, which they do not need, the programs are the same for all methods.
        policy = state._replace(selector=None)
        collection, more = timed(self._collect(state if selection is None else policy, selection))
        self._give_away()
        policy, update_info = timed(self._update(policy, collection))
        state, judgement = timed(self._observe(policy._replace(selector=state.selector), collection))
        select_s, rollout_s, update_s, observe_s = np.diff(clock).tolist()
        seconds = {"select_s": select_s, "rollout_s": rollout_s, "update_s": update_s, "observe_s": observe_s}
        return state, collection, round_info(collection, update_info, judgement), seconds | more
