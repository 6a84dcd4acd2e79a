"""The prompts of the next epoch from the rollouts of the last one, file in and file out; see `__main__`."""
