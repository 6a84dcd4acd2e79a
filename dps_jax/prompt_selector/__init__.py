"""The selector object for a trainer that already runs."""

from dps_jax.prompt_selector.selector import PromptSelector

__all__ = ["PromptSelector"]
