"""The selector that a trainer gets, with JAX on the CPU: the accelerator is the trainer's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dps_jax.prompt_selector import PromptSelector

# The method that integrations choose by where none is given; see docs/when-selection-pays.md.
DEFAULT_METHOD = "instructive"


def keep_jax_on_cpu() -> None:
    """Keeps JAX from starting on an accelerator, in a process whose framework does not use JAX.

    Where it has started already, or `JAX_PLATFORMS` says where it is to, nothing changes.
    """
    import jax

    if not jax.config.jax_platforms:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_platforms", "cpu")


def default_selector(num_prompts: int, group_size: int, seed: int = 0) -> PromptSelector:
    """Returns a selector over all rows of a data set, whose state and work are on the CPU.

    Args:
      num_prompts: N.
      group_size: G, completions of a prompt in a round.
      seed: of its random stream.
    """
    from dps_jax.prompt_selector import PromptSelector

    return PromptSelector(num_prompts, DEFAULT_METHOD, seed=seed, group_size=group_size, device="cpu")


def check_selector(selector: Any, num_prompts: int) -> None:
    """Raises ValueError unless a selector is one, over as many prompts as a data set has rows."""
    from dps_jax import _checks
    from dps_jax.prompt_selector import PromptSelector

    _checks.check_instance("selector", selector, PromptSelector)
    if selector.num_prompts != num_prompts:
        raise ValueError(
            f"selector: expected one over {num_prompts:,} prompts, the rows of the data set, got one over "
            f"{selector.num_prompts:,}; build it with PromptSelector({num_prompts}, ...)"
        )
