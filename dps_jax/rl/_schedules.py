"""Learning rates over the steps of the optimiser: a linear warm-up, then constant or decaying."""

from __future__ import annotations

import optax

from dps_jax import _checks

SCHEDULES = ("constant", "linear", "cosine")


def learning_rate_schedule(
    learning_rate: float, schedule: str = "constant", *, warmup_steps: int = 0, decay_steps: int | None = None
) -> float | optax.Schedule:
    """Returns a learning rate for `learner`: an optax schedule, or a number if the rate is constant.

    Args:
      learning_rate: peak learning rate, >= 0, reached at the end of the warm-up.
      schedule: "constant"; or "linear" or "cosine", which decay to 0.
      warmup_steps: number of steps of the warm-up, in which the rate grows linearly; 0 for no warm-up. At the first
        step the rate is 1 / warmup_steps of the peak.
      decay_steps: step (from 0, warm-up included) at which the rate reaches 0; not used by "constant".

    Returns:
      An optax schedule; for "constant" without a warm-up, the number `learning_rate`.

    Raises:
      ValueError: for an unknown schedule, a number out of range, or "linear" or "cosine" without `decay_steps`.

    Example:
      >>> from dps_jax import rl
      >>> rate = rl.learning_rate_schedule(1e-3, "linear", warmup_steps=4, decay_steps=20)
      >>> [f"{float(rate(step)):.6f}" for step in (0, 3, 12, 20)]
      ['0.000250', '0.001000', '0.000500', '0.000000']
    """
    _checks.check_number("learning_rate", learning_rate, at_least=0)
    _checks.check_choice("schedule", schedule, SCHEDULES)
    _checks.check_int("warmup_steps", warmup_steps, at_least=0)
    if schedule == "constant":
        if not warmup_steps:
            return learning_rate
        after = optax.constant_schedule(learning_rate)
    else:
        if decay_steps is None:
            raise ValueError(f"decay_steps: expected a number of steps for schedule {schedule!r}, got None")
        _checks.check_int("decay_steps", decay_steps, at_least=warmup_steps + 1)
        length = decay_steps - warmup_steps
        if schedule == "cosine":
            after = optax.cosine_decay_schedule(learning_rate, length)
        else:
            after = optax.linear_schedule(learning_rate, 0.0, length)
    if not warmup_steps:
        return after
    warmup = optax.linear_schedule(learning_rate / warmup_steps, learning_rate, max(warmup_steps - 1, 1))
    return optax.join_schedules([warmup, after], [warmup_steps])
