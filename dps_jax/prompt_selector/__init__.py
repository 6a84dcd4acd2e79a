"""The selector object for a trainer that already runs."""

from dps_jax.prompt_selector._selector import PromptSelector

__all__ = ["PromptSelector"]
