"""Learning rates over the steps of the optimiser: a linear warm-up, then constant or decaying."""

from __future__ import annotations

import optax

from dps_jax import _checks

SCHEDULES = ("constant", "linear", "cosine")


def learning_rate_schedule(
    learning_rate: float, schedule: str = "constant", *, warmup_steps: int = 0, decay_steps: int | None = None
) -> float | optax.Schedule:
    """Returns the learning rate over the optimiser's steps, as `learner` takes it.

    Args:
      learning_rate: after the warm-up, >= 0.
      schedule: "constant", or "linear" or "cosine" for one that falls to 0.
      warmup_steps: over which the rate grows linearly; the first step has 1 / warmup_steps of it.
      decay_steps: steps from the first on after which the rate is 0; not used by "constant".

    Raises:
      ValueError: for an unknown schedule, a number out of range, or a decay without its length.
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
