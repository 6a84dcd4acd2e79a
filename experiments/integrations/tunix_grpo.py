"""Trains a tiny model on sums with tunix's GRPOLearner, on prompts that dps_jax chooses; a minute on a CPU.

    pip install '.[tunix]'
    python experiments/integrations/tunix_grpo.py
    python experiments/integrations/tunix_grpo.py --steps 40 --method binomial_hmm

The model (one layer, random weights) and its tokenizer are created by the script; nothing is downloaded. The selection
is the stream in main(): it replaces the training set, its `outcome` wraps the reward function, and `attach` adds the
selector to checkpoints.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import argparse
from typing import Any

import optax
from _tiny_tunix import accuracy, make_cluster, make_rows
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner

from dps_jax import PromptSelector
from dps_jax.integrations.tunix import PromptStream


class Shown(PromptSelector):
    """A selector that prints the prompts it selects, and the effective sample ratio of each batch."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.ratios: list[float] = []

    def select(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the prompts of the next batch."""
        self.commit()
        ids = super().select(*args, **kwargs)
        print(f"batch {self.state_dict()['num_batches']}: {', '.join(f'{i // 10} + {i % 10}' for i in ids)}")
        return ids

    def commit(self) -> None:
        """Ends the round, and prints the effective sample ratio if anything was observed."""
        is_round = self.metrics()["num_pending"] > 0
        super().commit()
        if is_round:
            figures = self.metrics()
            self.ratios.append(figures["effective_sample_ratio"])
            print(f"  partially solved: {self.ratios[-1]:.2f} (predicted: {figures['predicted_informative']:.2f})")


def main(steps: int, batch_size: int, group_size: int, method: str) -> list[float]:
    """Trains, and returns the effective sample ratio of every batch."""
    rows = make_rows()
    selector = Shown(len(rows), method, group_size=group_size, device="cpu")  # or a PromptSelector
    stream = PromptStream(selector, rows, batch_size)
    learner = GRPOLearner(
        make_cluster(optax.adam(1e-2), max_steps=steps),
        GRPOConfig(num_generations=group_size, beta=0.0),
        reward_fns=[stream.outcome(accuracy)],
        metric_fns=[stream.metric_fn],
    )
    stream.attach(learner)
    learner.train(stream)
    selector.commit()
    for name, part in (("first", selector.ratios[: steps // 2]), ("second", selector.ratios[steps // 2 :])):
        print(f"{name} half: effective sample ratio {sum(part) / max(len(part), 1):.2f}")
    return selector.ratios


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="steps to train (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="prompts per step (default: %(default)s)")
    parser.add_argument("--group-size", type=int, default=8, help="completions per prompt (default: %(default)s)")
    parser.add_argument(
        "--method", default="instructive", help="selection method; uniform for comparison (default: %(default)s)"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(**vars(parsed()))
