"""The training loop and what is around it: configuration, rounds, checkpoints, metrics, evaluation and figures."""
