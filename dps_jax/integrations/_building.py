"""Builds the selector for a trainer, with JAX on the CPU, so that the trainer has the accelerator to itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dps_jax.prompt_selector import PromptSelector

# The default selection method of the integrations; see docs/when-selection-pays.md.
DEFAULT_METHOD = "instructive"


def keep_jax_on_cpu() -> None:
    """Keeps JAX off the accelerator, in a process whose framework does not use JAX.

    This has no effect if JAX has started already, or if `JAX_PLATFORMS` is set.
    """
    import jax

    if not jax.config.jax_platforms:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_platforms", "cpu")


def default_selector(num_prompts: int, group_size: int, seed: int = 0) -> PromptSelector:
    """Returns a selector with the default method over all rows of a data set; it runs, and keeps its state, on the CPU.

    Args:
      num_prompts: number of rows of the data set, N.
      group_size: number of completions per prompt, G.
      seed: random seed of the selector.
    """
    from dps_jax.prompt_selector import PromptSelector

    return PromptSelector(num_prompts, DEFAULT_METHOD, seed=seed, group_size=group_size, device="cpu")


def check_selector(selector: Any, num_prompts: int) -> None:
    """Raises ValueError unless `selector` is a `PromptSelector` over as many prompts as a data set has rows."""
    from dps_jax import _checks
    from dps_jax.prompt_selector import PromptSelector

    _checks.check_instance("selector", selector, PromptSelector)
    if selector.num_prompts != num_prompts:
        raise ValueError(
            f"selector: expected one over {num_prompts:,} prompts, the rows of the data set, got one over "
            f"{selector.num_prompts:,}; build it with PromptSelector({num_prompts}, ...)"
        )
