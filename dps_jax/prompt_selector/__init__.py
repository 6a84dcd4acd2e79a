"""A stateful prompt selector for an existing trainer, with NumPy arrays in and out."""

from dps_jax.prompt_selector._selector import PromptSelector

__all__ = ["PromptSelector"]

# Pickles name the public module, so that they outlive changes of the private ones.
PromptSelector.__module__ = __name__
