"""A stateful prompt selector for an existing trainer, with NumPy arrays in and out."""

from dps_jax.prompt_selector._selector import PromptSelector

__all__ = ["PromptSelector"]
