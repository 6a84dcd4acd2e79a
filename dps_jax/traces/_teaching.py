"""Simulated training of a policy with a selector, on prompts that share facts, over many seeds at once.

All seeds run in one compiled program. This example compares a selector with an oracle; `area` returns one value per
seed:

    make = lambda problems: selectors.build("dps", problems.num_prompts)
    record = teaching.run(make, "lean", num_seeds=10)
    bound = teaching.run(ORACLES["oracle_i"], "lean", num_seeds=10)
    teaching.area(record.accuracy), teaching.area(bound.accuracy)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dps_jax import _checks
from dps_jax.traces import _shared_facts
from dps_jax.traces._oracles import Oracle
from dps_jax.traces._shared_facts import MIXES, Mix, Problems
from dps_jax.traces._teaching_round import Model, Moves, Record, simulate
from dps_jax.types import Selector

MakeSelector = Callable[[Problems], Selector]
LEARNING_RATE = 0.03


def simulator(
    method: MakeSelector | Oracle,
    mix: Mix | str,
    *,
    num_prompts: int = 2400,
    num_rounds: int = 160,
    batch_size: int = 32,
    group_size: int = 8,
    pool_factor: int = 8,
    max_norm: float | None = None,
    problem_seed: int = 0,
    reports_signal: bool = False,
    reports_moves: bool = False,
) -> Callable[[Any, Any], Record]:
    """Returns the pure function (seed, learning_rate) -> Record of one seed, for `jit` and `vmap`.

    Args:
      method: function Problems -> Selector, or an oracle.
      mix: composition of the training set, or its name in `MIXES`.
      num_prompts: number of training prompts, N.
      num_rounds: number of rounds, T.
      batch_size: number of prompts per round, B.
      group_size: number of completions per prompt, G.
      pool_factor: size of the pool of a round, which is drawn at random, as a multiple of B; 0 stands for all prompts.
      max_norm: norm to which gradients are clipped; None for no clipping.
      problem_seed: seed of facts, groups and features. The seed of a run draws the first policy, wrong references,
        pools, picks and completions.
      reports_signal: whether to record `gradient_cosine`, which about doubles the time.
      reports_moves: whether to record `moves`.

    Raises:
      ValueError: for an option out of range; the message names it.
    """
    if isinstance(mix, str):
        _checks.check_choice("mix", mix, MIXES)
        mix = MIXES[mix]
    _checks.check_int("num_rounds", num_rounds, at_least=1)
    _checks.check_int("batch_size", batch_size, at_least=1, at_most=num_prompts)
    _checks.check_int("group_size", group_size, at_least=2)
    _checks.check_int("pool_factor", pool_factor, at_least=0)
    if max_norm is not None and not 0 < max_norm < np.inf:
        raise ValueError(f"max_norm: expected a finite number > 0 or None, got {max_norm}")
    is_oracle = isinstance(method, Oracle)
    if not is_oracle and not callable(method):
        raise ValueError(f"method: expected a function of Problems or an Oracle, got {method!r}")
    problems = _shared_facts.draw_problems(mix, num_prompts, problem_seed)
    model = Model(
        mix=mix,
        problems=problems,
        selector=None if is_oracle else method(problems),
        oracle=method if is_oracle else None,
        num_rounds=num_rounds,
        batch_size=batch_size,
        group_size=group_size,
        pool_size=pool_factor * batch_size or num_prompts,
        transformation=_shared_facts.optimiser(max_norm),
        reports_signal=reports_signal,
        reports_moves=reports_moves,
    )
    return functools.partial(simulate, model)


def run(
    method: MakeSelector | Oracle,
    mix: Mix | str,
    *,
    num_seeds: int = 10,
    first_seed: int = 0,
    learning_rate: float = LEARNING_RATE,
    **options: Any,
) -> Record:
    """Returns the record of S runs, computed by one compiled program.

    Args:
      method: function Problems -> Selector, or an oracle.
      mix: composition of the training set, or its name in `MIXES`.
      num_seeds: number of runs, S.
      first_seed: seed of the first run; the others follow. All methods see the same first policy, wrong references and
        pools under the same seed.
      learning_rate: learning rate of Adam.
      **options: options `num_prompts`, `num_rounds`, `batch_size`, `group_size`, `pool_factor`, `max_norm`,
        `problem_seed`, `reports_signal` and `reports_moves` of `simulator`.

    Raises:
      ValueError: for an option out of range; the message names it.
    """
    _checks.check_int("num_seeds", num_seeds, at_least=1)
    _checks.check_int("first_seed", first_seed, at_least=0)
    if not 0 < learning_rate < np.inf:
        raise ValueError(f"learning_rate: expected a finite number > 0, got {learning_rate}")
    simulate_seed = simulator(method, mix, **options)
    seeds = jnp.arange(first_seed, first_seed + num_seeds)
    return jax.device_get(jax.jit(jax.vmap(simulate_seed, in_axes=(0, None)))(seeds, learning_rate))


def area(accuracy: Any) -> np.ndarray:
    """Returns the area under the curve of held-out accuracy, which is its mean over rounds, [S], from [S, T + 1]."""
    return np.mean(np.asarray(accuracy, np.float64), axis=-1)


def coverage(ids: Any, num_prompts: int) -> np.ndarray:
    """Returns the share of training prompts that were picked up to each round, [S, T], from ids [S, T, B]."""
    ids = np.asarray(ids)
    first_round = np.full((ids.shape[0], num_prompts), ids.shape[1])
    for round_index in reversed(range(ids.shape[1])):
        seeds, places = np.nonzero(ids[:, round_index] >= 0)
        first_round[seeds, ids[seeds, round_index, places]] = round_index
    is_picked = first_round[:, :, None] <= np.arange(ids.shape[1])
    return is_picked.mean(axis=1)


__all__ = ["LEARNING_RATE", "MakeSelector", "Moves", "Record", "area", "coverage", "run", "simulator"]
